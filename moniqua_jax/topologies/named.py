"""Topologies by name, static and time-varying."""

from collections.abc import Iterable

import numpy as np

from moniqua_jax.topologies.base import Perm, Topology, require_whole
from moniqua_jax.topologies.given import metropolis


def _shift(n: int, hop: int) -> Perm:
  return tuple((i + hop) % n for i in range(n))


def _uniform(perms: Iterable[Perm], weight: float | None = None) -> Topology:
  """One weight for all: 1 / (degree + 1) makes it the weight of self as well.

  Small sides make neighbours coincide (the left and the right one of a ring of
  2): the same message is never sent twice, and never to its sender.
  """
  perms = list(dict.fromkeys(perms))
  hops = [perm for perm in perms if perm != tuple(range(len(perm)))]
  if not hops:
    return Topology([(0.0, perms[0])])
  weight = 1 / (len(hops) + 1) if weight is None else weight
  return Topology([(weight, perm) for perm in hops])


def ring(n: int, weight: float | None = None) -> Topology:
  """Each worker hears both its neighbours on a circle.

  W_ij = weight for j = i - 1, i + 1 mod n;  rho = (1 + 2 cos(2 pi / n)) / 3.

  Args:
    n: number of workers.
    weight: of each neighbour; 1 / (degree + 1) unless given, that is 1/3, and
      1/2 for the single neighbour when n = 2.

  Returns:
    A Topology of 2 edges (1 when n <= 2), symmetric.

  Raises:
    ValueError: if n < 1 or the weights sum to more than 1.

  >>> ring(4, weight=0.25).edges
  ((0.25, (1, 2, 3, 0)), (0.25, (3, 0, 1, 2)))

  Source: Lian et al. 2017.
  """
  require_whole('ring', n=n)
  return _uniform([_shift(n, 1), _shift(n, -1)], weight)


def torus(rows: int, cols: int, weight: float | None = None) -> Topology:
  """Each worker hears its neighbours on a grid whose borders are joined.

  W_ij = weight for j above, below, left and right of i, modulo the sides.

  Args:
    rows: workers per column.
    cols: workers per row; worker (r, c) is number r * cols + c.
    weight: of each neighbour; 1 / (degree + 1) unless given, that is 1/5. A
      side of 2 has one neighbour (1/4), a side of 1 has none (1/3: a ring).

  Returns:
    A Topology of 4 edges (fewer with a side below 3), symmetric.

  Raises:
    ValueError: if a side is below 1 or the weights sum to more than 1.

  >>> weight, perm = torus(3, 3).edges[0]
  >>> weight, perm
  (0.2, (3, 4, 5, 6, 7, 8, 0, 1, 2))

  Source: the Cartesian product of two rings; compared in Ying et al. 2021.
  """
  require_whole('torus', rows=rows, cols=cols)
  grid = np.arange(rows * cols).reshape(rows, cols)
  steps = [(-1, 0), (1, 0), (-1, 1), (1, 1)]
  moved = [np.roll(grid, step, axis).ravel() for step, axis in steps]
  return _uniform([tuple(perm.tolist()) for perm in moved], weight)


def complete(n: int) -> Topology:
  """Each worker hears all others: one round is the exact mean.

  W = 1 1^T / n;  rho = 0.

  Args:
    n: number of workers.

  Returns:
    A Topology of n - 1 edges of weight 1/n, symmetric.

  Raises:
    ValueError: if n < 1.

  >>> from moniqua_jax import matrix
  >>> matrix(complete(2))
  array([[0.5, 0.5],
         [0.5, 0.5]])

  Source: all-to-all averaging; the mean of centralized SGD.
  """
  require_whole('complete', n=n)
  return _uniform(_shift(n, hop) for hop in range(n))


def star(n: int) -> Topology:
  """Worker 0 and each of the others hear one another.

  W_0j = W_j0 = 1 / n (Metropolis);  rho = 1 - 1 / n for n >= 3.

  Args:
    n: number of workers.

  Returns:
    A Topology of n - 1 edges of weight 1/n, each one swap, symmetric.

  Raises:
    ValueError: if n < 1.

  >>> sorted(perm for _, perm in star(3).edges)
  [(1, 0, 2), (2, 1, 0)]

  Source: `from_graph` of the star graph; the parameter server.
  """
  require_whole('star', n=n)
  hub = np.arange(n) == 0
  return metropolis(hub ^ hub[:, None])


def hypercube(n: int) -> Topology:
  """Each worker hears those whose number differs from its own in one bit.

  W_ij = 1 / (m + 1) for j = i XOR 2^k, m = log2 n;  rho = (m - 1) / (m + 1).

  Args:
    n: number of workers, a power of two.

  Returns:
    A Topology of log2 n edges, symmetric.

  Raises:
    ValueError: if n is not a power of two.

  >>> [perm for _, perm in hypercube(4).edges]
  [(1, 0, 3, 2), (2, 3, 0, 1)]

  Source: the hypercube network; compared in Ying et al. 2021.
  """
  require_whole('hypercube', n=n)
  if n & (n - 1):
    raise ValueError(f'hypercube needs n to be a power of two; got n={n}.')
  return _uniform(_swap(n, hop) for hop in _hops(n))


def _swap(n: int, hop: int) -> Perm:
  return tuple(i ^ hop for i in range(n))


def _hops(n: int) -> list[int]:
  """1, 2, 4, ... below n; the hop 0 of a lone worker goes nowhere."""
  return [2**k for k in range((n - 1).bit_length())] or [0]


def exponential(n: int) -> Topology:
  """Each worker sends 1, 2, 4, ... workers ahead, all in every round.

  W_ij = 1 / (m + 1) for i = j + 2^k mod n, k < m = ceil(log2 n).

  Args:
    n: number of workers.

  Returns:
    A Topology of ceil(log2 n) edges; directed, doubly stochastic.

  Raises:
    ValueError: if n < 1.

  >>> [perm[0] for _, perm in exponential(6).edges]
  [1, 2, 4]

  Source: Ying et al. 2021 (the static exponential graph).
  """
  require_whole('exponential', n=n)
  return _uniform(_shift(n, hop) for hop in _hops(n))


def one_peer_exponential(n: int) -> tuple[Topology, ...]:
  """Each worker sends one message a round, 1, then 2, then 4, ... ahead.

  W_k = (I + P_k) / 2;  W_{m-1} ... W_0 = 1 1^T / n if n is a power of two.

  Args:
    n: number of workers.

  Returns:
    A tuple of m = ceil(log2 n) Topologies, cycled by step; each one directed,
    doubly stochastic.

  Raises:
    ValueError: if n < 1.

  >>> [hop.edges for hop in one_peer_exponential(3)]
  [((0.5, (1, 2, 0)),), ((0.5, (2, 0, 1)),)]

  Source: Assran et al., "Stochastic Gradient Push", ICML 2019; Ying et al.
  2021 (exact averaging).
  """
  require_whole('one_peer_exponential', n=n)
  return tuple(_uniform([_shift(n, hop)]) for hop in _hops(n))


def one_peer_hypercube(n: int) -> tuple[Topology, ...]:
  """Pairs of workers whose numbers differ in bit 0, then bit 1, ...

  W_k = (I + P_k) / 2, P_k[i XOR 2^k, i] = 1;  W_{m-1} ... W_0 = 1 1^T / n.

  Args:
    n: number of workers, a power of two.

  Returns:
    A tuple of m = log2 n Topologies, cycled by step; each one symmetric, so
    that `answered` and `auto_theta` work, as `one_peer_exponential` does not.

  Raises:
    ValueError: if n is not a power of two.

  >>> [pairs.edges for pairs in one_peer_hypercube(4)]
  [((0.5, (1, 0, 3, 2)),), ((0.5, (2, 3, 0, 1)),)]

  Source: the hypercube, a dimension a round; Takezawa et al., arXiv:2305.11420.
  """
  require_whole('one_peer_hypercube', n=n)
  if n & (n - 1):
    raise ValueError(
      f'one_peer_hypercube needs n to be a power of two; got n={n}. '
      f'base_graph({n}) has pairs for any n.'
    )
  return tuple(_uniform([_swap(n, hop)]) for hop in _hops(n))


def random_matchings(n: int, rounds: int, seed: int) -> tuple[Topology, ...]:
  """In each round the workers meet in random pairs; an odd one stays alone.

  W_k = (I + P_k) / 2, P_k a product of floor(n / 2) disjoint swaps.

  Args:
    n: number of workers.
    rounds: number of matchings before they repeat. With too few of them the
      pairs may not join all the workers; `schedule` says so.
    seed: of `numpy.random.default_rng`, the same on all workers.

  Returns:
    A tuple of `rounds` Topologies, cycled by step; each one symmetric.

  Raises:
    ValueError: if n < 1, rounds < 1 or seed < 0.

  >>> [pairs.edges[0][1] for pairs in random_matchings(2, rounds=2, seed=0)]
  [(1, 0), (1, 0)]

  Source: Boyd et al., "Randomized Gossip Algorithms", 2006 (many pairs at
  once); Wang et al., "MATCHA", 2019.
  """
  require_whole('random_matchings', n=n, rounds=rounds)
  require_whole('random_matchings', 0, seed=seed)
  rng = np.random.default_rng(seed)

  def matching():
    one, other = rng.permutation(n)[: n // 2 * 2].reshape(2, -1)
    perm = np.arange(n)
    perm[one], perm[other] = other, one
    return Topology([(1 / 2, perm)])

  return tuple(matching() for _ in range(rounds))
