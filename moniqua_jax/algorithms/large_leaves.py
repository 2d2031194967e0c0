"""Which leaves of a gradient are quantized: the large ones, as one vector.

Buckets go across leaves; small leaves and those of one dimension (biases,
scales of normalisation) are few and delicate: their mean is exact.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import collectives, gossip, quantized_mean
from moniqua_jax.quantizers import base

Array = jax.Array


def small(leaf: Array) -> bool:
  """Whether a leaf stays in full precision: below 1024 values, or 1-d.

  Args:
    leaf: an array or its shape.

  Returns:
    A bool, static.

  >>> small(jnp.zeros((3, 3, 16, 16))), small(jnp.zeros(4096))
  (False, True)
  """
  return leaf.size < 1024 or leaf.ndim < 2


class ReduceState(NamedTuple):
  """What a quantized mean of gradients keeps.

  Attributes:
    tuned: state of the quantizer, () where it does not move.
    error: () or f32[...], what has not been sent yet.
    short: i32[P], how often each round of messages travelled in short form.
  """

  tuned: tuple
  error: tuple | Array
  short: Array


def on_large_leaves(
  quantizer: base.Quantizer | base.Tuned,
  mean: Callable,
  error: Callable,
  *,
  axis_name: str,
  key: Array,
  keep: Callable[[Array], bool],
  rounds: int,
) -> optax.GradientTransformationExtraArgs:
  """A transformation that quantizes the large leaves as one flat vector.

  Args:
    quantizer: a `Quantizer` or a `Tuned`.
    mean: (quantizer, x: f32[d], error, key, axis_name) -> (Mean, error).
    error: f32[d] -> the first error.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    keep: leaf -> whether it stays in full precision.
    rounds: P, of messages in a step.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers.
  """
  tuned = base.tuned(quantizer)

  def init(params):
    x, _ = split(params, keep)
    short = jnp.zeros(rounds, jnp.int32)
    return ReduceState(tuned.init(), error(x), short)

  def update(updates, state, params=None, *, step, **extra_args):
    del params, extra_args
    x, join = split(updates, keep)
    current = tuned.quantizer(state.tuned, step)
    own_key = gossip.worker_key(key, step, axis_name, current.shared)
    reduced, left = mean(current, x, state.error, own_key, axis_name)
    observed = tuned.observe(state.tuned, gossip.no_news(1), x)
    kept = collectives.mean(join.kept, axis_name)
    short = state.short + reduced.short
    state = ReduceState(observed, left, short)
    return join.together(reduced.mean, kept), state

  return optax.GradientTransformationExtraArgs(init, update)


def chosen(quantizer, strategy: str, key) -> quantized_mean.Strategy:
  """The strategy by its name, if what it needs is there.

  Args:
    quantizer: not None.
    strategy: a key of `reduce.STRATEGIES`.
    key: not None.

  Returns:
    A `Strategy`.

  Raises:
    ValueError: unknown strategy, or no quantizer or key.
  """
  if strategy not in quantized_mean.STRATEGIES:
    raise ValueError(
      f'strategy={strategy!r}; choose from {sorted(quantized_mean.STRATEGIES)}.'
    )
  if quantizer is None or key is None:
    missing = 'quantizer' if quantizer is None else 'key'
    raise ValueError(f'strategy={strategy!r} needs a {missing}.')
  return quantized_mean.STRATEGIES[strategy]


class Join(NamedTuple):
  """The small leaves, and the way back.

  Attributes:
    kept: list of arrays.
    together: (f32[d], list like kept) -> the tree.
  """

  kept: list
  together: Callable


def split(tree, keep: Callable[[Array], bool]) -> tuple[Array, Join]:
  """The large leaves as one vector, and what puts the tree together again.

  Args:
    tree: a pytree of f32 arrays.
    keep: leaf -> whether it stays in full precision.

  Returns:
    f32[d], in the order of the leaves, and `Join`.

  Raises:
    ValueError: nothing is left to quantize, or a leaf is not float32.

  >>> x, join = split([jnp.ones((2, 2)), jnp.zeros(1)], lambda a: a.ndim < 2)
  >>> x
  Array([1., 1., 1., 1.], dtype=float32)
  >>> [leaf.shape for leaf in join.together(x, join.kept)]
  [(2, 2), (1,)]
  """
  leaves, structure = jax.tree.flatten(tree)
  keeps = [keep(leaf) for leaf in leaves]
  if all(keeps):
    raise ValueError(
      f'all {len(leaves)} leaves stay in full precision: none is large enough '
      'to be quantized. Give the gradient as a tree of its leaves, or another '
      'keep, such as lambda leaf: False.'
    )
  large = [leaf for leaf, kept in zip(leaves, keeps, strict=True) if not kept]
  x, back = gossip.flatten(large)

  def together(x, kept):
    large, kept = iter(back(x)), iter(kept)
    return structure.unflatten(
      [next(kept if stays else large) for stays in keeps]
    )

  kept = [leaf for leaf, stays in zip(leaves, keeps, strict=True) if stays]
  return x, Join(kept, together)
