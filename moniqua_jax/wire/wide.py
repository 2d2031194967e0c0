"""Numbers that take more than a byte, or some bits more: places and counts."""

import functools

import jax
import jax.numpy as jnp

from moniqua_jax.wire import payloads, stripes


def index_bytes(count: int) -> int:
  """Returns the bytes that an index below `count` takes."""
  return max(1, -(-(count - 1).bit_length() // 8))


def to_planes(numbers: jax.Array, count: int) -> jax.Array:
  """Cuts u32[d] into u8[count * d]: all lowest bytes first."""
  rows = [(numbers >> 8 * j).astype(jnp.uint8) for j in range(count)]
  return jnp.concatenate(rows)


def from_planes(packed: jax.Array, count: int) -> jax.Array:
  """Puts the bytes of `to_planes` together again, u32[d]."""
  rows = packed.reshape(count, -1).astype(jnp.uint32)
  return functools.reduce(
    jnp.bitwise_or, [rows[j] << 8 * j for j in range(count)]
  )


def to_bits(numbers: jax.Array, bits: int) -> jax.Array:
  """Cuts u32[d], each below 2**bits, into whole bytes and a packed rest.

  >>> to_bits(jnp.array([1, 258], jnp.uint32), 10)
  Array([1, 2, 4], dtype=uint8)
  """
  count, rest = divmod(bits, 8)
  cut = [to_planes(numbers, count)] if count else []
  if rest:
    cut.append(payloads.pack((numbers >> 8 * count).astype(jnp.uint8), rest))
  return jnp.concatenate(cut)


def from_bits(packed: jax.Array, bits: int, size: int) -> jax.Array:
  """Puts what `to_bits` cut together again, u32[size]."""
  count, rest = divmod(bits, 8)
  numbers = jnp.zeros(size, jnp.uint32)
  if count:
    numbers = from_planes(packed[: count * size], count)
  if rest:
    above = payloads.unpack(packed[count * size :], rest, size)
    numbers |= above.astype(jnp.uint32) << 8 * count
  return numbers


def bits_size(size: int, bits: int) -> int:
  """Returns the bytes that `to_bits` needs: at most 2 more than the least."""
  count, rest = divmod(bits, 8)
  return count * size + (stripes.packed_size(size, rest) if rest else 0)
