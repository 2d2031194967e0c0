"""Numbers of four bytes as bytes: the fields of a header."""

import jax
from jax import lax
import jax.numpy as jnp


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
