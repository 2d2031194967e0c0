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


def require_rows(n: int, axis_name: str, what: str) -> None:
  """Refuses what has an entry for each of n workers, where they are not n.

  A receiver that nobody sends to would get zeros, and an index beyond the end
  of a table its last row, both without a word.
  """
  size = lax.axis_size(axis_name)
  if n != size:
    raise ValueError(
      f'{what} of {n} workers, but there are {size} on the axis '
      f'{axis_name!r}; give it {size} workers, or the runner {n} of them '
      f'(sharded takes a mesh of {n} devices).'
    )


def send(payload: Array, perm: tuple[int, ...], axis_name: str) -> Array:
  """Sends u8[m] along one edge, and returns what came in on it.

  Equivalent, all workers stacked: `received[perm[i]] = payload[i]`.
  """
  require_rows(len(perm), axis_name, 'a topology')
  return lax.ppermute(payload, axis_name, tuple(enumerate(perm)))


def mean(tree, axis_name: str):
  """Returns the mean over all workers in full precision: (1/n) sum_i tree_i.

  Each leaf is added up in float32 at least, and keeps its type.
  """
  require(jnp.inexact, tree, 'a value')

  def one(leaf):
    leaf = jnp.asarray(leaf)
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return lax.pmean(wide, axis_name).astype(leaf.dtype)

  return jax.tree.map(one, tree)


def require(kind, tree, name: str) -> None:
  """Refuses by its path the leaf of a tree that is not of a kind of numbers.

  A mean of integers is none, and one of the codes of a key even less.
  """
  for path, leaf in jax.tree.leaves_with_path(tree):
    dtype = getattr(leaf, 'dtype', None) or _type_of(leaf)
    if dtype is None or not jax.dtypes.issubdtype(dtype, kind):
      what = f'{leaf!r:.40}, no array' if dtype is None else dtype
      raise ValueError(
        f'{name}{jax.tree_util.keystr(path)} is {what}; workers take means of '
        'floats. Leave it out by optax.masked.'
      )


def _type_of(leaf):
  """Returns the type of a number of Python; None of what is no number."""
  if isinstance(leaf, (bool, int, float, complex)):
    return jnp.result_type(leaf)
  return None


@jax.custom_batching.custom_vmap
def common(number: Array) -> Array:
  """Tells `vmap` that a number is the same on all workers; no collective.

  One that is kept in the state of each worker looks like n numbers, and then
  `lax.switch` would compute all branches. The first worker's is taken.
  """
  return number


@common.def_vmap
def _common_to_all(axis_size, in_batched, number):
  del axis_size, in_batched
  return number[0], False


def largest(x: Array, axis_name: str) -> Array:
  """Returns the largest over all workers: max_i x_i."""
  return lax.pmax(x, axis_name)


def gathered(x: Array, axis_name: str | tuple[str, ...]) -> Array:
  """Returns what all workers have, on a new first axis: x_1, ..., x_n."""
  return lax.all_gather(x, axis_name)


def told(message: Array, axis_name: str) -> Array:
  """Sends one message to all workers; row j of the result came from worker j.

  Between processes on CPUs an all-gather goes around a ring, n - 1 messages one
  after another. These n - 1 are on their way at once.
  """
  if axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
    return gathered(message, axis_name)  # under vmap or pmap

  def to_each(message):
    copies = (lax.axis_size(axis_name), *message.shape)
    return swap(jnp.broadcast_to(message, copies), axis_name)

  around = functools.partial(gathered, axis_name=axis_name)
  return lax.platform_dependent(message, cpu=to_each, default=around)


def swap(rows: Array, axis_name: str) -> Array:
  """Sends row j to worker j; row j of the result came from worker j."""
  return lax.all_to_all(rows, axis_name, split_axis=0, concat_axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def whole(piece: Array, axis_name: str) -> Array:
  """Gathers the pieces of a vector; its gradient is the mean of the gradients.

  whole = x_1, ..., x_n        dx_i = (1/n) sum_j (dwhole_j)_i
  """
  return gathered(piece, axis_name)


def _mean_of_piece(axis_name, _, gradient):
  return (jnp.mean(swap(gradient, axis_name), axis=0),)


whole.defvjp(lambda piece, axis: (gathered(piece, axis), None), _mean_of_piece)
