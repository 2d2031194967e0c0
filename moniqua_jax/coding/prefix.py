"""Codes with one codeword per symbol, as tables: a gather each way.

Huffman codes, and the signs and levels of Elias-coded messages.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

LONGEST = 20  # bits of a codeword: `lookup` has 2^20 entries then


class Prefix(NamedTuple):
  """The tables of a prefix code.

  Attributes:
    values: u32[count], the codeword of each symbol as a number.
    lengths: i32[count], its bits; 0 for a symbol without a codeword.
    longest: the most bits of a codeword.
    lookup: u32[2**longest], for what may stand at the front of a window the
      symbol and, 8 bits higher, the length of its codeword.
  """

  values: np.ndarray
  lengths: np.ndarray
  longest: int
  lookup: np.ndarray


def prefix(codewords: Sequence[str]) -> Prefix:
  """The tables of some codewords.

  Args:
    codewords: texts of 0 and 1, one for each symbol, at most 256; empty where
      the symbol never comes.

  Returns:
    A `Prefix`. What no codeword begins decodes as the symbol 0 of one bit.

  Raises:
    ValueError: one codeword begins another, is too long, or there is none.

  >>> prefix(['0', '11', '10']).lookup >> 8
  array([1, 1, 2, 2], dtype=uint32)
  """
  lengths = np.array([len(word) for word in codewords], np.int32)
  longest = int(lengths.max(initial=0))
  if len(codewords) > 256 or not 1 <= longest <= LONGEST:
    raise ValueError(
      f'{len(codewords)} codewords of up to {longest} bits; expected at most '
      f'256, of 1 to {LONGEST}.'
    )
  lookup = np.full(2**longest, 1 << 8, np.uint32)
  taken = np.zeros(2**longest, bool)
  for symbol, word in enumerate(codewords):
    if not word:
      continue
    start = int(word, 2) << longest - len(word)
    stop = start + 2 ** (longest - len(word))
    if taken[start:stop].any():
      raise ValueError(f'{word!r}: one codeword begins another')
    lookup[start:stop], taken[start:stop] = len(word) << 8 | symbol, True
  values = np.array([int(word or '0', 2) for word in codewords], np.uint32)
  return Prefix(values, lengths, longest, lookup)


def words(code: Prefix, symbols: Array) -> tuple[Array, Array]:
  """The codewords of symbols, for `bits.write`.

  Args:
    code: its tables.
    symbols: u8 of any shape.

  Returns:
    Values u32 and lengths i32, of that shape.

  >>> words(prefix(['0', '11', '10']), jnp.uint8([2, 0]))[1]
  Array([2, 1], dtype=int32)
  """
  at = lambda table: jnp.asarray(table).at[symbols].get(mode='clip')
  return at(code.values), at(code.lengths)


def front(code: Prefix, windows: Array) -> tuple[Array, Array]:
  """The symbols whose codewords stand at the front of 32 bits.

  Args:
    code: its tables.
    windows: u32 of any shape, as `bits.read` gives them.

  Returns:
    Symbols u8 and lengths i32, of that shape.

  >>> front(prefix(['0', '11', '10']), jnp.uint32([0b11 << 30, 0b01 << 30]))
  (Array([1, 0], dtype=uint8), Array([2, 1], dtype=int32))
  """
  index = (windows >> (32 - code.longest)).astype(jnp.int32)
  found = jnp.asarray(code.lookup).at[index].get(mode='promise_in_bounds')
  return (found & 255).astype(jnp.uint8), (found >> 8).astype(jnp.int32)
