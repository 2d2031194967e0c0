"""An optimizer that goes by layers, where parameters are one vector."""

import optax

from moniqua_jax import pods


def by_leaf(
  held: pods.Held, optimizer: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
  """Gives an optimizer the leaves of a vector, and makes its updates one.

  Args:
    held: how parameters are cut into leaves, and the way back.
    optimizer: of the leaves.

  Returns:
    A transformation of f32[d]; its state is that of the leaves.
  """
  optimizer = optax.with_extra_args_support(optimizer)

  def init(params):
    return optimizer.init(held.pieces(params))

  def update(updates, state, params=None, **extra_args):
    leaves = None if params is None else held.pieces(params)
    moved, state = optimizer.update(
      held.pieces(updates), state, leaves, **extra_args
    )
    return held.vector(moved), state

  return optax.GradientTransformationExtraArgs(init, update)
