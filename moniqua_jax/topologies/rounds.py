"""Rounds that gossip cycles through, and a part of their weights."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from moniqua_jax import arguments
from moniqua_jax.topologies.base import (
  Topology,
  matrix,
  push_matrix,
  rounds_of,
)
from moniqua_jax.topologies.requirements import (
  check_connected,
  require_symmetric,
)


@overload
def lazy(topology: Topology, gamma: float) -> Topology: ...
@overload
def lazy(
  topology: Sequence[Topology], gamma: float
) -> tuple[Topology, ...]: ...
@overload
def lazy(
  topology: Topology | Sequence[Topology], gamma: float
) -> Topology | tuple[Topology, ...]: ...
def lazy(
  topology: Topology | Sequence[Topology], gamma: float
) -> Topology | tuple[Topology, ...]:
  """Gossip with only a part of each weight, so that coarse messages settle.

  W_bar = gamma W + (1 - gamma) I.

  Args:
    topology: a Topology, or a tuple of them.
    gamma: 0 < gamma <= 1, the part that is kept; 1 changes nothing.

  Returns:
    The same as was given, with weights times gamma.

  Raises:
    ValueError: if gamma is not within (0, 1].

  >>> from moniqua_jax import complete
  >>> lazy(complete(2), 0.5).edges
  ((0.25, (1, 0)),)

  Source: Lu and De Sa 2020 (the slack matrix, for 1 bit).
  """
  gamma = arguments.share(gamma, 'lazy needs 0 < gamma <= 1; got gamma={}.')
  slow = tuple(
    Topology([(np.multiply(gamma, w), perm) for w, perm in r.edges])
    for r in rounds_of(topology)
  )
  return slow[0] if isinstance(topology, Topology) else slow


def schedule(topology: Topology | Sequence[Topology]) -> tuple[Topology, ...]:
  """The rounds that gossip cycles through: `rounds[step % len(rounds)]`.

  The union of the graphs of W_0, ..., W_{m-1} is strongly connected.

  Args:
    topology: a Topology, or a tuple of them.

  Returns:
    A non-empty tuple of Topologies of the same n.

  Raises:
    ValueError: if it is neither, the rounds differ in n, or some workers
      never hear of some others.

  >>> from moniqua_jax import one_peer_exponential, ring
  >>> len(schedule(ring(4))), len(schedule(one_peer_exponential(8)))
  (1, 3)

  Source: Koloskova et al., "A Unified Theory of Decentralized SGD with
  Changing Topology and Local Updates", ICML 2020.
  """
  rounds = rounds_of(topology)
  union = np.sum([matrix(r) for r in rounds], axis=0)
  check_connected(union, 'the topology (all rounds together)')
  return rounds


def push_schedule(
  topology: Topology | Sequence[Topology],
) -> tuple[Topology, ...]:
  """`schedule`, with the weights read by sender.

  Args:
    topology: a Topology, or a tuple of them.

  Returns:
    A non-empty tuple of Topologies of the same n.

  Raises:
    ValueError: as `schedule`.

  >>> len(push_schedule(Topology([(0.5, (1, 2, 0))])))
  1

  Source: Assran et al. 2019 (strongly connected over a period).
  """
  rounds = rounds_of(topology)
  union = np.sum([push_matrix(r) for r in rounds], axis=0)
  check_connected(union, 'the topology (all rounds together)')
  return rounds


def one_symmetric(
  topology: Topology | Sequence[Topology], algorithm: str
) -> tuple[Topology, ...]:
  """A schedule of one symmetric topology, for algorithms that keep replicas.

  Args:
    topology: a Topology, or a tuple of one.
    algorithm: the name that an error blames.

  Returns:
    A tuple of one Topology.

  Raises:
    ValueError: there are several, W is not symmetric, or not connected.

  >>> from moniqua_jax import ring
  >>> len(one_symmetric(ring(4), 'choco'))
  1

  Source: Lu and De Sa 2020 (the assumptions on W).
  """
  rounds = schedule(topology)
  if len(rounds) > 1:
    raise ValueError(
      f'{algorithm} takes one topology for all steps, not {len(rounds)}; '
      'dpsgd, adpsgd, deepsqueeze and push_sum take several.'
    )
  require_symmetric(rounds, algorithm)
  return rounds
