"""The type Topology, and its weights as a matrix.

n: workers. Row i of W is receiver i, column j is sender j.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from moniqua_jax import arguments

Weight = float | tuple[float, ...]
Perm = tuple[int, ...]

ROUNDING = 1e-9  # slack for sums of float64 weights
TOLERANCE = 1e-6  # slack for a matrix from outside, perhaps once float32


def require_whole(name: str, least: int = 1, **numbers) -> None:
  """Refuses by its name what is no whole number, or too small a one."""
  for key, value in numbers.items():
    whole = type(arguments.integer(value)) is int
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
    ValueError: if edges are no pairs, or none; a perm is not a permutation of
      range(n) with the same n; a weight is negative, not finite or one of a
      wrong number; or the weights that a worker receives sum to more than 1.

  >>> pair = Topology([(0.5, [1, 0])])
  >>> pair, pair.n
  (Topology(edges=((0.5, (1, 0)),)), 2)

  Source: Birkhoff 1946 (W as a sum of permutations).
  """

  __slots__ = ()

  def __new__(cls, edges: Iterable[tuple[Weight | np.ndarray, Iterable[int]]]):
    given = [(weight, _checked_perm(perm)) for weight, perm in _pairs(edges)]
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


def _pairs(edges) -> list:
  pairs = list(edges) if isinstance(edges, Iterable) else [edges]
  for pair in pairs:
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not is_pair or not isinstance(pair[1], Iterable):
      raise ValueError(
        f'edges has {pair!r:.60}; each edge is (weight, perm), such as (0.5, '
        '(1, 0)). ring(8) and the like make a Topology.'
      )
  return pairs


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
  given = (topology,) if isinstance(topology, Topology) else topology
  rounds = tuple(given) if isinstance(given, Iterable) else ()
  if not rounds or not all(isinstance(r, Topology) for r in rounds):
    raise ValueError(
      f'topology={topology!r:.60}; expected a Topology or a non-empty tuple of '
      'them, such as ring(8); from_matrix(w) and from_graph(g) make one.'
    )
  sizes = [r.n for r in rounds]
  if len(set(sizes)) > 1:
    raise ValueError(f'all rounds must have the same n; got {sizes}.')
  return rounds


def single(topology: Topology, name: str) -> Topology:
  """Refuses, by the name of who asks, what is not one Topology."""
  if not isinstance(topology, Topology):
    raise ValueError(
      f'topology={topology!r:.60}; {name} takes one Topology, such as ring(8).'
    )
  return topology


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
  workers = np.arange(single(topology, 'matrix').n)
  w = np.zeros((topology.n, topology.n))
  for weight, perm in topology.edges:
    w[workers, sources(perm)] += weight
  np.fill_diagonal(w, 0)  # self-loops contribute nothing
  return w + np.diag(1 - w.sum(1))


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
  edges = single(topology, 'push_matrix').edges
  back = [(weight, sources(perm)) for weight, perm in edges]
  return matrix(Topology(back)).T
