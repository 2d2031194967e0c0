"""The Elias omega ("recursive") code of whole numbers from 1 on.

Elias, "Universal codeword sets and representations of the integers", IEEE
Trans. Inf. Theory 21(2), 1975. There is no codeword for 0.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_GROUPS = (1, 3, 15, 65535)  # the largest number with so many groups


def omega_text(n: int) -> str:
  """Writes the omega codeword of one number as a text: the definition.

  '0'; then, while n > 1, bin(n) in front and n <- len(bin(n)) - 1
  """
  _at_least_1(n)
  text = '0'
  while n > 1:
    group = f'{n:b}'
    text, n = group + text, len(group) - 1
  return text


def omega(n: Array) -> tuple[Array, Array]:
  """Returns omega codewords for `bits.write`: words u32[..., 2] and lengths.

  The last word is bin(n) and the final 0. What stands before it depends on the
  length of bin(n) alone, and comes from a table.
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
  """Returns the bits of the omega codewords.

  L(n) = 1 + sum of the bit lengths of n, floor(log2 n), ... down to 2
  """
  return jnp.sum(omega(n)[1], axis=-1)


def omega_in(
  high: Array, low: Array | int = 0, limit: int = 2**31 - 1
) -> tuple[Array, Array]:
  """Reads the omega codewords at the front of 64 bits: numbers and lengths.

  The low 32 bits are not needed below 2^21; a smaller limit, the largest number
  that may come, saves time. If no codeword of a number below 2^31 starts there,
  the result is anything, of a length of at least 1.
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


def _top_bit(n):
  return 31 - lax.clz(n.astype(jnp.uint32)).astype(jnp.int32)


def _at_least_1(n):
  if not isinstance(n, jax.core.Tracer) and np.size(n) and np.min(n) < 1:
    raise ValueError(f'n={np.min(n)}; Elias codes begin at 1, 0 has none.')
