"""What a worker holds as one vector, and how far workers are apart."""

from collections.abc import Callable
import functools

import jax
from jax import lax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from moniqua_jax import collectives
from moniqua_jax.quantizers import numerics

Array = jax.Array


def flatten(params) -> tuple[Array, Callable]:
  """Makes one f32[d] of a pytree of parameters, and the function back.

  f64[d] if all leaves are f64 (the laboratory). What comes back has the
  vector's type: of an update of a bfloat16 leaf only its sum with the leaf is
  rounded.
  """
  dtype = vector_type(params)
  params = jax.tree.map(lambda v: jnp.asarray(v, dtype), params)
  rows = [leaf.reshape(-1) for leaf in jax.tree.leaves(params)]
  return end_to_end(rows), ravel_pytree(params)[1]


@functools.partial(jax.jit, inline=True)
def end_to_end(parts: list[Array]) -> Array:
  """Joins vectors of one type.

  XLA for CPUs would go through all places once for each part, with loads that
  are masked where the part is not. Where there is no memory behind the part,
  each of them takes as long as a hundred others.
  """
  if len(parts) == 1:
    return parts[0]
  *starts, size = np.cumsum([0, *(part.size for part in parts)]).tolist()

  def one_by_one(*parts):
    # Of zeros that it knows XLA would make the first two parts a padded one.
    whole = lax.optimization_barrier(jnp.zeros(size, parts[0].dtype))
    for start, part in zip(starts, parts, strict=True):
      whole = lax.dynamic_update_slice(whole, part, (start,))
    return whole

  at_once = lambda *parts: jnp.concatenate(parts)
  return lax.platform_dependent(*parts, cpu=one_by_one, default=at_once)


def vector_type(params):
  """Returns the type of a vector of all leaves, which must be floats."""
  leaves = jax.tree.leaves(params)
  if not leaves:
    raise ValueError(
      'gossip needs parameters, and was given none, or no leaf: '
      'tx.update(updates, opt_state, params, step=step).'
    )
  collectives.require(jnp.floating, params, 'params')
  double = all(jnp.result_type(leaf) == jnp.float64 for leaf in leaves)
  return jnp.float64 if double else jnp.float32


def consensus(x: Array, axis_name: str) -> tuple[Array, Array]:
  """Measures x_i - mean_j x_j: its root mean square and largest absolute value.

  Costs an exact all-reduce of d floats; for evaluation, not for every step.
  """
  x, _ = flatten(x)
  apart = x - collectives.mean(x, axis_name)
  square = collectives.mean(jnp.mean(apart**2), axis_name)
  return jnp.sqrt(square), collectives.largest(
    numerics.largest(apart), axis_name
  )
