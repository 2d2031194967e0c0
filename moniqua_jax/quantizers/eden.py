"""EDEN: a random rotation, then the best levels for what all vectors become.

Vargaftik et al., "EDEN: Communication-efficient and robust distributed mean
estimation for federated learning", ICML 2022, arXiv:2108.08842.

Whatever x is, the values of a block of y = H D x are close to normal, so one
table of levels suits all: those of Lloyd and Max for N(0, 1), in units of the
block's root mean square. Rounding is to the nearest of them, q. What is random
is the rotation alone; each worker draws its own in each step, so that their
errors are independent and fall in a mean.

Payload: the packed codes of y, then the scale S (f32) of every block, then the
seed (u32) of the signs D. There are more codes than values where x does not
fill the last block, so no `codes` are told of; in fewer bits they would hardly
fit: their entropy is 1, 1.91, 2.82, 3.77.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import arguments, dither, native, wire
from moniqua_jax.quantizers import base, buckets, forms, hadamard, numerics

Array = jax.Array

# Above 0, their negatives are meant; 2^(bits-1) of them.
LEVELS = {
  1: (0.797884561,),
  2: (0.452780035, 1.510417608),
  3: (0.245094179, 0.756005281, 1.343909279, 2.151945705),
  4: (
    *(0.128395030, 0.388048299, 0.656759119, 0.942340456),
    *(1.256231197, 1.618046386, 2.069017227, 2.732589571),
  ),
}


_ROOM = 2.0**24  # for the sums of two turns: 4096 and then 64 times the largest


class Scale(NamedTuple):
  """By what the levels of a block are multiplied."""

  of: Callable[[Array, Array, Array], Array]  # (|y|^2, <y, q>, |q|^2) -> S
  # How often x is turned. Once leaves a block of few large values far from
  # normal, and a mean over seeds then differs from x by up to half of it.
  turns: int


SCALES = {
  'unbiased': Scale(lambda yy, yq, qq: yy * (1 / yq), 2),
  'least_error': Scale(lambda yy, yq, qq: yq * (1 / qq), 1),
}


def eden(bits: int, scale: str = 'unbiased') -> base.Quantizer:
  """Levels for normal values, in coordinates in which all values are normal.

    y = H D x,  q = the nearest levels to y / rms(y),  x_hat = D H S q
    S = |y|^2 / <y, q>  'unbiased',  <y, q> / |q|^2  'least_error'

  E|x_hat - x|^2 is .571, .133, .036, .0096 times |x|^2 at 1 to 4 bits, whatever
  x is: omega = D / (1 - D) for D the distortion of the levels; 'least_error'
  has D = .363, .117, .035, .0095 and shrinks x by 1 - D. In blocks of less than
  64 values, which only vectors of less than 4096 have, that is roughly so.

  Each message takes a rotation to write and one to read: n of them are turned
  back one by one, as each has signs of its own. With the same signs one would
  do, but errors would be equal where gradients are, and fall in no mean.

  Args:
    bits: per value, 1 to 4.
    scale: 'unbiased', for means and differences, or 'least_error', for
      algorithms with error feedback, at half the rotations.

  Returns:
    A `Quantizer` with a private key. A block, of up to 4096 values that stride
    over x, takes 4 bytes more, a message 4; `hadamard.block` says how many. A
    block that is not finite, or with values that float32 hardly holds, decodes
    to NaN, one without a value of 2^-102 to zeros.

  Raises:
    ValueError: bits outside 1 to 4, or unknown scale.

  >>> q, x = eden(bits=4), jnp.arange(-32.0, 32.0)
  >>> x_hat = q.decode(q.encode(x, jax.random.key(0)), x)
  >>> float(jnp.sum((x_hat - x)**2) / jnp.sum(x**2)) < 0.02
  True

  Source: arXiv:2108.08842; two turns are ours.
  """
  bits = arguments.integer(bits)
  if type(bits) is not int or bits not in LEVELS:
    raise ValueError(f'bits={bits!r}; eden has levels for 1 to 4.')
  if scale not in SCALES:
    raise ValueError(f'scale={scale!r}; choose from {sorted(SCALES)}.')
  rule, levels = SCALES[scale], np.array(LEVELS[bits], np.float32)
  way = levels, rule.turns

  def encode(x, key):
    x, seed = base.vector(x), dither.seed(key)
    code = forms.chosen(_code, *way, cpu=_code_native)
    codes, (unit, yy, yq, qq) = code(x, seed)
    scales = jnp.where(yy == 0, 0, rule.of(yy, yq, qq)) / unit
    return wire.join(codes.reshape(-1), bits, scales * _ROOM, seed)

  def split(payload, size):
    """Returns codes and scales by block, and the seed."""
    rows, turned = hadamard.block(size), hadamard.size(size)
    count = turned // rows
    codes, ends = wire.split(payload, bits, turned, 4 * count + 4)
    scales = wire.from_bytes(ends[:-4], jnp.float32, (1, count))
    # Of a larger one a value could be beyond float32.
    fits = scales * (levels[-1] * rows**0.5) < jnp.inf
    scales = jnp.where(fits, buckets.sendable(scales), jnp.nan)
    seed = wire.from_bytes(ends[-4:], jnp.uint32)
    return codes.reshape(rows, count), scales, seed

  def decode(payload, reference):
    size = reference.size
    value = forms.chosen(_value, *way, size, cpu=_value_native)
    return value(*split(payload, size)).astype(reference.dtype)

  def inspect(payload, reference):
    _, scales, _ = split(payload, reference.size)
    seen = base.watched(decode)(payload, reference)
    return seen._replace(readable=jnp.isfinite(scales).all())

  return base.Quantizer(encode, decode, inspect)


def _code(levels, turns, x, seed):
  """Returns codes u8[B, m] of the nearest levels, and unit, yy, yq and qq.

  A code is the number of a level above 0, and `half` more for its negative. The
  sums are f32[1, m], of |y|^2, <y, q> and |q|^2 for y in a unit.
  """
  y = hadamard.turned(x / _ROOM, seed, turns)
  y = y.reshape(hadamard.block(x.size), -1)
  half, rows = len(levels), len(y)
  total = lambda z: _folded(z, jnp.add, jnp.sum)
  # Squares of values near 1 neither overflow nor vanish.
  unit = numerics.power_below(_folded(jnp.abs(y), jnp.maximum, jnp.max))
  u, zero = y * unit, jnp.minimum(unit, 0)
  square = numerics.rounded(u**2, zero)
  yy = total(square)
  # (y / rms)^2 against the squares of the ends of cells: without any root.
  share = square * (rows / jnp.where(yy > 0, yy, 1))
  beyond = [(share >= end).astype(jnp.uint8) for end in _ends(levels)]
  number = sum(beyond, jnp.zeros(y.shape, jnp.uint8))
  codes = number + (u < 0).astype(jnp.uint8) * jnp.uint8(half)
  q = _sizes(codes, levels)
  yq = total(numerics.rounded(jnp.abs(u) * q, zero))
  qq = total(numerics.rounded(q**2, zero))
  return codes, (unit, yy, yq, qq)


def _code_native(levels, turns, x, seed):
  rows, size = hadamard.block(x.size), hadamard.size(x.size)
  how = dict(
    turns=turns, factor=np.float32(1 / _ROOM), sizes=levels, ends=_ends(levels)
  )
  return native.eden_encode(x, seed, (rows, size // rows), **how)


def _value(levels, turns, d, codes, scales, seed):
  """Returns what codes u8[B, m] and scales f32[1, m] stand for, f32[d]."""
  sizes = _sizes(codes, levels)
  q = jnp.where(codes < len(levels), sizes, -sizes)
  # Behind the rotation, whose sums cannot overflow then.
  zero = jnp.minimum(scales, 0)
  scaled = lambda z: numerics.rounded(z * scales, zero)
  return hadamard.turned_back(d, q, seed, turns, scaled)


def _value_native(levels, turns, d, codes, scales, seed):
  return native.eden_decode(codes, scales, seed, d, turns=turns, sizes=levels)


def _ends(levels):
  return ((levels[1:] + levels[:-1]) / 2) ** 2


def _sizes(codes, levels):
  """Returns for each code the size of its level."""
  number = codes & jnp.uint8(len(levels) - 1)
  size = jnp.full(codes.shape, levels[0])
  for j, level in enumerate(levels[1:], 1):
    size = jnp.where(number >= j, level, size)
  return size


def _folded(z, op, reduce):
  """Reduces columns to f32[1, m], in one order whatever the program around.

  By halves; of the last two the order is no matter. A compiler that fuses does
  not make a reduction again for each value that reads it, as it would halves.
  """
  while len(z) > 2:
    z = op(*jnp.split(z, 2))
  return reduce(z, axis=0, keepdims=True)
