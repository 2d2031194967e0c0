"""Topologies: one battery over a table, closed forms, and random weights."""

import copy
import pickle
from typing import NamedTuple

import hypothesis
from hypothesis import strategies as st
import networkx as nx
import numpy as np
import pytest

from moniqua_jax import topologies as tp

cos, pi = np.cos, np.pi


class Row(NamedTuple):
  make: object  # () -> Topology or tuple of them
  edges: int  # messages per worker in one round, self-loops too
  symmetric: bool = True
  gap: float | None = None  # closed form


def ring_gap(n):
  return 1 - (1 + 2 * cos(2 * pi / n)) / 3


def torus_gap(rows, cols):
  """Eigenvalues (1 + 2 cos a + 2 cos b) / 5; a side of 2 has cos a, not 2."""

  def side(n):
    hops = min(n - 1, 2)
    return hops, hops * cos(2 * pi * np.arange(n) / n)

  (p, x), (q, y) = side(rows), side(cols)
  values = (1 + np.add.outer(x, y).ravel()) / (1 + p + q)
  return 1 - np.sort(abs(values))[-2]


MATCHINGS = dict(seed=1)
TOPOLOGIES = {
  'ring_1': Row(lambda: tp.ring(1), 1, gap=1),
  'ring_2': Row(lambda: tp.ring(2), 1, gap=1),
  'ring_3': Row(lambda: tp.ring(3), 2, gap=1),
  'ring_4': Row(lambda: tp.ring(4), 2, gap=ring_gap(4)),
  'ring_5': Row(lambda: tp.ring(5), 2, gap=ring_gap(5)),
  'ring_8': Row(lambda: tp.ring(8), 2, gap=ring_gap(8)),
  'ring_8_slow': Row(lambda: tp.ring(8, 0.25), 2, gap=(1 - cos(pi / 4)) / 2),
  'ring_32': Row(lambda: tp.ring(32), 2, gap=ring_gap(32)),
  'torus_1x1': Row(lambda: tp.torus(1, 1), 1, gap=1),
  'torus_1x5': Row(lambda: tp.torus(1, 5), 2, gap=ring_gap(5)),
  'torus_2x1': Row(lambda: tp.torus(2, 1), 1, gap=1),
  'torus_2x2': Row(lambda: tp.torus(2, 2), 2, gap=torus_gap(2, 2)),
  'torus_2x4': Row(lambda: tp.torus(2, 4), 3, gap=torus_gap(2, 4)),
  'torus_5x2': Row(lambda: tp.torus(5, 2), 3, gap=torus_gap(5, 2)),
  'torus_3x3': Row(lambda: tp.torus(3, 3), 4, gap=torus_gap(3, 3)),
  'torus_4x6': Row(lambda: tp.torus(4, 6), 4, gap=torus_gap(4, 6)),
  'complete_1': Row(lambda: tp.complete(1), 1, gap=1),
  'complete_2': Row(lambda: tp.complete(2), 1, gap=1),
  'complete_7': Row(lambda: tp.complete(7), 6, gap=1),
  'star_1': Row(lambda: tp.star(1), 1, gap=1),
  'star_2': Row(lambda: tp.star(2), 1, gap=1),
  'star_3': Row(lambda: tp.star(3), 2, gap=1 / 3),
  'star_9': Row(lambda: tp.star(9), 8, gap=1 / 9),
  'hypercube_1': Row(lambda: tp.hypercube(1), 1, gap=1),
  'hypercube_2': Row(lambda: tp.hypercube(2), 1, gap=1),
  'hypercube_4': Row(lambda: tp.hypercube(4), 2, gap=1 - 1 / 3),
  'hypercube_16': Row(lambda: tp.hypercube(16), 4, gap=1 - 3 / 5),
  'exponential_1': Row(lambda: tp.exponential(1), 1, gap=1),
  'exponential_2': Row(lambda: tp.exponential(2), 1, gap=1),
  'exponential_6': Row(lambda: tp.exponential(6), 3, False, gap=1 / 2),
  # Ying et al. 2021, proposition 1, n even: gap 2 / (ceil(log2 n) + 1).
  'exponential_8': Row(lambda: tp.exponential(8), 3, False, gap=1 / 2),
  'exponential_16': Row(lambda: tp.exponential(16), 4, False, gap=2 / 5),
  'one_peer_1': Row(lambda: tp.one_peer_exponential(1), 1, gap=1),
  'one_peer_2': Row(lambda: tp.one_peer_exponential(2), 1, gap=1),
  'one_peer_6': Row(lambda: tp.one_peer_exponential(6), 1, symmetric=False),
  'one_peer_16': Row(lambda: tp.one_peer_exponential(16), 1, False, gap=1),
  'pairs_1': Row(lambda: tp.one_peer_hypercube(1), 1, gap=1),
  'pairs_8': Row(lambda: tp.one_peer_hypercube(8), 1, gap=1),
  'base_1': Row(lambda: tp.base_graph(1), 1, gap=1),
  'base_7': Row(lambda: tp.base_graph(7), 1, gap=1),
  'base_12': Row(lambda: tp.base_graph(12), 1, gap=1),
  'base_9_2': Row(lambda: tp.base_graph(9, 2), 2, gap=1),
  'base_5_9': Row(lambda: tp.base_graph(5, 9), 4, gap=1),
  'matchings_1': Row(lambda: tp.random_matchings(1, 2, **MATCHINGS), 1, gap=1),
  'matchings_7': Row(lambda: tp.random_matchings(7, 6, **MATCHINGS), 1),
  'matchings_8': Row(lambda: tp.random_matchings(8, 6, **MATCHINGS), 1),
  'grid_graph': Row(lambda: tp.from_graph(nx.grid_2d_graph(3, 4)), 4),
  'petersen': Row(lambda: tp.from_graph(nx.petersen_graph()), 3, gap=1 - 1 / 2),
  'lazy_ring': Row(lambda: tp.lazy(tp.ring(8), 0.2), 2, gap=0.2 * ring_gap(8)),
  'lazy_peers': Row(
    lambda: tp.lazy(tp.one_peer_exponential(8), 0.5), 1, symmetric=False
  ),
}
table = pytest.mark.parametrize('row', TOPOLOGIES.values(), ids=TOPOLOGIES)


def gossip(topology, x):
  """x_new by messages: each worker reads one per edge from its source."""
  new = x.copy()
  for weight, perm in topology.edges:
    weights = np.broadcast_to(weight, topology.n)
    source = tp.sources(perm)
    for i in range(topology.n):
      new[i] += weights[i] * (x[source[i]] - x[i])
  return new


def useless_messages(topology):
  """Arcs that send to another worker something of weight 0."""
  return sum(
    perm[i] != i and np.broadcast_to(weight, topology.n)[perm[i]] == 0
    for weight, perm in topology.edges
    for i in range(topology.n)
  )


def degrees(w):
  arcs = w > 0
  np.fill_diagonal(arcs, False)
  return arcs.sum(1), arcs.sum(0)


# ----------------------------------------------------------------- every row


@table
def test_edges_are_full_permutations_and_static(row):
  for topology in tp.schedule(row.make()):
    assert len(topology.edges) == row.edges
    for weight, perm in topology.edges:
      assert sorted(perm) == list(range(topology.n))
      assert type(weight) is float or {type(w) for w in weight} == {float}
      assert {type(i) for i in perm} == {int}
    assert isinstance(hash(topology), int)
    assert topology == copy.deepcopy(topology)


@table
def test_weights_are_doubly_stochastic(row):
  for topology in tp.schedule(row.make()):
    w = tp.matrix(topology)
    assert w.dtype == np.float64 and w.min() >= -1e-15
    np.testing.assert_allclose(w.sum(0), 1, atol=1e-14)
    np.testing.assert_allclose(w.sum(1), 1, atol=1e-14)
    tp.require_doubly_stochastic(topology, 'dpsgd')


@table
def test_symmetry_is_as_claimed(row):
  rounds = tp.schedule(row.make())
  if row.symmetric:
    tp.require_symmetric(rounds, 'd2')
    for w in map(tp.matrix, rounds):
      np.testing.assert_allclose(w, w.T, atol=1e-15)
  else:
    with pytest.raises(ValueError, match='d2 needs a symmetric W'):
      tp.require_symmetric(rounds, 'd2')


@table
def test_spectral_gap_is_the_closed_form(row):
  gap = tp.spectral_gap(row.make())
  assert type(gap) is float and 0 < gap <= 1
  if row.gap is not None:
    np.testing.assert_allclose(gap, row.gap, rtol=1e-12)


@table
def test_messages_equal_the_dense_product_and_keep_the_mean(row):
  for topology in tp.schedule(row.make()):
    x = np.random.default_rng(0).normal(size=(topology.n, 3))
    new = gossip(topology, x)
    np.testing.assert_allclose(new, tp.matrix(topology) @ x, atol=1e-14)
    np.testing.assert_allclose(new.mean(0), x.mean(0), atol=1e-14)


@table
def test_no_message_is_sent_twice_or_for_nothing(row):
  for topology in tp.schedule(row.make()):
    arcs = [
      (i, j) for _, perm in topology.edges for i, j in enumerate(perm) if i != j
    ]
    assert len(arcs) == len(set(arcs))
    assert useless_messages(topology) == 0


# --------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
  'n, rho', [(4, 0.3333), (8, 0.8047), (16, 0.9493), (32, 0.9872)]
)
def test_ring_rho_of_the_reference(n, rho):
  assert round(1 - tp.spectral_gap(tp.ring(n)), 4) == rho


@pytest.mark.parametrize('n', [4, 6, 8, 32])
def test_even_ring_has_lambda_n_of_minus_a_third(n):
  values = np.linalg.eigvalsh(tp.matrix(tp.ring(n)))
  np.testing.assert_allclose(values[0], -1 / 3, atol=1e-14)


def test_gap_of_a_large_ring_keeps_float64_precision():
  expected = 4 / 3 * np.sin(pi / 500) ** 2  # 1 - rho without cancellation
  np.testing.assert_allclose(tp.spectral_gap(tp.ring(500)), expected, rtol=1e-9)


@pytest.mark.parametrize('n', [2, 4, 8, 64])
def test_one_peer_cycle_is_exactly_the_mean(n):
  rounds = tp.one_peer_exponential(n)
  product = np.eye(n)
  for r in rounds:
    assert [w for w, _ in r.edges] == [0.5]
    product = tp.matrix(r) @ product
  np.testing.assert_array_equal(product, np.full((n, n), 1 / n))
  assert len(rounds) == np.log2(n)


def test_pairs_are_those_of_one_bit():
  for k, r in enumerate(tp.one_peer_hypercube(16)):
    assert r.edges == ((0.5, tuple(i ^ 2**k for i in range(16))),)
  assert tp.base_graph(16) == tp.one_peer_hypercube(16)


# Rounds of the paper's Base-2 graph, by n from 2 on.
ROUNDS = [1, 3, 2, 5, 4, 5, 3, 7, 6, 7, 5, 7, 6, 7, 4, 9]


@pytest.mark.parametrize('k', [1, 2])
@pytest.mark.parametrize('n', range(2, 34))
def test_a_base_graph_is_exactly_the_mean(n, k):
  rounds, product = tp.base_graph(n, k), np.eye(n)
  for r in rounds:
    w = tp.matrix(r)
    into, out = degrees(w.copy())
    assert len(r.edges) <= k and max(*into, *out) <= k
    np.testing.assert_allclose(w, w.T, atol=1e-15)
    np.testing.assert_allclose(w.sum(0), 1, atol=1e-14)
    product = w @ product
  np.testing.assert_allclose(product, 1 / n, rtol=0, atol=1e-14)
  assert len(rounds) <= 2 * np.log(n) / np.log(k + 1) + 2
  assert k > 1 or n > 17 or len(rounds) == ROUNDS[n - 2]
  assert tp.spectral_gap(rounds) == 1


@pytest.mark.parametrize('n', [2, 3, 8, 9])
def test_complete_is_the_mean(n):
  np.testing.assert_allclose(tp.matrix(tp.complete(n)), 1 / n, atol=1e-15)


@pytest.mark.parametrize(
  'name, weight',
  [
    ('ring_2', 1 / 2),
    ('ring_8', 1 / 3),
    ('torus_2x4', 1 / 4),
    ('torus_4x6', 1 / 5),
    ('complete_7', 1 / 7),
    ('star_9', 1 / 9),
    ('hypercube_16', 1 / 5),
    ('exponential_6', 1 / 4),
    ('petersen', 1 / 4),
  ],
)
def test_named_topologies_have_one_float_weight(name, weight):
  edges = TOPOLOGIES[name].make().edges
  assert [w for w, _ in edges] == pytest.approx([weight] * len(edges))
  assert {type(w) for w, _ in edges} == {float}


def test_torus_joins_the_four_neighbours():
  w = tp.matrix(tp.torus(3, 4))
  assert np.flatnonzero(w[5]).tolist() == [1, 4, 5, 6, 9]
  assert np.flatnonzero(w[0]).tolist() == [0, 1, 3, 4, 8]


def test_exponential_sends_ahead():
  w = tp.matrix(tp.exponential(8))
  assert np.flatnonzero(w[:, 0]).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize('n', [2, 5, 8])
def test_random_matchings_are_maximal_and_repeat_by_seed(n):
  rounds = tp.random_matchings(n, 9, seed=3)
  assert rounds == tp.random_matchings(n, 9, seed=3) and len(rounds) == 9
  if n > 2:
    assert rounds != tp.random_matchings(n, 9, seed=4)
    assert len(set(rounds)) > 1
  for r in rounds:
    ((weight, perm),) = r.edges
    assert weight == 0.5 and tp.sources(perm) == perm
    assert sum(perm[i] == i for i in range(n)) == n % 2


def test_sources_is_the_inverse():
  assert tp.sources((2, 0, 1, 3)) == (1, 2, 0, 3)


def test_weights_belong_to_receivers():
  w = tp.matrix(tp.Topology([((0.1, 0.2, 0.3), (1, 2, 0))]))
  np.testing.assert_allclose(
    w, [[0.9, 0, 0.1], [0.2, 0.8, 0], [0, 0.3, 0.7]], atol=1e-15
  )


def test_self_loops_contribute_nothing():
  loops = tp.Topology([(1, (0, 2, 1)), (0.7, (0, 1, 2)), (0.9, (0, 1, 2))])
  np.testing.assert_array_equal(
    tp.matrix(loops), [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
  )


# ------------------------------------------------------ random weights, graphs

PROPERTY = hypothesis.settings(
  max_examples=60, deadline=None, database=None, derandomize=True
)


@st.composite
def stochastic_matrices(draw):
  """A convex combination of permutations; the cycle among them connects it."""
  n = draw(st.integers(1, 7))
  perms = draw(st.lists(st.permutations(range(n)), max_size=4))
  perms.append([(i + 1) % n for i in range(n)])
  weight = st.integers(1, 100)
  weights = draw(st.lists(weight, min_size=len(perms), max_size=len(perms)))
  eye = np.eye(n)
  total = sum(w * eye[perm] for w, perm in zip(weights, perms, strict=True))
  return total / sum(weights)


@st.composite
def connected_graphs(draw):
  """A random tree and some more edges."""
  n = draw(st.integers(1, 9))
  g = nx.Graph([(i, draw(st.integers(0, i - 1))) for i in range(1, n)])
  g.add_node(0)
  node = st.integers(0, n - 1)
  g.add_edges_from(draw(st.lists(st.tuples(node, node), max_size=12)))
  return g


def check_colouring(w, topology):
  into, out = degrees(w)
  np.testing.assert_allclose(tp.matrix(topology), w, rtol=0, atol=1e-12)
  assert len(topology.edges) == max(1, into.max(), out.max())
  assert useless_messages(topology) == np.maximum(0, into - out).sum()
  x = np.random.default_rng(0).normal(size=topology.n)
  np.testing.assert_allclose(gossip(topology, x), w @ x, atol=1e-12)


@PROPERTY
@hypothesis.given(stochastic_matrices())
def test_any_doubly_stochastic_matrix_is_coloured(w):
  topology = tp.from_matrix(w)
  check_colouring(w, topology)
  tp.require_doubly_stochastic(tp.schedule(topology), 'dpsgd')


@PROPERTY
@hypothesis.given(stochastic_matrices())
def test_symmetric_matrices_send_nothing_useless(w):
  w = (w + w.T) / 2
  topology = tp.from_matrix(w)
  check_colouring(w, topology)
  tp.require_symmetric(topology, 'd2')
  assert useless_messages(topology) == 0


@PROPERTY
@hypothesis.given(connected_graphs())
def test_graphs_get_metropolis_weights(g):
  topology = tp.from_graph(g)
  w = tp.matrix(topology)
  check_colouring(w, topology)
  g.remove_edges_from(list(nx.selfloop_edges(g)))
  for i in range(len(g)):
    for j in range(i):
      expected = g.has_edge(i, j) / (1 + max(g.degree[i], g.degree[j]))
      np.testing.assert_allclose([w[i, j], w[j, i]], expected, atol=1e-15)
  assert useless_messages(topology) == 0


@table
def test_named_topologies_survive_the_way_through_a_matrix(row):
  for topology in tp.schedule(row.make()):
    w = tp.matrix(topology)
    try:
      again = tp.from_matrix(w)
    except ValueError:
      assert isinstance(row.make(), tuple)  # one round alone: not connected
    else:
      check_colouring(w, again)
      assert useless_messages(again) == 0


def test_useless_messages_are_few_where_degrees_differ():
  # 1 hears 0 and 2 but sends to 2 only: its second round in must come out.
  w = np.array([[0.5, 0, 0.5], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25]])
  check_colouring(w, tp.from_matrix(w))
  assert useless_messages(tp.from_matrix(w)) == 1


@pytest.mark.parametrize('n', [3, 11])
def test_float32_matrices_are_accepted(n):
  w = tp.matrix(tp.complete(n)).astype(np.float32)
  np.fill_diagonal(w, 0)
  w /= w.sum(1, keepdims=True)  # sums of 1 + 6e-8 with nothing left for self
  topology = tp.from_matrix(w)
  np.testing.assert_allclose(tp.matrix(topology), w, atol=2e-6)
  tp.require_doubly_stochastic(topology, 'dpsgd')


def random_graph(rng, n):
  """Adjacency of a random connected graph, without self-loops."""
  near = rng.random((n, n)) < rng.uniform(0, 0.6)
  order = rng.permutation(n)
  near[order[1:], order[:-1]] = True
  return (near | near.T) & ~np.eye(n, dtype=bool)


def metropolis(near):
  degree = near.sum(0)
  w = near / (1 + np.maximum.outer(degree, degree))
  return w + np.diag(1 - w.sum(1))


def by_eigenvectors(w):
  """W again, from V diag(lambda) V^T: 0 becomes 1e-17 of either sign."""
  values, vectors = np.linalg.eigh(w)
  return (vectors * values) @ vectors.T


NOISE = {
  'either sign': lambda w, rng: w + 1e-16 * rng.normal(size=w.shape),
  'positive': lambda w, rng: w + 1e-16 * rng.random(w.shape),
  'symmetric': lambda w, rng: w + 1e-12 * (e := rng.normal(size=w.shape)) * e.T,
  'eigenvectors': lambda w, rng: by_eigenvectors(w),
  'float32': lambda w, rng: by_eigenvectors(w).astype(np.float32),
}


@pytest.mark.parametrize('noise', NOISE.values(), ids=NOISE)
def test_noise_is_no_edge(noise):
  rng = np.random.default_rng(0)
  for _ in range(200 // len(NOISE)):
    near = random_graph(rng, rng.integers(2, 13))
    w = metropolis(near)
    noisy = noise(w, rng)
    topology = tp.from_matrix(noisy)
    assert len(topology.edges) == near.sum(0).max()
    np.testing.assert_allclose(tp.matrix(topology), noisy, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(tp.matrix(topology) > 1e-9, w > 1e-9)
    assert useless_messages(topology) == 0
    tp.require_symmetric(topology, 'choco')


def test_noise_is_no_edge_of_directed_graphs():
  rng = np.random.default_rng(1)
  for _ in range(40):
    n = rng.integers(3, 13)
    perms = [np.roll(np.arange(n), 1), *(rng.permutation(n) for _ in range(3))]
    share = rng.dirichlet(np.ones(4))
    w = np.tensordot(share, np.eye(n)[np.array(perms)], 1)
    topology = tp.from_matrix(w + 1e-16 * rng.normal(size=w.shape))
    np.testing.assert_allclose(tp.matrix(topology), w, rtol=0, atol=1e-6)
    assert len(topology.edges) == max(degrees(w)[0].max(), degrees(w)[1].max())


def test_a_noisy_ring_has_its_two_edges():
  noisy = tp.matrix(tp.ring(8)) + 1e-16
  assert len(tp.from_matrix(noisy).edges) == 2
  # One weight for all receivers, though their sums were rounded differently.
  assert {type(weight) for weight, _ in tp.from_matrix(noisy).edges} == {float}


def test_rounding_below_zero_is_a_weight_of_zero():
  assert tp.Topology([(-1e-17, (1, 0))]).edges == ((0.0, (1, 0)),)


def test_large_graphs_are_coloured_quickly():
  g = nx.connected_watts_strogatz_graph(200, 6, 0.2, seed=0)
  check_colouring(tp.matrix(tp.from_graph(g)), tp.from_graph(g))


def test_graph_nodes_are_sorted_or_taken_as_they_come():
  chain = nx.Graph([('c', 'a'), ('a', 'b')])
  degree_two = np.argmin(np.diag(tp.matrix(tp.from_graph(chain))))
  assert degree_two == 0  # 'a', the middle one
  mixed = nx.Graph([('c', 1), (1, (2, 3))])
  assert np.argmin(np.diag(tp.matrix(tp.from_graph(mixed)))) == 1


# ---------------------------------------------------- lazy, schedule, the type


@pytest.mark.parametrize('gamma', [0.1, 0.5, 1])
def test_lazy_is_a_part_of_w_and_the_rest_of_i(gamma):
  for topology in (tp.ring(8), tp.from_graph(nx.path_graph(4))):
    n = topology.n
    expected = gamma * tp.matrix(topology) + (1 - gamma) * np.eye(n)
    slow = tp.lazy(topology, gamma)
    assert type(slow) is tp.Topology
    np.testing.assert_allclose(tp.matrix(slow), expected, atol=1e-15)
  assert tp.lazy(tp.ring(8), 1) == tp.ring(8)


def test_lazy_of_a_schedule_is_a_schedule():
  rounds = tp.one_peer_exponential(8)
  slow = tp.lazy(rounds, 0.5)
  assert slow == tuple(tp.lazy(r, 0.5) for r in rounds)
  assert type(tp.lazy((tp.ring(3),), 0.5)) is tuple


def test_schedule_takes_one_or_many():
  ring, rounds = tp.ring(4), tp.one_peer_exponential(8)
  assert tp.schedule(ring) == (ring,)
  assert tp.schedule(list(rounds)) == rounds
  # Neither matching alone joins the four workers, the two together do.
  halves = [tp.Topology([(0.5, p)]) for p in ((1, 0, 3, 2), (0, 2, 1, 3))]
  assert tp.schedule(halves) == tuple(halves)


def test_topology_survives_pickling_and_is_checked_when_replaced():
  topology = tp.from_graph(nx.path_graph(4))
  again = pickle.loads(pickle.dumps(topology))
  assert again == topology and type(again) is tp.Topology
  replaced = topology._replace(edges=tp.ring(4).edges)
  assert replaced == tp.ring(4) and type(replaced) is tp.Topology
  with pytest.raises(ValueError, match='at least one edge'):
    topology._replace(edges=())


def test_topology_becomes_plain_python():
  array = tp.Topology([(np.full(2, 0.5), np.array([1, 0]))])
  assert repr(array) == 'Topology(edges=(((0.5, 0.5), (1, 0)),))'
  assert tp.Topology([(np.float32(0.5), [1, 0])]) == tp.ring(2)


# --------------------------------------------------------------------- errors

pair = (1, 0)
NAN = float('nan')
ERRORS = {
  'no edges': (lambda: tp.Topology(()), 'edges is empty'),
  'a number': (lambda: tp.Topology(8), r'edges has 8; each.*ring\(8\) and'),
  'one edge': (lambda: tp.Topology((0.5, pair)), 'edges has 0.5; each edge is'),
  'no perm': (lambda: tp.Topology([(0.5, 1)]), r'edges has \(0.5, 1\); each'),
  'empty perm': (lambda: tp.Topology([(0.5, ())]), 'not a full permutation'),
  'twice': (
    lambda: tp.Topology([(0.5, (0, 0))]),
    r'perm \(0, 0\) is not a ful',
  ),
  'partial': (lambda: tp.Topology([(0.5, (1, 2))]), 'each of 0..1 exactly'),
  'fraction': (lambda: tp.Topology([(0.5, (0.5, 1))]), r'perm \(0.5, 1\)'),
  'two sizes': (
    lambda: tp.Topology([(0.1, pair), (0.1, (1, 2, 0))]),
    r'perm \(1, 2, 0\) is of 3 workers, the first edge of 2',
  ),
  'negative': (lambda: tp.Topology([(-0.1, pair)]), 'weight -0.1 must be'),
  'one negative': (
    lambda: tp.Topology([((0.1, -0.2), pair)]),
    r'weight \(0.1, -0.2\) must be finite and at least 0',
  ),
  'nan': (lambda: tp.Topology([(NAN, pair)]), 'weight nan must be finite'),
  'short': (
    lambda: tp.Topology([((0.1,), pair)]),
    'has 1 entries; give one float or one per receiver, 2 in all',
  ),
  'over one': (
    lambda: tp.Topology([((0.5, 0.5), pair), ((0.5, 0.6), pair)]),
    'worker 1 receives sum to 1.1; at most 1',
  ),
  'ring 0': (lambda: tp.ring(0), 'ring needs n >= 1; got n=0'),
  'ring heavy': (lambda: tp.ring(5, 0.6), 'receives sum to 1.2'),
  'torus': (lambda: tp.torus(2, 0), 'torus needs cols >= 1; got cols=0'),
  'a float': (lambda: tp.star(8.0), 'n >= 1; got n=8.0, which is no whole'),
  'text': (lambda: tp.torus('2', 4), "rows >= 1; got rows='2', which is no"),
  'a bool': (lambda: tp.base_graph(4, True), 'k >= 1; got k=True, which is'),
  'no seed': (
    lambda: tp.random_matchings(4, 2, None),
    'random_matchings needs seed >= 0; got seed=None, which is no whole',
  ),
  'complete': (lambda: tp.complete(-1), 'complete needs n >= 1'),
  'star': (lambda: tp.star(0), 'star needs n >= 1'),
  'cube 0': (lambda: tp.hypercube(0), 'hypercube needs n >= 1'),
  'cube 6': (lambda: tp.hypercube(6), 'power of two; got n=6'),
  'pairs 6': (
    lambda: tp.one_peer_hypercube(6),
    r'power of two; got n=6. base_graph\(6\) has pairs',
  ),
  'base 0': (lambda: tp.base_graph(0), 'base_graph needs n >= 1; got n=0'),
  'no peers': (lambda: tp.base_graph(4, 0), 'base_graph needs k >= 1; got k=0'),
  'exponential': (lambda: tp.exponential(0), 'exponential needs n >= 1'),
  'one peer': (
    lambda: tp.one_peer_exponential(0),
    'one_peer_exponential needs n >= 1',
  ),
  'matchings': (lambda: tp.random_matchings(0, 1, 0), 'n >= 1; got n=0'),
  'rounds': (lambda: tp.random_matchings(4, 0, 0), 'rounds >= 1; got rounds=0'),
  'vector': (lambda: tp.from_matrix(np.ones(3)), r'square.*got shape \(3,\)'),
  'oblong': (lambda: tp.from_matrix(np.ones((2, 3))), r'got shape \(2, 3\)'),
  'no worker': (lambda: tp.from_matrix(np.ones((0, 0))), r'shape \(0, 0\)'),
  'infinite': (
    lambda: tp.from_matrix([[0.5, np.inf], [0.5, 0.5]]),
    r'w\[0, 1\] = inf must be finite',
  ),
  'negative w': (
    lambda: tp.from_matrix([[1.5, -0.5], [-0.5, 1.5]]),
    r'w\[0, 1\] = -0.5 must be finite and at least 0',
  ),
  'negative self': (
    lambda: tp.from_matrix([[-0.5, 1.5], [1.5, -0.5]]),
    r'w\[0, 0\] = -0.5 must be',
  ),
  'row sum': (
    lambda: tp.from_matrix([[0.5, 0.5], [0.5, 0.25]]),
    'doubly stochastic, but row 1 sums to 0.75 instead of 1',
  ),
  'column sum': (
    lambda: tp.from_matrix([[0.5, 0.5], [0.75, 0.25]]),
    'doubly stochastic, but column 0 sums to 1.25 instead of 1',
  ),
  'too light': (
    lambda: tp.schedule(tp.Topology([(1e-9, pair)])),
    r'is not connected: .*groups of workers \[\[0\], \[1\]\]',
  ),
  'parts of w': (
    lambda: tp.from_matrix(np.kron(np.eye(2), np.full((2, 2), 0.5))),
    r'graph of w is not connected.*groups of workers \[\[0, 1\], \[2, 3\]\]',
  ),
  'directed': (
    lambda: tp.from_graph(nx.DiGraph([(0, 1)])),
    'undirected graph with a node, of networkx; got DiGraph',
  ),
  'empty graph': (lambda: tp.from_graph(nx.Graph()), 'networkx; got Graph'),
  'no graph': (lambda: tp.from_graph(8), 'undirected graph .* networkx; got 8'),
  'parts of g': (
    lambda: tp.from_graph(nx.Graph([('a', 'b'), ('c', 'd')])),
    r"g is not connected.*\[\['a', 'b'\], \['c', 'd'\]\]",
  ),
  'gamma 0': (lambda: tp.lazy(tp.ring(3), 0), 'lazy needs 0 < gamma <= 1'),
  'gamma 2': (lambda: tp.lazy(tp.ring(3), 2.0), 'got gamma=2.0'),
  'gamma nan': (lambda: tp.lazy(tp.ring(3), NAN), 'got gamma=nan'),
  'no rounds': (lambda: tp.schedule(()), r'topology=\(\); expected a Topology'),
  'bare edges': (
    lambda: tp.schedule(((0.5, (1, 0)),)),
    'expected a Topology or a non-empty tuple',
  ),
  'n differs': (
    lambda: tp.schedule((tp.ring(3), tp.ring(4))),
    r'same n; got \[3, 4\]',
  ),
  'gap of n': (
    lambda: tp.spectral_gap((tp.ring(3), tp.ring(4))),
    r'same n; got \[3, 4\]',
  ),
  'not joined': (
    lambda: tp.schedule(tp.random_matchings(4, 1, seed=0)),
    r'topology \(all rounds together\) is not connected',
  ),
  'no weight': (
    lambda: tp.schedule(tp.ring(2, weight=0)),
    r'groups of workers \[\[0\], \[1\]\]',
  ),
  'one way': (
    lambda: tp.schedule(tp.Topology([((0.5, 0), pair)])),
    r'do not pass both ways between the groups of workers \[\[0\], \[1\]\]',
  ),
  'columns': (
    lambda: tp.require_doubly_stochastic(
      (tp.ring(2), tp.Topology([((0.5, 0.25), pair)])), 'dpsgd'
    ),
    r'dpsgd needs a doubly stochastic W.*round 1 column 0.*sums to 0.75.*'
    'Use from_matrix.*push_sum',
  ),
  'asymmetric': (
    lambda: tp.require_symmetric(
      tp.schedule(tp.Topology([(0.25, (1, 2, 0))])), 'choco'
    ),
    r'choco needs a symmetric W; in round 0 W\[0, 1\] = 0.0 but '
    r'W\[1, 0\] = 0.25. Use ring',
  ),
}


@pytest.mark.parametrize('call, match', ERRORS.values(), ids=ERRORS)
def test_errors_name_the_thing_the_value_and_the_way_out(call, match):
  with pytest.raises(ValueError, match=match):
    call()


def test_every_public_name_is_listed_and_sorted():
  assert tp.__all__ == sorted(tp.__all__)
  assert all(getattr(tp, name).__doc__ for name in tp.__all__)
