"""Local steps, and an optimizer of what the workers moved together: DiLoCo.

Douillard et al., "DiLoCo: distributed low-communication training of language
models", 2023, arXiv:2311.08105, Algorithm 1; without an outer momentum it is
local SGD with quantized means, FedPAQ: Reisizadeh et al., "FedPAQ", AISTATS
2020, arXiv:1909.13014, Algorithm 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import collectives, gossip
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.every import every
from moniqua_jax.algorithms.transformation import (
  Counted,
  Reduction,
  remembering,
)
from moniqua_jax.quantizers import base

Array = jax.Array


class OuterState(NamedTuple):
  """State of an outer optimizer.

  Attributes:
    heard: `Counted`, means so far, and updates and means that were lost.
    anchor: f32[d], phi, where all workers were together; the same on all.
    own: of the outer optimizer.
    mean: of the reduction.
  """

  heard: Counted
  anchor: Array
  own: Any
  mean: Any


def outer(
  algorithm: Reduction,
  optimizer: optax.GradientTransformation | None = None,
  steps: int | tuple[tuple[int, int], ...] = 1,
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

  With `optax.sgd(1.0)` the workers' mean is taken: local SGD; with Nesterov's
  momentum it is DiLoCo, with the learning rate .7 and momentum .9 of its paper.
  Where workers start from different points, phi is their mean.

  Args:
    algorithm: the mean: allreduce, error_feedback, double_squeeze, dcgd, diana.
      All leaves are in it, as one vector, whatever its `keep` says.
    optimizer: of Delta, which it takes as a gradient; `optax.sgd(1.0)` if not
      given.
    steps: from one mean to the next, as for `every`.

  Returns:
    A transformation whose state is an `OuterState`. An update that is not
    finite is lost, and counted; so is a mean, after which all are back at phi.

  Raises:
    ValueError: no mean; steps < 1.

  >>> from moniqua_jax import allreduce, eden
  >>> mean = allreduce(eden(bits=2), 'scatter_reduce',
  ...                  axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.sgd(0.1), outer(mean, optax.sgd(1.0), steps=4))

  Source: Algorithm 1 of arXiv:2311.08105 and of arXiv:1909.13014.
  """
  if getattr(algorithm, 'whole', None) is None:
    name = getattr(algorithm, 'name', algorithm)
    raise ValueError(
      f'outer: {name} is no mean of what workers hold; use allreduce, '
      'error_feedback, double_squeeze, dcgd or diana.'
    )
  reduction = algorithm.whole()
  optimizer = optax.with_extra_args_support(optimizer or optax.sgd(1.0))

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
    took = base.finite(delta) & (_lost(mean) == _lost(state.mean))
    change, own = optimizer.update(delta, state.own, state.anchor, **extra_args)
    anchor, own = base.select(
      took, (state.anchor + change, own), (state.anchor, state.own)
    )
    turn = gossip.turn(state.heard, step)
    lost = state.heard.lost + (~took).astype(jnp.int32)
    heard = Counted(turn + 1, lost)
    return unravel(anchor - x), OuterState(heard, anchor, own, mean)

  form = remembering(init, update, f'outer_{algorithm.name}', heard=None)
  return form if steps == 1 else every(form, steps)


def _lost(mean) -> Array:
  """Counts the means that the reduction itself has lost."""
  return jnp.asarray(getattr(mean, 'lost', 0))
