"""Four bytes by which a receiver of `moniqua` sees that it took a wrong turn.

Over lanes of 128 values, as a TPU holds them and a CPU adds them up fastest.
"""

from collections.abc import Callable, Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import wire

Array = jax.Array

_LANES = 128
_BLOCKS = 16
_NO_PART = 1.5  # 0.5 + 1


def low_byte(turns: Array) -> Array:
  """Returns what is folded of each turn: turns mod 256, u8."""
  return (turns.astype(jnp.int32) & 255).astype(jnp.uint8)


def pack(turns: Array, parts: Array) -> Array:
  """Packs a 24-bit fraction and, below it, a turn's low byte into one u32.

  Words sort by the fraction, f32 in [0, 1), and NaN comes last; it is kept to
  the nearest 2^-24 below one half, 2^-23 above. So XLA makes both in one pass.
  """
  # From one half on, floats are even steps, and their first byte is 0x3f.
  halves = 0.5 + parts
  halves = jnp.where(halves < _NO_PART, halves, _NO_PART)  # so is a NaN
  words = wire.words(halves)
  return words << 8 | low_byte(turns).astype(jnp.uint32)


def unpack(words: Array) -> tuple[Array, Array]:
  """Returns the low bytes, u8, and the fractions, NaN if not below 1."""
  halves = wire.floats(words >> 8 | 0x3F << 24)
  parts = jnp.where(halves < _NO_PART, halves - 0.5, jnp.nan)
  return words.astype(jnp.uint8), parts


def compute_once(values: Array) -> Array:
  """Stops XLA:CPU from recomputing `values` in every consumer.

  XLA for TPUs makes them in the one pass of all who read them.
  """
  once = lax.optimization_barrier
  return lax.platform_dependent(values, cpu=once, default=lambda v: v)


def lanes(values: Array) -> Array:
  """Cuts [d] into rows of 128 values; the last is filled with zeros."""
  return jnp.pad(values, (0, -values.size % _LANES)).reshape(-1, _LANES)


def reduce_rows(
  op: Callable[[Array, Array], Array],
  parts: Sequence[Array],
  last: Callable[[Array], Array] = lambda joined: joined,
) -> Array:
  """Joins all rows [128] of all parts by op: XOR, OR, or the maximum.

  0 must be neutral. `last` is applied to values before their rows are joined;
  op of its results must be its result of op.
  """
  alike = {part.shape: [] for part in parts}
  for part in parts:
    alike[part.shape].append(part)
  joined = [last(functools.reduce(op, group)) for group in alike.values()]
  return functools.reduce(op, [_reduce(op, rows) for rows in joined])


def _reduce(op, rows):
  def at_once(rows):
    return lax.reduce(rows, rows.dtype.type(0), op, (0,))

  # XLA for CPUs joins blocks in vectors, and leaves little to reduce.
  def in_blocks(rows):
    count = _BLOCKS if rows.shape[0] % _BLOCKS == 0 else 1
    return at_once(functools.reduce(op, jnp.split(rows, count)))

  return lax.platform_dependent(rows, cpu=in_blocks, default=at_once)


def fold(low: Array) -> Array:
  """Folds low bytes [128] into u32[], each rotated by its place mod 32.

  Sees every single wrong turn (but one by a multiple of 256), and several
  unless they cancel: two wrong turns by one cancel only in places that are
  equal mod 32. A hash of the integers would cost three times the encoder.
  """
  words, left = (
    low.astype(jnp.uint32),
    jnp.arange(_LANES, dtype=jnp.uint32) % 32,
  )
  words = (words << left) | (words >> (32 - left) % 32)
  return lax.reduce(words, jnp.uint32(0), lax.bitwise_xor, (0,))
