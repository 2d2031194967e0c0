"""Elias codes of whole numbers from 1 on: omega ("recursive") and gamma.

Elias, "Universal codeword sets and representations of the integers", IEEE
Trans. Inf. Theory 21(2), 1975. There is no codeword for 0.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax.coding import bits

Array = jax.Array

_GROUPS = (1, 3, 15, 65535)  # the largest number with so many groups


def omega_text(n: int) -> str:
  """The omega codeword of one number, on the host: the definition.

    '0'; then, while n > 1, bin(n) in front and n <- len(bin(n)) - 1

  Args:
    n: at least 1.

  Returns:
    A text of 0 and 1.

  Raises:
    ValueError: n is below 1.

  >>> omega_text(1), omega_text(9), omega_text(16)
  ('0', '1110010', '10100100000')
  """
  _at_least_1(n)
  text = '0'
  while n > 1:
    group = f'{n:b}'
    text, n = group + text, len(group) - 1
  return text


def omega(n: Array) -> tuple[Array, Array]:
  """Omega codewords as words, for `bits.write`.

  The last word is bin(n) and the final 0. What stands before it depends on the
  length of bin(n) alone, and comes from a table.

  Args:
    n: integers of any shape, 1 to 2^31 - 1.

  Returns:
    Words u32[..., 2] and their lengths i32[..., 2].

  Raises:
    ValueError: a number below 1, if n is not traced.

  >>> omega(jnp.array([1, 9]))[1]
  Array([[0, 1],
         [2, 5]], dtype=int32)

  Source: Elias 1975.
  """
  _at_least_1(n)
  top = _top_bit(n)
  length = jnp.where(n > 1, top + 2, 1)
  last = jnp.where(n > 1, n.astype(jnp.uint32) << 1, 0)
  fronts = [omega_text(k)[:-1] if k > 1 else '' for k in range(32)]
  value = np.array([int(front or '0', 2) for front in fronts], np.uint32)
  size = np.array([len(front) for front in fronts], np.int32)
  words = jnp.stack([jnp.asarray(value)[top], last], axis=-1)
  return words, jnp.stack([jnp.asarray(size)[top], length], axis=-1)


def omega_length(n: Array) -> Array:
  """Bits of the omega codeword.

    L(n) = 1 + sum of the bit lengths of n, floor(log2 n), ... down to 2

  Args:
    n: integers of any shape, 1 to 2^31 - 1.

  Returns:
    i32 of that shape.

  Raises:
    ValueError: a number below 1, if n is not traced.

  >>> omega_length(jnp.array([1, 2, 4, 8, 16, 65536]))
  Array([ 1,  3,  6,  7, 11, 28], dtype=int32)
  """
  return jnp.sum(omega(n)[1], axis=-1)


def omega_at(stream: Array, positions: Array) -> tuple[Array, Array]:
  """The omega codewords that start at some positions of a stream.

  Args:
    stream: u8[n].
    positions: i32 of any shape.

  Returns:
    Numbers u32 and lengths i32, of that shape. Where no codeword of a number
    below 2^31 starts, anything, of a length of at least 1.

  >>> omega_at(jnp.uint8([0b11100101, 0b10000000]), jnp.array([0, 7]))
  (Array([9, 3], dtype=uint32), Array([7, 3], dtype=int32))
  """
  high, low = bits.read(stream, positions), bits.read(stream, positions + 32)
  return omega_in(high, low)


def omega_in(
  high: Array, low: Array | int = 0, limit: int = 2**31 - 1
) -> tuple[Array, Array]:
  """The omega codewords at the front of 64 bits.

  Args:
    high: u32 of any shape, the first 32 bits.
    low: u32 of that shape, the next 32; not needed below 2^21.
    limit: the largest number that may come; a smaller one saves time.

  Returns:
    As `omega_at`.

  >>> omega_in(jnp.uint32(0b1110010 << 25))
  (Array(9, dtype=uint32), Array(7, dtype=int32))
  """
  number, length = jnp.ones_like(high), jnp.ones(high.shape, jnp.int32)
  low = jnp.asarray(low, jnp.uint32)
  for _ in range(sum(limit > largest for largest in _GROUPS)):
    # A 0 ends the codeword, stays in front, and so ends all later groups, too.
    more = high >> 31 > 0
    took = jnp.where(more, jnp.minimum(number, 30) + 1, 0)
    number = jnp.where(more, high >> (32 - jnp.maximum(took, 1)), number)
    # Twice, for a shift by 32 has no defined result.
    high = high << took | low >> (31 - took) >> 1
    low = low << took
    length += took.astype(jnp.int32)
  return number, length


def gamma(n: Array) -> tuple[Array, Array]:
  """Gamma codewords as words: floor(log2 n) zeros, then bin(n).

  Args:
    n: integers of any shape, 1 to 2^31 - 1.

  Returns:
    Words u32[..., 2] and their lengths i32[..., 2].

  Raises:
    ValueError: a number below 1, if n is not traced.

  >>> gamma(jnp.array([1, 9]))[1]
  Array([[0, 1],
         [3, 4]], dtype=int32)
  """
  _at_least_1(n)
  top, value = _top_bit(n), n.astype(jnp.uint32)
  words = jnp.stack([jnp.zeros_like(value), value], axis=-1)
  return words, jnp.stack([top, top + 1], axis=-1)


def gamma_length(n: Array) -> Array:
  """Bits of the gamma codeword: 2 floor(log2 n) + 1.

  Args:
    n: integers of any shape, 1 to 2^31 - 1.

  Returns:
    i32 of that shape.

  Raises:
    ValueError: a number below 1, if n is not traced.

  >>> gamma_length(jnp.array([1, 2, 4, 8]))
  Array([1, 3, 5, 7], dtype=int32)
  """
  return jnp.sum(gamma(n)[1], axis=-1)


def gamma_at(stream: Array, positions: Array) -> tuple[Array, Array]:
  """The gamma codewords that start at some positions of a stream.

  Args:
    stream: u8[n].
    positions: i32 of any shape.

  Returns:
    As `omega_at`.

  >>> gamma_at(jnp.uint8([0b00010011]), jnp.array([0, 7]))
  (Array([9, 1], dtype=uint32), Array([7, 1], dtype=int32))
  """
  zeros = lax.clz(bits.read(stream, positions)).astype(jnp.int32)
  word = bits.read(stream, positions + zeros)
  value = word >> (31 - jnp.minimum(zeros, 31)).astype(jnp.uint32)
  return value, 2 * zeros + 1


def _top_bit(n):
  return 31 - lax.clz(n.astype(jnp.uint32)).astype(jnp.int32)


def _at_least_1(n):
  if not isinstance(n, jax.core.Tracer) and np.size(n) and np.min(n) < 1:
    raise ValueError(f'n={np.min(n)}; Elias codes begin at 1, 0 has none.')
