"""The type Topology, and what is computed from it.

n: workers. Row i of W is receiver i, column j is sender j.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from moniqua_jax import wire

Weight = float | tuple[float, ...]
Perm = tuple[int, ...]

ROUNDING = 1e-9  # slack for sums of float64 weights
TOLERANCE = 1e-6  # slack for a matrix from outside, perhaps once float32


def require_whole(name: str, least: int = 1, **numbers) -> None:
  """Refuses by its name what is no whole number, or too small a one."""
  for key, value in numbers.items():
    whole = type(wire.integer(value)) is int
    if not whole or value < least:
      why = '' if whole else ', which is no whole number'
      raise ValueError(
        f'{name} needs {key} >= {least}; got {key}={value!r}{why}.'
      )


class _Edges(NamedTuple):
  edges: tuple[tuple[Weight, Perm], ...]


class Topology(_Edges):
  """The edges of one round of gossip; static and hashable.

  W = I + sum_k diag(w_k) (P_k - I), with P_k[perm[i], i] = 1.

  Args:
    edges: `((weight, perm), ...)`. `perm[i]` is the worker to which worker i
      sends, a full permutation of range(n); where `perm[i] == i` nothing is
      sent and nothing contributed. `weight` is one float, or n floats indexed
      by the *receiver*.

  Raises:
    ValueError: if there is no edge, a perm is not a permutation of range(n)
      with the same n, a weight is negative, not finite or one of a wrong
      number, or the weights that a worker receives sum to more than 1.

  >>> pair = Topology([(0.5, [1, 0])])
  >>> pair, pair.n
  (Topology(edges=((0.5, (1, 0)),)), 2)

  Source: Birkhoff 1946 (W as a sum of permutations).
  """

  __slots__ = ()

  def __new__(cls, edges: Iterable[tuple[Weight | np.ndarray, Iterable[int]]]):
    given = [(weight, _checked_perm(perm)) for weight, perm in edges]
    if not given:
      raise ValueError('edges is empty; a Topology needs at least one edge.')
    n = len(given[0][1])
    for _, perm in given:
      if len(perm) != n:
        raise ValueError(
          f'perm {perm} is of {len(perm)} workers, the first edge of {n}; all '
          'edges of a Topology permute the same workers.'
        )
    checked = tuple((_checked_weight(w, n), perm) for w, perm in given)
    _check_received(checked, n)
    return super().__new__(cls, checked)

  @classmethod
  def _make(cls, iterable):  # type: ignore[override]
    return cls(*iterable)  # so that _replace is checked too

  @property
  def n(self) -> int:
    """Number of workers."""
    return len(self.edges[0][1])


def _checked_perm(perm: Iterable[int]) -> Perm:
  perm = tuple(perm)
  if not perm or sorted(perm) != list(range(len(perm))):
    raise ValueError(
      f'perm {perm} is not a full permutation: it must hold each of '
      f'0..{len(perm) - 1} exactly once.'
    )
  return tuple(int(i) for i in perm)


def _checked_weight(weight, n: int) -> Weight:
  if np.ndim(weight) and len(weight) != n:
    raise ValueError(
      f'weight {weight} has {len(weight)} entries; give one float or one per '
      f'receiver, {n} in all.'
    )
  values = np.asarray(weight, np.float64)
  if not np.all(np.isfinite(values) & (values >= -ROUNDING)):
    raise ValueError(f'weight {weight} must be finite and at least 0.')
  values = np.maximum(values, 0)  # -1e-17 is what rounding left of 0
  return tuple(values.tolist()) if values.ndim else values.item()


def _check_received(edges, n: int) -> None:
  workers, received = np.arange(n), np.zeros(n)
  for weight, perm in edges:
    received += np.where(perm == workers, 0.0, weight)
  worst = int(np.argmax(received))
  if received[worst] > 1 + ROUNDING:
    raise ValueError(
      f'the weights that worker {worst} receives sum to {received[worst]}; at '
      'most 1 is allowed, since its own weight is what they leave.'
    )


def rounds_of(topology: Topology | Sequence[Topology]) -> tuple[Topology, ...]:
  """A Topology or several, as a tuple of the same n."""
  rounds: Any = (topology,)
  if isinstance(topology, Iterable) and not isinstance(topology, Topology):
    rounds = tuple(topology)
  if not rounds or not all(isinstance(r, Topology) for r in rounds):
    raise ValueError(
      'expected a Topology or a non-empty tuple of them, such as ring(8); got '
      f'{topology!r}.'
    )
  sizes = [r.n for r in rounds]
  if len(set(sizes)) > 1:
    raise ValueError(f'all rounds must have the same n; got {sizes}.')
  return rounds


def sources(perm: Sequence[int]) -> Perm:
  """Who sends to me: the inverse permutation.

  sources(perm)[perm[i]] = i.

  Args:
    perm: n ints, `perm[i]` the worker to which worker i sends.

  Returns:
    n ints, entry i the worker from which worker i receives.

  >>> sources((1, 2, 0))
  (2, 0, 1)

  Source: P^-1 = P^T of a permutation matrix.
  """
  return tuple(np.argsort(perm).tolist())


def matrix(topology: Topology) -> np.ndarray:
  """The weights as a dense matrix.

  W = I + sum_k diag(w_k) (P_k - I).

  Args:
    topology: a single Topology of n workers.

  Returns:
    float64[n, n]; row i is receiver i, and sums to 1.

  >>> matrix(Topology([((0.5, 0.25), (1, 0))]))
  array([[0.5 , 0.5 ],
         [0.25, 0.75]])

  Source: W of Lian et al. 2017 and Lu and De Sa 2020.
  """
  workers = np.arange(topology.n)
  w = np.zeros((topology.n, topology.n))
  for weight, perm in topology.edges:
    w[workers, sources(perm)] += weight
  np.fill_diagonal(w, 0)  # self-loops contribute nothing
  return w + np.diag(1 - w.sum(1))


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
  gamma = wire.share(gamma, 'lazy needs 0 < gamma <= 1; got gamma={}.')
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


def push_matrix(topology: Topology) -> np.ndarray:
  """The weights read by sender, as a dense matrix: A[perm[i], i] = weight[i].

  Args:
    topology: a single Topology of n workers.

  Returns:
    float64[n, n]; row i is receiver i, and column j sums to 1.

  >>> push_matrix(Topology([((0.5, 0.25), (1, 0))]))
  array([[0.5 , 0.25],
         [0.5 , 0.75]])

  Source: the column stochastic P of Assran et al. 2019.
  """
  back = [(weight, sources(perm)) for weight, perm in topology.edges]
  return matrix(Topology(back)).T


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


def require_doubly_stochastic(schedule, algorithm: str) -> None:
  """Refuses weights that would move the mean of the workers.

  1^T W = 1^T in each round (W 1 = 1 always holds).

  Args:
    schedule: a Topology, or a tuple of them.
    algorithm: the name that the error blames.

  Raises:
    ValueError: naming the column whose sum is furthest from 1.

  >>> from moniqua_jax import exponential
  >>> require_doubly_stochastic(exponential(6), 'dpsgd')

  Source: Lian et al. 2017 (the assumptions on W).
  """
  for k, r in enumerate(rounds_of(schedule)):
    sums = matrix(r).sum(0)
    j = int(np.argmax(abs(sums - 1)))
    # from_matrix allows each of the two sums TOLERANCE, and moves one of them
    # into the diagonal.
    if abs(sums[j] - 1) > 2 * TOLERANCE:
      raise ValueError(
        f'{algorithm} needs a doubly stochastic W, else the mean of the '
        f'workers moves; in round {k} column {j}, what worker {j} gives, sums '
        f'to {sums[j]} instead of 1. Use from_matrix or from_graph, which '
        'ensure it, or push_sum, which does without.'
      )


MANY_PEERS = 'Use ring, torus, hypercube, complete or from_graph'


def require_symmetric(
  schedule, algorithm: str, instead: str = MANY_PEERS
) -> None:
  """Refuses weights that differ between the two directions of an edge.

  W = W^T in each round.

  Args:
    schedule: a Topology, or a tuple of them.
    algorithm: the name that the error blames.
    instead: the topologies that the error names.

  Raises:
    ValueError: naming the two entries that differ most.

  >>> from moniqua_jax import ring
  >>> require_symmetric(ring(6), 'd2')

  Source: Lu and De Sa 2020 (the assumptions on W).
  """
  for k, r in enumerate(rounds_of(schedule)):
    w = matrix(r)
    i, j = np.unravel_index(np.argmax(abs(w - w.T)), w.shape)
    if abs(w[i, j] - w[j, i]) > TOLERANCE:
      raise ValueError(
        f'{algorithm} needs a symmetric W; in round {k} W[{i}, {j}] = '
        f'{w[i, j]} but W[{j}, {i}] = {w[j, i]}. {instead}, or give '
        'from_matrix (w + w.T) / 2.'
      )


def check_connected(w: np.ndarray, subject: str) -> None:
  """Refuses weights over which some worker never hears of another.

  A weight below ROUNDING joins nobody: in float32 nothing moves by it.
  """
  from scipy.sparse import csgraph, csr_array  # slow

  count, label = csgraph.connected_components(
    csr_array(w > ROUNDING), connection='strong'
  )
  if count > 1:
    groups = sorted(np.flatnonzero(label == k).tolist() for k in range(count))
    raise ValueError(
      f'{subject} is not connected: messages do not pass both ways between '
      f'the groups of workers {groups}.'
    )
