"""Signs, with one or two scales per bucket: 1 bit and a little per value.

Bernstein et al., "signSGD", ICML 2018, arXiv:1802.04434; Karimireddy et al.,
"Error feedback fixes SignSGD", ICML 2019, arXiv:1901.09847. Biased: for
algorithms with error feedback or a memory.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moniqua_jax import arguments, wire
from moniqua_jax.quantizers import base, buckets, numerics

Array = jax.Array


class Scale(NamedTuple):
  """What the two codes of a bucket stand for."""

  # (real, rows f32[n, size]) -> f32[k, n], what is sent: see buckets.by_bucket
  measure: Callable[[Array | bool, Array], Array]
  # f32[k, n] -> the values of code 0 and of code 1, each f32[n]
  ends: Callable[[Array], tuple[Array, Array]]
  # f32[k, n] -> f32[n], from which on a value gets code 1
  threshold: Callable[[Array], Array]
  numbers: int  # k


def _mean(rows, where):
  total = numerics.sum_rows(jnp.where(where, rows, 0))
  # Not total / count: for a count that is constant some programs do this.
  return total * (1 / jnp.maximum(jnp.sum(where, axis=1), 1))


def _mean_abs(real, rows):
  return _mean(jnp.abs(rows), jnp.broadcast_to(real, rows.shape))[None]


def _two_means(real, rows):
  return jnp.stack(
    [_mean(rows, real & (rows < 0)), _mean(rows, real & (rows >= 0))]
  )


def _extremes(real, rows):
  low = jnp.min(jnp.where(real, rows, jnp.inf), axis=1)
  high = jnp.max(jnp.where(real, rows, -jnp.inf), axis=1)
  return jnp.stack([low, high])


SCALES = {
  # mean|x| sign(x): the l2-best multiple of the signs.
  'mean_abs': Scale(_mean_abs, lambda s: (-s[0], s[0]), lambda s: 0 * s[0], 1),
  # The means of the negative and of the other values.
  'two_mean': Scale(_two_means, lambda s: (s[0], s[1]), lambda s: 0 * s[0], 2),
  # The nearer of min and max.
  'minmax': Scale(
    _extremes, lambda s: (s[0], s[1]), lambda s: (s[0] + s[1]) / 2, 2
  ),
}


def sign(bucket_size: int = 512, scale: str = 'mean_abs') -> base.Quantizer:
  """One bit per value: on which side of a threshold it is.

    x_hat = mean|x| sign(x)    with 'mean_abs'; sign(0) = 1

  Payload: the packed bits, then the scales (f32), bucket by bucket.

  Args:
    bucket_size: values that share a scale; the last bucket may be shorter.
    scale: 'mean_abs' (one number per bucket), 'two_mean' (the means of the
      negative and of the other values), or 'minmax' (the extremes, whichever is
      nearer).

  Returns:
    A `Quantizer`, biased and without randomness. A bucket that is not finite
    decodes to NaN.

  Raises:
    ValueError: bucket_size < 1, or unknown scale.

  >>> q, x = sign(bucket_size=4), jnp.array([1.0, -2.0, 3.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 2., -2.,  2.], dtype=float32)

  Source: arXiv:1901.09847, the compressor of EF-SignSGD; two scales as in 1-bit
  SGD (Seide et al. 2014).
  """
  bucket_size = arguments.integer(bucket_size)
  if type(bucket_size) is not int or bucket_size < 1:
    raise ValueError(f'bucket_size={bucket_size!r}; it must be at least 1.')
  if scale not in SCALES:
    raise ValueError(f'scale={scale!r}; choose from {sorted(SCALES)}.')
  rule = SCALES[scale]

  def code(real, rows):
    # A sum keeps the NaN that a comparison or a maximum loses.
    nothing = jnp.minimum(jnp.sum(0 * rows, axis=1), 0)[None]
    scales = numerics.rounded(rule.measure(real, rows), nothing)
    codes = rows >= rule.threshold(scales)[:, None]
    return codes.astype(jnp.uint8), scales

  def encode(x, key):
    del key
    codes, scales = buckets.by_bucket(code, bucket_size, base.vector(x))
    return wire.join(codes, 1, scales)

  def read(payload, size):
    """Returns the codes and their two values, NaN if no sender has them."""
    shape = rule.numbers, -(-size // bucket_size)
    codes, ends = wire.split(payload, 1, size, 4 * math.prod(shape))
    low, high = rule.ends(wire.from_bytes(ends, jnp.float32, shape))
    sent = (-jnp.inf < low) & (low <= high) & (high < jnp.inf)
    return codes, *(jnp.where(sent, end, jnp.nan) for end in (low, high))

  def decode(payload, reference):
    value = lambda codes, low, high: jnp.where(codes > 0, high, low)
    x_hat = buckets.values(value, bucket_size, *read(payload, reference.size))
    return x_hat.astype(reference.dtype)

  def inspect(payload, reference):
    _, low, _ = read(payload, reference.size)
    seen = base.watched(decode)(payload, reference)
    return seen._replace(readable=jnp.isfinite(low).all())

  return base.Quantizer(encode, decode, inspect)


def one_bit(bucket_size: int = 512) -> base.Quantizer:
  """1-bit SGD: the mean of the negative values, or the mean of the others.

    x_hat = mean of the x < 0 of the bucket where x < 0, else of the x >= 0

  Args:
    bucket_size: values that share the two means; the paper has the columns of a
      weight matrix share them.

  Returns:
    A `Quantizer`, that of `sign` with two scales. Biased: for `error_feedback`.

  Raises:
    ValueError: bucket_size < 1.

  >>> q, x = one_bit(bucket_size=4), jnp.array([1.0, -2.0, 3.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 2., -2.,  2.], dtype=float32)

  Source: Seide et al., "1-bit stochastic gradient descent", Interspeech 2014.
  """
  return sign(bucket_size, scale='two_mean')
