"""A theta that each sender finds by itself.

Ours: arXiv:2002.11787 takes theta as known. Each worker's theta rides in the
header of its messages, so the thetas need not agree.
"""

import jax
import jax.numpy as jnp

from moniqua_jax import arguments
from moniqua_jax.quantizers import base
from moniqua_jax.quantizers.moniqua import moniqua

Array = jax.Array

SAFETY = 1.5  # theta over the distance seen


def auto_theta(
  bits: int,
  start: float,
  safety: float = SAFETY,
  shrink: float = 0.98,
  limit: float | None = None,
  rounding: str = 'dithered',
) -> base.Tuned:
  """`moniqua` with a theta that follows the distance it sees.

    theta_i <- max(safety * distance_i, shrink * max_j theta_j)    j: i and its
    neighbours; max(2 min(theta_i, theta_k), theta_i, theta_k) if the message on
    its edge with k was unreadable

  The thetas of neighbours come with their messages and pull each other up, so
  that all are equal but for some steps after a rise: the errors of two workers
  that share the dither only cancel on one grid (with thetas of their own 1 bit
  ran away at a loop gain of .6). The distance is what `inspect` reports: less
  the sender's own error bound, which is theta itself at 1 bit. Followed with
  the noise in it, theta and the workers would run off together without a single
  wrap; that still happens if the loop gain of `moniqua_jax.theory` exceeds 1:
  take a smaller gamma.

  Args:
    bits: per coordinate, 1 to 8.
    start: the first theta, > 0.
    safety: theta over the distance seen, > 1.
    shrink: the most that theta shrinks in one step, below 1.
    limit: a theta above this makes the worker's messages unreadable, which
      stops the training loop; 1000 times the start if not given.
    rounding: as for `moniqua`.

  Returns:
    A `Tuned` whose edges are answered, since a sender must know that it was not
    read. Its state is theta, f32[], each worker's own.

  Raises:
    ValueError: a number out of its range.

  >>> auto_theta(bits=4, start=2.0).init()
  Array(2., dtype=float32)

  Source: ours; the rule and its numbers are measured in results/theta.
  """
  moniqua(start, bits, rounding)  # checks them
  limit = 1000 * start if limit is None else limit
  number = arguments.is_number
  for name, value, valid, range_ in (
    ('safety', safety, number(safety) and safety > 1, 'above 1'),
    ('shrink', shrink, number(shrink) and 0 < shrink < 1, 'between 0 and 1'),
    ('limit', limit, number(limit) and limit > start, f'above start={start!r}'),
  ):
    if not valid:
      raise ValueError(f'{name}={value!r}; auto_theta needs it {range_}.')

  def init():
    return jnp.array(start, jnp.float32)  # of each state its own

  def quantizer(theta: Array, step: Array) -> base.Quantizer:
    del step
    theta = jnp.where(theta <= limit, theta, jnp.nan)
    return moniqua(theta, bits, rounding)

  def observe(theta: Array, seen: base.Seen, x: Array) -> Array:
    del x
    distance = jnp.max(jnp.where(seen.readable, seen.distance, 0))
    heard = jnp.max(jnp.where(jnp.isfinite(seen.theta), seen.theta, 0))
    together = jnp.maximum(theta, heard)
    followed = jnp.maximum(safety * distance, shrink * together)
    return jnp.where(seen.readable.all(), followed, raised(theta, seen, limit))

  return base.Tuned(init, quantizer, observe, answered=True)


def raised(theta: Array, seen: base.Seen, limit: float) -> Array:
  """The theta after a message that was not read on some edge.

    max(2 min(theta_i, theta_k), theta_i, theta_k)    k: the worker over there

  An edge fails at the smaller theta of its ends. If both ends doubled, a theta
  that fits would grow with each partner whose own is too small, without end.
  """
  theirs = jnp.where(jnp.isfinite(seen.theta), seen.theta, theta)
  both = jnp.maximum(theta, theirs), 2 * jnp.minimum(theta, theirs)
  wanted = jnp.max(jnp.where(seen.readable, theta, jnp.maximum(*both)))
  # Beyond the limit nothing is read any more; it would become infinite.
  return jnp.minimum(wanted, jnp.maximum(theta, 2 * limit))
