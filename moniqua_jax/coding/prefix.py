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
SYMBOLS = 256  # a code is a u8


class Prefix(NamedTuple):
  """The tables of a prefix code."""

  values: np.ndarray  # u32[count], the codeword of each symbol as a number
  lengths: np.ndarray  # i32[count], its bits; 0 for a symbol without a codeword
  longest: int  # the most bits of a codeword
  # u32[2**longest], for what may stand at the front of a window the symbol and,
  # 8 bits higher, the length of its codeword
  lookup: np.ndarray


def prefix(codewords: Sequence[str]) -> Prefix:
  """Builds the tables of codewords, texts of 0 and 1, at most 256 symbols.

  An empty text is for a symbol that never comes; what no codeword begins is
  decoded as the symbol 0 of one bit.
  """
  lengths = np.array([len(word) for word in codewords], np.int32)
  longest = int(lengths.max(initial=0))
  if len(codewords) > SYMBOLS or not 1 <= longest <= LONGEST:
    raise ValueError(
      f'{len(codewords)} codewords of up to {longest} bits; expected at most '
      f'{SYMBOLS}, of 1 to {LONGEST}.'
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
  """Returns the codewords of symbols u8: values u32 and lengths i32."""
  at = lambda table: jnp.asarray(table).at[symbols].get(mode='clip')
  return at(code.values), at(code.lengths)


def front(code: Prefix, windows: Array) -> tuple[Array, Array]:
  """Returns the symbols at the front of windows u32, and their lengths i32."""
  index = (windows >> (32 - code.longest)).astype(jnp.int32)
  found = jnp.asarray(code.lookup).at[index].get(mode='promise_in_bounds')
  return (found & 255).astype(jnp.uint8), (found >> 8).astype(jnp.int32)
