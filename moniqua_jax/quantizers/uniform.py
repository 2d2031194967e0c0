"""Uniform quantization between the least and the largest value of a bucket."""

import jax
import jax.numpy as jnp

from moniqua_jax import arguments, dither, wire
from moniqua_jax.quantizers import base, buckets, numerics

Array = jax.Array


def _half(seed, size):
  del seed, size
  return jnp.float32(0.5)


# floor(z + noise): one half is the nearest point, noise in [0, 1) is unbiased.
ROUNDINGS = {'nearest': _half, 'stochastic': dither.uniform}


def uniform(
  bits: int, bucket_size: int = 512, rounding: str = 'stochastic'
) -> base.Quantizer:
  """2^b equally spaced points between the min and the max of each bucket.

  x_hat = min + s floor((x - min) / s + noise), s = (max - min) / (2^b - 1).

  Payload: the packed codes, then min and max (f32) of every bucket.

  Args:
    bits: per value, 1 to 8.
    bucket_size: values that share a minimum and a maximum; the last bucket may
      be shorter.
    rounding: 'stochastic' (unbiased, |x_hat - x| <= s; the key is private) or
      'nearest' (biased, |x_hat - x| <= s / 2).

  Returns:
    A `Quantizer`. A bucket that is not finite decodes to NaN.

  Raises:
    ValueError: bits outside 1 to 8, bucket_size < 1, or unknown rounding.

  >>> q, x = uniform(bits=1, rounding='nearest'), jnp.array([0.0, 0.4, 1.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([0., 0., 1.], dtype=float32)

  Source: the min-max quantizer of Tang et al. 2018, arXiv:1803.06443, and of
  common low-precision collectives.
  """
  bits, bucket_size = map(arguments.integer, (bits, bucket_size))
  wire.planes(bits)
  if rounding not in ROUNDINGS:
    raise ValueError(f'rounding={rounding!r}; choose from {sorted(ROUNDINGS)}.')
  if type(bucket_size) is not int or bucket_size < 1:
    raise ValueError(f'bucket_size={bucket_size!r}; it must be at least 1.')
  noise, top = ROUNDINGS[rounding], 2**bits - 1

  def code(real, rows, u):
    rows = jnp.where(real, rows, rows[:, :1])  # which moves neither end
    # XLA on CPUs may lose a NaN in a maximum of rows, not in a sum.
    nothing = jnp.sum(0 * rows, axis=1, keepdims=True)
    low = jnp.min(rows, axis=1, keepdims=True) + nothing
    high = jnp.max(rows, axis=1, keepdims=True) + nothing
    # A constant bucket has no step; its code is 0 whatever we divide by.
    step = jnp.where(high > low, (high - low) / top, 1)
    zero = jnp.minimum(high - low, 0)
    shares = numerics.rounded(buckets.ratio(rows - low, step), zero)
    codes = jnp.clip(jnp.floor(shares + u), 0, top).astype(jnp.uint8)
    return codes, jnp.stack([low[:, 0], high[:, 0]])

  def encode(x, key):
    x = base.vector(x)
    u = jnp.broadcast_to(noise(dither.seed(key), x.size), x.shape)
    codes, ends = buckets.by_bucket(code, bucket_size, x, u)
    return wire.join(codes, bits, ends)

  def value(codes, low, high):
    above = codes.astype(jnp.float32) * ((high - low) / top)
    return low + numerics.rounded(above, jnp.minimum(high - low, 0))

  def decode(payload, reference):
    size = reference.size
    shape = 2, -(-size // bucket_size)
    codes, ends = wire.split(payload, bits, size, 8 * shape[1])
    ends = wire.from_bytes(ends, jnp.float32, shape)
    x_hat = buckets.values(value, bucket_size, codes, *ends)
    return x_hat.astype(reference.dtype)

  return base.Quantizer(encode, decode, base.watched(decode))
