"""The circle of `moniqua`: where a value stands on it, and at which turn.

One value at a time, to the bit the same in whichever pass over a vector it is
computed. The passes are in `moniqua` and, for GPUs, in `at_once`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moniqua_jax import dither, wire
from moniqua_jax.quantizers import base, numerics

Array = jax.Array

# Beyond 2^22 steps float32 has no bits left for the fraction of a step.
_REACH = 2.0**22


class Rounding(NamedTuple):
  """How a coordinate finds its grid point."""

  delta: Callable[[int], float]  # bits -> worst error, as a share of B_theta
  # (seed, size, start) -> u of the places from start on, taken off first
  sent: Callable[[Array, int, int], Array]
  received: Callable[[Array, int, int], Array]  # the same, put back afterwards
  shared: bool  # whether all workers must draw the same u


class Header(NamedTuple):
  """What a message says of its codes."""

  bound: Array  # f32[], theta; NaN if the message is unreadable
  step: Array  # f32[], s
  inverse: Array  # f32[], 1 / s
  zero: Array  # f32[], see `numerics.rounded`; NaN if the step is
  reach: Array  # f32[], beyond which no value can be sent
  seed: Array  # u32[], of u


def _dither(seed, size, start):
  return dither.uniform(seed, size, start) - 0.5


def _nothing(seed, size, start):
  del seed, start
  return jnp.zeros(size, jnp.float32)


class Grid(NamedTuple):
  """The circle in 2^b steps, and how a value finds one of them."""

  bits: int  # b, of a code
  delta: float  # worst error of rounding, as a share of B_theta
  sent: Callable[[Array, int, int], Array]  # see `Rounding`
  received: Callable[[Array, int, int], Array]
  digest: bool  # whether messages end with one

  @property
  def levels(self) -> int:
    """Returns 2^b."""
    return 2**self.bits

  @property
  def per_theta(self) -> float:
    """Returns s / theta as one number: both ends compute the same step."""
    return 2 / (1 - 2 * self.delta) / self.levels


ROUNDINGS = {
  # Subtractive: unbiased, and no further from x than the nearest point.
  'dithered': Rounding(lambda b: 2.0 ** -(b + 1), _dither, _dither, True),
  'nearest': Rounding(lambda b: 2.0 ** -(b + 1), _nothing, _nothing, False),
  # floor(x / s + v) with v = 1/2 - u: unbiased, up to one step away.
  'stochastic': Rounding(lambda b: 2.0**-b, _dither, _nothing, False),
}


def describe(grid, bound, seed):
  """Returns the header of a message with this theta and seed."""
  step = bound * grid.per_theta
  zero = jnp.minimum(step, 0)
  return Header(bound, step, 1 / step, zero, _REACH * step, seed)


def read_header(grid, payload, size):
  """Reads what was written behind the codes."""
  at = wire.packed_size(size, grid.bits)
  wire.require(payload, at + (12 if grid.digest else 8), size)
  bound = wire.from_bytes(payload[at : at + 4], jnp.float32)
  seed = wire.from_bytes(payload[at + 4 : at + 8], jnp.uint32)
  return checked(grid, bound, seed)


def checked(grid, bound, seed):
  """Describes what was read: NaN if no sender has that theta.

  It may be zero or negative, or too small or too large for float32.
  """
  can_be = usable(grid, describe(grid, bound, seed))
  return describe(grid, jnp.where(can_be, bound, jnp.nan), seed)


def usable(grid, about):
  """Tells whether this theta makes steps that float32 can count with."""
  possible = (about.step > 0) & jnp.isfinite(about.inverse)
  return possible & jnp.isfinite(grid.levels * about.step)


def place(grid, about, y, start):
  """Returns y / s - u, to the bit the same in whichever fusion XLA computes it.

  So are n and k: what is sent, its digest, and what the sender believes that it
  sent agree without being computed together. (A division would not do: XLA
  makes it a product here and there.)
  """
  quotient = numerics.rounded(y * about.inverse, about.zero)
  return quotient - grid.sent(about.seed, y.size, start).reshape(y.shape)


def value(grid, about, n, start):
  """Returns (n + u) s, the value of a grid point."""
  u = grid.received(about.seed, n.size, start)
  return numerics.rounded((n + u) * about.step, about.zero)


def resolve(grid, about, codes, y, start=0):
  """Returns k, the turn that y tells, and x_hat."""
  codes = codes.astype(jnp.float32)
  k = jnp.rint((place(grid, about, y, start) - codes) / grid.levels)
  return k, value(grid, about, codes + grid.levels * k, start)


def magnitude(values):
  """Returns |values| as integers in the same order, where a NaN is the largest.

  `jnp.max` of floats may lose it, see `numerics.largest`.
  """
  return wire.words(jnp.abs(values))


def gap_of(grid, about, part):
  """Returns the length of a part of the circle; half of it at most."""
  return numerics.rounded(part * (grid.levels * about.step), about.zero)


def conclude(grid, about, gap, agrees):
  """Says what was seen: the largest |x_hat - y|, and whether digests agree."""
  # Who is not finite itself reads nothing.
  readable = jnp.isfinite(about.bound) & jnp.isfinite(gap) & agrees
  # XLA makes one product of this and the step's, and of both one with the gap.
  error = numerics.rounded(grid.delta * grid.levels * about.step, about.zero)
  return base.Seen(readable, jnp.maximum(gap - error, 0), about.bound)
