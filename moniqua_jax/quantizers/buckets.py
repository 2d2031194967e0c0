"""Buckets: one norm, and for each value the code of a level next to it.

What QSGD, NUQSGD, TernGrad and any other set of levels share. A vector is cut
into buckets; a value x of a bucket becomes r = x / norm in [-1, 1], which is
rounded at random to one of the two levels around it so that E level = r; the
receiver puts norm * level in its place.

Payload: the packed codes, then the norm (f32) of every bucket, then the levels
(f32) if they move during training.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import arguments, dither, native, wire
from moniqua_jax.quantizers import base, forms, numerics

Array = jax.Array

_LEAST = 2.0**-126  # the least normal number; XLA takes smaller ones for zero


class Grid(NamedTuple):
  """The levels, and how r finds one of them."""

  codes: base.Codes
  # (r f32[k, size] in [-1, 1], random words u32[k, size]) -> u8 or i32[k, size]
  round: Callable[[Array, Array], Array]
  # codes u8[k, size] -> f32[k, size], levels in [-1, 1]
  level: Callable[[Array], Array]
  # (name, s) of what gives the same codes on a CPU; see native/buckets.cc
  native: tuple[str, int] | None = None


def bucketed(
  grid: Grid, norm: str, before: Callable | None = None
) -> base.Quantizer:
  """Builds the quantizer of a grid, unbiased, with a private key.

    x_hat = norm(bucket) level(round(x / norm(bucket)))

  `before(real, rows)` may change the rows first; `by_bucket` says what is real.
  A bucket whose norm is below 2^-126 decodes to zeros, one that is not finite
  (or whose norm is not) to NaN.
  """
  if norm not in NORMS:
    raise ValueError(f'norm={norm!r}; choose from {sorted(NORMS)}.')
  bits, bucket_size = grid.codes.bits, arguments.integer(grid.codes.bucket_size)
  if type(bucket_size) is not int or bucket_size < 1:
    raise ValueError(f'bucket_size={bucket_size!r}; it must be at least 1.')
  grid = grid._replace(codes=grid.codes._replace(bucket_size=bucket_size))

  def encode(x, key):
    x, seed = base.vector(x), dither.seed(key)
    cpu = None
    if grid.native and not before:
      cpu = functools.partial(_code_native, *grid.native, bucket_size, norm)
    default = functools.partial(_code, grid, norm, before)
    code = forms.chosen(default, cpu=cpu)
    codes, norms = code(x, seed)
    return wire.join(codes, bits, norms)

  def split(payload, size):
    count = -(-size // bucket_size)
    codes, norms = wire.split(payload, bits, size, 4 * count)
    norms = wire.from_bytes(norms, jnp.float32, (count,))
    # Once for a bucket, not for each of its values.
    norms = lax.optimization_barrier(sendable(norms))
    return known(codes, grid.codes), norms

  def value(codes, norms):
    zero = jnp.minimum(norms, 0)  # a norm is not negative, or NaN
    return numerics.rounded(
      norms * numerics.rounded(grid.level(codes), zero), zero
    )

  def decode(payload, reference):
    x_hat = values(value, bucket_size, *split(payload, reference.size))
    return x_hat.astype(reference.dtype)

  def inspect(payload, reference):
    seen = base.watched(decode)(payload, reference)
    _, norms = split(payload, reference.size)
    return seen._replace(readable=jnp.isfinite(norms).all())

  return base.Quantizer(encode, decode, inspect, codes=grid.codes)


def _code(grid, norm, before, x, seed):
  """Returns codes u8[d] and the norms of the buckets."""

  def code(real, rows, words):
    rows = before(real, rows) if before else rows
    norms = NORMS[norm](rows)
    # A quotient may exceed 1 by its rounding.
    r = jnp.clip(ratio(rows, norms[:, None]), -1, 1)
    return grid.round(r, words).astype(jnp.uint8), norms

  words = dither.bits(seed, x.size)
  return by_bucket(code, grid.codes.bucket_size, x, words)


def _code_native(name, s, bucket_size, norm, x, seed):
  how = dict(bucket_size=bucket_size, s=s, l2=norm == 'l2')
  return native.buckets(name, x, seed, **how)


def known(codes: Array, about: base.Codes) -> Array:
  """Takes codes that no sender writes for the last that one does."""
  top = about.count - 1
  return jnp.minimum(codes, top) if about.count < 2**about.bits else codes


def sendable(norms: Array) -> Array:
  """Returns norms, NaN in the place of those that no sender writes."""
  # XLA takes denormals for zero in some programs, not in all.
  norms = jnp.where(jnp.abs(norms) < _LEAST, 0, norms)
  return jnp.where((norms >= 0) & (norms < jnp.inf), norms, jnp.nan)


def by_bucket(
  do: Callable, bucket_size: int, *vectors: Array
) -> tuple[Array, Array]:
  """Returns what `do` gives of whole buckets, and of a last one that is short.

  Only the short one is filled up, with zeros. If the whole vector were, XLA for
  CPUs would ask of each value, in each loop, whether it exists; and if XLA
  joined the codes, of each code which of the two parts it comes from.

  Args:
    do: (real, rows [k, size] of each vector) -> codes u8[k, size], numbers
      [..., k]. The values that are `real` are not filled in: all if it is True,
      else it is bool[1, size].
    bucket_size: values of a bucket.
    vectors: of d values each.

  Returns:
    The codes, u8[d], and the numbers.
  """
  d, done = vectors[0].size, []
  whole = d // bucket_size * bucket_size

  def flat(size, *rows):
    codes, numbers = do(*rows)
    done.append((codes.reshape(-1)[:size], numbers))

  if whole or not d:
    flat(whole, True, *(x[:whole].reshape(-1, bucket_size) for x in vectors))
  if left := d - whole:
    fill = lambda x: jnp.pad(x[whole:], (0, bucket_size - left))[None]
    real = jnp.arange(bucket_size)[None] < left
    flat(left, real, *map(fill, vectors))
  codes, numbers = zip(*done, strict=True)
  return _joined(codes), jnp.concatenate(numbers, -1)


def values(do: Callable, bucket_size: int, codes: Array, *numbers: Array):
  """Returns f32[d], what `do` makes of codes and of the numbers of buckets.

  Args:
    do: (codes u8[k, size], numbers [k, 1] of each) -> f32[k, size].
    bucket_size: values of a bucket; the last may be short.
    codes: u8[d].
    numbers: [ceil(d / bucket_size)] each.
  """
  whole = codes.size // bucket_size
  cut = whole * bucket_size
  parts = [(codes[:cut].reshape(-1, bucket_size), slice(whole))]
  parts *= whole > 0 or not codes.size
  parts += [(codes[cut:][None], slice(whole, None))] * (cut < codes.size)
  return _joined(
    [do(c, *(n[at, None] for n in numbers)).reshape(-1) for c, at in parts]
  )


def _joined(parts):
  if len(parts) == 1:
    return parts[0]
  join = lambda *parts: jnp.concatenate(parts)
  return forms.chosen(join, cpu=native.join)(*parts)


def ratio(rows: Array, sizes: Array) -> Array:
  """Returns x (1 / size), and 0 where the size is 0.

  Not x / size: some programs divide, others multiply by 1 / size, and the codes
  would differ. Above 2^126 1 / size would be denormal, taken for 0.
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
  square = numerics.sum_rows(numerics.rounded(squares, jnp.minimum(most, 0)))
  norm = most[:, 0] * jnp.sqrt(square)
  return jnp.where(jnp.isfinite(norm), norm, jnp.nan)


NORMS = {'l2': _l2, 'linf': _linf}
