"""Codes of 1 to 8 bits, packed into bytes.

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
