"""The wire: codes of b bits packed into bytes, and numbers cast to bytes.

What is not in a payload, one `u8[m]` vector per message, was not sent.

Codes are packed in planes: d codes are cut into 8/b contiguous stripes and
stripe j stands at bit j*b of the byte, so that every operation is elementwise
on long vectors. (Packing neighbours, `reshape(-1, 8 // b)`, compiles on a TPU
to 43 times the payload in memory traffic.) Widths that do not divide 8 are sums
of a 4-, a 2- and a 1-bit plane.

A TPU holds a vector in tiles of 1024 values, and works in place only on whole
ones. So stripes are whole tiles, and the codes that are left over at the end,
fewer than 8192, are packed for themselves behind them.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

TILE = 1024  # values of a vector that a TPU moves together


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


def parts(size: int, bits: int) -> tuple[tuple[int, int], ...]:
  """Where `pack` cuts the codes: equally long stripes, then the rest.

  Args:
    size: number of codes.
    bits: bits per code, 1 to 8.

  Returns:
    (start, stop) of each part, in order. The rest is below 8192 codes, and
    absent if nothing is left over.

  >>> parts(4097, 4), parts(1000, 4)
  (((0, 2048), (2048, 4096), (4096, 4097)), ((0, 1000),))
  """
  count, length = _stripes(size, bits)
  cuts = [k * length for k in range(count + 1 if length else 1)]
  cuts += [size] if size > cuts[-1] else []
  return tuple(zip(cuts, cuts[1:], strict=False))


def pack(codes: jax.Array, bits: int) -> jax.Array:
  """Packs codes into bytes, plane after plane.

  byte[i] = sum_j code[j * m + i] << (j * b), m = ceil(d * b / 8), for b | 8: of
  the stripes, and then so of the rest.

  Args:
    codes: u8[d], each below 2**bits.
    bits: bits per code, 1 to 8.

  Returns:
    u8[packed_size(d, bits)].

  >>> pack(jnp.arange(4, dtype=jnp.uint8), 4)
  Array([32, 49], dtype=uint8)
  """
  cut = [codes[start:stop] for start, stop in parts(codes.size, bits)]
  packed = pack_parts(cut, bits, codes.size)
  return jnp.concatenate(packed) if packed else codes


def pack_parts(
  codes: Sequence[jax.Array | None], bits: int, size: int
) -> list[jax.Array | None]:
  """`pack` of codes that come in `parts(size, bits)`, before they are joined.

  Args:
    codes: u8 of each part, all stripes of one shape; what exceeds the rest is
      left out. None for a part that is not there yet.
    bits: bits per code, 1 to 8.
    size: number of codes.

  Returns:
    u8 vectors, packed_size(size, bits) bytes together, where bits of parts that
    are not there are 0; None for a vector that would hold nothing else.

  >>> pack_parts([jnp.uint8([[0, 1], [2, 3]])], 4, size=3)
  [Array([32,  1], dtype=uint8)]
  """
  count, length = _stripes(size, bits)
  stripes, rest = (codes[:count], codes[count:]) if length else ([], codes)
  packed, low = [], 0
  for width in planes(bits) if stripes else ():
    beside = count * width // 8  # stripes side by side in a plane
    packed += [_joined(stripes[k::beside], low, width) for k in range(beside)]
    low += width
  left = size - count * length
  for code in rest:
    flat = None if code is None else code.reshape(-1)[:left]
    packed.append(None if code is None else _pack_rest(flat, bits))
  return packed


def merged(
  shares: Sequence[Sequence[jax.Array | None]],
) -> list[jax.Array]:
  """What `pack_parts` gives of all parts, from what it gave of some at a time.

  Args:
    shares: each a list of vectors, or None; each part is in one of them.

  Returns:
    u8 vectors.

  >>> merged([[jnp.uint8([1]), None], [jnp.uint8([16]), jnp.uint8([2])]])
  [Array([17], dtype=uint8), Array([2], dtype=uint8)]
  """
  there = lambda vectors: [v for v in vectors if v is not None]
  return [
    functools.reduce(jnp.bitwise_or, there(vectors))
    for vectors in zip(*shares, strict=True)
  ]


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
  codes = [unpack_part(packed, bits, size, *part) for part in parts(size, bits)]
  return jnp.concatenate(codes) if codes else packed


def unpack_part(
  packed: jax.Array, bits: int, size: int, start: int, stop: int
) -> jax.Array:
  """`unpack(packed, bits, size)[start:stop]`, for one of `parts(size, bits)`.

  Args:
    packed: u8[packed_size(size, bits)], or more.
    bits: bits per code, 1 to 8.
    size: number of codes, d.
    start: of the part; of 8 bits any will do, since a code is a byte.
    stop: of the part.

  Returns:
    u8[stop - start].

  >>> unpack_part(jnp.uint8([32, 49]), 4, 4, 0, 4)
  Array([0, 1, 2, 3], dtype=uint8)
  """
  count, length = _stripes(size, bits)
  whole = count * length
  if start >= whole:
    rest = packed[whole * bits // 8 : packed_size(size, bits)]
    return _unpack_rest(rest, bits, size - whole)
  codes, low, first = 0, 0, 0
  for width in planes(bits):
    stripe, offset = divmod(start, whole * width // 8)
    plane = packed[first + offset : first + offset + stop - start]
    codes |= (plane >> stripe * width & (2**width - 1)) << low
    low, first = low + width, first + whole * width // 8
  return codes


def _stripes(size: int, bits: int) -> tuple[int, int]:
  """How many there are, and how long they are: whole tiles, perhaps none."""
  count = 8 // planes(bits)[-1]
  return count, size // (count * TILE) * TILE


def _pack_rest(codes: jax.Array, bits: int) -> jax.Array:
  packed, low = [], 0
  for width in planes(bits):
    stripes, length = 8 // width, packed_size(codes.size, width)
    padded = jnp.pad(codes, (0, stripes * length - codes.size))
    packed.append(_joined(jnp.split(padded, stripes), low, width))
    low += width
  return jnp.concatenate(packed)


def _joined(stripes, low: int, width: int) -> jax.Array | None:
  """Bits low to low + width of the stripes that are there, in one vector."""
  mask = 2**width - 1
  bits = [
    (stripe >> low & mask) << j * width
    for j, stripe in enumerate(stripes)
    if stripe is not None
  ]
  return functools.reduce(jnp.bitwise_or, bits).reshape(-1) if bits else None


def _unpack_rest(packed: jax.Array, bits: int, size: int) -> jax.Array:
  codes, low, start = 0, 0, 0
  for width in planes(bits):
    stop = start + packed_size(size, width)
    codes |= _unpack_plane(packed[start:stop], width, size) << low
    low, start = low + width, stop
  return codes


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
