"""Codes of whole messages: the recursive bucket code of QSGD and NUQSGD.

Alistarh et al., "QSGD", NeurIPS 2017, arXiv:1610.02132; with NUQSGD's levels,
Ramezani-Kebrya et al., JMLR 22(114), 2021, arXiv:1908.06077, Algorithm 2.

The buckets stand in one stream. The papers do not say how a receiver knows
where a bucket ends; here it is told the bits of each, and so can start on all
of them at once. On CPUs native/coding.cc writes and reads the same bits.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import native
from moniqua_jax.coding import bits, elias, prefix
from moniqua_jax.quantizers import base, forms

Array = jax.Array

_WIDEST = 2**21 - 1  # an omega codeword of up to 32 bits


class Code(NamedTuple):
  """How the codes of a message are written in fewer bits. Nothing is lost."""

  # (codes u8[d], about) -> i32[buckets], bits, exact
  length: Callable[[Array, base.Codes], Array]
  # (codes, about, bytes of the stream) -> (stream, bits of each bucket); what
  # exceeds the stream is lost
  encode: Callable[[Array, base.Codes, int], tuple[Array, Array]]
  # (stream, bits of each bucket, about, size d) -> codes u8[d]
  decode: Callable[[Array, Array, base.Codes, int], Array]


@functools.cache
def recursive() -> Code:
  """Builds the sparse code, in which a zero takes nothing.

    for each nonzero:  omega(distance from the nonzero before), sign, omega(j)

  with j = |code - zero|, 1 for a negative sign, and the first distance counted
  from before the bucket, so that it is at least 1. For grids with a zero and
  buckets below 2^21 values. Algorithm 2 of arXiv:1908.06077.
  """
  return _of_items(
    _sparse_items, _sparse_decode, _sparse_tables, lambda about: about.zero
  )


@functools.cache
def dense() -> Code:
  """Builds the code with a codeword for every value: for few zeros.

    omega(j + 1), then the sign unless j = 0;  j = |code - zero|

  A grid without a zero has two codes in the middle: j counts from them, and
  each value has its sign. Code' of the full version of arXiv:1610.02132.
  """
  return by_symbol(lambda about: _dense_tables(about.count, about.zero))


def by_symbol(tables: Callable[[base.Codes], prefix.Prefix]) -> Code:
  """Builds the code that writes the codeword of each value by itself."""

  def items(codes, about):
    rows, real = _rows(codes, about)
    code, width = tables(about), rows.shape[1]
    if width * code.longest >= 2**31:  # an i32 would come round
      raise ValueError(
        f'bucket_size={about.bucket_size}: {width} values of up to '
        f'{code.longest} bits; a bucket ends before bit 2^31; make it smaller.'
      )
    values, lengths = prefix.words(code, rows)
    return values[..., None], jnp.where(real, lengths, 0)[..., None]

  def decode(about, size, stream, lengths):
    windows = bits.windows(stream)
    symbols, ahead = prefix.front(tables(about), windows)
    starts = _starts(lengths, windows.size)
    at = bits.follow(bits.after(ahead), starts, _width(about, size))
    return symbols.at[at].get(mode='clip').reshape(-1)[:size]

  return _of_items(items, decode, tables, lambda about: -1)


def counted_length(codes: Array, about: base.Codes) -> Array:
  """Returns the bits of the recursive code where each bucket ends by itself.

  omega(nonzeros + 1) + recursive;  the papers do not say how a bucket ends
  """
  rows, real = _rows(codes, about)
  nonzeros = jnp.sum((rows != about.zero) & real, axis=1)
  ahead = elias.omega_length(nonzeros + 1)
  return ahead + recursive().length(codes, about)


def _of_items(items, decode, tables, zero):
  """Builds a code from (codes, about) -> words, lengths [buckets, width, k].

  `tables` and `zero`, the code that has no word or -1, say the same to the CPU.
  """

  def length(codes, about):
    return jnp.sum(items(codes, about)[1], axis=(1, 2))

  def encode(about, size, codes):
    values, lengths = items(codes, about)
    flat = lambda x: x.reshape(-1, x.shape[-1])
    stream = bits.write(flat(values), flat(lengths), size)
    return stream, jnp.sum(lengths, axis=(1, 2))

  def how(about, size):
    code, width = tables(about), _width(about, size)
    table = dict(values=np.int32(code.values), bits=np.int32(code.lengths))
    return table | dict(width=width, zero=zero(about))

  def encode_native(about, size, codes):
    told = how(about, codes.size)
    buckets = -(-codes.size // told['width'])
    return native.words_encode(codes, size, buckets, **told)

  def decode_native(about, size, stream, lengths):
    return native.words_decode(stream, lengths, size, **how(about, size))

  # The choice is made where a code is called, not in what is compiled once.
  encode, decode = (jax.jit(f, static_argnums=(0, 1)) for f in (encode, decode))
  writing, reading = dict(cpu=encode_native), dict(cpu=decode_native)
  return Code(
    jax.jit(length, static_argnums=1),
    lambda codes, *of: forms.chosen(encode, *of, **writing)(codes),
    lambda stream, n, *of: forms.chosen(decode, *of, **reading)(stream, n),
  )


def _sparse_items(codes, about):
  signs_and_levels = _sparse_tables(about)
  rows, real = _rows(codes, about)
  nonzero = (rows != about.zero) & real
  place = lax.broadcasted_iota(jnp.int32, rows.shape, 1) + 1
  last = bits.running(jnp.maximum, jnp.where(nonzero, place, 0))
  before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)))
  gaps, bits_of_gaps = elias.omega(place - before)
  widest = rows.shape[1]
  most = len(elias.omega_text(widest))
  most_last = widest.bit_length() + (widest > 1)  # bin(n) and 0
  values, lengths = bits.joined(
    [
      (gaps[..., 0], bits_of_gaps[..., 0], most - most_last),
      (gaps[..., 1], bits_of_gaps[..., 1], most_last),
      (*prefix.words(signs_and_levels, rows), signs_and_levels.longest),
    ]
  )
  return values, jnp.where(nonzero[..., None], lengths, 0)


def _sparse_decode(about, size, stream, lengths):
  signs_and_levels = _sparse_tables(about)
  windows = bits.windows(stream)
  gap, bits_of_gap = elias.omega_in(windows, limit=about.bucket_size)
  symbol, bits_of_symbol = prefix.front(signs_and_levels, windows)
  # An item is a gap and, where that ends, a symbol.
  behind = bits.after(bits_of_gap)
  jumps = bits.after(bits_of_symbol).at[behind].get(mode='promise_in_bounds')
  starts, width = _starts(lengths, windows.size), _width(about, size)
  at = bits.follow(jumps, starts, width)
  there = at < (starts + lengths)[:, None]
  gaps = jnp.where(there, gap.at[at].get(mode='clip').astype(jnp.int32), 0)
  place = bits.running(jnp.add, gaps) - 1
  # Row after row in one vector; what is not there falls behind its end.
  place += lax.broadcasted_iota(jnp.int32, place.shape, 0) * width
  place = jnp.where(there, place, size)
  symbols = symbol.at[behind.at[at].get(mode='clip')].get(mode='clip')
  codes = jnp.full(size, about.zero, jnp.uint8)
  return codes.at[place.reshape(-1)].set(symbols.reshape(-1), mode='drop')


def _sparse_tables(about):
  if about.zero is None:
    raise ValueError(
      'A grid without a zero level has no sparse code; use dense() or '
      'huffman().'
    )
  if about.bucket_size > _WIDEST:
    raise ValueError(
      f'bucket_size={about.bucket_size}; recursive() takes at most {_WIDEST}.'
    )
  return _tables_of_nonzeros(about.count, about.zero)


@functools.cache
def _tables_of_nonzeros(count, zero):
  word = lambda j: f'{int(j < 0)}{elias.omega_text(abs(j))}' if j else ''
  return prefix.prefix([word(code - zero) for code in range(count)])


@functools.cache
def _dense_tables(count, zero):
  if zero is None and count % 2:
    zero = count // 2
  if zero is None:
    # 2j + 1 halves from the middle, on either side.
    halves = [2 * code - count + 1 for code in range(count)]
    return prefix.prefix(
      [elias.omega_text((abs(h) + 1) // 2) + f'{int(h < 0)}' for h in halves]
    )
  sign = lambda j: f'{int(j < 0)}' if j else ''
  word = lambda j: elias.omega_text(abs(j) + 1) + sign(j)
  return prefix.prefix([word(code - zero) for code in range(count)])


def _width(about, size):
  return max(1, min(about.bucket_size, size))


def _rows(codes, about):
  """Cuts codes into a row per bucket, and says which values are real."""
  width = _width(about, codes.size)
  row = lambda x: jnp.pad(x, (0, -x.size % width)).reshape(-1, width)
  return row(codes), row(jnp.ones(codes.shape, jnp.bool))


def _starts(lengths, end):
  return jnp.clip(jnp.cumsum(lengths) - lengths, 0, end)
