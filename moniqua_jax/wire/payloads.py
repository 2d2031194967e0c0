"""Payloads: packed codes, and the bytes of some fields behind them."""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import native
from moniqua_jax.wire import stripes
from moniqua_jax.wire.fields import to_bytes


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
  needed = stripes.packed_size(size, bits)
  require(packed[:needed], needed, size)
  native_form = functools.partial(native.unpack, size=size, bits=bits)
  form = functools.partial(_unpack, bits=bits, size=size)
  return _where_long(size, native_form, form)(packed)


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
  end = stripes.packed_size(size, bits)
  require(payload, payload.size if behind is None else end + behind, size)
  return unpack(payload, bits, size), payload[end:]


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


def _where_long(size: int, native_form, form):
  """Returns the form in C++ for CPUs, where there are stripes for it.

  XLA would rather compute each code anew, one at a time, in what uses it.
  """
  if size < 8 * stripes.TILE or not native.ready():
    return form
  return functools.partial(
    lax.platform_dependent, default=form, cpu=native_form
  )


def _join_native(bits, codes, *fields):
  behind = jnp.concatenate([jnp.zeros(0, jnp.uint8), *fields])
  size = stripes.packed_size(codes.size, bits) + behind.size
  return native.pack(codes, behind, size, bits)


def _join(bits, codes, *fields):
  cut = [codes[start:stop] for start, stop in stripes.parts(codes.size, bits)]
  packed = stripes.merged([stripes.pack_parts(cut, bits, codes.size)]) or [
    codes
  ]
  return jnp.concatenate([*packed, *fields])


def _unpack(packed, bits, size):
  codes = [
    stripes.unpack_part(packed, bits, size, *part)
    for part in stripes.parts(size, bits)
  ]
  return jnp.concatenate(codes) if codes else packed
