"""Noise of the quantizers with a norm: bounds, exact values, what is measured.

Three things are held against each other: the bounds, the exact expectations in
float64 (written once more here, from the definition), and means over keys of
what the quantizers send.
"""

import functools
import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import theory
from tests.helpers import tiered

some = hypothesis.settings(deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def halving(s):
  """0, 2^-s, ..., 1/2, 1."""
  return (0, *(2.0**-j for j in range(s, -1, -1)))


def halves(bits):
  """+-2^-(2^(b-1) - 1), ..., +-1: the authors' code, without 0."""
  return tuple(2.0**-j for j in range(2 ** (bits - 1) - 1, -1, -1))


def even(s):
  return tuple(j / s for j in range(s + 1))


def levels_like(seed, count):
  """Random signed levels from -1 to 1, the two sides different."""
  inside = np.random.default_rng(seed).uniform(-1, 1, size=count - 2)
  return (-1.0, *np.sort(np.float64(np.float32(inside))), 1.0)


# --------------------------------------------- the definition, in float64


def length(v, norm):
  return np.abs(v).max() if norm == 'linf' else np.sqrt((v * v).sum())


def coins(v, levels, norm):
  """Each value of Q(v): it is high with probability up, else low."""
  sides = {*levels, *(-h for h in levels)} if levels[0] >= 0 else {*levels}
  grid, n = sorted(sides), length(v, norm)
  r = np.clip(v / n, -1, 1)
  low = np.array([max(h for h in grid[:-1] if h <= each) for each in r])
  high = np.array([min(h for h in grid if h > each) for each in low])
  return n * low, n * high, (r - low) / (high - low)


def variances(v, levels, norm):
  low, high, up = coins(v, levels, norm)
  return up * (high - v) ** 2 + (1 - up) * (low - v) ** 2


# ------------------------------------------------------------- the vectors


def rest(head, d):
  """The given r, then equal values that make the length 1."""
  left = 1 - np.sum(np.square(head))
  return np.append(
    head, np.full(d - len(head), (left / (d - len(head))) ** 0.5)
  )


def mostly(r, d):
  """As many values r as fit in a vector of length 1."""
  return rest(np.full(min(d - 1, int((1 - 1e-9) / r**2)), r), d)


def spikes(d):
  """4/3 of the levels: each of these costs r^2 / 8, the most above l_1."""
  return [rest([2 / 3, 1 / 3, 1 / 6, 1 / 12][:k], d) for k in range(min(5, d))]


def adversaries(levels, d):
  above = [h for h in levels if 0 < h < 1]
  for r in above[:: 1 + len(above) // 8]:
    yield from (mostly(r * c, d) for c in (1 - 1e-6, 1 + 1e-6, 4 / 3, 0.5))
  yield from spikes(d)
  yield np.eye(d)[0]
  yield np.ones(d)
  yield from (c ** np.arange(d) for c in (0.5, 0.9, 0.99))
  for c in np.geomspace(1e-4, 1, 30):
    yield np.append(1, np.full(d - 1, c))


LAWS = {
  'Gaussian': lambda rng, size: rng.normal(size=size),
  'Laplace': lambda rng, size: rng.laplace(size=size),
  'Student-t': lambda rng, size: rng.standard_t(3, size=size),
}


def near_everything(levels, d, seed=0):
  rng = np.random.default_rng(seed)
  yield from (v for v in adversaries(levels, d) if np.isfinite(v).all())
  yield from (law(rng, d) for law in LAWS.values())


# -------------------------------------------------------------- the bounds


@pytest.mark.parametrize('d', [8, 128, 1000, 8192])
@pytest.mark.parametrize('s', [1, 2, 3, 6, 14, 126])
def test_no_vector_exceeds_the_bounds_of_nuqsgd(s, d):
  tight = theory.nuqsgd_variance_tight(s, d)
  assert tight <= theory.nuqsgd_variance(s, d)
  for v in near_everything(halving(s), d):
    assert theory.exact_variance(v, halving(s)) <= tight * (1 + 1e-12)


@pytest.mark.parametrize('norm', ['l2', 'linf'])
@pytest.mark.parametrize('d', [8, 128, 8192])
@pytest.mark.parametrize('s', [1, 3, 7, 127])
def test_no_vector_exceeds_the_bounds_of_qsgd(s, d, norm):
  bound = theory.qsgd_variance(s, d)
  other = theory.leveled_variance(even(s), d, norm)
  for v in near_everything(even(s), d):
    found = theory.exact_variance(v, even(s), norm)
    assert found <= min(bound, other) * (1 + 1e-9)


@some
@hypothesis.given(
  seeds,
  st.sampled_from([2, 3, 4, 8, 15, 64]),
  st.integers(2, 300),
  st.sampled_from(['signed', 'zero', 'no zero']),
  st.sampled_from(['l2', 'linf']),
)
def test_no_vector_exceeds_the_bound_of_any_levels(seed, count, d, kind, norm):
  rng = np.random.default_rng(seed)
  levels = levels_like(seed, count)
  if kind != 'signed':
    sizes = 2.0 ** rng.uniform(-8, 0, size=count)
    levels = (*([0] if kind == 'zero' else []), *sorted(sizes), 1)
  bound = theory.leveled_variance(levels, d, norm)
  for v in near_everything(np.abs(levels)[:: max(1, count // 4)], d, seed):
    assert theory.exact_variance(v, levels, norm) <= bound * (1 + 1e-9)


@pytest.mark.parametrize('s', [1, 3, 6])
@pytest.mark.parametrize('d', [4, 100, 8192])
def test_the_bound_of_any_levels_is_that_of_nuqsgd_on_its_grid(s, d):
  found = theory.leveled_variance(halving(s), d)
  assert math.isclose(found, theory.nuqsgd_variance(s, d))


@pytest.mark.parametrize('a', [0.1, 1.9, 2.0, 2.1, 5.0, 90.0])
def test_the_infimum_over_p_is_what_a_search_finds(a):
  p = np.linspace(0, 1, 200001)[:-1]
  k_p = 1 / (2 - p) * ((1 - p) / (2 - p)) ** (1 - p)
  found = theory.leveled_variance((0, 1), 10**6) - (1e3 - 1)
  assert found == 0  # one level only: rho adds nothing
  l_1 = a / 1e3
  levels = (0, l_1, 1) if l_1 < 1 else (0, 1)
  rho = 1 / l_1
  found = theory.leveled_variance(levels, 10**6) - (rho - 1) ** 2 / (4 * rho)
  assert math.isclose(found, (k_p * a ** (2 - p)).min(), rel_tol=1e-4)


def test_below_its_threshold_the_second_branch_is_false():
  s, d = 3, 128
  branch = 2.0**-s * math.sqrt(d) - 7 / 8
  worst = max(theory.exact_variance(v, halving(s)) for v in spikes(d))
  assert round(branch, 4) == 0.5392 < worst
  assert round(worst, 3) == 0.560
  assert round(theory.nuqsgd_variance_tight(s, d), 4) == 0.5694
  assert theory.nuqsgd_variance(s, d) == 0.625


def test_the_branches_meet_at_the_threshold():
  for s in range(6):
    at = 4 ** (s + 1)
    assert theory.nuqsgd_variance(s, at) == 9 / 8
    assert math.isclose(theory.nuqsgd_variance(s, at - 1e-9), 9 / 8)


def test_vectors_come_near_the_bounds():
  worst = max(theory.exact_variance(v, halving(6)) for v in spikes(8192))
  assert worst > 0.99 * theory.nuqsgd_variance_tight(6, 8192)
  constant = theory.exact_variance(np.ones(8192), halving(2))
  assert math.isclose(constant, theory.nuqsgd_variance_tight(2, 8192))
  # One value is the norm, a part r of it the others.
  for s, d in ((7, 8192), (1, 512), (3, 2000)):
    found = max(
      theory.exact_variance(np.append(1, np.full(d - 1, c)), even(s), 'linf')
      for c in np.geomspace(1e-4, 1, 500)
    )
    assert found > 0.99 * theory.leveled_variance(even(s), d, 'linf')
  # Without 0, zeros are what costs most.
  found = theory.exact_variance(np.eye(8192)[0], halves(3))
  assert math.isclose(found, 8191 / 64)
  assert found > 0.99 * theory.leveled_variance(halves(3), 8192)


def test_the_bounds_are_those_of_the_reference():
  found = [theory.nuqsgd_variance(s, 8192) for s in (2, 6, 126)]
  np.testing.assert_allclose(found, [21.75, 0.625, 0.125], atol=0.005)
  found = [theory.nuqsgd_variance_tight(s, 8192) for s in (2, 6, 126)]
  np.testing.assert_allclose(found, [21.63, 0.569, 0.125], atol=0.005)
  found = [theory.qsgd_variance(s, 8192) for s in (3, 7, 127)]
  np.testing.assert_allclose(found, [30.17, 12.93, 0.508], atol=0.005)


def test_what_makes_no_sense_is_refused():
  for wrong in (
    lambda: theory.nuqsgd_variance(-1, 8),
    lambda: theory.nuqsgd_variance_tight(2, 0),
    lambda: theory.qsgd_variance(0, 8),
    lambda: theory.expected_nonzeros(0.0, 8),
    lambda: theory.leveled_variance((0, 1), 8, 'l1'),
    lambda: theory.exact_variance(np.ones(2), (0, 1), 'l1'),
    lambda: theory.exact_nonzeros(np.ones(2), (0, 1), 'l1'),
  ):
    with pytest.raises(ValueError, match='level|norm'):
      wrong()


# ------------------------------------------------------- exact expectations


@some
@hypothesis.given(
  seeds,
  st.sampled_from(
    [halving(2), halving(6), halves(3), even(3), levels_like(5, 9)]
  ),
  st.sampled_from(['l2', 'linf']),
)
def test_the_exact_values_follow_from_the_definition(seed, levels, norm):
  rng = np.random.default_rng(seed)
  v = rng.standard_t(3, size=rng.integers(1, 40)) * 10.0 ** rng.integers(-9, 9)
  expected = variances(v, levels, norm).sum() / (v * v).sum()
  found = theory.exact_variance(v, levels, norm)
  # On a level either cell gives nothing, but for what float64 rounds.
  assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-14)
  low, high, up = coins(v, levels, norm)
  expected = np.where(low == 0, up, np.where(high == 0, 1 - up, 1)).sum()
  found = theory.exact_nonzeros(v, levels, norm)
  assert math.isclose(found, expected, rel_tol=1e-9)


def test_nothing_is_exactly_nothing():
  for v in (np.zeros(5), np.zeros(0)):
    assert theory.exact_variance(v, halving(2)) == 0
    assert theory.exact_nonzeros(v, halving(2)) == 0
    assert theory.exact_nonzeros(v, halves(3), 'linf') == 0


@pytest.mark.parametrize('scale', [1e-300, 1e-170, 1e170, 1e300])
def test_the_scale_of_a_vector_does_not_matter(scale):
  v = np.random.default_rng(0).normal(size=100)
  for f in (theory.exact_variance, theory.exact_nonzeros):
    assert math.isclose(f(scale * v, halving(2)), f(v, halving(2)))


# ----------------------------------------------- what the quantizers send

D, BUCKET, DRAWS = 600, 256, 2000  # two buckets, and a shorter one

# name -> (bucket_size -> quantizer, its levels, its norm)
LEVELED = {
  **{
    f'nuqsgd {bits}': (
      functools.partial(mj.nuqsgd, bits),
      halving(2 ** (bits - 1) - 2),
      'l2',
    )
    for bits in (2, 3, 4, 8)
  },
  'nuqsgd 4 linf': (
    lambda size: mj.nuqsgd(4, size, norm='linf'),
    halving(6),
    'linf',
  ),
  **{
    f'nuqsgd {bits} no zero': (
      lambda size, bits=bits: mj.nuqsgd(bits, size, zero_level=False),
      halves(bits),
      'l2',
    )
    for bits in (2, 3, 4, 6)
  },
  **{
    f'qsgd {bits} {norm}': (
      functools.partial(mj.qsgd, bits, norm=norm),
      even(2 ** (bits - 1) - 1),
      norm,
    )
    for bits in (2, 3, 4, 8)
    for norm in ('l2', 'linf')
  },
  **{
    f'leveled {count} {norm}': (
      functools.partial(mj.leveled, levels_like(count, count), norm=norm),
      levels_like(count, count),
      norm,
    )
    for count, norm in ((2, 'linf'), (5, 'l2'), (16, 'linf'), (32, 'l2'))
  },
  'leveled magnitudes': (
    functools.partial(mj.leveled, (0, 0.03, 0.2, 0.3, 1)),
    (0, 0.03, 0.2, 0.3, 1),
    'l2',
  ),
  'terngrad unclipped': (
    lambda size: mj.terngrad(size, clip=math.inf),
    (0, 1),
    'linf',
  ),
}
leveleds = pytest.mark.parametrize('name', LEVELED)
# Every second one: each kind with more and fewer levels.
SOME = list(LEVELED)[::2]


def given():
  """Some large values, zeros, and a bucket that is mostly small."""
  v = np.random.default_rng(7).standard_t(3, size=D)
  v[:20], v[BUCKET : BUCKET + 200] = 0, v[BUCKET : BUCKET + 200] / 100
  return np.float64(np.float32(v))


def buckets(v, size=BUCKET):
  return np.split(v, range(size, len(v), size))


def sent(quantizer, v, draws, seed=0):
  """x_hat for many keys, f64[draws, d]."""
  x = jnp.float32(v)
  keys = jax.random.split(jax.random.key(seed), draws)
  talk = lambda key: quantizer.decode(quantizer.encode(x, key), 0 * x)
  return np.asarray(jax.jit(jax.vmap(talk))(keys), np.float64)


@functools.cache
def leveled_draws(name):
  return sent(LEVELED[name][0](BUCKET), given(), DRAWS)


def z_of(samples, expected):
  """How many standard errors the mean is away."""
  error = samples.std() / len(samples) ** 0.5
  return (samples.mean() - expected) / (error + 1e-6 * expected + 1e-12)


@pytest.mark.parametrize('name', tiered(LEVELED, SOME))
def test_the_measured_variance_is_the_exact_one(name):
  _, levels, norm = LEVELED[name]
  errors = np.square(leveled_draws(name) - given())
  for part, v in zip(buckets(errors.T), buckets(given()), strict=True):
    expected = theory.exact_variance(v, levels, norm) * np.sum(v * v)
    assert abs(z_of(part.sum(0), expected)) < 4


def require_unbiased(draws, v, variance, jump):
  """Bernstein: a fair mean is farther away once in 2e8 for each value."""
  likely = math.log(4e8)
  bound = np.sqrt(2 * likely * variance / len(draws))
  bound = bound + 2 / 3 * likely * jump / len(draws)
  slack = 1e-5 * np.abs(v).max()  # float32, and noise of 24 bits
  assert (np.abs(draws.mean(0) - v) <= bound + slack).all()
  # All together, for a common drift.
  spread = math.sqrt(variance.sum() / len(draws)) + slack
  assert abs((draws.mean(0) - v).sum()) < 5 * spread


@leveleds
def test_the_mean_of_the_leveled_is_x(name):
  _, levels, norm = LEVELED[name]
  variance, jump = [], []
  for v in buckets(given()):
    low, high, _ = coins(v, levels, norm)
    variance.append(variances(v, levels, norm))
    jump.append(high - low)
  require_unbiased(
    leveled_draws(name), given(), np.concatenate(variance), np.concatenate(jump)
  )


def test_the_mean_of_natural_is_x_and_its_variance_at_most_an_eighth():
  v = np.append(given(), 2.0 ** np.arange(-20, 20) * 4 / 3)
  low = 2 ** np.floor(np.log2(np.abs(v) + (v == 0)))
  variance = (2 * low - np.abs(v)) * (np.abs(v) - low) * (v != 0)
  draws = sent(mj.natural(), v, DRAWS)
  require_unbiased(draws, v, variance, low)
  size = np.abs(draws)
  assert ((size == low) | (size == 2 * low) | (v == 0)).all()
  errors = np.square(draws - v).sum(1)
  assert abs(z_of(errors, variance.sum())) < 4
  assert variance.sum() <= np.sum(v * v) / 8
  assert math.isclose(variance[D], v[D] ** 2 / 8)


@pytest.mark.parametrize('fraction', [0.01, 0.1, 0.5, 0.999])
def test_the_mean_of_random_k_is_x(fraction):
  v, kept = given(), math.ceil(fraction * D)
  factor = D / kept
  draws = sent(mj.random_k(fraction), v, DRAWS)
  assert ((draws != 0).sum(1) <= kept).all()
  require_unbiased(draws, v, (factor - 1) * v * v, factor * np.abs(v))
  errors = np.square(draws - v).sum(1)
  assert abs(z_of(errors, (factor - 1) * np.sum(v * v))) < 4


@pytest.mark.parametrize('clip', [1.0, 2.5])
def test_the_mean_of_terngrad_is_the_clipped_x(clip):
  clipped = [
    np.clip(v, -clip * v.std(), clip * v.std()) for v in buckets(given())
  ]
  draws = sent(mj.terngrad(BUCKET, clip), given(), DRAWS)
  variance, jump, top = [], [], []
  for v in clipped:
    variance.append(variances(v, (0, 1), 'linf'))
    jump.append(np.full(len(v), np.abs(v).max()))
    top.append(np.abs(v).max() * np.ones(len(v)))
  size, top = np.abs(draws), np.concatenate(top)
  assert (np.isclose(size, top, rtol=1e-5) | (size == 0)).all()
  clipped, variance = np.concatenate(clipped), np.concatenate(variance)
  assert np.abs(clipped - given()).max() > 1  # clipping did something
  require_unbiased(draws, clipped, variance, np.concatenate(jump))
  errors = np.square(draws - clipped).sum(1)
  assert abs(z_of(errors, variance.sum())) < 4


# ------------------------------------------------------- values that are sent


@pytest.mark.parametrize('d', [1, 8, 512, 8192])
@pytest.mark.parametrize('levels', [halving(2), halving(6), even(3), even(7)])
def test_no_vector_has_more_nonzeros_than_expected(levels, d):
  bound = theory.expected_nonzeros(levels[1], d)
  vectors = near_everything(levels, d) if d > 7 else [np.ones(1)]
  for v in vectors:
    assert theory.exact_nonzeros(v, levels) <= min(bound, d) * (1 + 1e-12)


@leveleds
def test_the_measured_nonzeros_are_the_exact_ones(name):
  _, levels, norm = LEVELED[name]
  expected = sum(
    theory.exact_nonzeros(v, levels, norm) for v in buckets(given())
  )
  found = (leveled_draws(name) != 0).sum(1)
  assert abs(z_of(found, expected)) < 4


def test_the_code_length_of_the_theorem_and_its_precondition():
  d = 8192
  n = {s: theory.expected_nonzeros(2.0**-s, d) for s in (2, 4, 6)}
  assert round(n[6]) == 9889 and n[6] > d / math.e > n[4]
  for s, bits in ((2, 0.48), (4, 1.60)):
    per_nonzero = 3 + math.log2(d / n[s])
    per_nonzero += math.log2(math.log2(8 * (4**s + d) / n[s]))
    assert abs((32 + n[s] * per_nonzero) / d - bits) < 0.01


@pytest.mark.parametrize('bits', tiered([2, 3, 4, 5, 8], [3, 8]))
def test_the_mantissa_gives_each_level_as_often_as_a_search(bits):
  s, draws = 2 ** (bits - 1) - 2, 5000
  low = 2.0 ** -np.arange(min(s, 9) + 1)
  parts = np.array([0.01, 0.25, 0.5, 0.9, 0.999])
  # In every cell, on the levels, below l_1, and of both signs.
  r = np.append(np.outer(low[low > 2.0**-s] / 2, 1 + parts), low)
  r = np.append(r, 2.0**-s * parts if s < 100 else [])
  v = np.float64(np.float32(np.concatenate([r, -r, [0, 1]])))
  below, above, up = coins(v, halving(s), 'linf')
  for q in (
    mj.nuqsgd(bits, norm='linf'),
    mj.leveled(halving(s), norm='linf'),
  ):
    found = sent(q, v, draws, seed=bits)
    assert ((found == below) | (found == above)).all()
    often = (found == above).sum(0)
    fair = (up > 0) & (up < 1)
    np.testing.assert_array_equal(often[~fair], draws * up[~fair])
    z = (often - draws * up)[fair] / np.sqrt(draws * (up * (1 - up))[fair])
    assert np.abs(z).max() < 5
    assert abs(np.sum(z**2) - len(z)) < 5 * math.sqrt(2 * len(z))


# -------------------------------------------------------- the table of 1.4

# (law, bits) -> NUQSGD, without zero, QSGD by l2, by the maximum; d = 8192.
TABLE = {
  ('Gaussian', 3): (17.0, 127.0, 23.0, 0.296),
  ('Gaussian', 4): (0.335, 0.256, 9.30, 0.054),
  ('Gaussian', 8): (0.082, 0.082, 0.085, None),
  ('Student-t', 4): (0.351, None, 7.28, 1.17),
  ('Laplace', 4): (0.328, None, 8.15, 0.151),
}


def methods(bits):
  return (
    mj.nuqsgd(bits),
    mj.nuqsgd(bits, zero_level=False),
    mj.qsgd(bits, 8192),
    mj.qsgd(bits, 8192, 'linf'),
  )


@pytest.mark.parametrize(
  'law,bits', tiered(TABLE, [('Gaussian', 3), ('Student-t', 4)])
)
def test_relative_variances_are_those_of_the_reference(law, bits):
  # With heavy tails the largest value, and with it QSGD by the maximum, varies
  # from vector to vector by two thirds of its mean: it takes many vectors.
  count = 256 if law == 'Student-t' else 32
  v = np.float32(LAWS[law](np.random.default_rng(1), (count, 8192)))
  keys = jax.random.split(jax.random.key(bits), len(v))
  for q, expected in zip(methods(bits), TABLE[law, bits], strict=True):
    if expected is None:
      continue

    @jax.jit
    @jax.vmap
    def relative(x, key, q=q):
      error = q.decode(q.encode(x, key), x) - x
      return jnp.sum(error**2) / jnp.sum(x**2)

    found = float(relative(v, keys).mean())
    assert abs(found / expected - 1) < 0.15


def test_more_than_five_bits_change_little_where_levels_halve():
  v = np.random.default_rng(0).normal(size=8192)
  found = [theory.exact_variance(v, halving(2 ** (b - 1) - 2)) for b in (5, 8)]
  np.testing.assert_allclose(found, 0.082, atol=0.002)
  by_maximum = theory.exact_variance(v, even(127), 'linf')
  assert 1e-4 < by_maximum < 2e-4
