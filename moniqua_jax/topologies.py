"""Who sends to whom, and with which weight: W as a sum of permutations.

A topology is a list of edges, each a full permutation of the workers and a
weight: exactly what one collective permute carries and what it is worth.

  W = I + sum_k diag(w_k) (P_k - I),   P_k[perm[i], i] = 1,   x_new = W x

n: workers.  Row i of W is receiver i, column j is sender j; a worker's own
weight is what its edges leave.  All of this runs on the host, in float64,
before anything is traced.

References, by first author below:
  Lian et al., "Can Decentralized Algorithms Outperform Centralized
    Algorithms?" (D-PSGD), NeurIPS 2017.
  Lu and De Sa, "Moniqua: Modulo Quantized Communication in Decentralized SGD",
    ICML 2020.
  Ying et al., "Exponential Graph is Provably Efficient for Decentralized Deep
    Training", NeurIPS 2021.
  Koenig, "Ueber Graphen und ihre Anwendung auf Determinantentheorie und
    Mengenlehre", 1916; Birkhoff, "Tres observaciones sobre el algebra lineal",
    1946.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import networkx as nx
import numpy as np
from scipy.sparse import csgraph, csr_array

__all__ = [
  'Topology',
  'complete',
  'exponential',
  'from_graph',
  'from_matrix',
  'hypercube',
  'lazy',
  'matrix',
  'one_peer_exponential',
  'random_matchings',
  'require_doubly_stochastic',
  'require_symmetric',
  'ring',
  'schedule',
  'sources',
  'spectral_gap',
  'star',
  'torus',
]

Weight = float | tuple[float, ...]
Perm = tuple[int, ...]

_ROUNDING = 1e-9  # slack for sums of float64 weights
_TOLERANCE = 1e-6  # slack for a matrix from outside, perhaps once float32


# ------------------------------------------------------------------ the type


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

  Reference: Birkhoff 1946 (W as a sum of permutations).
  """

  __slots__ = ()

  def __new__(cls, edges: Iterable[tuple[Weight, Sequence[int]]]):
    edges = [(weight, _checked_perm(perm)) for weight, perm in edges]
    if not edges:
      raise ValueError('edges is empty; a Topology needs at least one edge.')
    n = len(edges[0][1])
    for _, perm in edges:
      if len(perm) != n:
        raise ValueError(
          f'perm {perm} is of {len(perm)} workers, the first edge of {n}; all '
          'edges of a Topology permute the same workers.'
        )
    edges = tuple((_checked_weight(weight, n), perm) for weight, perm in edges)
    _check_received(edges, n)
    return super().__new__(cls, edges)

  @classmethod
  def _make(cls, iterable):
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
  if not np.all(np.isfinite(values) & (values >= 0)):
    raise ValueError(f'weight {weight} must be finite and at least 0.')
  return tuple(values.tolist()) if values.ndim else values.item()


def _check_received(edges, n: int) -> None:
  workers = np.arange(n)
  received = sum(np.where(perm == workers, 0.0, w) for w, perm in edges)
  worst = int(np.argmax(received))
  if received[worst] > 1 + _ROUNDING:
    raise ValueError(
      f'the weights that worker {worst} receives sum to {received[worst]}; at '
      'most 1 is allowed, since its own weight is what they leave.'
    )


# ----------------------------------------------------------- named topologies


def _check_at_least_one(name: str, **sizes: int) -> None:
  for key, value in sizes.items():
    if value < 1:
      raise ValueError(f'{name} needs {key} >= 1; got {key}={value}.')


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

  Reference: Lian et al. 2017.
  """
  _check_at_least_one('ring', n=n)
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

  Reference: the Cartesian product of two rings; compared in Ying et al. 2021.
  """
  _check_at_least_one('torus', rows=rows, cols=cols)
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

  >>> matrix(complete(2))
  array([[0.5, 0.5],
         [0.5, 0.5]])

  Reference: all-to-all averaging; the mean of centralized SGD.
  """
  _check_at_least_one('complete', n=n)
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

  Reference: `from_graph` of the star graph; the parameter server.
  """
  _check_at_least_one('star', n=n)
  return from_graph(nx.star_graph(n - 1))


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

  Reference: the hypercube network; compared in Ying et al. 2021.
  """
  _check_at_least_one('hypercube', n=n)
  if n & (n - 1):
    raise ValueError(f'hypercube needs n to be a power of two; got n={n}.')
  return _uniform(tuple(i ^ hop for i in range(n)) for hop in _hops(n))


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

  Reference: Ying et al. 2021 (the static exponential graph).
  """
  _check_at_least_one('exponential', n=n)
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

  Reference: Assran et al., "Stochastic Gradient Push", ICML 2019; Ying et al.
  2021 (exact averaging).
  """
  _check_at_least_one('one_peer_exponential', n=n)
  return tuple(_uniform([_shift(n, hop)]) for hop in _hops(n))


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
    ValueError: if n < 1 or rounds < 1.

  >>> [pairs.edges[0][1] for pairs in random_matchings(2, rounds=2, seed=0)]
  [(1, 0), (1, 0)]

  Reference: Boyd et al., "Randomized Gossip Algorithms", 2006 (many pairs at
  once); Wang et al., "MATCHA", 2019.
  """
  _check_at_least_one('random_matchings', n=n, rounds=rounds)
  rng = np.random.default_rng(seed)

  def matching():
    one, other = rng.permutation(n)[: n // 2 * 2].reshape(2, -1)
    perm = np.arange(n)
    perm[one], perm[other] = other, one
    return Topology([(1 / 2, perm)])

  return tuple(matching() for _ in range(rounds))


# --------------------------------------------------------- from given weights


def from_matrix(w: np.ndarray) -> Topology:
  """The edges of any doubly stochastic W, as few of them as there can be.

  max_i max(in_i, out_i) edges, in_i and out_i the off-diagonal non-zeros of
  row i and column i: no worker is ever made to wait for another (Koenig).

  Args:
    w: float[n, n], W_ij what receiver i makes of sender j; need not be
      symmetric. The diagonal is taken as what the other entries leave.

  Returns:
    A Topology whose `matrix` is `w`. An idle worker's arc is a self-loop,
    always so if each worker sends to as many as it hears (every symmetric W);
    else there are sum_i max(0, in_i - out_i) messages of weight 0, the minimum.

  Raises:
    ValueError: if `w` is not square, has an entry that is negative or not
      finite, a row or column sum that is not 1 to 1e-6, or is not connected.

  >>> from_matrix([[0.75, 0.25], [0.25, 0.75]]).edges
  ((0.25, (1, 0)),)

  Reference: Koenig 1916 (colouring the edges of bipartite graphs).
  """
  w = np.array(w, np.float64)
  _check_matrix(w)
  _check_connected(w, 'the graph of w')
  np.fill_diagonal(w, 0)
  w = np.maximum(w, 0)  # -1e-17 is no arc
  w /= max(1, w.sum(1).max())  # an off-diagonal sum of 1 + 1e-7 is float32's
  return Topology([_take(w, senders) for senders in _colour(w > 0)])


def _check_matrix(w: np.ndarray) -> None:
  if w.ndim != 2 or w.shape[0] != w.shape[1] or not w.size:
    raise ValueError(f'w must be a square matrix; got shape {w.shape}.')
  bad = np.argwhere(~np.isfinite(w) | (w < -_ROUNDING)).tolist()
  if bad:
    i, j = bad[0]
    raise ValueError(f'w[{i}, {j}] = {w[i, j]} must be finite and at least 0.')
  for name, sums in (('row', w.sum(1)), ('column', w.sum(0))):
    worst = int(np.argmax(abs(sums - 1)))
    if abs(sums[worst] - 1) > _TOLERANCE:
      raise ValueError(
        f'w must be doubly stochastic, but {name} {worst} sums to '
        f'{sums[worst]} instead of 1.'
      )


def _check_connected(w: np.ndarray, subject: str) -> None:
  count, label = csgraph.connected_components(
    csr_array(w > 0), connection='strong'
  )
  if count > 1:
    groups = sorted(np.flatnonzero(label == k).tolist() for k in range(count))
    raise ValueError(
      f'{subject} is not connected: messages do not pass both ways between '
      f'the groups of workers {groups}.'
    )


def _colour(heard: np.ndarray) -> list[np.ndarray]:
  """Splits arcs, bool[receiver, sender], into rounds, each senders int[n].

  Padded until each worker has `degree` arcs in and as many out, the arcs are a
  regular bipartite multigraph: it has a perfect matching, and is regular again
  without it. Self-loops are the padding that costs nothing, so they come first.
  """
  workers = np.arange(len(heard))
  into, out = heard.sum(1), heard.sum(0)
  degree = max(1, into.max(), out.max())
  arcs = heard + np.diag(degree - np.maximum(into, out))
  receivers = np.repeat(workers, degree - arcs.sum(1))
  senders = np.repeat(workers, degree - arcs.sum(0))
  np.add.at(arcs, (receivers, senders), 1)

  colours = []
  for _ in range(degree):
    senders = csgraph.maximum_bipartite_matching(csr_array(arcs), 'column')
    arcs[workers, senders] -= 1
    colours.append(senders)
  return colours


def _take(w: np.ndarray, senders: np.ndarray) -> tuple[Weight, np.ndarray]:
  """Moves one edge out of `w`: padding that repeats an arc finds 0 there."""
  workers = np.arange(len(w))
  weight = w[workers, senders]
  w[workers, senders] = 0
  # Self-loops do not care for the weight, so it may be the others' constant.
  moving = set(weight[senders != workers].tolist()) or {0.0}
  return moving.pop() if len(moving) == 1 else weight, np.argsort(senders)


def from_graph(g: nx.Graph) -> Topology:
  """Metropolis weights on any connected undirected graph.

  W_ij = 1 / (1 + max(deg_i, deg_j)) on its edges.

  Args:
    g: networkx graph. Its nodes become workers 0..n-1 in sorted order, or in
      the order of iteration if they cannot be sorted; self-loops and the
      graph's own weights are ignored.

  Returns:
    A Topology of max deg_i edges, symmetric; idle workers send nothing.

  Raises:
    ValueError: if `g` is directed, empty or not connected.

  >>> matrix(from_graph(nx.path_graph(3))).round(2).tolist()
  [[0.67, 0.33, 0.0], [0.33, 0.33, 0.33], [0.0, 0.33, 0.67]]

  Reference: Xiao, Boyd, Lall, "Distributed Average Consensus with Time-Varying
  Metropolis Weights", 2006.
  """
  if g.is_directed() or not len(g):
    raise ValueError(
      f'from_graph needs an undirected graph with a node; got {g}. A directed '
      'one can be given as a doubly stochastic matrix to from_matrix.'
    )
  try:
    nodes = sorted(g)
  except TypeError:
    nodes = list(g)
  parts = [[v for v in nodes if v in c] for c in nx.connected_components(g)]
  if len(parts) > 1:
    raise ValueError(f'g is not connected: its parts are the nodes {parts}.')
  near = nx.to_numpy_array(g, nodelist=nodes, weight=None) > 0
  np.fill_diagonal(near, False)
  degree = near.sum(0)
  w = near / (1 + np.maximum.outer(degree, degree))
  return from_matrix(w + np.diag(1 - w.sum(1)))


# ------------------------------------------------------------------ functions


def _rounds(topology: Topology | Sequence[Topology]) -> tuple[Topology, ...]:
  rounds = (topology,) if isinstance(topology, Topology) else tuple(topology)
  if not rounds or not all(isinstance(r, Topology) for r in rounds):
    raise ValueError(
      f'expected a Topology or a non-empty tuple of them; got {topology!r}.'
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

  Reference: P^-1 = P^T of a permutation matrix.
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

  Reference: W of Lian et al. 2017 and Lu and De Sa 2020.
  """
  workers = np.arange(topology.n)
  w = np.zeros((topology.n, topology.n))
  for weight, perm in topology.edges:
    w[workers, sources(perm)] += weight
  np.fill_diagonal(w, 0)  # self-loops contribute nothing
  return w + np.diag(1 - w.sum(1))


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

  >>> lazy(complete(2), 0.5).edges
  ((0.25, (1, 0)),)

  Reference: Lu and De Sa 2020 (the slack matrix, for 1 bit).
  """
  if not 0 < gamma <= 1:
    raise ValueError(f'lazy needs 0 < gamma <= 1; got gamma={gamma}.')
  slow = tuple(
    Topology([(np.multiply(gamma, w), perm) for w, perm in r.edges])
    for r in _rounds(topology)
  )
  return slow[0] if isinstance(topology, Topology) else slow


def spectral_gap(topology: Topology | Sequence[Topology]) -> float:
  """How much of the disagreement one round takes away, at least.

  1 - rho, rho = ||W - 1 1^T / n||_2, the second largest singular value of W:
  max(|lambda_2|, |lambda_n|) if W is symmetric. Over m rounds it is
  1 - ||W_{m-1} ... W_0 - 1 1^T / n||_2^(1/m).

  Args:
    topology: a Topology, or a tuple of them; doubly stochastic.

  Returns:
    A float in [0, 1], 1 for exact averaging.

  Raises:
    ValueError: if a tuple is empty or its rounds differ in n.

  >>> round(1 - spectral_gap(ring(8)), 4)
  0.8047

  Reference: Lu and De Sa 2020 (rho, there for a symmetric W).
  """
  rounds = _rounds(topology)
  product = np.eye(rounds[0].n)
  for r in rounds:
    product = matrix(r) @ product
  rho = np.linalg.norm(product - 1 / len(product), 2)
  return float(1 - rho ** (1 / len(rounds)))


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

  >>> len(schedule(ring(4))), len(schedule(one_peer_exponential(8)))
  (1, 3)

  Reference: Koloskova et al., "A Unified Theory of Decentralized SGD with
  Changing Topology and Local Updates", ICML 2020.
  """
  rounds = _rounds(topology)
  union = sum(matrix(r) for r in rounds)
  _check_connected(union, 'the topology (all rounds together)')
  return rounds


def require_doubly_stochastic(schedule, algorithm: str) -> None:
  """Refuses weights that would move the mean of the workers.

  1^T W = 1^T in each round (W 1 = 1 always holds).

  Args:
    schedule: a Topology, or a tuple of them.
    algorithm: the name that the error blames.

  Raises:
    ValueError: naming the column whose sum is furthest from 1.

  >>> require_doubly_stochastic(exponential(6), 'dpsgd')

  Reference: Lian et al. 2017 (the assumptions on W).
  """
  for k, r in enumerate(_rounds(schedule)):
    sums = matrix(r).sum(0)
    j = int(np.argmax(abs(sums - 1)))
    # from_matrix allows each of the two sums _TOLERANCE, and moves one of them
    # into the diagonal.
    if abs(sums[j] - 1) > 2 * _TOLERANCE:
      raise ValueError(
        f'{algorithm} needs a doubly stochastic W, else the mean of the '
        f'workers moves; in round {k} column {j}, what worker {j} gives, sums '
        f'to {sums[j]} instead of 1. Use from_matrix or from_graph, which '
        'ensure it, or push_sum, which does without.'
      )


def require_symmetric(schedule, algorithm: str) -> None:
  """Refuses weights that differ between the two directions of an edge.

  W = W^T in each round.

  Args:
    schedule: a Topology, or a tuple of them.
    algorithm: the name that the error blames.

  Raises:
    ValueError: naming the two entries that differ most.

  >>> require_symmetric(ring(6), 'd2')

  Reference: Lu and De Sa 2020 (the assumptions on W).
  """
  for k, r in enumerate(_rounds(schedule)):
    w = matrix(r)
    i, j = np.unravel_index(np.argmax(abs(w - w.T)), w.shape)
    if abs(w[i, j] - w[j, i]) > _TOLERANCE:
      raise ValueError(
        f'{algorithm} needs a symmetric W; in round {k} W[{i}, {j}] = '
        f'{w[i, j]} but W[{j}, {i}] = {w[j, i]}. Use ring, torus, hypercube, '
        'complete or from_graph, or give from_matrix (w + w.T) / 2.'
      )
