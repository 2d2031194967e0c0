"""The counter-based noise: the hash by hand, and statistics of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moniqua_jax import dither

SEEDS = (0, 1, 2, 123456789, 2**31, 2**32 - 1)


def lowbias32(word):
  """In Python integers, from Wellons' page."""
  word ^= word >> 16
  word = word * 0x7FEB352D % 2**32
  word ^= word >> 15
  word = word * 0x846CA68B % 2**32
  return word ^ word >> 16


def noise(seed, size=2**17):
  return np.asarray(dither.uniform(jnp.uint32(seed), size), np.float64)


@pytest.mark.parametrize('offset', [0, 1, 1000, 2**31 - 3])
@pytest.mark.parametrize('seed', SEEDS)
def test_bits_are_lowbias32_of_seed_and_index(seed, offset):
  golden = 0x9E3779B9
  expected = [
    lowbias32((seed + golden * (i + offset)) % 2**32) for i in range(100)
  ]
  drawn = dither.bits(jnp.uint32(seed), 100, offset)
  assert drawn.dtype == jnp.uint32
  np.testing.assert_array_equal(drawn, np.array(expected, np.uint32))


@pytest.mark.parametrize('draw', [dither.bits, dither.uniform])
def test_offset_continues_the_vector(draw):
  whole = draw(jnp.uint32(5), 1000)
  parts = [draw(jnp.uint32(5), 300), draw(jnp.uint32(5), 700, offset=300)]
  np.testing.assert_array_equal(jnp.concatenate(parts), whole)


def test_uniform_is_the_upper_24_bits():
  words = np.asarray(dither.bits(jnp.uint32(9), 10_000), np.uint64)
  drawn = dither.uniform(jnp.uint32(9), 10_000)
  assert drawn.dtype == jnp.float32
  np.testing.assert_array_equal(
    np.asarray(drawn, np.float64), (words // 256) / 2.0**24
  )


@pytest.mark.parametrize('seed', SEEDS)
def test_uniform_has_the_moments_of_a_uniform(seed):
  u = noise(seed)
  assert u.min() >= 0 and u.max() < 1
  # The mean has variance 1/12 per draw, the centred square 1/180.
  assert abs(u.mean() - 1 / 2) * np.sqrt(12 * u.size) < 5
  assert abs(np.mean((u - 0.5) ** 2) - 1 / 12) * np.sqrt(180 * u.size) < 5
  # Each of 64 cells gets its share: chi^2 has mean 63, variance 126.
  counts = np.bincount((64 * u).astype(int), minlength=64)
  share = u.size / 64
  chi_squared = np.sum((counts - share) ** 2) / share
  assert abs(chi_squared - 63) / np.sqrt(126) < 5


@pytest.mark.parametrize('lag', [1, 2, 3, 8, 32, 128, 1000])
@pytest.mark.parametrize('seed', SEEDS)
def test_uniform_has_no_serial_correlation(seed, lag):
  u = noise(seed) - 0.5
  correlation = 12 * np.mean(u[lag:] * u[:-lag])
  assert abs(correlation) * np.sqrt(u.size - lag) < 5


@pytest.mark.parametrize('difference', [1, 2, 3, 2**16, 2**31])
@pytest.mark.parametrize('seed', [0, 123456789])
def test_different_seeds_are_decorrelated(seed, difference):
  u, v = noise(seed) - 0.5, noise(seed + difference) - 0.5
  for shift in (0, 1, 2):
    correlation = 12 * np.mean(u * np.roll(v, shift))
    assert abs(correlation) * np.sqrt(u.size) < 5


@pytest.mark.parametrize('index', [0, 1, 999])
def test_one_index_over_many_seeds_is_uniform(index):
  """What makes a quantizer unbiased: the mean at one place over messages."""
  seeds = jnp.arange(2**14, dtype=jnp.uint32)
  u = jax.vmap(lambda seed: dither.uniform(seed, 1, offset=index))(seeds)
  u = np.asarray(u, np.float64)
  assert abs(u.mean() - 1 / 2) * np.sqrt(12 * u.size) < 5
  assert abs(np.mean((u - 0.5) ** 2) - 1 / 12) * np.sqrt(180 * u.size) < 5


def test_vmapped_and_jitted_seeds_give_the_same_noise():
  seeds = jnp.array(SEEDS, jnp.uint32)
  loop = jnp.stack([dither.uniform(seed, 1000) for seed in seeds])
  vmapped = jax.vmap(lambda seed: dither.uniform(seed, 1000))
  np.testing.assert_array_equal(vmapped(seeds), loop)
  np.testing.assert_array_equal(jax.jit(vmapped)(seeds), loop)


def test_seed_follows_the_key():
  keys = jax.random.split(jax.random.key(0), 1000)
  seeds = jax.vmap(dither.seed)(keys)
  assert seeds.dtype == jnp.uint32
  assert dither.seed(keys[3]) == seeds[3]
  assert len(set(np.asarray(seeds).tolist())) == 1000
