"""Four bytes by which a receiver of `moniqua` sees that it took a wrong turn.

Over lanes of 128 values, as a TPU holds them and a CPU adds them up fastest.
"""

from collections.abc import Callable, Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array

_LANES = 128
_BLOCKS = 16
_NO_PART = 1.5  # 0.5 + 1


def fold_turns(turns: Array) -> Array:
  """Folds all turns into 4 bytes: the XOR of each, rotated by its place mod 32.

  Sees every single wrong turn (but one by a multiple of 256), and several
  unless they cancel: two wrong turns by one cancel only in places that are
  equal mod 32. A hash of the integers would cost three times the encoder.

  Args:
    turns: f32[d] or i32[d], integers.

  Returns:
    u32[].

  >>> fold_turns(jnp.array([0.0, 1.0, 2.0, -1.0]))
  Array(2034, dtype=uint32)
  """
  return folded(over_rows(lax.bitwise_xor, [lanes(low_byte(turns))]))


def low_byte(turns: Array) -> Array:
  """What is folded of each turn: turns mod 256.

  Args:
    turns: f32 or i32 of any shape, integers.

  Returns:
    u8 of that shape.

  >>> low_byte(jnp.array([1.0, -1.0]))
  Array([  1, 255], dtype=uint8)
  """
  return (turns.astype(jnp.int32) & 255).astype(jnp.uint8)


def packed(turns: Array, parts: Array) -> Array:
  """The low byte of a turn behind 24 bits of a part of one, in one word.

  So that both are made in one pass on all machines; in the order of words, the
  largest has the largest part, or one that is not a number.

  Args:
    turns: f32 of any shape, integers.
    parts: f32 of that shape, from 0 to below 1; to the nearest 2^-24 below one
      half, 2^-23 above.

  Returns:
    u32 of that shape.

  >>> turn, part = unpacked(packed(jnp.float32([3.0]), jnp.float32([0.1])))
  >>> int(turn[0]), bool(abs(part[0] - 0.1) <= 2**-25)
  (3, True)
  """
  # From one half on, floats are even steps, and their first byte is 0x3f.
  halves = 0.5 + parts
  halves = jnp.where(halves < _NO_PART, halves, _NO_PART)  # so is a NaN
  words = lax.bitcast_convert_type(halves, jnp.uint32)
  return words << 8 | low_byte(turns).astype(jnp.uint32)


def unpacked(words: Array) -> tuple[Array, Array]:
  """The low bytes and the parts of `packed`; NaN for what is not below 1.

  Args:
    words: u32 of any shape.

  Returns:
    u8 and f32 of that shape.
  """
  halves = lax.bitcast_convert_type(words >> 8 | 0x3F << 24, jnp.float32)
  parts = jnp.where(halves < _NO_PART, halves - 0.5, jnp.nan)
  return words.astype(jnp.uint8), parts


def made_once(values: Array) -> Array:
  """The same, not made again by each of those that read it, on a CPU.

  XLA for TPUs makes it in the one pass of all who read it.

  Args:
    values: of any shape and type.

  Returns:
    The same values.
  """
  once = lax.optimization_barrier
  return lax.platform_dependent(values, cpu=once, default=lambda v: v)


def lanes(values: Array) -> Array:
  """Rows of 128 values; the last is filled with zeros.

  Args:
    values: [d].

  Returns:
    [ceil(d / 128), 128].

  >>> lanes(jnp.ones(129)).shape
  (2, 128)
  """
  return jnp.pad(values, (0, -values.size % _LANES)).reshape(-1, _LANES)


def over_rows(
  op: Callable[[Array, Array], Array],
  parts: Sequence[Array],
  last: Callable[[Array], Array] = lambda joined: joined,
) -> Array:
  """All rows of all parts, joined by op: XOR, OR, or the maximum.

  Args:
    op: of `jax.lax`, with 0 as its neutral element.
    parts: unsigned integers, each [rows, 128].
    last: what is done with values before rows are joined; op of the results
      must be the result of op.

  Returns:
    [128], of the type that `last` gives.

  >>> parts = [jnp.ones((2, 128), jnp.uint8), jnp.full((1, 128), 2, jnp.uint8)]
  >>> over_rows(lax.bitwise_or, parts)[0]
  Array(3, dtype=uint8)
  """
  alike = {part.shape: [] for part in parts}
  for part in parts:
    alike[part.shape].append(part)
  joined = [last(functools.reduce(op, group)) for group in alike.values()]
  return functools.reduce(op, [_over_rows(op, rows) for rows in joined])


def _over_rows(op, rows):
  def at_once(rows):
    return lax.reduce(rows, rows.dtype.type(0), op, (0,))

  # XLA for CPUs joins blocks in vectors, and leaves little to reduce.
  def in_blocks(rows):
    count = _BLOCKS if rows.shape[0] % _BLOCKS == 0 else 1
    return at_once(functools.reduce(op, jnp.split(rows, count)))

  return lax.platform_dependent(rows, cpu=in_blocks, default=at_once)


def folded(low: Array) -> Array:
  """The lanes of low bytes into one word, each rotated by its place mod 32.

  Args:
    low: u8[128] or u32[128], below 256.

  Returns:
    u32[].

  >>> folded(jnp.arange(128, dtype=jnp.uint8) // 127)
  Array(2147483648, dtype=uint32)
  """
  words, left = (
    low.astype(jnp.uint32),
    jnp.arange(_LANES, dtype=jnp.uint32) % 32,
  )
  words = (words << left) | (words >> (32 - left) % 32)
  return lax.reduce(words, jnp.uint32(0), lax.bitwise_xor, (0,))
