"""Dithering with the steps of one's choice: for all, a coordinate, or a block.

Wang, Safaryan and Richtarik, "Theoretically better and numerically faster
distributed optimization with smoothness-aware quantization techniques", NeurIPS
2022, arXiv:2106.03524: Section 4 (blocks) and Section 5 (varying steps). Which
steps are best for a smoothness matrix: theory/steps.py.

  x_hat_j = |x_l| sgn(x_j) h_j xi_j,  xi_j = floor(|x_j| / (|x_l| h_j) + u)

with l the block of j and u in [0, 1). A step may exceed 1: it then sends its
coordinate rarely, and still without bias.

Payload: the packed codes, then the norms of the blocks, see norm_formats.py.
"""

from collections.abc import Callable
import functools
import itertools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import arguments, dither, wire
from moniqua_jax.quantizers import base, buckets, norm_formats, numerics

Array = jax.Array

_TOP = 127  # levels on either side of 0 that a code of 8 bits can hold
_WIDEST = 2**21 - 1  # one bucket, whatever the size; the widest that is coded


def dithering(
  levels: int,
  norm: str = 'l2',
  block_sizes: tuple[int, ...] | None = None,
  norm_bits: int = 32,
) -> base.Quantizer:
  """Standard dithering: the levels 0, 1/s, ..., 1 with a sign.

    x_hat_j = |x| sgn(x_j) xi_j / s,  xi_j = floor(s |x_j| / |x| + u)

  `qsgd` is the same with s = 2^(b-1) - 1, on buckets of equal size.

  Args:
    levels: s, above 0: 1 to 127.
    norm: 'l2' or 'linf', of a block.
    block_sizes: of blocks with a norm of their own; one block if None.
    norm_bits: of a norm: 32, 16 or 8.

  Returns:
    A `Quantizer`, unbiased, with a private key; see `block`.

  Raises:
    ValueError: levels outside 1 to 127; as for `block`.

  >>> q, x = dithering(levels=1, norm='linf'), jnp.array([2.0, -2.0, 0.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 2., -2.,  0.], dtype=float32)

  Source: Section 5 of arXiv:2106.03524 with h = 1/s; arXiv:1610.02132.
  """
  levels = arguments.integer(levels)
  if type(levels) is not int or levels not in range(1, _TOP + 1):
    raise ValueError(
      f'levels={levels!r}; dithering takes s = 1 to {_TOP} levels above 0. '
      'floor(sqrt(d) / n) is 0 where there are more than sqrt(d) workers: '
      'take 1 there.'
    )
  sizes = None if block_sizes is None else _checked_sizes(block_sizes)
  return _dithered(np.float64(1 / levels), sizes, norm, None, norm_bits)


def varying_steps(
  steps,
  norm: str = 'l2',
  bits: int | None = None,
  norm_bits: int = 32,
) -> base.Quantizer:
  """A step of its own for every coordinate.

    x_hat_j = |x| sgn(x_j) h_j xi_j,  E x_hat = x

  Args:
    steps: h, f[d] above 0, or one number for all. May be traced; steps that
      need more levels than `bits` holds then make the message unreadable.
    norm: 'l2', which the theory is for, or 'linf', which the authors ran.
    bits: of a code, 2 to 8, which holds 2^(bits-1) - 1 levels on either side of
      0; a step needs 1 / h_j. The fewest that do if None; needed if traced.
    norm_bits: of the norm: 32, 16 or 8.

  Returns:
    A `Quantizer`, unbiased, with a private key; see `block`.

  Raises:
    ValueError: as for `block`.

  >>> q = varying_steps(jnp.array([0.5, 4.0]), bits=3)
  >>> q.encode(jnp.ones(2), jax.random.key(0)).size  # codes, norm
  6

  Source: Section 5 of arXiv:2106.03524.
  """
  return _dithered(steps, None, norm, bits, norm_bits)


def block(
  steps,
  block_sizes: tuple[int, ...],
  norm: str = 'l2',
  bits: int | None = None,
  norm_bits: int = 32,
) -> base.Quantizer:
  """A norm and a step for every block of coordinates that stand together.

    x_hat_l = |x_l| h_l sgn(x_l) xi_l,  E x_hat = x

  Args:
    steps: h, f[B] above 0, or one number for all. May be traced.
    block_sizes: of the blocks, in order; their sum is d. Static.
    norm: 'l2' or 'linf', of a block.
    bits: as for `varying_steps`.
    norm_bits: 32; or 16 or 8, which round a norm up by at most 1/256 or 1/8, so
      that the message stays unbiased and its variance grows by no more than
      that. 8 bits are relative to the largest norm, which takes 4 bytes.

  Returns:
    A `Quantizer`, unbiased, with a private key. A block whose norm is below
    2^-126 decodes to zeros, one that is not finite to NaN.

  Raises:
    ValueError: a step that is not positive and finite, too small for `bits`, or
      traced without `bits`; not a step for every block; unknown norm or
      norm_bits; later, sizes that do not add up to the length of the vector.

  >>> q = block([0.5, 1.0], (1, 2), norm='linf')
  >>> x = jnp.array([3.0, 2.0, -2.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 3.,  2., -2.], dtype=float32)

  Source: Section 4 of arXiv:2106.03524; norms of few bits are ours.
  """
  block_sizes = _checked_sizes(block_sizes)
  count, shape = len(block_sizes), np.shape(steps)
  if shape not in ((), (count,)):
    raise ValueError(
      f'steps of shape {shape} for {count} blocks; give one for each, or one '
      'for all.'
    )
  if shape:
    steps = steps if isinstance(steps, jax.Array) else np.asarray(steps)
    steps = steps[np.repeat(np.arange(count), block_sizes)]
  return _dithered(steps, block_sizes, norm, bits, norm_bits)


def _checked_sizes(block_sizes) -> tuple[int, ...]:
  """Refuses blocks that are none, or of less than one coordinate."""
  several = np.ndim(block_sizes) == 1
  sizes = tuple(map(arguments.integer, block_sizes)) if several else ()
  if not sizes or any(type(size) is not int or size < 1 for size in sizes):
    raise ValueError(
      f'block_sizes={block_sizes!r:.60}; a block has 1 or more coordinates, an '
      'int.'
    )
  return sizes


class Rule(NamedTuple):
  """The steps, how a code holds their levels, and how norms are taken."""

  h: Array  # f32[d], or f32[] for all
  per_step: Array | np.ndarray | np.floating  # 1 / h
  top: int  # levels on either side of 0
  reach: Array | np.floating  # the largest h times a level
  bits: int  # of a code
  sizes: tuple[int, ...] | None  # of the blocks; None for one block
  norm: Callable  # rows f32[k, size] -> f32[k]
  form: norm_formats.NormFormat


def _dithered(steps, sizes, norm, bits, norm_bits):
  """Builds what the three share: a step for each value, or one for all."""
  if norm not in buckets.NORMS:
    raise ValueError(f'norm={norm!r}; choose from {sorted(buckets.NORMS)}.')
  form, traced = norm_formats.chosen(norm_bits), isinstance(steps, jax.Array)
  if not traced:
    steps = np.asarray(steps, np.float64)
  bits = _checked_bits(steps, arguments.integer(bits))
  # Known steps may not use up the last bit.
  top = 2 ** (bits - 1) - 1 if traced else levels_needed(steps)
  h = jnp.asarray(steps, jnp.float32)
  per_step = 1 / h if traced else np.float32(1 / steps)
  reach = top * (numerics.largest(h) if traced else np.max(np.float32(steps)))
  rule = Rule(h, per_step, top, reach, bits, sizes, buckets.NORMS[norm], form)
  codes = None
  if sizes is None or len(set(sizes)) == 1:
    width = _WIDEST if sizes is None else sizes[0]
    codes = base.Codes(bits, 2 * top + 1, top, width)
  encode, decode, inspect = (
    functools.partial(fn, rule) for fn in (_encode, _decode, _inspect)
  )
  return base.Quantizer(encode, decode, inspect, codes=codes)


def _encode(rule, x, key):
  x = base.vector(x)
  blocks = _blocks(x.size, rule.sizes, rule.h.size)
  norms = jnp.concatenate([rule.norm(rows) for rows in blocks.rows(x)])
  # Too few bits for traced steps: better unreadable than clipped.
  fits = numerics.largest(rule.per_step) <= rule.top + 1e-3
  ends = rule.form.write(jnp.where(fits, norms, jnp.nan))
  given = rule.form.read(ends, norms.size)
  shares = blocks.each(buckets.ratio, x, given)
  zero = jnp.minimum(blocks.spread(given), 0)
  shares = jnp.clip(shares, -1, 1)  # a quotient may exceed 1 by its rounding
  u = dither.uniform(dither.seed(key), x.size)
  # Odd about 0 in law, so no sign is needed.
  levels = jnp.floor(numerics.rounded(shares * rule.per_step, zero) + u)
  codes = (rule.top + levels.clip(-rule.top, rule.top)).astype(jnp.uint8)
  return wire.join(codes, rule.bits, ends)


def _split(rule, payload, size):
  count = _blocks(size, rule.sizes, rule.h.size).count
  codes, ends = wire.split(payload, rule.bits, size, rule.form.size(count))
  norms = buckets.sendable(rule.form.read(ends, count))
  # Of a larger norm a value could be beyond float32.
  norms = jnp.where(norms * rule.reach < jnp.inf, norms, jnp.nan)
  # Once for a block, not for each of its values.
  return jnp.minimum(codes, 2 * rule.top), lax.optimization_barrier(norms)


def _decode(rule, payload, reference):
  size = reference.size
  codes, norms = _split(rule, payload, size)
  norms = _blocks(size, rule.sizes, rule.h.size).spread(norms)
  levels = codes.astype(jnp.float32) - rule.top
  zero = jnp.minimum(norms, 0)
  x_hat = numerics.rounded(
    numerics.rounded(levels * rule.h, zero) * norms, zero
  )
  return x_hat.astype(reference.dtype)


def _inspect(rule, payload, reference):
  decode = functools.partial(_decode, rule)
  seen = base.watched(decode)(payload, reference)
  _, norms = _split(rule, payload, reference.size)
  return seen._replace(readable=jnp.isfinite(norms).all())


class Blocks(NamedTuple):
  """The blocks of a vector of d values; those of one size in a row are rows."""

  count: int  # type: ignore[assignment]  # B; hides the method of tuples
  rows: Callable  # x f32[d] -> [f32[k, size], ...], one array per run of a size
  each: (
    Callable  # (fn, x, numbers f32[B]) -> f32[d], fn(rows, numbers[:, None])
  )
  spread: Callable  # numbers f32[B] -> for every value that of its block


def _blocks(d: int, sizes: tuple[int, ...] | None, steps: int) -> Blocks:
  sizes = sizes or (d,)
  if sum(sizes) != d or steps not in (1, d):
    given = sum(sizes) if sum(sizes) != d else steps
    raise ValueError(
      f'the steps are for {given} coordinates, the vector has {d}.'
    )
  runs = [(size, len([*same])) for size, same in itertools.groupby(sizes)]
  ends = np.cumsum([size * count for size, count in runs])[:-1]
  counts = np.cumsum([count for _, count in runs])[:-1]
  index = np.repeat(np.arange(len(sizes)), sizes)

  def rows(x):
    parts = zip(jnp.split(x, ends), runs, strict=True)
    return [part.reshape(count, size) for part, (size, count) in parts]

  def each(fn, x, numbers):
    parts = zip(rows(x), jnp.split(numbers, counts), strict=True)
    return jnp.concatenate([fn(r, v[:, None]).reshape(-1) for r, v in parts])

  spread = lambda numbers: numbers[index] if len(sizes) > 1 else numbers
  return Blocks(len(sizes), rows, each, spread)


def levels_needed(steps) -> int:
  """Returns the most levels on one side of 0, max(1, ceil(1 / min h)).

  A code then has (2 * levels_needed(steps)).bit_length() bits.
  """
  # 1 / (1/49) is a little more than 49.
  return max(1, int(np.ceil(np.max(1 / np.asarray(steps)) * (1 - 1e-9))))


def _checked_bits(steps, bits) -> int:
  if bits is not None and (type(bits) is not int or bits not in range(2, 9)):
    raise ValueError(f'bits={bits!r}; dithering takes 2 to 8, one is the sign.')
  if isinstance(steps, jax.Array):
    if bits is None:
      raise ValueError('bits=None; for steps that are traced, say how many.')
    return bits
  least = np.min(steps)
  if not (least > 0 and np.isfinite(steps).all()):
    raise ValueError(f'steps: {least!r} is among them; they are above 0.')
  levels = levels_needed(steps)
  needed = (2 * levels).bit_length()
  if needed > (bits or 8):
    raise ValueError(
      f'steps: the least, {least:.4g}, needs {levels} levels on either side of '
      f'0 and {needed} bits; there are {bits or 8}. Take larger steps (a '
      'smaller budget), or blocks.'
    )
  return bits or needed
