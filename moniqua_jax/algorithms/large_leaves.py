"""Which part of a gradient is quantized: its large leaves, as one vector.

Buckets go across leaves; small leaves and those of one dimension (biases,
scales of normalisation) are few and delicate: their mean is exact.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import collectives, gossip, quantized_mean
from moniqua_jax.algorithms.transformation import Reduction
from moniqua_jax.quantizers import base, numerics

Array = jax.Array


_BIASED, _UNBIASED = 'sign, top_k or uniform', 'qsgd, nuqsgd or dithering'
# What is quantized here is near nothing that its receivers know; what suits.
FAR = {
  'adiana': _UNBIASED,
  'dcgd': _UNBIASED,
  'diana': _UNBIASED,
  'double_squeeze': _BIASED,
  'error_feedback': _BIASED,
}


def require_suited(name: str, quantizer: base.Quantizer | base.Tuned) -> None:
  """Refuses a quantizer that wants what the reduction of this name has not."""
  quantizer = base.tuned(quantizer)
  if not base.needs_near(quantizer):
    return
  if name in FAR:
    raise ValueError(
      f'{name}: this quantizer (moniqua, or one made of it) decodes next to a '
      f'reference near what was sent, and {name} has none; take {FAR[name]}.'
    )
  if quantizer.answered:
    raise ValueError(
      f'{name}: this quantizer (auto_theta) learns from answers, and a mean '
      f'gives none; take {_UNBIASED}, or moniqua with a theta.'
    )


def require_far(name: str, quantizer: base.Tuned) -> None:
  """Refuses, in `outer`, what one worker may read and another one not.

  Who could not would lose a mean that the others take, and from there on the
  workers would be at two points.
  """
  if base.needs_near(quantizer):
    raise ValueError(
      f'outer: a message of this quantizer (moniqua, or one made of it) may be '
      f'read by one worker and not by another, which then would not have the '
      f'same mean of {name}; take {_UNBIASED}.'
    )


def small(leaf: Array) -> bool:
  """Tells whether a leaf stays exact: it has below 1024 values, or is 1-d."""
  return leaf.size < 1024 or leaf.ndim < 2


def none_small(leaf: Array) -> bool:
  """Tells of any leaf that it is quantized."""
  del leaf
  return False


class ReduceState(NamedTuple):
  """State of a quantized mean of gradients.

  Attributes:
    tuned: state of the quantizer, () where it does not move.
    error: () or f32[...], what has not been sent yet.
    short: i32[P], how often each round of messages travelled in short form.
    lost: i32[], steps whose mean was not finite: they left `error` as it was.
  """

  tuned: tuple
  error: tuple | Array
  short: Array
  lost: Array


class Rule(NamedTuple):
  """What a reduction does with the vector of large leaves.

  Attributes:
    name: of the algorithm.
    mean: (quantizer, x: f32[d], error, key, axis_name) -> (Mean, error).
    error: f32[d] -> the first error.
    rounds: P, of messages in a step.
    shift: state -> what is subtracted from x before it is quantized.
  """

  name: str
  mean: Callable
  error: Callable
  rounds: int = 1
  shift: Callable = lambda state: 0.0


def on_large_leaves(
  rule: Rule,
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: Array,
  keep: 'Keep',
) -> Reduction:
  """Builds a reduction that quantizes the large leaves as one flat vector.

  Where a gradient is not finite, neither is the mean, on any worker: that all
  see, so that all leave what they keep as it is. With a memory the step is lost
  and the mean 0; without one it is as it is, for who looks.
  """
  tuned = base.tuned(quantizer)
  require_suited(rule.name, tuned)

  def init(params):
    x, _ = split(params, keep)
    short = jnp.zeros(rule.rounds, jnp.int32)
    return ReduceState(tuned.init(), rule.error(x), short, jnp.int32(0))

  def update(updates, state, params=None, *, step, **extra_args):
    del extra_args
    x, join = split(updates, keep)
    require_memory_of(rule.name, rule.error, x, state.error, updates, params)
    current = tuned.quantizer(state.tuned, step)
    own_key = gossip.worker_key(key, step, axis_name, current.shared)
    reduced, left = rule.mean(current, x, state.error, own_key, axis_name)
    observed = tuned.observe(state.tuned, gossip.no_news(1), x)
    kept = collectives.mean(join.kept, axis_name)
    mean = join.together(reduced.mean, kept)
    took = numerics.finite((told(reduced.mean, axis_name), kept)) & held(mean)
    if _is_memory(left):
      mean = or_nothing(took, mean)
    left = numerics.select(took, left, state.error)
    short = state.short + reduced.short.astype(jnp.int32)
    lost = state.lost + (~took).astype(jnp.int32)
    return mean, ReduceState(observed, left, short, lost)

  def whole():
    require_far(rule.name, tuned)
    return on_large_leaves(
      rule, quantizer, axis_name=axis_name, key=key, keep=none_small
    )

  return Reduction(
    init,
    update,
    rule.name,
    shift=rule.shift,
    axis_name=axis_name,
    whole=whole,
  )


def _is_memory(error) -> bool:
  """Tells whether something is kept that a step could spoil for good."""
  dtypes = [leaf.dtype for leaf in jax.tree.leaves(error)]
  return any(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)


def or_nothing(took: Array, tree):
  """Returns a tree, or zeros like it where the step is lost."""
  return numerics.select(took, tree, jax.tree.map(jnp.zeros_like, tree))


def told(mean: Array, axis_name: str) -> Array:
  """Returns a value of each worker's chunk of a quantized mean.

  Where a message was not readable the whole mean, or that chunk of it, is NaN:
  this tells as much as a pass over all values.
  """
  return mean[:: -(-mean.size // lax.axis_size(axis_name))]


def held(mean) -> Array:
  """Tells whether leaves of float16 hold a mean: a code may round it up."""
  leaves = jax.tree.leaves(mean)
  return numerics.finite([leaf for leaf in leaves if leaf.dtype == jnp.float16])


def chosen(quantizer, strategy: str, key) -> quantized_mean.Strategy:
  """Looks up a strategy by its name, and refuses one without what it needs."""
  if strategy not in quantized_mean.STRATEGIES:
    raise ValueError(
      f'strategy={strategy!r}; choose from {sorted(quantized_mean.STRATEGIES)}.'
    )
  if quantizer is None or key is None:
    missing = 'quantizer' if quantizer is None else 'key'
    raise ValueError(f'strategy={strategy!r} needs a {missing}.')
  return quantized_mean.STRATEGIES[strategy]


def require_memory_of(name, start: Callable, x, memory, gradient, params):
  """Refuses a gradient whose large leaves are not those of the memory.

  A leaf without a gradient, None, takes no part in a mean; what a worker keeps
  of it would be added to another leaf.
  """
  sizes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
  if sizes(jax.eval_shape(start, x)) == sizes(memory):
    return
  names = lambda tree: {
    jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)
  }
  missing = sorted(names(params) - names(gradient))
  raise ValueError(
    f'{name}: what is quantized of this gradient has {x.size} values, and its '
    'state was made for other parameters'
    + (f'; {missing} have no gradient. ' if missing else '. ')
    + f'Leave out what is frozen when the state is made, too: '
    f'optax.masked({name}(...), mask).'
  )


def shapes(leaves: list, keep: 'Keep') -> list[tuple[int, ...]]:
  """Returns the shapes of the leaves of a gradient, also of a flat one."""
  if isinstance(keep, Slices):
    return list(keep.shapes)
  return [jnp.shape(leaf) or (1,) for leaf in leaves]


class Join(NamedTuple):
  """The exact part of a gradient, and the way back to the whole.

  Attributes:
    kept: list of arrays.
    together: (f32[d], list like kept) -> the gradient.
  """

  kept: list
  together: Callable


def split(gradient, keep: 'Keep') -> tuple[Array, Join]:
  """Takes the large leaves out of a gradient, as one vector.

  >>> x, join = split([jnp.ones((2, 2)), jnp.zeros(1)], lambda a: a.ndim < 2)
  >>> x
  Array([1., 1., 1., 1.], dtype=float32)
  >>> [leaf.shape for leaf in join.together(x, join.kept)]
  [(2, 2), (1,)]
  """
  leaves, whole, keeps = parts(gradient, keep)
  if all(keeps):
    raise ValueError(
      f'all {len(leaves)} leaves stay in full precision: none is large enough '
      'to be quantized. Give the gradient as a tree of its leaves, or another '
      'keep, such as lambda leaf: False.'
    )
  large = [leaf for leaf, kept in zip(leaves, keeps, strict=True) if not kept]
  x, back = gossip.flatten(large)

  def together(x, kept):
    typed = lambda new, old: new.astype(old.dtype)
    quantized, kept = map(typed, back(x), large), iter(kept)
    return whole([next(kept if stays else quantized) for stays in keeps])

  kept = [leaf for leaf, stays in zip(leaves, keeps, strict=True) if stays]
  return x, Join(kept, together)


def parts(gradient, keep: 'Keep') -> tuple[list, Callable, Sequence[bool]]:
  """Cuts a gradient into leaves: those, the way back, and which stay exact."""
  collectives.require(jnp.inexact, gradient, 'gradient')
  if isinstance(keep, Slices):
    return keep.cut(gradient), keep.vector, keep.small
  leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, gradient))
  return leaves, structure.unflatten, [keep(leaf) for leaf in leaves]


# ---------------------------------------------- the leaves of a flat gradient


class Slices(NamedTuple):
  """Where the leaves of a gradient lie in its flat vector; static.

  Attributes:
    ends: (start, stop) of each slice, in the order of the leaves.
    small: of each slice, whether it stays exact.
    sizes: of the leaves that are quantized.
    shapes: of each slice that is a whole leaf; of others their size.
  """

  ends: tuple[tuple[int, int], ...]
  small: tuple[bool, ...]
  sizes: tuple[int, ...]
  shapes: tuple[tuple[int, ...], ...]

  def cut(self, vector: Array) -> list:
    """Returns the slices of a vector."""
    return [vector[start:stop] for start, stop in self.ends]

  def vector(self, pieces: list) -> Array:
    """Puts a vector together from its slices."""
    in_order = sorted(range(len(pieces)), key=self.ends.__getitem__)
    return gossip.end_to_end([pieces[i] for i in in_order])


Keep = Callable[[Array], bool] | Slices


def slices(tree, rows: int = 1) -> Slices:
  """Finds the leaves of a tree in its flat vector.

  Where the vector is a matrix of so many `rows`, a leaf has a slice in each.

  >>> slices([jnp.zeros(3), jnp.zeros((32, 64))]).ends
  ((0, 3), (3, 2051))
  """
  leaves = jax.tree.leaves(tree)
  widths = [leaf.size // rows for leaf in leaves]
  starts, width = np.cumsum([0, *widths[:-1]]).tolist(), sum(widths)
  ends = [
    (row * width + start, row * width + start + size)
    for start, size in zip(starts, widths, strict=True)
    for row in range(rows)
  ]
  stays = [small(leaf) for leaf in leaves for _ in range(rows)]
  sizes = [leaf.size for leaf in leaves if not small(leaf)]
  whole = [leaf.shape if rows == 1 else (leaf.size // rows,) for leaf in leaves]
  shapes = [shape or (1,) for shape in whole for _ in range(rows)]
  return Slices(tuple(ends), tuple(stays), tuple(sizes), tuple(shapes))
