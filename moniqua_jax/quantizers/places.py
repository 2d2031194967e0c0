"""Places of the values that are sent, in log2(size / kept) + 2 bits each.

Elias, "Efficient storage and retrieval by content and address of static files",
Journal of the ACM, 1974; by Fano, too. Ascending places below `size` are cut:
the low l bits of each are packed as they are. Of the high bits h there is a
bitmap, in which place i, counted from 0, sets bit h + i: as many ones as
places, and as many zeros as h can have values. So its length is known, whatever
the places are.
"""

import jax
import jax.numpy as jnp

from moniqua_jax import wire

Array = jax.Array


def nbytes(rows: int, kept: int, size: int) -> int:
  """Returns the bytes of `rows` times `kept` places below `size`.

  >>> nbytes(1, 64, 4096)
  64
  """
  low, marks = _widths(kept, size)
  lows = wire.bits_size(rows * kept, low)
  return lows + wire.packed_size(rows * marks, 1)


def write(places: Array, size: int) -> Array:
  """Writes i32[rows, kept], ascending in each row, as u8[nbytes].

  >>> write(jnp.array([[1, 6]]), 8)
  Array([9, 5], dtype=uint8)
  """
  rows, kept = places.shape
  low, marks = _widths(kept, size)
  at = (places >> low) + jnp.arange(kept)[None]
  bitmap = jnp.zeros((rows, marks), jnp.uint8)
  bitmap = bitmap.at[jnp.arange(rows)[:, None], at].set(1, unique_indices=True)
  ones = wire.pack(bitmap.reshape(-1), 1)
  if not low:
    return ones
  lows = (places & 2**low - 1).astype(jnp.uint32)
  return jnp.concatenate([wire.to_bits(lows.reshape(-1), low), ones])


def read(packed: Array, rows: int, kept: int, size: int) -> Array:
  """Reads what `write` wrote; bytes of nobody may give places beyond the end.

  >>> read(jnp.array([9, 5], jnp.uint8), 1, 2, 8)
  Array([[1, 6]], dtype=int32)
  """
  low, marks = _widths(kept, size)
  end = wire.bits_size(rows * kept, low)
  ones = wire.unpack(packed[end:], 1, rows * marks).reshape(rows, marks)
  at = jnp.sort(jnp.where(ones > 0, jnp.arange(marks)[None], marks), axis=1)
  high = at[:, :kept] - jnp.arange(kept)[None]
  if not low:
    return high
  lows = wire.from_bits(packed[:end], low, rows * kept).reshape(rows, kept)
  return high << low | lows.astype(jnp.int32)


def _widths(kept: int, size: int) -> tuple[int, int]:
  """Returns the low bits of a place, and the bits of a row's bitmap."""
  low = (size // kept).bit_length() - 1
  return low, kept + (size - 1 >> low) + 1
