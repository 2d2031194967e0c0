"""The algorithms as linear recursions, with what each asks of W and keeps.

A worker keeps x and at most one vector more. With update u (-alpha g, momentum
and all), rounding errors noise, and pull = (W - I)(message + noise):

  dpsgd, adpsgd  message = x                x <- x + u + pull
  atc_dpsgd,
  push_sum       message = x + u            x <- x + u + pull
  d2             message = x + u + drift    drift <- drift + pull
                                            x <- x + u + drift
  deepsqueeze    message = x + u + error    x <- x + u + pull
                                            error <- -noise

eta of deepsqueeze and gamma of choco stand before W - I: their W here is that
of `lazy` with this number. Under `every` with k steps, and for each fragment of
`streaming` with k fragments, u is the sum of the k updates between two
messages, of bound k alpha G; with both it is the product; where k changes, its
largest.

Under `rounds` u is given in one round of a step, the last of dpsgd and else the
first, and is 0 in the others. In these d2 sends where the pulls have led:

  d2             message = x                x <- x + pull
                                            drift <- drift + pull

In the stale form of d2, choco and deepsqueeze the u in the message and in what
is kept is that of the step before.

(u of adpsgd is late, which changes no sum. push_sum with equal masses: else its
weights are not those of W.) choco, dcd and ecd send differences to replicas:
their messages are small by themselves and need no theta. qdgd does not round
its own x in the pull, and is no such recursion.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from moniqua_jax import topologies
from moniqua_jax.theory import spectrum

Topology = topologies.Topology

LARGEST = 256  # workers; beyond it the sums over impulse responses take minutes


class Recursion(NamedTuple):
  """One step of an algorithm, linear in everything."""

  message: Callable  # (x, kept, u) -> what is sent
  after: Callable  # (x, kept, u, noise, pull) -> the next (x, kept)
  start: Callable = np.zeros_like  # x -> the first kept


class Law(NamedTuple):
  """What is known about an algorithm without running it."""

  check: Callable  # topology -> rounds; refuses what the algorithm refuses
  weights: Callable  # Topology -> float[n, n], what a round does
  recursion: Recursion | None  # None where Moniqua's theta has no meaning
  memory: Callable  # delay -> vectors of d floats that a worker keeps beyond x
  # (n, m) -> the same in the papers' form, over the whole graph of m directed
  # edges; beyond the algorithm in full precision. None: not counted.
  replicas: Callable | None
  least: Fraction | None = None  # all eigenvalues of W must be above it
  again: Recursion | None = None  # of the further rounds of a step
  given: int = 0  # the round of a step in which it is given u, 0 or -1
  # Why there is no recursion, if there is none.
  without: str = 'sends differences, which need no theta'


def _doubly_stochastic(algorithm):
  def check(topology):
    rounds = topologies.schedule(topology)
    topologies.require_doubly_stochastic(rounds, algorithm)
    return rounds

  return check


def _symmetric(algorithm):
  return lambda topology: topologies.one_symmetric(topology, algorithm)


def _above(least, algorithm):
  def check(topology):
    rounds = topologies.one_symmetric(topology, algorithm)
    spectrum.require_above(least, rounds[0], algorithm)
    return rounds

  return check


def _equal_masses(topology):
  rounds = topologies.push_schedule(topology)
  for k, r in enumerate(rounds):
    received = topologies.push_matrix(r).sum(1)
    if abs(received - 1).max() > spectrum.MARGIN:
      i = int(np.argmax(abs(received - 1)))
      raise ValueError(
        f'the theory of push_sum is of equal masses; in round {k} worker {i} '
        f'receives {received[i]:.6f} in all instead of 1. It runs, with a '
        'theta found by trial.'
      )
  return rounds


_MODELS = Recursion(
  lambda x, kept, u: x, lambda x, kept, u, noise, pull: (x + u + pull, kept)
)
_HALF_STEPS = _MODELS._replace(message=lambda x, kept, u: x + u)
_DRIFTING = Recursion(
  lambda x, drift, u: x + u + drift,
  lambda x, drift, u, noise, pull: (x + u + drift + pull, drift + pull),
)
_DRIFTED = Recursion(
  lambda x, drift, u: x,
  lambda x, drift, u, noise, pull: (x + pull, drift + pull),
)
_COMPENSATED = Recursion(
  lambda x, error, u: x + u + error,
  lambda x, error, u, noise, pull: (x + u + pull, -noise),
)

_nothing = lambda *_: 0
_per_edge = lambda n, m: m
_per_worker = lambda n, m: n
_W, _A = topologies.matrix, topologies.push_matrix

LAWS = {
  'adpsgd': Law(
    _doubly_stochastic('adpsgd'),
    _W,
    _MODELS,
    lambda delay: delay + 1 if delay else 0,
    _nothing,
  ),
  'atc_dpsgd': Law(
    _doubly_stochastic('atc_dpsgd'),
    _W,
    _HALF_STEPS,
    _nothing,
    _nothing,
    again=_MODELS,
  ),
  'choco': Law(_symmetric('choco'), _W, None, lambda delay: 2, _per_edge),
  'd2': Law(
    _above(spectrum.D2_LEAST, 'd2'),
    _W,
    _DRIFTING,
    lambda delay: 1,
    _nothing,
    spectrum.D2_LEAST,
    again=_DRIFTED,
  ),
  'dcd': Law(_symmetric('dcd'), _W, None, lambda delay: 1, _per_edge),
  'deepsqueeze': Law(
    _doubly_stochastic('deepsqueeze'),
    _W,
    _COMPENSATED,
    lambda delay: 1,
    _per_worker,
    again=_COMPENSATED,
  ),
  'dpsgd': Law(
    _doubly_stochastic('dpsgd'),
    _W,
    _MODELS,
    _nothing,
    _nothing,
    again=_MODELS,
    given=-1,
  ),
  'ecd': Law(_symmetric('ecd'), _W, None, lambda delay: 2, _per_edge),
  'qdgd': Law(
    _symmetric('qdgd'),
    _W,
    None,
    _nothing,
    _nothing,
    without='rounds no x of its own, and no theta is known for that',
  ),
  'push_sum': Law(
    _equal_masses, _A, _HALF_STEPS, _nothing, None, again=_HALF_STEPS
  ),
}
"""The law of each algorithm by its name, and of the stale forms."""


def _stale(algorithm: str) -> Law:
  """The law of `stale(algorithm)`: u_{k-1} in the messages, and kept for it."""
  law, least = LAWS[algorithm], Fraction(0)
  return law._replace(
    check=_above(least, f'stale_{algorithm}'),
    recursion=law.recursion and _late(law.recursion),
    memory=lambda delay: law.memory(delay) + 1,
    least=least,
    again=None,
  )


def _late(recursion: Recursion) -> Recursion:
  def message(x, kept, u):
    del u
    return recursion.message(x, *kept)

  def after(x, kept, u, noise, pull):
    x, own = recursion.after(x, *kept, noise, pull)
    return x + (u - kept[1]), (own, u)

  start = lambda x: (recursion.start(x), np.zeros_like(x))
  return Recursion(message, after, start)


LAWS |= {
  f'stale_{name}': _stale(name) for name in ('choco', 'd2', 'deepsqueeze')
}


def law(algorithm: str) -> Law:
  """The law of an algorithm by its name."""
  if algorithm not in LAWS:
    raise ValueError(f'algorithm={algorithm!r}; choose from {sorted(LAWS)}.')
  return LAWS[algorithm]


def checked(
  topology: Topology | Sequence[Topology], algorithm: str
) -> tuple[tuple[Topology, ...], list[np.ndarray]]:
  """The rounds, and the weights of each, if the algorithm takes them."""
  known = law(algorithm)
  one = isinstance(topology, topologies.Topology)
  for r in (topology,) if one else topology:
    if isinstance(r, topologies.Topology) and not 2 <= r.n <= LARGEST:
      raise ValueError(
        f'theory is of 2 to {LARGEST} workers; the topology has {r.n}.'
      )
  rounds = known.check(topology)
  weights = [known.weights(r) for r in rounds]
  topologies.require_agreement(rounds, algorithm, weights=known.weights)
  return rounds, weights
