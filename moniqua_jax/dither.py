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
  """Returns u32[size] random bits: lowbias32(seed + golden * (i + offset)).

  With an offset, a part of a longer vector. Seeds that differ by a multiple of
  the constant give the same words, shifted; of random seeds half a percent
  overlap at ten million words.
  """
  # The products are the same for all parts of a longer vector.
  word = part(seed, offset) + jnp.arange(size, dtype=jnp.uint32) * _golden()
  word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
  word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
  return word ^ (word >> 16)


def part(seed: jax.Array, offset) -> jax.Array:
  """Returns the seed of the words from offset on: `bits` of it starts there."""
  return seed + jnp.asarray(offset, jnp.uint32) * _golden()


def _golden():
  # An odd constant spreads neighbouring seeds and indices over all words.
  return jnp.uint32(0x9E3779B9)


def uniform(seed: jax.Array, size: int, offset: int = 0) -> jax.Array:
  """Returns f32[size] noise in [0, 1), multiples of 2**-24; see `bits`."""
  return unit(bits(seed, size, offset))


def unit(words: jax.Array) -> jax.Array:
  """Maps u32 words to f32 in [0, 1) by their upper 24 bits, exactly."""
  return (words >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24


def seed(key: jax.Array) -> jax.Array:
  """Draws a u32[] seed, to ride in a header, from a JAX key."""
  return jax.random.bits(key, dtype=jnp.uint32)


def key_of(key: jax.Array, number) -> jax.Array:
  """Derives the key of a step, or of a matrix, from that of a run.

  A `ValueError` names what is no key of `jax.random`, or several.
  """
  shape, dtype = getattr(key, 'shape', ()), getattr(key, 'dtype', None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  # Those of jax.random.PRNGKey are words.
  words = dtype == jnp.uint32 and len(shape) == 1
  if not (shape == () if typed else words):
    given = ' '.join(repr(key).split())
    raise ValueError(
      f'key={given:.60}; it takes one key of jax.random, such as '
      'jax.random.key(0).'
    )
  # As i32, so that a number of Python may be below 0 as well.
  return jax.random.fold_in(key, jnp.asarray(number, jnp.int32))
