"""Means over all workers. The only file with `psum` and its kin."""

import jax
from jax import lax


def exact(tree, axis_name: str):
  """The mean over all workers in full precision: (1/n) sum_i tree_i.

  Args:
    tree: a pytree of f32 arrays, this worker's own.
    axis_name: of the workers.

  Returns:
    The mean, the same on all workers.
  """
  return jax.tree.map(lambda leaf: lax.pmean(leaf, axis_name), tree)


def largest(x: jax.Array, axis_name: str) -> jax.Array:
  """The largest over all workers: max_i x_i.

  Args:
    x: f32[...], this worker's own.
    axis_name: of the workers.

  Returns:
    f32[...], the same on all workers.
  """
  return lax.pmax(x, axis_name)
