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
import numpy as np

from moniqua_jax import native

TILE = 1024  # values of a vector that a TPU moves together


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
  _require_bytes('codes', codes)
  return join(codes, bits)


def unpack(packed: jax.Array, bits: int, size: int) -> jax.Array:
  """The inverse of `pack`: `unpack(pack(codes, bits), bits, d) == codes`.

  Args:
    packed: u8[packed_size(size, bits)], or more; fewer are refused.
    bits: bits per code, 1 to 8.
    size: number of codes, d.

  Returns:
    u8[d], each below 2**bits.

  >>> unpack(pack(jnp.arange(5, dtype=jnp.uint8), 3), 3, 5)
  Array([0, 1, 2, 3, 4], dtype=uint8)
  """
  _require_bytes('packed', packed)
  needed = packed_size(size, bits)
  require(packed[:needed], needed, size)
  native_form = functools.partial(native.unpack, size=size, bits=bits)
  form = functools.partial(_unpack, bits=bits, size=size)
  return _where_long(size, native_form, form)(packed)


def unpack_in_place(packed: jax.Array, bits: int, size: int) -> jax.Array:
  """As `unpack`, but bytes are first put where their codes go, then shifted.

  So XLA for TPUs reads a message in the pass that wants its codes. Codes that
  are shifted first it lays down before that pass, a byte each.
  """
  count, length = _stripes(size, bits)
  whole, first, low = count * length, 0, 0
  codes = [_put(unpack_part(packed, bits, size, whole, size), whole, size)]
  for width in planes(bits) if whole else ():
    stripes = []
    for start in range(0, whole, length):
      turn, offset = divmod(start, whole * width // 8)
      piece = packed[first + offset : first + offset + length]
      stripes.append(_put(piece, start, size) >> turn * width)
    mask = 2**width - 1
    codes.append((functools.reduce(jnp.bitwise_or, stripes) & mask) << low)
    low, first = low + width, first + whole * width // 8
  return functools.reduce(jnp.bitwise_or, codes)


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


def join(codes: jax.Array, bits: int, *fields: jax.Array) -> jax.Array:
  """Writes a payload: the packed codes, then the bytes of some fields.

  A field is u8[k], taken as it is, or floats, u32 or i32 of any shape.
  """
  as_bytes = lambda x: x if x.dtype == jnp.uint8 else to_bytes(x)
  native_form = functools.partial(_join_native, bits)
  form = functools.partial(_join, bits)
  join_all = _where_long(codes.size, native_form, form)
  return join_all(codes, *map(as_bytes, fields))


def split(
  payload: jax.Array, bits: int, size: int, behind: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """Reads what `join` wrote: the codes u8[size], and the bytes behind them.

  Refuses a payload with other than so many bytes `behind`, where that is known.
  """
  end = packed_size(size, bits)
  require(payload, payload.size if behind is None else end + behind, size)
  return unpack(payload, bits, size), payload[end:]


def require(payload: jax.Array, expected: int, size: int) -> None:
  """Refuses a payload that has not the bytes of a message of `size` values."""
  if nbytes(payload) != expected:
    raise ValueError(
      f'A payload of {nbytes(payload)} bytes; a message of {size} values has '
      f'{expected}. The sender and the receiver differ in their quantizer, or '
      'in the number of values.'
    )


def _require_bytes(name: str, array) -> None:
  kind = getattr(array, 'dtype', type(array).__name__)
  if kind != jnp.uint8:
    raise ValueError(f'{name} is {kind}; the wire holds uint8 alone.')


def integer(value):
  """Makes an int of a whole number of NumPy; leaves all else to be refused."""
  return int(value) if isinstance(value, np.integer) else value


def is_number(value) -> bool:
  """Tells whether this is a real number, of Python, NumPy or JAX."""
  return np.asarray(value).dtype.kind in 'iuf'


def share(value, allowed: str) -> float:
  """Takes a number above 0 and at most 1, which no tracer is yet.

  >>> share(2, 'gamma={}; it must be above 0, at most 1.')
  Traceback (most recent call last):
  ValueError: gamma=2; it must be above 0, at most 1.
  """
  if isinstance(value, jax.core.Tracer):
    raise ValueError(
      f'{allowed.format("a traced number")} It must be known when the program '
      'is built: one program for each value, as by static_argnames of jax.jit.'
    )
  if not (is_number(value) and 0 < value <= 1):
    raise ValueError(allowed.format(repr(value)))
  return float(value)


def to_bytes(numbers: jax.Array) -> jax.Array:
  """Casts a few floats, u32 or i32 to u8[4 * size], in little-endian order.

  Floats of any type travel as f32, since `from_bytes` reads four bytes each.
  """
  if jnp.issubdtype(numbers.dtype, jnp.floating):
    numbers = numbers.astype(jnp.float32)
  return lax.bitcast_convert_type(numbers, jnp.uint8).reshape(-1)


def from_bytes(packed: jax.Array, dtype, shape: tuple = ()) -> jax.Array:
  """Casts u8[4 * size] back to numbers of four bytes."""
  return lax.bitcast_convert_type(packed.reshape(*shape, 4), dtype)


def cast(number: jax.Array, dtype) -> jax.Array:
  """Casts one f32 for the end of a payload of either kind: u8[4] or f32[1]."""
  if dtype == jnp.uint8:
    return to_bytes(number)
  return number.astype(dtype).reshape(1)


def uncast(end: jax.Array) -> jax.Array:
  """Casts the end of a payload of either kind back to one f32."""
  if end.dtype == jnp.uint8:
    return from_bytes(end, jnp.float32)
  return end[0]


def words(x: jax.Array) -> jax.Array:
  """Returns the bits of f32 as u32 of the same shape."""
  return lax.bitcast_convert_type(x, jnp.uint32)


def floats(x: jax.Array) -> jax.Array:
  """The inverse of `words`."""
  return lax.bitcast_convert_type(x, jnp.float32)


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
    cut.append(pack((numbers >> 8 * count).astype(jnp.uint8), rest))
  return jnp.concatenate(cut)


def from_bits(packed: jax.Array, bits: int, size: int) -> jax.Array:
  """Puts what `to_bits` cut together again, u32[size]."""
  count, rest = divmod(bits, 8)
  numbers = jnp.zeros(size, jnp.uint32)
  if count:
    numbers = from_planes(packed[: count * size], count)
  if rest:
    above = unpack(packed[count * size :], rest, size).astype(jnp.uint32)
    numbers |= above << 8 * count
  return numbers


def bits_size(size: int, bits: int) -> int:
  """Returns the bytes that `to_bits` needs: at most 2 more than the least."""
  count, rest = divmod(bits, 8)
  return count * size + (packed_size(size, rest) if rest else 0)


def planes(bits: int) -> tuple[int, ...]:
  """Returns the widths of the planes that carry codes of `bits` bits.

  Powers of two with sum `bits`, largest first: (4, 2, 1) for 7.
  """
  if type(bits) is not int or bits not in range(1, 9):
    raise ValueError(f'bits={bits!r}; a code has 1 to 8 bits, an int.')
  return tuple(width for width in (8, 4, 2, 1) if bits & width)


def packed_size(size: int, bits: int) -> int:
  """Returns the bytes that `pack` needs: sum over planes w of ceil(size w / 8).

  That is ceil(size bits / 8) if `bits` divides 8, and at most 2 more if not.
  """
  return sum(-(-size * width // 8) for width in planes(bits))


def parts(size: int, bits: int) -> tuple[tuple[int, int], ...]:
  """Returns where `pack` cuts the codes: (start, stop) of stripes and the rest.

  The stripes are equally long. The rest is below 8192 codes, or absent.
  """
  count, length = _stripes(size, bits)
  cuts = [k * length for k in range(count + 1 if length else 1)]
  cuts += [size] if size > cuts[-1] else []
  return tuple(zip(cuts, cuts[1:], strict=False))


def cuts(size: int, bits: int) -> tuple[int, ...]:
  """Returns where the vectors of whole stripes end that `pack` joins."""
  count, length = _stripes(size, bits)
  ends = range(length, count * length * bits // 8 + 1, length or 1)
  return tuple(ends) if length else ()


def pack_parts(
  codes: Sequence[jax.Array | None], bits: int, size: int
) -> list[jax.Array | None]:
  """Packs codes that come in `parts(size, bits)`, some of them perhaps None.

  Stripes have one shape; what exceeds the rest is left out. Returns the vectors
  that `pack` joins, with 0 for the bits of parts that are None, or None for a
  vector that would hold nothing else; `merged` puts such lists together.
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
    rest_of = None if code is None else code.reshape(-1)[:left]
    packed.append(None if rest_of is None else _pack_rest(rest_of, bits))
  return packed


def merged(shares: Sequence[Sequence[jax.Array | None]]) -> list[jax.Array]:
  """Merges what `pack_parts` gave of some parts at a time: each is in one."""
  there = lambda vectors: [v for v in vectors if v is not None]
  return [
    functools.reduce(jnp.bitwise_or, there(vectors))
    for vectors in zip(*shares, strict=True)
  ]


def unpack_part(
  packed: jax.Array, bits: int, size: int, start: int, stop: int
) -> jax.Array:
  """Returns `unpack(packed, bits, size)[start:stop]` for one of the `parts`.

  Of 8 bits any (start, stop) will do, since a code is a byte.
  """
  count, length = _stripes(size, bits)
  whole = count * length
  if start >= whole:
    rest = packed[whole * bits // 8 : packed_size(size, bits)]
    return _unpack_rest(rest, bits, size - whole)
  codes, low, first = [], 0, 0
  for width in planes(bits):
    stripe, offset = divmod(start, whole * width // 8)
    plane = packed[first + offset : first + offset + stop - start]
    codes.append((plane >> stripe * width & (2**width - 1)) << low)
    low, first = low + width, first + whole * width // 8
  return functools.reduce(jnp.bitwise_or, codes)


def _where_long(size: int, native_form, form):
  """Returns the form in C++ for CPUs, where there are stripes for it.

  XLA would rather compute each code anew, one at a time, in what uses it.
  """
  if size < 8 * TILE or not native.ready():
    return form
  return functools.partial(
    lax.platform_dependent, default=form, cpu=native_form
  )


def _join_native(bits, codes, *fields):
  behind = jnp.concatenate([jnp.zeros(0, jnp.uint8), *fields])
  size = packed_size(codes.size, bits) + behind.size
  return native.pack(codes, behind, size, bits)


def _join(bits, codes, *fields):
  cut = [codes[start:stop] for start, stop in parts(codes.size, bits)]
  packed = merged([pack_parts(cut, bits, codes.size)]) or [codes]
  return jnp.concatenate([*packed, *fields])


def _unpack(packed, bits, size):
  codes = [unpack_part(packed, bits, size, *part) for part in parts(size, bits)]
  return jnp.concatenate(codes) if codes else packed


def _stripes(size: int, bits: int) -> tuple[int, int]:
  """Returns how many there are, and how long: whole tiles, perhaps none."""
  count = 8 // planes(bits)[-1]
  return count, size // (count * TILE) * TILE


def _put(values: jax.Array, start: int, size: int) -> jax.Array:
  """Returns zeros [size], with some values from `start` on."""
  behind = size - start - values.size
  return lax.pad(values, values.dtype.type(0), [(start, behind, 0)])


def _pack_rest(codes: jax.Array, bits: int) -> jax.Array:
  packed, low = [], 0
  for width in planes(bits):
    stripes, length = 8 // width, packed_size(codes.size, width)
    padded = jnp.pad(codes, (0, stripes * length - codes.size))
    packed.append(_joined(jnp.split(padded, stripes), low, width))
    low += width
  return jnp.concatenate(merged([packed]))


def _joined(stripes, low: int, width: int) -> jax.Array | None:
  """Puts bits low to low + width of the stripes that are there side by side."""
  mask = 2**width - 1
  bits = [
    (stripe >> low & mask) << j * width
    for j, stripe in enumerate(stripes)
    if stripe is not None
  ]
  return functools.reduce(jnp.bitwise_or, bits).reshape(-1) if bits else None


def _unpack_rest(packed: jax.Array, bits: int, size: int) -> jax.Array:
  codes, low, start = [], 0, 0
  for width in planes(bits):
    stop = start + packed_size(size, width)
    codes.append(_unpack_plane(packed[start:stop], width, size) << low)
    low, start = low + width, stop
  return functools.reduce(jnp.bitwise_or, codes)


def _unpack_plane(packed: jax.Array, width: int, size: int) -> jax.Array:
  if width == 8:
    return packed
  mask = 2**width - 1
  stripes = [(packed >> j * width) & mask for j in range(8 // width)]
  return jnp.concatenate(stripes)[:size]
