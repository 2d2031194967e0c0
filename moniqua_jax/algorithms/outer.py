"""Local steps, and an optimizer of what the workers moved together: DiLoCo.

Douillard et al., "DiLoCo: distributed low-communication training of language
models", 2023, arXiv:2311.08105, Algorithm 1; without an outer momentum it is
local SGD with quantized means, FedPAQ: Reisizadeh et al., "FedPAQ", AISTATS
2020, arXiv:1909.13014, Algorithm 1. By gossip in place of a mean, in full
precision: Kolehmainen et al., "NoLoCo", 2025, arXiv:2506.10911.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import collectives, gossip
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.adapt_then_combine import adapt_then_combine
from moniqua_jax.algorithms.delayed import delayed
from moniqua_jax.algorithms.every import every
from moniqua_jax.algorithms.transformation import (
  Counted,
  Gossip,
  Reduction,
  remembering,
)
from moniqua_jax.quantizers import numerics

Array = jax.Array


class OuterState(NamedTuple):
  """State of an outer optimizer.

  Attributes:
    heard: of gossip; `Counted` of means, how many there were. Updates and steps
      of the optimizer that were not finite are counted as lost.
    anchor: f32[d], phi, where the worker stood after the last; the same on all
      workers if they take means.
    own: of the outer optimizer.
    mean: of the algorithm.
  """

  heard: gossip.Heard | Counted
  anchor: Array
  own: Any
  mean: Any


def outer(
  algorithm: Reduction | Gossip,
  optimizer: optax.GradientTransformation | None = None,
  steps: int | tuple[tuple[int, int], ...] = 1,
  delay: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: local steps, then a step by the mean of what they moved.

    x_i <- x_i + u_i                                            in each step
    Delta <- mean of phi - x_i,  phi <- phi + optimizer(Delta),  x_i <- phi

  the second line in one step of so many. phi is where all workers were last
  together, and what each sends is how far it has moved from there, by the
  messages of the algorithm. So the rounding error of a few bits is a share of
  that way, and after a mean all workers are at one point: phi to the bit, the
  parameters but for the rounding of a sum. With `streaming` around it, one
  fragment is in each step's mean.

  Of gossip each worker has a phi and an optimizer of its own, and sends x_i:

    y_i <- x_i + sum_j W_ij (x_hat_j - x_hat_i)
    phi_i <- phi_i + optimizer(phi_i - y_i),  x_i <- phi_i

  The mean of phi_i goes as without gossip, at any number of bits, if the
  optimizer is linear in Delta. How far they stay apart `theory.outer_radius`
  says. With `optax.sgd(1.0)` it is `every` of `adapt_then_combine`, bit for
  bit.

  With a `delay` the steps go on while the messages travel: what they bring is
  added as many steps later to what a worker has moved since it sent,

    x_i <- phi_i + (z_i - y_i)

  with y_i where it stood then, and z_i where it stands. What is on its way at
  the end of a run is not taken.

  With `optax.sgd(1.0)` the workers' mean is taken: local SGD; with Nesterov's
  momentum it is DiLoCo, with the learning rate .7 and momentum .9 of its paper.
  Where workers start from different points, phi is their mean.

  Args:
    algorithm: the mean: allreduce, error_feedback, double_squeeze, dcgd, diana.
      All leaves are in it, as one vector, whatever its `keep` says. Or gossip:
      dpsgd, or `rounds` or `answered` of one.
    optimizer: of Delta, which it takes as a gradient; `optax.sgd(1.0)` if not
      given.
    steps: from one mean to the next, as for `every`.
    delay: steps until a mean is there, from 0 to `steps`. One more vector is
      kept, from 2 on.

  Returns:
    A transformation whose state is an `OuterState`. An update that is not
    finite is lost, and counted; so is a mean, after which all are back at phi.

  Raises:
    ValueError: another algorithm, or `every` or `streaming` of one, which stand
      around this; steps < 1; a delay above the steps.
    TypeError: an optimizer that is none, such as a learning rate.

  >>> from moniqua_jax import allreduce, eden
  >>> mean = allreduce(eden(bits=2), 'scatter_reduce',
  ...                  axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.sgd(0.1), outer(mean, optax.sgd(1.0), steps=4))

  Source: Algorithm 1 of arXiv:2311.08105 and of arXiv:1909.13014; Section 2.3
  of arXiv:2501.18512 for the delay.
  """
  optimizer = optax.sgd(1.0) if optimizer is None else optimizer
  if not hasattr(optimizer, 'update'):
    raise TypeError(
      f'optimizer={optimizer!r:.60}; outer takes one of optax, such as '
      'optax.sgd(0.7, momentum=0.9, nesterov=True).'
    )
  optimizer = optax.with_extra_args_support(optimizer)
  if isinstance(algorithm, Gossip) and algorithm.heard:
    if algorithm.period != 1:
      raise ValueError(
        f'outer: {algorithm.name} rests in some steps, and an outer step is of '
        'what was mixed; write outer(..., steps), or streaming(outer(...)).'
      )
    if algorithm.name != 'dpsgd':
      raise ValueError(
        f'outer: {algorithm.name} is no mean of what workers hold; use dpsgd, '
        'or rounds or answered of it, or a mean such as allreduce.'
      )
    form = _of_gossip(algorithm, optimizer)
  elif getattr(algorithm, 'whole', None):
    form = _of_mean(algorithm.whole(), optimizer)
  else:
    name = getattr(algorithm, 'name', algorithm)
    raise ValueError(
      f'outer: {name} is no mean of what workers hold, and no gossip; use '
      'allreduce, error_feedback, double_squeeze, dcgd, diana, or dpsgd.'
    )
  if delay:
    return delayed(form, steps, delay)
  return form if steps == 1 else every(form, steps)


def _of_mean(reduction: Reduction, optimizer) -> Gossip:
  """Builds the form in which all workers share one phi."""

  def init(params):
    x, _ = gossip.flatten(params)
    anchor = collectives.mean(x, reduction.axis_name)
    none = Counted(jnp.int32(-1), jnp.int32(0))
    return OuterState(none, anchor, optimizer.init(x), reduction.init(x))

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    way = state.anchor - (x + u)
    delta, mean = reduction.update(way, state.mean, step=step)
    change, own = optimizer.update(delta, state.own, state.anchor, **extra_args)
    took = numerics.finite((delta, change)) & _as_finite(own, state.own)
    took &= _lost(mean) == _lost(state.mean)
    anchor, own = numerics.select(
      took, (state.anchor + change, own), (state.anchor, state.own)
    )
    turn = gossip.turn(state.heard, step)
    lost = state.heard.lost + (~took).astype(jnp.int32)
    heard = Counted(turn + 1, lost)
    return unravel(anchor - x), OuterState(heard, anchor, own, mean)

  return remembering(init, update, f'outer_{reduction.name}', heard=None)


def _of_gossip(algorithm: Gossip, optimizer) -> Gossip:
  """Builds the form in which each worker has a phi of its own."""
  mixing = adapt_then_combine(algorithm)

  def init(params):
    x, _ = gossip.flatten(params)
    own = mixing.init(x)
    # Copies: whoever donates the parameters and the state donates each once.
    heard, anchor = jax.tree.map(jnp.copy, (own.heard, x))
    return OuterState(heard, anchor, optimizer.init(x), own)

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    moved, mean = mixing.update(u, state.mean, x, step=step, **extra_args)
    delta = state.anchor - (x + moved)
    change, own = optimizer.update(delta, state.own, state.anchor, **extra_args)
    # 0 with `optax.sgd(1.0)`, so that nothing is rounded.
    moved, own, took = numerics.select(
      numerics.finite(change) & _as_finite(own, state.own),
      (moved + (change + delta), own, jnp.int32(1)),
      (moved, state.own, jnp.int32(0)),
    )
    lost = state.heard.lost + mean.heard.lost - state.mean.heard.lost
    heard = mean.heard._replace(lost=lost + 1 - took)
    return unravel(moved), OuterState(heard, x + moved, own, mean)

  says = {**vars(mixing), 'name': f'outer_{algorithm.name}'}
  del says['taken']
  return remembering(init, update, **says)


def _lost(mean) -> Array:
  """Counts the means that the reduction itself has lost."""
  return jnp.asarray(getattr(mean, 'lost', 0))


def _as_finite(new, old) -> Array:
  """Tells whether leaves are finite, but for those that were not before.

  optax keeps infinities: the least loss so far, in `reduce_on_plateau`.
  """
  one = lambda new, old: numerics.finite(new) | ~numerics.finite(old)
  each = jax.tree.leaves(jax.tree.map(one, new, old))
  return functools.reduce(jnp.logical_and, each, jnp.bool(True))
