"""Uniform quantization and signs, bucket by bucket, against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import wire
from tests.helpers import EPS, f64, far, near

KEY = jax.random.key(0)

uniforms = pytest.mark.parametrize('rounding', ['nearest', 'stochastic'])


@functools.cache
def compiled(q):
  def there_and_back(x):
    payload = q.encode(x, KEY)
    return q.decode(payload, jnp.zeros_like(x)), q.inspect(payload, x)

  return jax.jit(there_and_back)


def send(q, x):
  return jax.tree.map(np.asarray, compiled(q)(x))


uniform = functools.cache(mj.uniform)
sign = functools.cache(mj.sign)


@uniforms
@pytest.mark.parametrize('bits', [1, 3, 8])
def test_uniform_holds_its_bound_bucket_by_bucket(bits, rounding):
  rng = np.random.default_rng(bits)
  x = np.float32(rng.normal(size=333) * np.repeat(10.0 ** np.arange(-4, 5), 37))
  x_hat, _ = send(mj.uniform(bits, 37, rounding), jnp.asarray(x))
  buckets, hats = f64(x).reshape(9, 37), f64(x_hat).reshape(9, 37)
  low, high = buckets.min(1, keepdims=True), buckets.max(1, keepdims=True)
  step = (high - low) / (2**bits - 1)
  rounded = 4 * EPS * np.maximum(-low, high)
  worst = {'nearest': 0.5, 'stochastic': 1.0}[rounding] * step
  assert (np.abs(hats - buckets) <= worst + rounded).all()
  # On one of the 2^b points of the bucket, and at its ends themselves.
  points = (hats - low) / step
  assert (np.abs(points - np.rint(points)) * step <= rounded).all()
  at_end = (buckets == low) | (buckets == high)
  assert at_end.sum() == 18
  assert (np.abs(hats - buckets) <= rounded)[at_end].all()
  np.testing.assert_array_equal(hats.min(1, keepdims=True), low)


def test_uniform_nearest_is_the_nearest_point_of_the_bucket():
  x = np.float32(np.random.default_rng(0).normal(size=64))
  x_hat, _ = send(mj.uniform(3, 64, 'nearest'), jnp.asarray(x))
  points = np.linspace(f64(x).min(), f64(x).max(), 8)
  nearest = np.abs(f64(x)[:, None] - points).min(1)
  error = np.abs(f64(x_hat) - f64(x))
  np.testing.assert_allclose(error, nearest, atol=4 * EPS * np.abs(x).max())


@uniforms
@pytest.mark.parametrize('value', [0.0, -0.1, 1e-30, 3e38])
def test_uniform_sends_a_constant_bucket_exactly(value, rounding):
  x = jnp.full(100, value, jnp.float32).at[:40].set(jnp.arange(40.0))
  for bits in (1, 5, 8):
    x_hat, seen = send(uniform(bits, 20, rounding), x)
    np.testing.assert_array_equal(x_hat[40:], x[40:])
    assert seen.readable


@uniforms
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_uniform_decodes_a_bucket_that_is_not_finite_to_nan_there_only(
  value, rounding
):
  x, _ = near(100)
  q = uniform(4, 30, rounding)
  clean, _ = send(q, x)
  for place in (0, 30, 59, 99):
    bucket = np.arange(100) // 30 == place // 30
    x_hat, seen = send(q, x.at[place].set(value))
    assert np.isnan(x_hat[bucket]).all()
    np.testing.assert_array_equal(x_hat[~bucket], clean[~bucket])
    assert not seen.readable


@uniforms
@pytest.mark.parametrize('d', [1, 7, 1000])
def test_uniform_with_a_bucket_per_value_is_exact(d, rounding):
  x, _ = near(d)
  q = mj.uniform(2, 1, rounding)
  np.testing.assert_array_equal(send(q, x)[0], x)
  payload = jax.eval_shape(q.encode, x, KEY)
  assert wire.nbytes(payload) == -(-d * 2 // 8) + 8 * d


@uniforms
def test_uniform_with_a_bucket_larger_than_the_vector_is_one_bucket(rounding):
  x, _ = near(1000)
  whole, large = mj.uniform(4, 1000, rounding), mj.uniform(4, 4097, rounding)
  np.testing.assert_array_equal(
    *(jax.jit(q.encode)(x, KEY) for q in (large, whole))
  )
  np.testing.assert_array_equal(send(large, x)[0], send(whole, x)[0])


@pytest.mark.parametrize('bucket_size', [0, -1, 1.5, None])
def test_uniform_refuses_a_bucket_size_by_value(bucket_size):
  with pytest.raises(ValueError, match=f'bucket_size={bucket_size!r};'):
    mj.uniform(4, bucket_size)


def test_uniform_and_full_precision_see_the_distance():
  x, y = near(100)
  for q in (mj.full_precision(), mj.uniform(8, 100, 'nearest')):
    payload = jax.jit(q.encode)(x, KEY)
    seen, x_hat = jax.jit(lambda p, y, q=q: (q.inspect(p, y), q.decode(p, y)))(
      payload, y
    )
    assert seen.distance == pytest.approx(far(x_hat, y))
    assert seen.readable and np.isinf(seen.theta)
  bad = mj.full_precision().inspect(x.at[5].set(jnp.nan), y)
  assert not bad.readable


# ------------------------------------------------------------------- signs


def by_hand(x, scale):
  """One bucket, in NumPy."""
  x = f64(x)
  if scale == 'mean_abs':
    return np.where(x >= 0, 1, -1) * np.abs(x).mean()
  if scale == 'two_mean':
    up = x >= 0
    return np.where(up, x[up].mean(), x[~up].mean())
  return np.where(x >= (x.min() + x.max()) / 2, x.max(), x.min())


def test_a_step_above_2_to_the_126_still_has_codes():
  """1 / step is denormal then, and XLA takes it for 0."""
  x = np.float32([0, 3e38, 1e38, 2e38])
  x_hat, seen = send(mj.uniform(1, rounding='nearest'), jnp.asarray(x))
  assert seen.readable
  np.testing.assert_allclose(x_hat, np.float32([0, 3e38, 0, 3e38]), rtol=1e-6)


@pytest.mark.parametrize('scale', ['mean_abs', 'two_mean', 'minmax'])
def test_sign_is_its_formula_bucket_by_bucket(scale):
  x, _ = near(150)  # two buckets and a shorter one
  x_hat, seen = send(mj.sign(64, scale), x)
  expected = [by_hand(x[i : i + 64], scale) for i in (0, 64, 128)]
  np.testing.assert_allclose(x_hat, np.concatenate(expected), rtol=1e-5)
  assert seen.readable


def test_sign_contracts_as_error_feedback_needs_it():
  """|x - C(x)|^2 = (1 - |x|_1^2 / (d |x|_2^2)) |x|^2, for one bucket."""
  x, _ = near(1000)
  x_hat, _ = send(mj.sign(1000), x)
  x = f64(x)
  left = ((x - x_hat) ** 2).sum() / (x**2).sum()
  share = np.abs(x).sum() ** 2 / (1000 * (x**2).sum())
  assert left == pytest.approx(1 - share, rel=1e-4)


def test_sign_says_what_it_cannot_read_and_refuses_by_value():
  x, _ = near(100)
  for scale in ('mean_abs', 'two_mean', 'minmax'):
    for value in (np.nan, np.inf):
      assert not send(sign(30, scale), x.at[42].set(value))[1].readable
  zeros, seen = send(mj.sign(30), jnp.zeros(100))
  assert seen.readable and (zeros == 0).all()
  with pytest.raises(ValueError, match='bucket_size=0;'):
    mj.sign(0)
  with pytest.raises(ValueError, match="scale='max'; choose from"):
    mj.sign(scale='max')
