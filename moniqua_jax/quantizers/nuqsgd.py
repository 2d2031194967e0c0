"""NUQSGD: levels that halve towards zero, where most gradients are.

Ramezani-Kebrya, Faghri, Markov, Aksenov, Alistarh and Roy, "NUQSGD: Provably
communication-efficient data-parallel SGD via nonuniform quantization", JMLR
22(114), 2021, arXiv:1908.06077, Section 3; and natural compression, the same
rounding without a norm, Horvath et al. 2019, arXiv:1905.10988.
"""

import jax
import jax.numpy as jnp

from moniqua_jax import arguments, dither, wire
from moniqua_jax.quantizers import base, buckets
from moniqua_jax.quantizers.leveled import leveled

Array = jax.Array

_MANTISSA = 23  # bits of float32; the exponent of 1 is written 127


def nuqsgd(
  bits: int,
  bucket_size: int = 8192,
  norm: str = 'l2',
  zero_level: bool = True,
) -> base.Quantizer:
  """The levels 0, 2^-s, ..., 1/2, 1 with a sign, s = 2^(b-1) - 2.

    x_hat = norm sgn(x) h,  h = l_{j+1} with p = (r - l_j) / (l_{j+1} - l_j),
    else l_j,  for r = |x| / norm in [l_j, l_{j+1}]

  Three things go by the name of NUQSGD with b bits. This is the paper's grid of
  2^b - 1 values, or without `zero_level` the 2^b values +-1, +-1/2, ...,
  +-2^-(2^(b-1) - 1) of the authors' code. At 4 bits they are as good, at 3 the
  latter has seven times the variance on buckets of 8192: a value near zero
  costs it l_1^2 = 1/64 of the squared norm. For other grids see `leveled`.

  Args:
    bits: per value, sign included: 2 to 8, or 1 to 8 without `zero_level`. More
      than 5 change little: the spacing of the levels limits the variance then.
    bucket_size: values that share a norm; the last bucket may be shorter.
    norm: 'l2' or 'linf'.
    zero_level: whether 0 is a level.

  Returns:
    A `Quantizer`, unbiased, with a private key; see `buckets.bucketed` for what
    becomes of numbers that are not finite.

  Raises:
    ValueError: bits out of range, bucket_size below 1, unknown norm.

  >>> q, x = nuqsgd(bits=4, norm='linf'), jnp.array([4.0, -2.0, 0.0625])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 4.    , -2.    ,  0.0625], dtype=float32)

  Source: Section 3 of arXiv:1908.06077. How bits give s is our reading.
  """
  least = 2 if zero_level else 1
  bits = arguments.integer(bits)
  if type(bits) is not int or bits not in range(least, 9):
    raise ValueError(
      f'bits={bits!r}; nuqsgd takes {least} to 8 with zero_level={zero_level}.'
    )
  if not zero_level:
    halves = [2.0**-j for j in range(2 ** (bits - 1))]
    return leveled(halves[::-1], bucket_size, norm)
  grid = halving_grid(2 ** (bits - 1) - 2, bucket_size)
  return buckets.bucketed(grid, norm)


def halving_grid(s: int, bucket_size: int) -> buckets.Grid:
  """Builds the grid of 0, 2^-s, ..., 1/2, 1 and their negatives.

  No search: for r in [2^e, 2^(e+1)) the chance of the upper level is
  r / 2^e - 1, which is the mantissa of r. Random bits added to it carry into
  the exponent with just that chance. The code is s + 1 + sign index, where
  2^(index - s - 1) is the level.
  """
  zero = s + 1

  def round_(r, words):
    size = jnp.abs(r)
    # Below 2^-s the chance is r 2^s; 1 + r 2^s has it as its mantissa.
    small = size < 2.0**-s
    float_bits = wire.words(jnp.where(small, 1 + size * 2.0**s, size))
    exponent = _exponent(float_bits + (words >> 32 - _MANTISSA)) - 127
    index = jnp.where(small, exponent, exponent + zero)
    return zero + jnp.where(r < 0, -index, index)

  def level(codes):
    index = codes.astype(jnp.int32) - zero
    size = _power(jnp.abs(index) - zero)
    signs = jnp.sign(index).astype(jnp.float32)
    return signs * jnp.where(index == 0, 0, size)

  count = 2 * zero + 1
  codes = base.Codes((count - 1).bit_length(), count, zero, bucket_size)
  return buckets.Grid(codes, round_, level, ('halving', s))


def natural() -> base.Quantizer:
  """Rounds each value to one of the two powers of two around it: 9 bits.

    x_hat = sgn(x) 2^e or sgn(x) 2^(e+1),  E x_hat = x

  Variance at most |x|^2 / 8, without any norm.

  Payload: the exponents of float32, 8 bits each, then the packed signs.

  Returns:
    A `Quantizer`, unbiased, with a private key. Values below 2^-126 decode to
    0, those that are not finite, or would be rounded up to 2^128, to NaN.

  >>> q, x = natural(), jnp.array([4.0, -0.5, 0.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 4. , -0.5,  0. ], dtype=float32)

  Source: Definition 1 of arXiv:1905.10988.
  """

  def encode(x, key):
    x = base.vector(x)
    words = dither.bits(dither.seed(key), x.size) >> 32 - _MANTISSA
    size = wire.words(jnp.abs(x))
    # An exponent of 0 is that of 0 and of denormals, 255 that of inf and NaN.
    plain = (size >> _MANTISSA) % 255 > 0
    exponent = _exponent(jnp.where(plain, size + words, size)).astype(jnp.uint8)
    signs = wire.pack((x < 0).astype(jnp.uint8), 1)
    return wire.join(exponent, 8, signs)

  def decode(payload, reference):
    size = reference.size
    behind = wire.packed_size(size, 1)
    exponent, signs = wire.split(payload, 8, size, behind)
    exponent = exponent.astype(jnp.int32)
    power = jnp.where(exponent == 0, 0, _power(exponent - 127))
    power = jnp.where(exponent == 255, jnp.nan, power)
    negative = wire.unpack(signs, 1, reference.size)
    x_hat = jnp.where(negative > 0, -power, power)
    return x_hat.astype(reference.dtype)

  def inspect(payload, reference):
    seen = base.watched(decode)(payload, reference)
    return seen._replace(readable=(payload[: reference.size] < 255).all())

  return base.Quantizer(encode, decode, inspect)


def _exponent(float_bits):
  return (float_bits >> _MANTISSA).astype(jnp.int32)


def _power(exponent):
  """Returns 2^exponent, exactly, for -126 to 127."""
  return wire.floats((exponent + 127) << _MANTISSA)
