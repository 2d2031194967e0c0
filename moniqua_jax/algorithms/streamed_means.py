"""Means of gradients in fragments: what is not in this mean is in a later one.

Ours: the fragments of `streaming`, with the memory of `error_feedback` for the
others. Each coordinate has all of its gradients in a mean, none of them twice.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import collectives, gossip
from moniqua_jax.algorithms import fragments as parts
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.algorithms.transformation import Reduction, unless_finite

Array = jax.Array


class StreamedMeans(NamedTuple):
  """State of the means of gradients in fragments.

  Attributes:
    waiting: f32[d], what has not been in a mean yet.
    own: of the reduction, with a row for each fragment.
    turn: i32[], means so far.
    short: i32[P], how often each round of messages travelled in short form.
    lost: i32[], gradients of this worker and means that were not finite.
  """

  waiting: Array
  own: Any
  turn: Array
  short: Array
  lost: Array


def streamed(reduction: Reduction, fragments: int) -> Reduction:
  """Builds `streaming` of a reduction.

  A gradient that is not finite is lost, as it would stay in what waits. Where a
  mean is not, what waited for it is lost, on all workers: at its next turn it
  would be as large, and its fragment in no mean again.
  """
  if reduction.whole is None:
    raise ValueError(
      f'streaming: {reduction.name} cannot wait for gradients; use allreduce, '
      'error_feedback, double_squeeze, dcgd or diana.'
    )
  if fragments == 1:
    return reduction
  inner = reduction.whole()

  def init(params):
    x, _ = gossip.flatten(params)
    windows = parts.windows(x.size, fragments)
    own = jax.vmap(inner.init)(jnp.zeros((fragments, windows.size), x.dtype))
    nothing = jnp.int32(0)
    return StreamedMeans(jnp.zeros_like(x), own, nothing, _short(own), nothing)

  def update(updates, state, params=None, *, step=None, **extra_args):
    del step
    updates, lost = unless_finite(updates)
    gradient, unravel = gossip.flatten(updates)
    large_leaves.require_memory_of(
      reduction.name, jnp.zeros_like, gradient, state.waiting, updates, params
    )
    windows = parts.windows(gradient.size, fragments)
    turn = collectives.common(state.turn)
    f, waiting = turn % fragments, state.waiting + gradient
    sent = windows.read(waiting, f)
    row = jax.tree.map(lambda rows: rows[f], state.own)
    extra_args |= {'step': turn // fragments}
    mean, moved = inner.update(sent, row, **extra_args)
    mean, failed = unless_finite(mean)
    failed |= _lost(moved) > _lost(row)
    own = jax.tree.map(
      lambda rows, row: lax.dynamic_update_index_in_dim(rows, row, f, 0),
      state.own,
      moved,
    )
    waiting = windows.write(waiting, f, jnp.zeros_like(sent))
    mean = unravel(windows.write(jnp.zeros_like(gradient), f, mean))
    mean = jax.tree.map(lambda new, old: new.astype(old.dtype), mean, updates)
    lost = state.lost + lost + failed
    return mean, StreamedMeans(waiting, own, turn + 1, _short(own), lost)

  return Reduction(init, update, reduction.name)


def _lost(own) -> Array:
  """Counts the means of a fragment that the reduction itself lost."""
  return jnp.asarray(getattr(own, 'lost', 0))


def _short(own) -> Array:
  """Adds up the short messages of all fragments; none in full precision."""
  return getattr(own, 'short', jnp.zeros((1, 0), jnp.int32)).sum(axis=0)
