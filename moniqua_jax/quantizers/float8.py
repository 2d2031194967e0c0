"""Floats of 8 bits for numbers that span decades and are not negative.

As a share of the largest in its bucket each has 5 bits of exponent and 3 of
mantissa, rounded at random to one of its two neighbours: unbiased, and within
an eighth of itself. What is below 9/8 2^-31 of the largest is that or 0.
"""

import jax
import jax.numpy as jnp

from moniqua_jax import arguments, dither, wire
from moniqua_jax.quantizers import base, buckets, numerics

Array = jax.Array

_CUT = 20  # bits of a float32 that are left out
_LEAST = (127 << 3) - 31 * 8  # of the code 0, in steps of 2^-3 octaves


def float8(bucket_size: int = 256) -> base.Quantizer:
  """Absolute codes of non-negative values: v_hat = most (1 + m / 8) 2^(e - 31).

  Payload: a byte for each value, then the largest (f32) of every bucket.

  Args:
    bucket_size: values that share a largest one; the last bucket may be
      shorter.

  Returns:
    A `Quantizer`; unbiased, |v_hat - v| <= v / 8 + 9/8 2^-31 most. Values below
    0 are taken as 0; a bucket that is not finite decodes to NaN.

  Raises:
    ValueError: bucket_size < 1.

  >>> q, v = float8(), jnp.array([1.0, 0.5, 0.0])
  >>> q.decode(q.encode(v, jax.random.key(0)), v)
  Array([1. , 0.5, 0. ], dtype=float32)

  Source: ours; second moments of Adam travel so, see `dadam`.
  """
  bucket_size = arguments.integer(bucket_size)
  if type(bucket_size) is not int or bucket_size < 1:
    raise ValueError(f'bucket_size={bucket_size!r}; it must be at least 1.')

  def encode(v, key):
    rows = _rows(jnp.maximum(base.vector(v), 0), bucket_size)
    nothing = jnp.sum(0 * rows, axis=1, keepdims=True)  # XLA may lose a NaN
    most = jnp.max(rows, axis=1, keepdims=True) + nothing
    share = buckets.ratio(rows, most)
    random = dither.bits(dither.seed(key), rows.size).reshape(rows.shape)
    codes = _rounded(share, random).reshape(-1)[: v.size]
    return jnp.concatenate([codes, wire.to_bytes(most)])

  def decode(payload, reference):
    size = reference.size
    count = -(-size // bucket_size)
    wire.require(payload, size + 4 * count, size)
    codes, ends = payload[:size], payload[size:]
    most = wire.from_bytes(ends, jnp.float32, (count, 1))
    steps = _rows(codes, bucket_size).astype(jnp.uint32) + _LEAST
    share = jnp.where(steps > _LEAST, wire.floats(steps << _CUT), 0)
    values = numerics.rounded(share * most, jnp.minimum(most, 0))
    return values.reshape(-1)[:size].astype(reference.dtype)

  return base.Quantizer(encode, decode, base.watched(decode))


def _rounded(share: Array, random: Array) -> Array:
  """Rounds shares in [0, 1] to codes u8, up with a chance that has no bias.

  A float32 is linear in its word between two codes, and a share below the
  least is rounded to it or to 0.
  """
  low = random >> (32 - _CUT)
  steps = ((wire.words(share) + low) >> _CUT).astype(jnp.int32) - _LEAST
  least = wire.floats(jnp.uint32(_LEAST + 1) << _CUT)
  tiny = (dither.unit(random) * least < share).astype(jnp.int32)
  return jnp.where(share < least, tiny, jnp.clip(steps, 1, 255)).astype(
    jnp.uint8
  )


def _rows(v: Array, bucket_size: int) -> Array:
  return jnp.pad(v, (0, -v.size % bucket_size)).reshape(-1, bucket_size)
