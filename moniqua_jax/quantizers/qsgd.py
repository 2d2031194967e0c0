"""QSGD: equally spaced levels.

Alistarh et al., "QSGD", NeurIPS 2017, arXiv:1610.02132, Section 3.1; and its
ternary relative, Wen et al., "TernGrad", NeurIPS 2017, arXiv:1705.07878.
"""

import math

import jax
import jax.numpy as jnp

from moniqua_jax import arguments, dither
from moniqua_jax.quantizers import base, buckets, numerics

Array = jax.Array


def qsgd(bits: int, bucket_size: int = 512, norm: str = 'l2') -> base.Quantizer:
  """The levels 0, 1/s, ..., 1 with a sign, s = 2^(b-1) - 1.

    x_hat = norm sgn(x) xi,  s xi = floor(s |x| / norm + u),  u in [0, 1)

  With norm='l2' the variance is at most min(d / s^2, sqrt(d) / s) |x|^2 for
  buckets of d; norm='linf' is what the NUQSGD paper calls QSGDinf.

  Args:
    bits: per value, sign included, 2 to 8.
    bucket_size: values that share a norm; the last bucket may be shorter.
    norm: 'l2' or 'linf'.

  Returns:
    A `Quantizer`, unbiased, with a private key; see `buckets.bucketed` for what
    becomes of numbers that are not finite.

  Raises:
    ValueError: bits outside 2 to 8, bucket_size below 1, unknown norm.

  >>> q, x = qsgd(bits=2, norm='linf'), jnp.array([2.0, -2.0, 0.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 2., -2.,  0.], dtype=float32)

  Source: Section 3.1 of arXiv:1610.02132, Lemma 3.1.
  """
  bits = arguments.integer(bits)
  if type(bits) is not int or bits not in range(2, 9):
    raise ValueError(f'bits={bits!r}; qsgd takes 2 to 8, one is the sign.')
  return buckets.bucketed(uniform_grid(2 ** (bits - 1) - 1, bucket_size), norm)


def uniform_grid(s: int, bucket_size: int) -> buckets.Grid:
  """Builds the grid of -1, ..., -1/s, 0, 1/s, ..., 1; code = s + s level."""
  count = 2 * s + 1

  def round_(r, words):
    # floor(s r + u) is odd about 0 in law, so no sign is needed.
    scaled = numerics.rounded(s * r, jnp.minimum(jnp.abs(r[:, :1]), 0))
    return s + jnp.floor(scaled + dither.unit(words)).clip(-s, s)

  def level(codes):
    return (codes.astype(jnp.float32) - s) / s

  codes = base.Codes((count - 1).bit_length(), count, s, bucket_size)
  return buckets.Grid(codes, round_, level, ('uniform', s))


def terngrad(bucket_size: int = 512, clip: float = 2.5) -> base.Quantizer:
  """-S, 0 or S: the sign of x with probability |x| / S, S = max|x|.

    x <- clip(x, +-c sigma);  x_hat = S sign(x) Bernoulli(|x| / S)

  Args:
    bucket_size: values that share S; the paper has a tensor share it.
    clip: c, in standard deviations of the bucket; `math.inf` for no clipping.

  Returns:
    A `Quantizer` of 2 bits, with a private key; unbiased for the clipped x, the
    clipping is its only bias.

  Raises:
    ValueError: clip is not positive, or bucket_size is below 1.

  >>> q, x = terngrad(), jnp.array([2.0, -2.0, 0.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 2., -2.,  0.], dtype=float32)

  Source: equations 1, 2 and 8 of arXiv:1705.07878; S is that of the clipped x.
  """
  if not (arguments.is_number(clip) and clip > 0):
    raise ValueError(f'clip={clip!r}; it counts standard deviations, above 0.')

  def clipped(real, rows):
    most = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    count = jnp.sum(jnp.broadcast_to(real, rows.shape), axis=1, keepdims=True)
    zero, share = jnp.minimum(most, 0), 1 / count
    mean_of = lambda x: numerics.rounded(
      numerics.sum_rows(x)[:, None] * share, zero
    )
    # Of x / max|x|, whose squares neither overflow nor vanish.
    unit = numerics.rounded(buckets.ratio(rows, most), zero)
    apart = jnp.where(real, unit - mean_of(unit), 0)
    sigma = jnp.sqrt(mean_of(numerics.rounded(apart**2, zero)))
    bound = numerics.rounded(clip * sigma, zero) * most
    # Values that are equal but for rounding have no sigma to speak of.
    return jnp.where(sigma > 1e-5, jnp.clip(rows, -bound, bound), rows)

  before = None if clip == math.inf else clipped
  return buckets.bucketed(uniform_grid(1, bucket_size), 'linf', before)
