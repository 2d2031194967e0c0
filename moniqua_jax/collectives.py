"""What workers tell each other: the only file that calls a collective of JAX.

A worker is a pure function of its own arrays and the name of the axis over
which the workers are laid out. `psum_scatter` is not used: over Gloo it gives
wrong values.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array


def send(payload: Array, perm: tuple[int, ...], axis_name: str) -> Array:
  """Sends the payload along one edge, and returns what came in on it.

  Equivalent, all workers stacked: `received[perm[i]] = payload[i]`.

  Args:
    payload: u8[m] (or f32[d] of `full_precision`).
    perm: perm[i] is the worker to which worker i sends.
    axis_name: of the workers.

  Returns:
    An array like `payload`.

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> pass_on = simulated(lambda x: send(x, (1, 2, 0), AXIS), (0,))
  >>> pass_on(jnp.uint8([[1], [2], [3]])).ravel().tolist()
  [3, 1, 2]
  """
  return lax.ppermute(payload, axis_name, tuple(enumerate(perm)))


def mean(tree, axis_name: str):
  """The mean over all workers in full precision: (1/n) sum_i tree_i.

  Args:
    tree: a pytree of f32 arrays, this worker's own.
    axis_name: of the workers.

  Returns:
    The mean, the same on all workers.

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> simulated(lambda x: mean(x, AXIS), (0,))(jnp.array([0.0, 2.0]))
  Array([1., 1.], dtype=float32)
  """
  return jax.tree.map(lambda leaf: lax.pmean(leaf, axis_name), tree)


def largest(x: Array, axis_name: str) -> Array:
  """The largest over all workers: max_i x_i.

  Args:
    x: f32[...], this worker's own.
    axis_name: of the workers.

  Returns:
    f32[...], the same on all workers.

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> simulated(lambda x: largest(x, AXIS), (0,))(jnp.array([0.0, 2.0]))
  Array([2., 2.], dtype=float32)
  """
  return lax.pmax(x, axis_name)


def gathered(x: Array, axis_name: str) -> Array:
  """What all workers have, side by side: x_1, ..., x_n.

  Args:
    x: this worker's own.
    axis_name: of the workers.

  Returns:
    An array with a first axis of n, the same on all workers.

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> simulated(lambda x: gathered(x, AXIS), (0,))(jnp.array([0, 2])).tolist()
  [[0, 2], [0, 2]]
  """
  return lax.all_gather(x, axis_name)


def swap(rows: Array, axis_name: str) -> Array:
  """Row j goes to worker j; row j of the result came from worker j.

  Args:
    rows: [n, ...], this worker's own.
    axis_name: of the workers.

  Returns:
    An array like `rows`.

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> simulated(lambda x: swap(x, AXIS), (0,))(jnp.array([[1, 2], [3, 4]]))
  Array([[1, 3],
         [2, 4]], dtype=int32)
  """
  return lax.all_to_all(rows, axis_name, split_axis=0, concat_axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def whole(piece: Array, axis_name: str) -> Array:
  """All pieces side by side; its gradient is the mean gradient of the piece.

    whole = x_1, ..., x_n        dx_i = (1/n) sum_j (dwhole_j)_i

  Args:
    piece: f32[...], this worker's own.
    axis_name: over which the pieces are cut.

  Returns:
    f32[n, ...], the same on all workers.

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> simulated(lambda x: whole(x, AXIS), (0,))(jnp.array([0, 2])).tolist()
  [[0, 2], [0, 2]]
  """
  return gathered(piece, axis_name)


def _mean_of_piece(axis_name, _, gradient):
  return (jnp.mean(swap(gradient, axis_name), axis=0),)


whole.defvjp(lambda piece, axis: (gathered(piece, axis), None), _mean_of_piece)
