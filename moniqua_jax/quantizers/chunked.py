"""The largest values of each chunk, in a few bits each, and their places.

As SparseLoCo sends them: Sarfi et al., "Communication efficient LLM
pre-training with SparseLoCo", 2025, arXiv:2508.15706.

A chunk is ceil(d / r) values, for the least number r of chunks of at most so
many: a message has no padding. Payload: the packed codes, of a sign and the
number of a level; the places, see `places`; the scale of each chunk, a byte;
then the levels (f32) but for the last, which is 1, and the largest scale (f32).
The byte k says how far a scale is below the largest, in steps of an eighth of
its power of two: the upper 12 bits of the float, less k; 255 is a chunk of
zeros.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import arguments, wire
from moniqua_jax.quantizers import base, buckets, numerics, places, sparse

Array = jax.Array

_SWEEPS = 8
_LEAST = 2.0**-64  # of a mean size, in units of the largest
_CUT = 20  # bits of a float that a scale goes without
_SMALLEST, _LARGEST = 0x008, 0x7F7  # the others, of normal floats
_NOTHING = 255


class Form(NamedTuple):
  """How a vector is cut: r rows, values in each, and how many are kept."""

  rows: int
  size: int
  kept: int


def chunked_top_k(
  chunk: int = 4096, keep: int = 64, value_bits: int = 2
) -> base.Quantizer:
  """Sends the values that are largest in size of each chunk, coarsely.

    x_hat_i = sign(x_i) S level(x_i)  of the `keep` largest of a chunk, else 0

  The levels are the means of their cells, in units of the mean size in a chunk,
  one table for the message; S is the best for them, <|x|, level> / |level|^2,
  so that no chunk is further from x_hat than from 0. Of values of one size the
  first are sent. The defaults take 10.2 bits for a value that is sent, 8 of
  them for its place: .16 bits for each of d.

  Args:
    chunk: values, of which the largest are sent.
    keep: how many of them; of shorter chunks in proportion, rounded up.
    value_bits: of a value, 1 to 4, one of them for the sign.

  Returns:
    A `Quantizer`, biased and without randomness: for algorithms with error
    feedback. If any value is not finite, all values that are sent are NaN. A
    chunk whose scale is less than 2^-31 of the largest decodes to zeros.

  Raises:
    ValueError: chunk below 1, keep outside 1 to chunk, value_bits outside 1 to
      4.

  >>> q, x = chunked_top_k(4, 1, 1), jnp.array([1.0, -3.0, 2.0, 0.5])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 0., -3.,  0.,  0.], dtype=float32)

  Source: arXiv:2508.15706; the scale of each chunk is ours.
  """
  chunk, keep, value_bits = map(arguments.integer, (chunk, keep, value_bits))
  _check(chunk, keep, value_bits)
  count = 2 ** (value_bits - 1)

  def form(d):
    rows = -(-d // chunk)
    size = -(-d // rows)
    return Form(rows, size, -(-keep * size // chunk))

  def encode(x, key):
    del key
    x = base.vector(x)
    most, cut = numerics.largest(x), form(x.size)
    rows = jnp.pad(x, (0, -x.size % cut.size)).reshape(-1, cut.size)
    at = jnp.sort(lax.top_k(jnp.abs(rows), cut.kept)[1], axis=1)
    values = jnp.take_along_axis(rows, at, axis=1)
    unit = numerics.power_below(most)
    sizes = numerics.rounded(jnp.abs(values) * unit, jnp.minimum(unit, 0))
    codes, levels, scales = _rounded(sizes, count)
    below, largest = _short(scales * (1 / unit))
    codes += jnp.uint8(count) * (values < 0).astype(jnp.uint8)
    # A value that is not finite shows in all that are sent.
    largest = jnp.where(jnp.isfinite(most), largest, jnp.nan)
    ends = places.write(at, cut.size), below, levels[:-1], largest
    return wire.join(codes.reshape(-1), value_bits, *ends)

  def read(payload, reference):
    d, cut = reference.size, form(reference.size)
    end = places.nbytes(cut.rows, cut.kept, cut.size)
    sent, behind = cut.rows * cut.kept, end + cut.rows + 4 * count
    codes, ends = wire.split(payload, value_bits, sent, behind)
    at = places.read(ends[:end], cut.rows, cut.kept, cut.size)
    numbers = wire.from_bytes(ends[-4 * count :], jnp.float32, (count,))
    scales, sound = _long(ends[end : -4 * count], numbers[-1])
    sound &= ((numbers[:-1] >= 0) & (numbers[:-1] <= 1)).all()
    sound &= (at[:, -1] < cut.size).all() & (at[:, 1:] > at[:, :-1]).all()
    codes, zero = codes.reshape(at.shape), jnp.minimum(scales, 0)[:, None]
    level = _level(codes & jnp.uint8(count - 1), numbers)
    sizes = numerics.rounded(scales[:, None] * level, zero)
    values = jnp.where(sound, jnp.where(codes < count, sizes, -sizes), jnp.nan)
    flat = (at + cut.size * jnp.arange(cut.rows)[:, None]).reshape(-1)
    x_hat = jnp.zeros(d, jnp.float32).at[flat].set(values.reshape(-1))
    # Places that nobody sends may all be beyond the end.
    first = jnp.minimum(flat[0], d - 1)
    x_hat = x_hat.at[first].set(jnp.where(sound, x_hat[first], jnp.nan))
    return x_hat.astype(reference.dtype), sound

  return sparse.of_few(encode, read)


def _check(chunk, keep, value_bits):
  if type(chunk) is not int or chunk < 1:
    raise ValueError(f'chunk={chunk!r}; it must be at least 1.')
  if type(keep) is not int or not 1 <= keep <= chunk:
    raise ValueError(f'keep={keep!r}; of a chunk of {chunk} take 1 to {chunk}.')
  if type(value_bits) is not int or value_bits not in range(1, 5):
    raise ValueError(f'value_bits={value_bits!r}; it must be 1 to 4.')


def _rounded(sizes, count):
  """Returns codes u8[r, k], levels f32[count] up to 1, and scales f32[r].

  By Lloyd's sweeps, on sizes in units of the mean of their chunk. A chunk of
  sizes that are nothing beside the largest has no scale, and no say.
  """
  mean = numerics.sum_rows(sizes) * (1 / sizes.shape[1])
  live = mean >= _LEAST
  zero = jnp.minimum(mean[0], 0)
  u = buckets.ratio(sizes, jnp.where(live, mean, 0)[:, None])
  u = numerics.rounded(u, zero)
  odd = 2 * jnp.arange(count, dtype=jnp.float32) + 1
  start = numerics.rounded(
    odd * (1 / count), zero
  )  # as different as the sizes are
  number = jnp.arange(count, dtype=jnp.uint8)[:, None, None]

  def sweep(_, levels):
    mine = (_nearest(u, levels)[None] == number) & live[None, :, None]
    total = numerics.sum_rows(jnp.where(mine, u[None], 0).reshape(count, -1))
    many = jnp.sum(mine, axis=(1, 2)).astype(jnp.float32)
    return jnp.where(many > 0, total * (1 / jnp.maximum(many, 1)), levels)

  levels = lax.fori_loop(0, _SWEEPS, sweep, start)
  codes = _nearest(u, levels)
  levels = jnp.minimum(levels * (1 / levels[-1]), 1)
  q = _level(codes, levels)
  both = numerics.sum_rows(numerics.rounded(sizes * q, zero))
  square = numerics.sum_rows(numerics.rounded(q * q, zero))
  best = both * (1 / jnp.where(square > 0, square, 1))
  return codes, levels, jnp.where(live, best, 0)


def _nearest(u, levels):
  edges = (levels[1:] + levels[:-1]) * 0.5
  above = [(u >= edge).astype(jnp.uint8) for edge in edges]
  return sum(above, jnp.zeros(u.shape, jnp.uint8))


def _level(codes, levels):
  """Returns the levels of codes; that of the last is 1, whatever stands there.

  A number that is not one, in a message of nobody, is seen elsewhere.
  """
  level = jnp.ones(codes.shape, jnp.float32)
  for j in reversed(range(levels.size - 1)):
    level = jnp.where(codes <= j, levels[j], level)
  return level


def _short(scales):
  """Returns how far each scale is below the largest, u8[r], and the largest."""
  heads = (wire.words(scales) + (1 << _CUT - 1)) >> _CUT
  heads = jnp.minimum(heads, _LARGEST)
  largest = jnp.max(heads)
  below = jnp.minimum(largest - heads, _NOTHING)
  below = jnp.where(heads >= _SMALLEST, below, _NOTHING).astype(jnp.uint8)
  return below, wire.floats(largest << _CUT)


def _long(below, largest):
  """Returns the scales that `_short` wrote, and whether anybody writes so."""
  head = (wire.words(largest) >> _CUT).astype(jnp.int32)
  heads = head - below.astype(jnp.int32)
  real = (below < _NOTHING) & (heads >= _SMALLEST)
  heads = jnp.clip(heads, 0, _LARGEST).astype(jnp.uint32)
  return jnp.where(real, wire.floats(heads << _CUT), 0), head <= _LARGEST
