"""EDEN: its levels, its error on any vector, its bias, and its means.

The oracle is dense and in float64: Hadamard's matrix, signs from the seed in
the payload, the nearest of the levels, the two scales.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn.datasets import load_digits

import moniqua_jax as mj
from moniqua_jax import dither, quantized_mean, theory
from moniqua_jax.quantizers import hadamard
from moniqua_jax.quantizers.eden import LEVELS, SCALES
from moniqua_jax.workers import AXIS
from tests.helpers import N, f64, tiered

KEY = jax.random.key(0)
D, DRAWS, FEW = 4096, 2000, 150
CASES = [(bits, scale) for bits in LEVELS for scale in SCALES]
# The errors that the paper's numbers come to, by bits.
UNBIASED = {1: 0.571, 2: 0.133, 3: 0.036, 4: 0.0096}
LEAST = {1: 0.363, 2: 0.117, 3: 0.0345, 4: 0.0095}
cases = pytest.mark.parametrize(
  'bits,scale', tiered(CASES, [(1, 'unbiased'), (4, 'least_error')])
)

# --------------------------------------------------------------------- levels


@pytest.mark.parametrize('bits', LEVELS)
def test_levels_are_the_means_of_their_cells(bits):
  levels = np.array(LEVELS[bits])
  ends = np.array([0, *(levels[1:] + levels[:-1]) / 2, np.inf])
  mass = np.diff(scipy.stats.norm.cdf(ends))
  means = -np.diff(scipy.stats.norm.pdf(ends)) / mass
  np.testing.assert_allclose(levels, means, atol=2e-9)
  distortion = 1 - 2 * np.sum(mass * levels**2)
  omega = theory.eden_variance(bits)
  assert math.isclose(omega, distortion / (1 - distortion), rel_tol=1e-6)
  assert abs(omega / UNBIASED[bits] - 1) < 0.01
  assert abs(distortion / LEAST[bits] - 1) < 0.01


def test_what_has_no_levels_or_scale_is_refused():
  for bits in (0, 5, 2.0, True):
    with pytest.raises(ValueError, match='1 to 4'):
      mj.eden(bits)
  with pytest.raises(ValueError, match='least_error.*unbiased'):
    mj.eden(2, 'best')
  with pytest.raises(ValueError, match='1 to 4'):
    theory.eden_variance(5)


# --------------------------------------------------------------------- oracle


def rotation(seed, rows):
  minus = np.asarray(dither.bits(jnp.uint32(seed), rows)) >> 31
  return scipy.linalg.hadamard(rows) * (1 - 2.0 * minus) / np.sqrt(rows)


def dense(x, seed, bits, scale, rows):
  """x_hat of a vector of whole blocks, each a column."""
  turn = rotation(seed, rows)
  if scale == 'unbiased':
    turn = rotation(seed + 1, rows) @ turn
  y = turn @ f64(x).reshape(rows, -1)
  levels = np.array([*LEVELS[bits]])
  levels = np.concatenate([-levels, levels])
  z = y / np.sqrt(np.mean(y**2, axis=0))
  q = levels[np.abs(z[..., None] - levels).argmin(-1)]
  along = np.sum(y * q, axis=0)
  if scale == 'unbiased':
    S = np.sum(y**2, axis=0) / along
  else:
    S = along / np.sum(q**2, axis=0)
  return (turn.T @ (S * q)).reshape(-1)


def talk(quantizer, x, key):
  payload = lax.optimization_barrier(quantizer.encode(x, key))
  seen = quantizer.inspect(payload, 0 * x)
  return payload, quantizer.decode(payload, 0 * x), seen.readable


@cases
def test_it_is_the_dense_rotation_and_the_nearest_levels(bits, scale):
  size, rows = 3 * 256, 256
  x = np.float32(np.random.default_rng(bits).standard_t(3, size=(3, size)))
  x[1].reshape(rows, 3)[:, 1] = 0
  x[2, 5] = np.nan
  keys = jax.random.split(KEY, 3)
  together = jax.jit(jax.vmap(functools.partial(talk, mj.eden(bits, scale))))
  payloads, x_hats, readable = map(np.asarray, together(x, keys))
  assert hadamard.block(size) == rows
  assert payloads.shape[1] == size * bits // 8 + 4 * 3 + 4
  assert readable.tolist() == [True, True, False]
  seeds = payloads[:, -4:].copy().view(np.uint32)[:, 0]
  assert len(set(seeds)) == 3
  expected = dense(x[0], seeds[0], bits, scale, rows)
  np.testing.assert_allclose(x_hats[0], expected, atol=1e-5)
  # A block of zeros, and one that is not finite, is so by itself.
  columns = x_hats.reshape(3, rows, 3)
  assert not columns[1][:, 1].any() and columns[1][:, [0, 2]].all()
  assert np.isnan(columns[2][:, 2]).all()
  assert np.isfinite(columns[2][:, :2]).all()


# ------------------------------------------------------------- error and bias


def gradient():
  """The gradient of a net of two layers, of 32 of the digits."""
  rng = np.random.default_rng(0)
  images, labels = load_digits(return_X_y=True)
  images, labels = images[:32] / 16, np.eye(10)[labels[:32]]
  first, last = rng.normal(size=(64, 56)) / 8, rng.normal(size=(56, 10)) / 7
  hidden = np.maximum(images @ first, 0)
  odds = np.exp(hidden @ last)
  error = odds / odds.sum(1, keepdims=True) - labels
  below = (error @ last.T) * (hidden > 0)
  return np.append(images.T @ below, hidden.T @ error)[:D]


@functools.cache
def vectors():
  rng = np.random.default_rng(1)
  scales = np.repeat(np.exp(2 * rng.normal(size=D // 64)), 64)
  two, spike = np.zeros(D), rng.normal(size=D)
  two[[3, 700]], spike[9] = (2, 1), 64
  rows = {
    'normal': rng.normal(size=D),
    'Student-t3': rng.standard_t(3, size=D),
    'block log-normal': scales * rng.normal(size=D),
    'gradient': gradient(),
    'two values': two,
    'half in one value': spike,
  }
  return list(rows), np.float32(list(rows.values()))


@functools.cache
def draws(bits, scale, count):
  """Means over keys of x_hat, its squared error, <x_hat, x> and their worst."""
  quantizer, (_, x) = mj.eden(bits, scale), vectors()

  def one(sums, key):
    _, x_hat, _ = jax.vmap(functools.partial(talk, quantizer), (0, None))(
      x, key
    )
    along = jnp.sum(x_hat * (x if scale == 'unbiased' else x_hat - x), axis=1)
    return (sums[0] + x_hat - x, sums[1] + (x_hat - x) ** 2), along

  keys = jax.random.split(jax.random.key(bits), count)
  zeros = jnp.zeros_like(x), jnp.zeros_like(x)
  sums, along = jax.jit(lambda keys: lax.scan(one, zeros, keys))(keys)
  return f64(sums[0]) / count, f64(sums[1]) / count, f64(along)


FAST = [(1, 'unbiased', FEW)]
MANY = [(bits, scale, DRAWS) for bits, scale in CASES]


@pytest.mark.parametrize('bits,scale,count', tiered(FAST + MANY, FAST))
def test_the_error_is_the_same_for_every_vector(bits, scale, count):
  names, x = vectors()
  _, square, along = draws(bits, scale, count)
  length = np.sum(f64(x) ** 2, axis=1)
  expected = (UNBIASED if scale == 'unbiased' else LEAST)[bits]
  for name, found in zip(names, square.sum(1) / length, strict=True):
    assert found < 1.03 * expected, name
    # Turned once, some vectors are far from normal, and less is lost.
    if scale == 'unbiased' or name == 'normal':
      assert found > 0.97 * expected, name
  # In each draw x_hat is the right one of all multiples.
  exactly = length if scale == 'unbiased' else 0
  np.testing.assert_allclose((along - exactly) / length, 0, atol=2e-5)


@pytest.mark.parametrize(
  'bits,count',
  tiered([(1, FEW), *((bits, DRAWS) for bits in LEVELS)], [(1, FEW)]),
)
def test_the_mean_over_keys_is_x(bits, count):
  names, _ = vectors()
  error, square, _ = draws(bits, 'unbiased', count)
  z = error / np.sqrt(square / count)
  for name, row in zip(names, z, strict=True):
    assert np.abs(row).max() < 5, name  # the largest of 4096
    assert abs(np.mean(row**2) - 1) < 4 * math.sqrt(2 / D), name


# ---------------------------------------------------------------------- means


@pytest.mark.parametrize(
  'bits,strategy',
  tiered(
    [
      (bits, strategy)
      for bits in (1, 2, 4)
      for strategy in ('all_gather', 'scatter_reduce')
    ],
    [(2, 'all_gather')],
  ),
)
def test_errors_of_workers_fall_in_a_mean(bits, strategy):
  """Of equal vectors, where a rotation that all share would gain nothing."""
  x = np.tile(vectors()[1][0], (N, 4))
  mean = quantized_mean.STRATEGIES[strategy].mean

  def worker(x, index):
    key = jax.random.fold_in(KEY, index)
    return mean(mj.eden(bits), x, key, AXIS).mean

  found = mj.simulated(worker, (0, 0))(x, np.arange(N))
  error = np.sum((f64(found) - x) ** 2, axis=1) / np.sum(f64(x) ** 2, axis=1)
  omega = UNBIASED[bits]
  # A worker's own chunk is added as it is; the mean is quantized once more.
  twice = omega * (N - 1) / N**2 + omega
  expected = twice if strategy == 'scatter_reduce' else omega / N
  np.testing.assert_allclose(error, expected, rtol=0.1)
