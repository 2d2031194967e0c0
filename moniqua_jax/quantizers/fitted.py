"""A theta that fits where distances are close to normal, as rotated ones are.

Ours, as `auto` is: there theta follows the largest distance, here the root mean
square, which is known free of the error of the code. D: a distance of two
workers in one coordinate, r its rms, s a step of the grid.
"""

import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moniqua_jax import arguments
from moniqua_jax.quantizers import auto, base
from moniqua_jax.quantizers.moniqua import measured, moniqua

Array = jax.Array

CHANCE = 1e-4  # that a message wraps
# The first updates grow with the momentum: theta is this much larger at first.
_AHEAD = 4.0


class Fit(NamedTuple):
  """What a worker knows of its theta.

  Attributes:
    theta: f32[].
    begun: bool[]; whether a distance has been seen. Before, theta is a guess.

  >>> Fit(jnp.float32(1), jnp.bool(False)).theta
  Array(1., dtype=float32)
  """

  theta: Array
  begun: Array


def spread(size: int, chance: float = CHANCE) -> float:
  """c, with which none of d normal values passes c times their rms.

    d P(|N| > c) = chance

  Args:
    size: d.
    chance: that one of them does.

  Returns:
    c: 6.5 for a million values and a chance of 10^-4, 5.7 for 10^-2.

  >>> round(spread(10**6), 1), round(spread(10**6, 0.01), 1)
  (6.5, 5.7)

  Source: ours, the union bound.
  """
  return -statistics.NormalDist().inv_cdf(chance / (2 * size))


def fitted_theta(
  bits: int,
  start: float = 1.0,
  chance: float = CHANCE,
  shrink: float = 0.9,
  limit: float | None = None,
) -> base.Tuned:
  """`moniqua` with a theta of c times the rms of the distances it sees.

    fits_i = c rms_i            theta = min(max_j theta_j, 2 theta_i)
    theta_i <- shrink theta if that fits, else max(fits_i, theta); as
    `auto_theta` raises it if a message was unreadable

  with d P(|N| > c) = chance; j: i and its neighbours, whose thetas become equal
  in that band, as the errors of two workers only cancel on one grid. The rms
  has no error of the code in it, at any theta: (x_hat_j - x_i)^2 less the
  square of the receiver's own error on the sender's grid has the mean D^2, and
  is 0 where the two are equal. So no first theta need be guessed: the first
  distance that is seen sets theta, to four times what fits it since updates
  grow at first, and that message moves nobody. For coordinates that are alike,
  as in `rotated`; with heavy tails, or leaves that differ, take `auto_theta`.

  Rounding itself keeps workers apart, and these distances are real: from a loop
  gain of 1 on theta runs away with them (`moniqua_jax.theory.loop_gain` with
  `distance='rms'`): pairs of gamma 1 take 3 bits or more.

  Args:
    bits: per coordinate, 1 to 8.
    start: the theta until a distance is seen, > 0, or the limit if that is
      less; generous, up to some hundred times the first distance.
    chance: that a message wraps, between 0 and 1.
    shrink: the most that theta shrinks in one step, below 1.
    limit: a theta above this makes the worker's messages unreadable, which
      stops the training loop; 1000 times the start if not given.

  Returns:
    A `Tuned` whose edges are answered. Its state is a `Fit`, each worker's own.

  Raises:
    ValueError: a number out of its range.

  >>> fitted_theta(bits=4).init()
  Fit(theta=Array(1., dtype=float32), begun=Array(False, dtype=bool))

  Source: ours.
  """
  bits = arguments.integer(bits)
  moniqua(start, bits)  # checks them
  limit = 1000 * start if limit is None else limit
  number = arguments.is_number
  for name, value, valid, range_ in (
    ('chance', chance, number(chance) and 0 < chance < 1, 'between 0 and 1'),
    ('shrink', shrink, number(shrink) and 0 < shrink < 1, 'between 0 and 1'),
    ('limit', limit, number(limit) and limit > 0, 'above 0'),
  ):
    if not valid:
      raise ValueError(f'{name}={value!r}; fitted_theta needs it {range_}.')

  def init():
    return Fit(jnp.array(min(start, limit), jnp.float32), jnp.bool(False))

  def quantizer(fit: Fit, step: Array) -> base.Quantizer:
    del step
    theta = jnp.where(fit.theta <= limit, fit.theta, jnp.nan)
    return _moving(measured(theta, bits), fit.begun)

  def observe(fit: Fit, seen: base.Seen, x: Array) -> Fit:
    theta, finite = fit.theta, jnp.isfinite(seen.theta)
    square = jnp.max(jnp.where(finite, seen.square, 0))
    fits = spread(x.size, chance) * jnp.sqrt(square)
    heard = jnp.max(jnp.where(finite, seen.theta, 0))
    together = jnp.clip(heard, theta, 2 * theta)
    smaller = shrink * together
    kept = jnp.maximum(fits, together)
    followed = jnp.where(smaller >= fits, smaller, kept)
    above = auto.raised(theta, seen, limit)
    followed = jnp.where(seen.readable.all(), followed, above)
    begins = ~fit.begun & (fits > 0)
    first = jnp.where(begins, jnp.minimum(_AHEAD * fits, limit), theta)
    return Fit(jnp.where(fit.begun, followed, first), fit.begun | begins)

  return base.Tuned(init, quantizer, observe, answered=True)


def _moving(quantizer: base.Quantizer, begun: Array) -> base.Quantizer:
  """Lets messages move a worker once it has begun, or if they move nothing."""

  def gate(seen):
    moves = begun | (seen.square == 0)
    return seen._replace(readable=seen.readable & moves)

  def inspect_all(payloads, reference):
    return [*map(gate, base.inspect_all(quantizer, payloads, reference))]

  return quantizer._replace(
    inspect=lambda payload, y: inspect_all([payload], y)[0],
    fast=(quantizer.fast or base.Fast())._replace(inspect_all=inspect_all),
  )
