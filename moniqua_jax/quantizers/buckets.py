"""Buckets: one norm, and for each value the code of a level next to it.

What QSGD, NUQSGD, TernGrad and any other set of levels share. A vector is cut
into buckets; a value x of a bucket becomes r = x / norm in [-1, 1], which is
rounded at random to one of the two levels around it so that E level = r; the
receiver puts norm * level in its place.

Payload: the packed codes, then the norm (f32) of every bucket, then the levels
(f32) if they move during training.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moniqua_jax import dither, wire
from moniqua_jax.quantizers import base

Array = jax.Array

_LEAST = 2.0**-126  # the least normal number; XLA takes smaller ones for zero


class Grid(NamedTuple):
  """The levels, and how r finds one of them.

  Attributes:
    codes: how many there are, and how they are packed.
    round: (r: f32[k, size] in [-1, 1], words: u32[k, size], random) -> codes,
      u8 or i32[k, size].
    level: codes u8[k, size] -> f32[k, size], levels in [-1, 1].
  """

  codes: base.Codes
  round: Callable[[Array, Array], Array]
  level: Callable[[Array], Array]


def bucketed(
  grid: Grid, norm: str, before: Callable = lambda rows, real: rows
) -> base.Quantizer:
  """The quantizer of a grid.

    x_hat = norm(bucket) level(round(x / norm(bucket)))

  Args:
    grid: its levels.
    norm: 'l2' or 'linf', of a bucket.
    before: (rows: f32[k, size], real: bool[k, size]) -> f32[k, size], what is
      done to the buckets first; the last is filled with zeros that are not
      real.

  Returns:
    A `Quantizer`, with a private key. A bucket whose norm is below 2^-126
    decodes to zeros, one that is not finite (or whose norm is not) to NaN.

  Raises:
    ValueError: unknown norm, or a bucket size below 1.

  >>> from moniqua_jax.quantizers.leveled import grid
  >>> q = bucketed(grid((-1.0, 0.0, 1.0), bucket_size=8), 'linf')
  >>> x = jnp.array([2.0, -2.0, 0.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 2., -2.,  0.], dtype=float32)
  """
  if norm not in NORMS:
    raise ValueError(f'norm={norm!r}; choose from {sorted(NORMS)}.')
  bits, bucket_size = grid.codes.bits, grid.codes.bucket_size
  if type(bucket_size) is not int or bucket_size < 1:
    raise ValueError(f'bucket_size={bucket_size!r}; it must be at least 1.')

  def encode(x, key):
    rows = before(
      rows_of(x.astype(jnp.float32), bucket_size),
      rows_of(jnp.ones(x.shape, jnp.bool), bucket_size),
    )
    norms = NORMS[norm](rows)
    # A quotient may exceed 1 by its rounding.
    r = jnp.clip(ratio(rows, norms[:, None]), -1, 1)
    words = dither.bits(dither.seed(key), rows.size).reshape(rows.shape)
    codes = grid.round(r, words).astype(jnp.uint8).reshape(-1)[: x.size]
    return jnp.concatenate([wire.pack(codes, bits), wire.to_bytes(norms)])

  def norms_of(payload, size):
    start, count = wire.packed_size(size, bits), -(-size // bucket_size)
    ends = payload[start : start + 4 * count]
    return wire.from_bytes(ends, jnp.float32, (count,))

  def decode(payload, reference):
    size = reference.size
    norms = norms_of(payload, size)[:, None]
    codes = wire.unpack(payload[: wire.packed_size(size, bits)], bits, size)
    zero = jnp.minimum(norms, 0)  # a norm is not negative, or NaN
    levels = base.rounded(grid.level(rows_of(codes, bucket_size)), zero)
    x_hat = base.rounded(norms * levels, zero)
    return x_hat.reshape(-1)[:size].astype(reference.dtype)

  def inspect(payload, reference):
    seen = base.watched(decode)(payload, reference)
    finite = jnp.isfinite(norms_of(payload, reference.size)).all()
    return seen._replace(readable=finite)

  return base.Quantizer(encode, decode, inspect, codes=grid.codes)


def rows_of(x: Array, bucket_size: int) -> Array:
  """Rows of `bucket_size`; the last is filled with zeros.

  Args:
    x: [d].
    bucket_size: of the quantizer.

  Returns:
    [ceil(d / bucket_size), bucket_size].

  >>> rows_of(jnp.arange(3), 2)
  Array([[0, 1],
         [2, 0]], dtype=int32)
  """
  return jnp.pad(x, (0, -x.size % bucket_size)).reshape(-1, bucket_size)


def ratio(rows: Array, sizes: Array) -> Array:
  """x (1 / size), and 0 where the size is 0; also for sizes above 2^126.

  Not x / size: some programs divide, others multiply by 1 / size, and the codes
  would differ. Above 2^126 1 / size would be denormal, taken for 0.

  Args:
    rows: f32[k, size].
    sizes: f32[k, 1], not negative.

  Returns:
    f32[k, size].

  >>> ratio(jnp.float32([[1e38, 2e38]]), jnp.float32([[2e38]]))
  Array([[0.5, 1. ]], dtype=float32)
  """
  shrink = jnp.where(sizes > 1, 2.0**-64, 1)
  return rows * shrink * (1 / (jnp.where(sizes > 0, sizes, 1) * shrink))


def _linf(rows):
  # A sum keeps the NaN that a maximum may lose.
  most = jnp.max(jnp.abs(rows), axis=1) + jnp.sum(0 * rows, axis=1)
  return jnp.where(most >= _LEAST, most, 0 * most)


def _l2(rows):
  # Squares of x / max|x| neither overflow nor vanish.
  most = _linf(rows)[:, None]
  squares = ratio(rows, most) ** 2
  square = base.total(base.rounded(squares, jnp.minimum(most, 0)))
  norm = most[:, 0] * jnp.sqrt(square)
  return jnp.where(jnp.isfinite(norm), norm, jnp.nan)


NORMS = {'l2': _l2, 'linf': _linf}
