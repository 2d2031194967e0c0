"""Random bits by counting: noise[i] = hash(seed, i).

Stochastic rounding is as fast as its random bits: a hash of the index fuses
into the encoder, `jax.random.uniform` costs about twenty times the encoder. And
two workers that hold the same seed hold the same noise.

The hash is `lowbias32` (Wellons, "Prospecting for hash functions", 2018), two
rounds of multiply and xor-shift, found by search for least bias.
"""

import jax
import jax.numpy as jnp


def bits(seed: jax.Array, size: int, offset: int = 0) -> jax.Array:
  """Random bits, one word per index: lowbias32(seed + golden * (i + offset)).

  Args:
    seed: u32[]; equal seeds give equal bits.
    size: number of words, d.
    offset: index of the first word, to draw a part of a longer vector.

  Returns:
    u32[d]. Seeds that differ by a multiple of the constant give the same words,
    shifted; of random seeds half a percent overlap at ten million words.

  >>> whole = bits(jnp.uint32(1), 4)
  >>> bool((bits(jnp.uint32(1), 2, offset=2) == whole[2:]).all())
  True
  """
  # An odd constant spreads neighbouring seeds and indices over all words.
  golden = jnp.uint32(0x9E3779B9)
  # The products are the same for all parts of a longer vector.
  first = seed + jnp.uint32(offset) * golden
  word = first + jnp.arange(size, dtype=jnp.uint32) * golden
  word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
  word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
  return word ^ (word >> 16)


def uniform(seed: jax.Array, size: int, offset: int = 0) -> jax.Array:
  """Noise in [0, 1): the upper 24 random bits of each index, exact in f32.

  Args:
    seed: u32[]; equal seeds give equal noise.
    size: number of values, d.
    offset: index of the first value.

  Returns:
    f32[d], multiples of 2**-24.

  >>> noise = uniform(jnp.uint32(1), 1000)
  >>> bool(noise.min() >= 0), bool(noise.max() < 1)
  (True, True)
  """
  return unit(bits(seed, size, offset))


def unit(words: jax.Array) -> jax.Array:
  """Numbers in [0, 1) from random words: the upper 24 bits, exact in f32.

  Args:
    words: u32, of any shape.

  Returns:
    f32, of the same shape.

  >>> unit(jnp.uint32(2**31))
  Array(0.5, dtype=float32)
  """
  return (words >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24


def seed(key: jax.Array) -> jax.Array:
  """A 32-bit seed, to ride in a header, from a JAX key.

  Args:
    key: a JAX key; whoever holds the same key gets the same seed.

  Returns:
    u32[].

  >>> seed(jax.random.key(0)).dtype
  dtype('uint32')
  """
  return jax.random.bits(key, dtype=jnp.uint32)
