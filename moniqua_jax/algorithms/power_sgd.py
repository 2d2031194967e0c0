"""PowerSGD: the mean of gradients in a few columns, and what is left is kept.

Vogels, Karimireddy and Jaggi, "PowerSGD: practical low-rank gradient
compression for distributed optimization", NeurIPS 2019, arXiv:1905.13727.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from moniqua_jax import arguments, collectives, dither
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.algorithms.transformation import Reduction
from moniqua_jax.quantizers import numerics

Array = jax.Array


class PowerState(NamedTuple):
  """State of PowerSGD, of the leaves that are sent as factors.

  Attributes:
    error: M - P Q^T of each, f32[m, k], what has not been sent yet.
    right: Q of each, f32[k, r], the same on all workers: the next step begins
      where this one ended.
    lost: i32[], steps whose mean was not finite: they left the rest as it was.
  """

  error: list
  right: list
  lost: Array


def power_sgd(
  rank: int,
  *,
  axis_name: str,
  key: jax.Array,
  keep: Callable[[jax.Array], bool] = large_leaves.small,
) -> optax.GradientTransformationExtraArgs:
  """First in the chain: a mean of matrices by two factors of rank r.

    M_i = G_i + E_i                           a leaf as a matrix, m x k
    P = orthonormal((1/n) sum_i M_i Q)        one step of power iteration
    G_i <- P ((1/n) sum_i M_i^T P)^T,         of which Q is the next Q
    E_i <- M_i - P (M_i^T P)^T

  Both means are linear, all-reduces of float32: r (m + k) values in place of
  m k, whatever n. The last axis of a leaf is k; of a convolution's kernel the
  others are m.

  Args:
    rank: r, 1 to 4 in the paper.
    axis_name: of the workers.
    key: of the run, the same on all workers: of the first Q.
    keep: as for `allreduce`. Leaves that factors would not make smaller are
      exact, too.

  Returns:
    A transformation whose `update(updates, state, params)` needs no step. Its
    state is a `PowerState`.

  Raises:
    ValueError: rank below 1; later, if no leaf is large enough.

  >>> mean = power_sgd(rank=2, axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(mean, optax.sgd(0.1, momentum=0.9))

  Source: Algorithms 1 and 2 of arXiv:1905.13727.
  """
  rank = arguments.integer(rank)
  if type(rank) is not int or rank < 1:
    raise ValueError(f'rank={rank!r}; it must be at least 1.')

  def init(params):
    matrices, _ = _split(params, rank, keep)
    start = lambda i, m: jax.random.normal(
      dither.key_of(key, i), (m.shape[1], rank), jnp.float32
    )
    error = [jnp.zeros_like(m) for m in matrices]
    right = [start(i, m) for i, m in enumerate(matrices)]
    return PowerState(error, right, jnp.int32(0))

  def update(updates, state, params=None, **extra_args):
    del extra_args
    own, join = _split(updates, rank, keep)
    large_leaves.require_memory_of(
      'power_sgd', list, own, state.error, updates, params
    )
    full = [g + e for g, e in zip(own, state.error, strict=True)]
    mean = lambda parts: collectives.mean(parts, axis_name)
    left = mean([_dot(m, q) for m, q in zip(full, state.right, strict=True)])
    left = [jnp.linalg.qr(p)[0] for p in left]
    rows = [_dot(m.T, p) for m, p in zip(full, left, strict=True)]
    right, kept = mean((rows, join.kept))
    means, said = (
      [_dot(p, q.T) for p, q in zip(left, qs, strict=True)]
      for qs in (right, rows)
    )
    error = [m - s for m, s in zip(full, said, strict=True)]
    # What is 0 once would be so for good: each Q is made of the one before.
    right = [
      jnp.where(jnp.any(q != 0, axis=0), q, old)
      for q, old in zip(right, state.right, strict=True)
    ]
    result = join.together(means, kept)
    took = numerics.finite((right, kept)) & large_leaves.held(result)
    result = large_leaves.or_nothing(took, result)
    error, right = numerics.select(took, (error, right), state[:2])
    lost = state.lost + (~took).astype(jnp.int32)
    return result, PowerState(error, right, lost)

  return Reduction(
    init, update, 'power_sgd', quantizes=False, axis_name=axis_name
  )


def factors(gradient, rank: int, keep: Callable[[jax.Array], bool]) -> list:
  """Returns the shapes of what is all-reduced: factors, and exact leaves."""

  def take(gradient):
    matrices, join = _split(gradient, rank, keep)
    both = [(m[:, :1], m[:1].T) for m in matrices for _ in range(rank)]
    return jax.tree.leaves((both, join.kept))

  return jax.eval_shape(take, gradient)


def _dot(a, b):
  # A TPU would round to bfloat16 what the memory must know in full.
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _split(gradient, rank, keep) -> tuple[list, large_leaves.Join]:
  """Takes the leaves that are worth it out of a gradient, as matrices."""
  leaves, whole, keeps = large_leaves.parts(gradient, keep)
  shapes = large_leaves.shapes(leaves, keep)
  forms = [(math.prod(shape[:-1]), shape[-1]) for shape in shapes]
  keeps = [
    small or rank * (m + k) >= m * k
    for small, (m, k) in zip(keeps, forms, strict=True)
  ]
  if all(keeps):
    raise ValueError(
      f'power_sgd: no leaf has a matrix that rank={rank} makes smaller; give '
      'the gradient as a tree of its leaves, or take allreduce.'
    )
  large = [
    (leaf, form)
    for leaf, form, small in zip(leaves, forms, keeps, strict=True)
    if not small
  ]

  def together(matrices, kept):
    back = lambda m, leaf: m.reshape(leaf.shape).astype(leaf.dtype)
    found = iter(
      [back(m, leaf) for m, (leaf, _) in zip(matrices, large, strict=True)]
    )
    rest = iter(kept)
    return whole([next(rest if small else found) for small in keeps])

  matrices = [leaf.reshape(form).astype(jnp.float32) for leaf, form in large]
  kept = [leaf for leaf, small in zip(leaves, keeps, strict=True) if small]
  return matrices, large_leaves.Join(kept, together)
