"""The randomized Hadamard transform, in blocks that stride over a vector.

  y = H D x / sqrt(B)        x = D H y / sqrt(B)

H is Hadamard's matrix of B rows, D has signs from the counter hash. B is a
power of four, so sqrt(B) is one of two, and all is additions: the bits are the
same under every runner. Coordinate i is in block i mod m, so that each of the m
blocks holds its share of every parameter leaf.
"""

from collections.abc import Callable
import functools

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import dither, native
from moniqua_jax.quantizers import forms

Array = jax.Array

_BLOCKS = [4**k for k in range(6, -1, -1)]  # 4096 down to 1


def block(d: int) -> int:
  """Returns B, the largest up to 4096 whose blocks fill d up by d/16 at most.

  So a short vector is turned in shorter blocks and travels with little more
  than it has; a very short one may be left alone.
  """
  return next(b for b in _BLOCKS if -d % b <= d / 16)


def size(d: int) -> int:
  """Returns d', the length of a vector of d values once it is turned."""
  return d + -d % block(d)


def to(x: Array, seed: Array) -> Array:
  """Turns f32[d] to f32[size(d)], by the signs of a seed, u32[]."""
  cpu = functools.partial(native.hadamard, False, block(x.size), size(x.size))
  return _form(turned, cpu, x)(x, seed)


def back(y: Array, seed: Array, d: int) -> Array:
  """Returns the f32[d] that `to` has turned to y."""
  cpu = functools.partial(native.hadamard, True, block(d), d)
  return _form(functools.partial(turned_back, d), cpu, y)(y, seed)


def _form(default, cpu, z):
  return forms.chosen(default, cpu=cpu if z.dtype == jnp.float32 else None)


def turned(x: Array, seed: Array, turns: int = 1) -> Array:
  """Does `to` in jnp, so many times, each by signs of its own.

  They are those of the seed, and of the numbers that follow it.
  """
  rows = block(x.size)
  z = jnp.pad(x, (0, -x.size % rows)).reshape(rows, -1)
  for turn in range(turns):
    z = _transform(_signed(z, _minus(rows, seed + turn)))
  return z.reshape(-1)


def turned_back(
  d: int,
  y: Array,
  seed: Array,
  turns: int = 1,
  end: Callable[[Array], Array] = lambda z: z,
) -> Array:
  """Does `back` in jnp.

  `end` is done to some rows of it at a time, f32[k, m], a column for a block.
  """
  rows = block(d)
  z = y.reshape(rows, -1)
  for turn in reversed(range(1, turns)):
    z = _signed(_transform(z), _minus(rows, seed + turn))
  last = lambda z, minus: end(_signed(z, minus))
  by_halves = functools.partial(_by_halves, last) if rows > 1 else last
  z, minus = _transform(z), _minus(rows, seed)
  z = lax.platform_dependent(z, minus, cpu=by_halves, default=last)
  return z.reshape(-1)[:d]


def _by_halves(fn, *rows):
  """Returns fn(*rows), in a loop of its own.

  XLA for CPUs would have each value find out its row and column in the loop
  that cuts, or in the one behind it, which takes as long as the rotation.
  """
  halves = [array.reshape(2, -1, *array.shape[1:]) for array in rows]
  whole = lax.map(lambda half: fn(*half), halves)
  return whole.reshape(-1, *whole.shape[2:])


def _minus(rows, seed):
  """Returns bool[rows]: where D is -1, in all columns alike."""
  return dither.bits(seed, rows) >> 31 > 0


def _signed(z, minus):
  return jnp.where(minus[:, None], -z, z)


def _transform(z):
  """Applies H / sqrt(B) to the columns, two of its butterflies at a time."""
  rows, columns = z.shape
  steps = (rows.bit_length() - 1) // 2
  for _ in range(steps):
    a, b, c, d = z.reshape(4, rows // 4, columns)
    sums, gaps, others, rest = a + b, a - b, c + d, c - d
    quarter = [sums + others, gaps + rest, sums - others, gaps - rest]
    z = jnp.stack(quarter, axis=1).reshape(rows, columns)
    z = lax.optimization_barrier(z)  # else XLA adds up the same again and again
  return z * 2.0**-steps
