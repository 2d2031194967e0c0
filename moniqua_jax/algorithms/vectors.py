"""Updates as the vector that goes with the parameters', whatever they lack.

optax leaves out what does not move: None where a leaf is frozen, a `MaskedNode`
where `masked` hides it. Gossip moves all parameters that it is given.
"""

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import collectives, gossip


def flatten_like(updates, params) -> jax.Array:
  """Makes the vector of updates that goes with that of the parameters."""
  return gossip.flatten(complete(updates, params))[0]


def complete(updates, params):
  """Gives each parameter its update, in the type of the vectors.

  A leaf without one, None or optax's `MaskedNode`, has 0: it stays where it is,
  and still gossips. Another structure or shape is refused by its path.
  """
  dtype = gossip.vector_type(params)
  collectives.require(jnp.floating, updates, 'updates')
  leaves, tree = jax.tree.flatten_with_path(updates, is_leaf=_is_absent)
  try:
    owners = tree.flatten_up_to(params)
  except ValueError as error:
    raise ValueError(_mismatch(updates, params, error)) from error

  def one(path, update, owner):
    if _is_absent(update):
      return jax.tree.map(lambda v: jnp.zeros(jnp.shape(v), dtype), owner)
    name = jax.tree_util.keystr(path)
    if not jax.tree_util.all_leaves([owner]):
      raise ValueError(f'updates{name} is one array, params{name} is not.')
    if jnp.shape(update) != jnp.shape(owner):
      raise ValueError(
        f'updates{name} has shape {jnp.shape(update)}, params{name} has '
        f'{jnp.shape(owner)}; they must be equal.'
      )
    return jnp.asarray(update, dtype)

  return tree.unflatten(
    one(path, update, owner)
    for (path, update), owner in zip(leaves, owners, strict=True)
  )


def are_rounded(params) -> bool:
  """Tells whether a parameter has fewer bits than its place in the vector."""
  dtype = gossip.vector_type(params)
  bits = [jnp.finfo(jnp.result_type(v)).bits for v in jax.tree.leaves(params)]
  return min(bits) < jnp.finfo(dtype).bits


def _is_absent(update) -> bool:
  return update is None or isinstance(update, optax.MaskedNode)


def _mismatch(updates, params, error) -> str:
  """Names the leaves that only one of two trees has, or where they differ."""
  ours, theirs = (
    {
      jax.tree_util.keystr(path)
      for path, _ in jax.tree.leaves_with_path(tree, is_leaf=_is_absent)
    }
    for tree in (updates, params)
  )
  if ours == theirs:
    return f'updates and params have the same leaves in other nodes: {error}'
  return (
    'updates and params have another structure. Only in updates: '
    f'{sorted(ours - theirs)}; only in params: {sorted(theirs - ours)}. A '
    'parameter without an update has None in its place.'
  )
