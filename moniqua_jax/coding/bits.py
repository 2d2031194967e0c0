"""Streams of bits inside `jit`: codewords of any length, one after another.

A stream is a `u8[n]` of a static size. Bit i of it is bit 7 - i % 8 of byte
i // 8, so that it reads from left to right, like the codewords on paper. A
position is an i32, so that a stream ends before bit 2^31.
"""

from collections.abc import Callable, Sequence
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.jit, static_argnums=2)
def write(values: Array, lengths: Array, size: int) -> Array:
  """Writes codewords one after another into u8[size], the first bit first.

  Codeword i has k words, the low `lengths` bits (0 to 32) of `values` [n, k],
  and starts at the sum of the lengths before it. What lies behind the end of
  the stream is lost, and the rest of the stream is zeros.
  """
  stream = jnp.zeros(-(-size // 4) + 1, jnp.uint32)
  sums = jnp.sum(lengths, axis=1)
  start = running(jnp.add, sums[None])[0] - sums
  for k in range(values.shape[1]):
    # No two codewords share a bit: to add is to write. A value that stands
    # across two words is written into both.
    left = _left(values[:, k], 32 - lengths[:, k])
    word, shift = start >> 5, start & 31
    stream = stream.at[word].add(left >> shift.astype(jnp.uint32), mode='drop')
    rest = _left(left, 32 - shift)
    stream = stream.at[word + 1].add(rest, mode='drop')
    start += lengths[:, k]
  bytes_ = [(stream >> low) & 255 for low in (24, 16, 8, 0)]
  return jnp.stack(bytes_, axis=1).astype(jnp.uint8).reshape(-1)[:size]


def joined(
  words: Sequence[tuple[Array, Array, int]],
) -> tuple[Array, Array]:
  """Joins the words of codewords: `write` takes as long for 1 bit as for 32.

  For each word in order: values u32[...], lengths i32[...] and the most bits it
  may have, up to 32. Returns values and lengths [..., k] of the fewest words.
  """
  done = []
  for value, length, most in words:
    if done and 0 < done[-1][2] <= 32 - most:
      before, bits_before, most_before = done.pop()
      value |= before << jnp.asarray(length).astype(jnp.uint32)
      length, most = length + bits_before, most + most_before
    done.append((value, length, most))
  values, lengths, _ = zip(*done, strict=True)
  return jnp.stack(values, axis=-1), jnp.stack(lengths, axis=-1)


@jax.jit
def read(stream: Array, positions: Array) -> Array:
  """Reads the 32 bits that start at each position; zeros behind the end."""
  words, fifth = _words(stream)
  byte, shift = positions >> 3, (positions & 7).astype(jnp.uint32)
  at = lambda x: x.at[byte].get(mode='fill', fill_value=0)
  return at(words) << shift | at(fifth) >> (8 - shift)


@jax.jit
def windows(stream: Array) -> Array:
  """Reads at every position of the stream, u32[8 n], which needs no gather."""
  words, fifth = _words(stream)
  shift = jnp.arange(8, dtype=jnp.uint32)[None]
  both = words[:, None] << shift | fifth[:, None] >> (8 - shift)
  return both.reshape(-1)


def after(lengths: Array) -> Array:
  """Returns where the item that would start at each position ends, i32[n + 1].

  n, the end of the stream, stands for itself; lengths are at least 1.
  """
  size = lengths.size
  ends = jnp.minimum(jnp.arange(size, dtype=jnp.int32) + lengths, size)
  return jnp.append(ends, size)


@functools.partial(jax.jit, static_argnums=2)
def follow(jumps: Array, starts: Array, count: int) -> Array:
  """Returns the starts of `count` items in a row, for each first one [m].

    at[i, 0] = starts[i];  at[i, k + 1] = jumps[at[i, k]]

  By doubling: the second half of 2^k items is 2^(k-1) jumps behind the first,
  and jumps[jumps] jumps twice as far as jumps. That is log2(count) gathers.
  """
  # A jump is within bounds already, or the clamping would be paid for here.
  there = lambda positions: jumps.at[positions].get(mode='promise_in_bounds')
  at = starts[:, None]
  for k in range(math.ceil(math.log2(max(count, 1)))):
    jumps = there(jumps) if k else jumps
    at = jnp.concatenate([at, there(at)], axis=1)
  return at[:, :count]


@functools.partial(jax.jit, static_argnums=0)
def running(op: Callable, x: Array) -> Array:
  """Accumulates sums or maxima along each row of i32[m, n], not negative.

  As `jnp.cumsum`, in two levels of sqrt(n) steps: on a CPU five times faster.
  """
  m, n = x.shape
  step = max(1, math.isqrt(n))
  blocks = jnp.pad(x, ((0, 0), (0, -n % step))).reshape(m, -(-n // step), step)
  within = _scan(op, jnp.moveaxis(blocks, 2, 0))
  blocks_before = _scan(op, within[-1].T).T[:, :-1]
  blocks_before = jnp.pad(blocks_before, ((0, 0), (1, 0)))
  whole = op(jnp.moveaxis(within, 0, 2), blocks_before[:, :, None])
  return whole.reshape(m, blocks.shape[1] * step)[:, :n]


def _scan(op, x):
  """Accumulates along the first axis."""

  def step(carry, new):
    carry = op(carry, new)
    return carry, carry

  # What is scanned may differ between workers, and so may 0 times it.
  return lax.scan(step, 0 * x[0], x)[1] if len(x) else x


def _left(values, by):
  """Shifts left by 0 to 32; a shift by 32 has no defined result in XLA."""
  shifted = values << jnp.minimum(by, 31).astype(jnp.uint32)
  return jnp.where(by < 32, shifted, 0)


def _words(stream):
  """Returns for each byte the four from it on as a word, and the fifth byte."""
  size = stream.size
  ahead = jnp.pad(stream, (0, 4)).astype(jnp.uint32)
  b = [ahead[k : k + size] for k in range(5)]
  return b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3], b[4]
