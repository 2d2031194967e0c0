"""Laws that hold for any values, over the tables of all that is exchanged.

Hypothesis varies values: infinities, NaN, subnormals, zeros of both signs, ties
of the grids, one value far from the others. Shapes stay, so that each quantizer
is compiled once.
"""

import functools

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import topologies
from moniqua_jax.laboratory import splits
from moniqua_jax.quantizers import base, buckets
from moniqua_jax.quantizers.leveled import grid
from moniqua_jax.quantizers.nuqsgd import halving_grid
from moniqua_jax.quantizers.qsgd import uniform_grid
from tests import helpers, test_readable
from tests.helpers import EPS, QUANTIZERS, THETA, f64, tiered

D = 19  # a byte of stripes is not full
KEY = jax.random.key(5)
LEAST, MOST = 2.0**-126, float(np.finfo(np.float32).max)
SPECIAL = np.float32(
  [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-40, LEAST, -LEAST]
  + [1e-20, 2.0**-25, 1e19, -1e30, 3e38, MOST, -MOST]
).tolist()
TIES = st.integers(-64, 64).map(lambda i: i / 16)  # of 4 bits and fewer
ORDINARY = st.one_of(TIES, st.floats(-8, 8, width=32))
ANY = st.one_of(ORDINARY, st.sampled_from(SPECIAL), st.floats(width=32))


def vectors(values, size=D):
  """f32[size]: each its own value, or most of them the same."""
  each = hnp.arrays(np.float32, size, elements=values, fill=st.nothing())
  most = hnp.arrays(np.float32, size, elements=values, fill=values)
  return st.one_of(each, most)


def scales(lowest, highest):
  return st.integers(lowest, highest).map(lambda k: np.float32(2.0**k))


def often(examples):
  return hypothesis.settings(
    max_examples=examples, deadline=None, derandomize=True, database=None
  )


FAST = ['moniqua 1 dithered', 'uniform 3 stochastic', 'nuqsgd 4', 'qsgd 4']
BOUNDED = {name: row for name, row in QUANTIZERS.items() if 'eden' not in name}
NEAR = [name for name in QUANTIZERS if name.startswith('moniqua')]
AFAR = [name for name in QUANTIZERS if name not in NEAR]


def many(names, fast=FAST):
  """(name, examples): a few in the fast tier; in the slow one more, of all."""
  rows = [(name, 12) for name in names if name in fast]
  return pytest.mark.parametrize(
    'name,examples', tiered([*rows, *((name, 300) for name in names)], rows)
  )


def heard(name, x, y):
  """x_hat of the sender and of the receiver, and whether it was readable."""
  _, own, theirs, seen = helpers.alone(name)(x, y, KEY)
  return np.asarray(own), np.asarray(theirs), bool(seen.readable)


def is_within(name, x, y, x_hat):
  # What is below the least float may be taken for 0.
  slack = 4 * EPS * (helpers.largest(x, y) + THETA) + D * LEAST
  if name == 'full_precision':
    slack = 0
  most = QUANTIZERS[name][-1](f64(x))
  return (np.abs(f64(x_hat) - f64(x)) <= most * (1 + 8 * EPS) + slack).all()


# ------------------------------------------------------------------ quantizers


@many(AFAR)
def test_any_vector_is_within_its_bound_or_unreadable(name, examples):
  @often(examples)
  @hypothesis.given(vectors(ANY))
  def law(x):
    own, theirs, readable = heard(name, x, np.zeros_like(x))
    np.testing.assert_array_equal(own.view(np.uint32), theirs.view(np.uint32))
    assert readable == np.isfinite(theirs).all()
    if not np.isfinite(x).all():
      assert not readable
    elif np.abs(x).max() < 1e18:  # the sum of the squares is a number
      assert readable
    if readable and name in BOUNDED:
      assert is_within(name, x, x, theirs)

  law()


@many(NEAR)
def test_moniqua_reads_any_near_vector_within_its_bound(name, examples):

  @often(examples)
  @hypothesis.given(vectors(ANY), vectors(st.floats(-1, 1, width=32)))
  def law(x, apart):
    y = x + np.float32(0.99 * THETA) * apart
    own, theirs, readable = heard(name, x, y)
    if not np.isfinite(x).all():
      assert not readable
    elif np.abs(x).max() < 1e4:  # far below the bits that float32 has
      assert readable
    elif np.abs(x).max() >= 2.0**23:  # 2^22 steps of any of them
      assert not readable
    if readable:
      np.testing.assert_array_equal(own.view(np.uint32), theirs.view(np.uint32))
      assert is_within(name, x, y, theirs)

  law()


@many([name for name in NEAR if name != 'moniqua 8 stochastic'])
def test_what_moniqua_reads_of_afar_is_right_but_for_even_turns(name, examples):
  """The digest sees every wrap of odd multiplicity, of one value in a lane."""
  bound, bits = QUANTIZERS[name][-1](np.zeros(1)), int(name.split()[1])
  delta = 2.0 ** -(bits + ('stochastic' not in name))
  circle = bound / delta  # B_theta

  @often(examples)
  @hypothesis.given(vectors(ORDINARY), vectors(ORDINARY))
  def law(x, y):
    _, theirs, readable = heard(name, x, y)
    turns = (f64(theirs) - f64(x)) / circle
    if readable:
      off = np.abs(turns - 2 * np.rint(turns / 2)) * circle
      assert (off <= bound + 16 * EPS * (8 + circle)).all()

  law()


@many([name for name in AFAR if name not in ('full_precision', 'random_k')])
def test_a_power_of_two_commutes_with_the_quantizer(name, examples):
  """Norms, ranges and levels are relative: no scale is another's special."""

  @often(examples)
  @hypothesis.given(vectors(TIES), scales(-40, 40))
  def law(x, scale):
    one, _, readable = heard(name, x, np.zeros_like(x))
    other, _, _ = heard(name, scale * x, np.zeros_like(x))
    assert readable
    np.testing.assert_array_equal(other, scale * one)

  law()


@functools.cache
def read(name):
  """x -> x_hat and whether it is readable; `per_worker` has its own table."""
  quantizer = test_readable.QUANTIZERS[name]

  def one(x):
    payload = quantizer.encode(x, KEY)
    seen = quantizer.inspect(payload, x)
    return quantizer.decode(payload, x), seen.readable

  return jax.jit(jax.vmap(one, axis_name='workers'))


@many(test_readable.QUANTIZERS, ['scaled'])
def test_what_is_read_is_finite_and_what_is_not_is_not_read(name, examples):
  rows = 5 if name == 'per_worker' else 1

  @often(examples)
  @hypothesis.given(vectors(ANY, (rows, test_readable.D)))
  def law(x):
    x_hat, readable = map(np.asarray, read(name)(x))
    assert not (readable & ~np.isfinite(x_hat).all(axis=1)).any()
    assert not (readable & ~np.isfinite(x).all(axis=1)).any()

  law()


@functools.cache
def shortened(name):
  quantizer = test_readable.QUANTIZERS[name]

  def there_and_back(x):
    payload = quantizer.encode(x, KEY)
    short, fits = quantizer.short.shorten(payload, x.size)
    return payload, quantizer.short.restore(short, x.size), fits

  return jax.jit(there_and_back)


@pytest.mark.parametrize('examples', tiered([12, 300], [12]))
def test_a_short_message_that_fits_comes_back(examples):
  @often(examples)
  @hypothesis.given(vectors(ANY, test_readable.D))
  def law(x):
    payload, restored, fits = shortened('coded')(x)
    if fits:
      np.testing.assert_array_equal(restored, payload)

  law()


# ----------------------------------------------------------------------- grids

GRIDS = {
  **{f'uniform {s}': uniform_grid(s, 8) for s in (1, 7, 127)},
  **{f'halving {s}': halving_grid(s, 8) for s in (1, 6, 30)},
  'leveled': grid((-1.0, -0.3, -0.05, 0.1, 0.6, 1.0), 8),
}
EVENLY = np.linspace(0, 2**32 - 1, 1025).astype(np.uint32)


@functools.cache
def levels_and_rounded():
  """name -> levels, places between them, and the codes for all words."""
  levels = {
    name: np.asarray(of.level(np.arange(of.codes.count)))
    for name, of in GRIDS.items()
  }
  places = {
    name: np.float32([(1 - p) * v[:-1] + p * v[1:] for p in (0.01, 0.5, 0.99)])
    for name, v in levels.items()
  }
  codes = lambda of, r: of.round(*np.broadcast_arrays(r[:, None], EVENLY))
  rounded = jax.jit(
    lambda: {
      name: [codes(of, r) for r in (levels[name], places[name].ravel())]
      for name, of in GRIDS.items()
    }
  )()
  return levels, places, jax.tree.map(np.asarray, rounded)


@pytest.mark.parametrize('name', GRIDS)
def test_a_level_is_its_own_code_whatever_the_random_bits(name):
  levels, _, rounded = levels_and_rounded()
  codes = np.arange(levels[name].size)
  if 'uniform' in name:  # s r + u is rounded, and may reach the next one
    codes = codes[[codes.size // 2, -1]]
  found = rounded[name][0][codes]
  np.testing.assert_array_equal(found, codes[:, None] + 0 * EVENLY)


@pytest.mark.parametrize('name', GRIDS)
def test_between_two_levels_the_mean_over_the_random_bits_is_the_value(name):
  levels, places, rounded = levels_and_rounded()
  v, r, codes = levels[name], places[name], rounded[name][1].astype(int)
  low = np.tile(np.arange(v.size - 1), 3)[:, None]
  assert ((codes == low) | (codes == low + 1)).all()
  found = v[codes].mean(axis=1).reshape(r.shape)
  assert (np.abs(found - r) <= 2e-3 * np.diff(v)).all()


@pytest.mark.parametrize('norm', ['l2', 'linf'])
def test_no_grid_is_given_a_quotient_beyond_one(norm):
  """Of a value alone in its bucket, x / |x| may exceed 1 by its rounding."""
  beyond = buckets.Grid(
    base.Codes(1, 2, None, 4),
    lambda r, words: abs(r) > 1,
    lambda codes: codes.astype(np.float32),
  )
  q = buckets.bucketed(beyond, norm)
  x = np.random.default_rng(0).normal(size=(4096, 1)).astype(np.float32)
  x = np.pad(x, ((0, 0), (0, 3))).ravel()
  assert not np.asarray(
    jax.jit(lambda x: q.decode(q.encode(x, KEY), x))(x)
  ).any()


def test_a_norm_beyond_float32_is_none():
  rows = np.float32([[MOST, -MOST], [3.0, 4.0], [np.inf, 1.0], [0.0, -0.0]])
  found = jax.jit(lambda rows: [norm(rows) for norm in buckets.NORMS.values()])
  l2, linf = found(rows)
  np.testing.assert_allclose(l2, [np.nan, 5.0, np.nan, 0.0], rtol=1e-6)
  np.testing.assert_array_equal(linf, np.float32([MOST, 4.0, np.nan, 0.0]))


def test_norms_are_read_once_for_a_bucket():
  """And not for each of its values, where XLA fuses the reading into those."""
  q, x = mj.qsgd(4, 8), np.ones(24, np.float32)
  payload = jax.eval_shape(q.encode, x, KEY)
  eqns = jax.make_jaxpr(q.decode)(payload, x).jaxpr.eqns
  shapes = [
    eqn.outvars[0].aval.shape
    for eqn in eqns
    if eqn.primitive.name == 'optimization_barrier'
  ]
  assert shapes == [(3,)]


@pytest.mark.parametrize('name', ['qsgd 4', 'natural'])
def test_readable_is_what_a_message_is_and_not_who_reads_it(name):
  q, x = QUANTIZERS[name][0], np.ones(8, np.float32)
  see = jax.jit(lambda x, y: q.inspect(q.encode(x, KEY), y))
  for y in (np.full(8, np.inf, np.float32), np.full(8, np.nan, np.float32)):
    seen = see(x, y)
    assert seen.readable and not np.isfinite(seen.distance)


# ------------------------------------------------------------------ topologies

SIZES = st.integers(2, 24)
POWERS = st.integers(1, 5).map(lambda k: 2**k)
# name -> a strategy of its arguments
NAMED = {
  'ring': st.tuples(SIZES),
  'torus': st.tuples(st.integers(2, 6), st.integers(2, 6)),
  'complete': st.tuples(SIZES),
  'star': st.tuples(SIZES),
  'hypercube': st.tuples(POWERS),
  'exponential': st.tuples(SIZES),
  'one_peer_exponential': st.tuples(POWERS),
  'one_peer_hypercube': st.tuples(POWERS),
  'base_graph': st.tuples(SIZES, st.integers(1, 2)),
}
ONE_SIDED = ('exponential', 'one_peer_exponential')
EXACT = ('one_peer_exponential', 'one_peer_hypercube', 'base_graph')
named = pytest.mark.parametrize('name', NAMED)


@named
def test_any_size_of_a_named_topology_keeps_the_mean_and_connects(name):
  @often(25)
  @hypothesis.given(NAMED[name])
  def law(arguments):
    rounds = topologies.schedule(topologies.BY_NAME[name](*arguments))
    for one in rounds:
      w = topologies.matrix(one)
      assert (w >= -1e-12).all()
      np.testing.assert_allclose(w.sum(0), 1, atol=1e-12)
      np.testing.assert_allclose(w.sum(1), 1, atol=1e-12)
      if name not in ONE_SIDED:
        np.testing.assert_allclose(w, w.T, atol=1e-12)
    product = functools.reduce(np.matmul, map(topologies.matrix, rounds))
    if name in EXACT:
      np.testing.assert_allclose(product, 1 / rounds[0].n, atol=1e-12)
    elif name != 'torus' or min(arguments) > 2:
      assert mj.spectral_gap(rounds) > 0

  law()


@named
def test_lazy_is_between_the_topology_and_staying(name):
  @often(15)
  @hypothesis.given(NAMED[name], st.floats(0.01, 1))
  def law(arguments, gamma):
    rounds = topologies.schedule(topologies.BY_NAME[name](*arguments))
    for one, slow in zip(rounds, mj.lazy(rounds, gamma), strict=True):
      w, eye = topologies.matrix(one), np.eye(one.n)
      expected = gamma * w + (1 - gamma) * eye
      np.testing.assert_allclose(topologies.matrix(slow), expected, atol=1e-12)
      assert [perm for _, perm in slow.edges] == [p for _, p in one.edges]

  law()


@often(50)
@hypothesis.given(SIZES, st.integers(1, 6), st.integers(0, 99))
def test_matchings_pair_all_but_one_and_repeat_with_their_seed(n, m, seed):
  rounds = mj.random_matchings(n, m, seed)
  assert rounds == mj.random_matchings(n, m, seed) and len(rounds) == m
  for one in rounds:
    (_, perm), workers = one.edges[0], np.arange(n)
    assert (np.array(perm)[list(perm)] == workers).all()
    assert (np.array(perm) == workers).sum() == n % 2


@often(50)
@hypothesis.given(
  st.integers(1, 9).flatmap(lambda n: st.permutations(range(n)))
)
def test_sources_are_the_inverse(perm):
  back = topologies.sources(perm)
  assert [back[perm[i]] for i in range(len(perm))] == list(range(len(perm)))


# ---------------------------------------------------------------- partitioners


@pytest.mark.parametrize('split', [splits.by_norm, splits.iid])
def test_rows_stay_with_their_labels_and_come_once(split):
  @often(40)
  @hypothesis.given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 9))
  def law(size, n, seed):
    n = min(n, size)
    features = np.random.default_rng(seed).normal(size=(size, 3))
    shards, labels = split(features, np.arange(size), n, seed)
    assert (
      shards.shape == (n, size // n, 3) and labels.shape == shards.shape[:2]
    )
    index = labels.astype(int).ravel()
    assert len(set(index)) == n * (size // n)
    np.testing.assert_array_equal(shards.reshape(-1, 3), features[index])
    if split is splits.by_norm:
      norms = np.linalg.norm(features, axis=1)
      assert (np.diff(norms[index]) >= 0).all()
      assert norms[index].max() <= np.delete(norms, index).min(initial=np.inf)

  law()


@often(60)
@hypothesis.given(hnp.arrays(np.float64, (6, 4), elements=st.floats(-1e9, 1e9)))
def test_scaled_rows_have_the_largest_entry_one(features):
  scaled, most = splits.row_scaled(features), np.abs(features).max(axis=1)
  expected = np.where(most > 0, 1.0, 0.0)
  np.testing.assert_allclose(np.abs(scaled).max(axis=1), expected)
  np.testing.assert_allclose(
    scaled * most[:, None], features, rtol=1e-12, atol=LEAST
  )
