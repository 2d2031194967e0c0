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


def over_rows(op: Callable[[Array, Array], Array], parts: Sequence) -> Array:
  """All rows of all parts, joined by op: XOR, OR, or the maximum.

  Args:
    op: of `jax.lax`, for unsigned integers, with 0 as its neutral element.
    parts: unsigned integers, each [rows, 128].

  Returns:
    [128], of the same type.

  >>> parts = [jnp.ones((2, 128), jnp.uint8), jnp.full((1, 128), 2, jnp.uint8)]
  >>> over_rows(lax.bitwise_or, parts)[0]
  Array(3, dtype=uint8)
  """
  alike = {part.shape: [] for part in parts}
  for part in parts:
    alike[part.shape].append(part)
  joined = [functools.reduce(op, group) for group in alike.values()]
  zero = joined[0].dtype.type(0)
  return functools.reduce(op, [lax.reduce(j, zero, op, (0,)) for j in joined])


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
