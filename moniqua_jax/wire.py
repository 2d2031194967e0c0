"""The wire: codes of b bits packed into bytes, and numbers cast to bytes.

What is not in a payload, one `u8[m]` vector per message, was not sent.

Codes are packed in planes: d codes are cut into 8/b contiguous stripes and
stripe j stands at bit j*b of the byte, so that every operation is elementwise
on long vectors. (Packing neighbours, `reshape(-1, 8 // b)`, compiles on a TPU
to 43 times the payload in memory traffic.) Widths that do not divide 8 are sums
of a 4-, a 2- and a 1-bit plane.
"""

import jax
from jax import lax
import jax.numpy as jnp


def planes(bits: int) -> tuple[int, ...]:
  """The widths of the planes that carry codes of `bits` bits.

  Args:
    bits: bits per code, 1 to 8.

  Returns:
    Powers of two with sum `bits`, largest first.

  Raises:
    ValueError: `bits` is outside 1 to 8.

  >>> planes(8), planes(7), planes(1)
  ((8,), (4, 2, 1), (1,))
  """
  if type(bits) is not int or bits not in range(1, 9):
    raise ValueError(f'bits={bits!r}; a code has 1 to 8 bits, an int.')
  return tuple(width for width in (8, 4, 2, 1) if bits & width)


def packed_size(size: int, bits: int) -> int:
  """Bytes that `pack` needs: the sum over planes w of ceil(size * w / 8).

  Args:
    size: number of codes.
    bits: bits per code, 1 to 8.

  Returns:
    ceil(size * bits / 8) where `bits` divides 8, at most 2 more otherwise.

  >>> packed_size(10, 4), packed_size(10, 3)
  (5, 5)
  """
  return sum(-(-size * width // 8) for width in planes(bits))


def pack(codes: jax.Array, bits: int) -> jax.Array:
  """Packs codes into bytes, plane after plane.

  byte[i] = sum_j code[j * m + i] << (j * b), m = ceil(d * b / 8), for b | 8.

  Args:
    codes: u8[d], each below 2**bits.
    bits: bits per code, 1 to 8.

  Returns:
    u8[packed_size(d, bits)].

  >>> pack(jnp.arange(4, dtype=jnp.uint8), 4)
  Array([32, 49], dtype=uint8)
  """
  packed, low = [], 0
  for width in planes(bits):
    packed.append(_pack_plane((codes >> low) & (2**width - 1), width))
    low += width
  return packed[0] if len(packed) == 1 else jnp.concatenate(packed)


def unpack(packed: jax.Array, bits: int, size: int) -> jax.Array:
  """The inverse of `pack`: `unpack(pack(codes, bits), bits, d) == codes`.

  Args:
    packed: u8[packed_size(size, bits)].
    bits: bits per code, 1 to 8.
    size: number of codes, d.

  Returns:
    u8[d], each below 2**bits.

  >>> unpack(pack(jnp.arange(5, dtype=jnp.uint8), 3), 3, 5)
  Array([0, 1, 2, 3, 4], dtype=uint8)
  """
  codes, low, start = None, 0, 0
  for width in planes(bits):
    stop = start + packed_size(size, width)
    plane = _unpack_plane(packed[start:stop], width, size) << low
    codes = plane if codes is None else codes | plane
    low, start = low + width, stop
  return codes


def _pack_plane(codes: jax.Array, width: int) -> jax.Array:
  stripes, length = 8 // width, packed_size(codes.size, width)
  codes = jnp.pad(codes, (0, stripes * length - codes.size))
  packed = codes[:length]
  for j in range(1, stripes):
    packed |= codes[j * length : (j + 1) * length] << (j * width)
  return packed


def _unpack_plane(packed: jax.Array, width: int, size: int) -> jax.Array:
  if width == 8:
    return packed
  mask = 2**width - 1
  stripes = [(packed >> j * width) & mask for j in range(8 // width)]
  return jnp.concatenate(stripes)[:size]


def to_bytes(numbers: jax.Array) -> jax.Array:
  """The bytes of a few numbers of a header, in the machine's (little) order.

  Args:
    numbers: f32, u32 or i32 of any shape; norms, thetas, seeds, not bulk data.

  Returns:
    u8[4 * numbers.size].

  >>> to_bytes(jnp.float32(1.0))
  Array([  0,   0, 128,  63], dtype=uint8)
  """
  return lax.bitcast_convert_type(numbers, jnp.uint8).reshape(-1)


def from_bytes(packed: jax.Array, dtype, shape: tuple = ()) -> jax.Array:
  """The inverse of `to_bytes`.

  Args:
    packed: u8[4 * size].
    dtype: of the numbers, four bytes wide.
    shape: of the numbers.

  Returns:
    dtype[shape].

  >>> from_bytes(to_bytes(jnp.uint32(7)), jnp.uint32)
  Array(7, dtype=uint32)
  """
  return lax.bitcast_convert_type(packed.reshape(*shape, 4), dtype)


def cast(number: jax.Array, dtype) -> jax.Array:
  """One f32 for the end of a payload of either kind, u8 or f32.

  Args:
    number: f32[].
    dtype: of the payload.

  Returns:
    u8[4] or f32[1].

  >>> cast(jnp.float32(1.0), jnp.float32), cast(jnp.float32(1.0), jnp.uint8)
  (Array([1.], dtype=float32), Array([  0,   0, 128,  63], dtype=uint8))
  """
  return to_bytes(number) if dtype == jnp.uint8 else number.reshape(1)


def uncast(end: jax.Array) -> jax.Array:
  """The inverse of `cast`.

  Args:
    end: u8[4] or f32[1].

  Returns:
    f32[].

  >>> uncast(cast(jnp.float32(1.0), jnp.uint8))
  Array(1., dtype=float32)
  """
  if end.dtype == jnp.uint8:
    return from_bytes(end, jnp.float32)
  return end[0]


def nbytes(payload) -> int:
  """Bytes of a payload, of arrays or of the shapes `jax.eval_shape` gives.

  Args:
    payload: a pytree of arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    The sum of the sizes in bytes; nothing is computed.

  >>> nbytes(jax.ShapeDtypeStruct((3,), jnp.float32))
  12
  """
  leaves = jax.tree.leaves(payload)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
