"""Estimates of a net's smoothness: the Gauss-Newton matrix of its loss.

With logits J dx + ... and p = softmax(logits), the Hessian of the cross-entropy
in the logits of one example is diag(p) - p p^T = C C^T for

  C = diag(sqrt p) - p sqrt(p)^T

so that for u of independent signs, one for each example and class,

  g = J^T C u / sqrt(B),   E g g^T = (1/B) sum_i J_i^T (C C^T)_i J_i = L

One backward pass is one sample of a vector whose covariance is L; no label is
used. B examples, d values in all leaves. A leaf is seen as a matrix G [a, b]
with its outputs last, as flax has them. The gradients of minibatches are such
vectors too, as far as the model believes its own p.

Ours, for nets: arXiv:2106.03524 has convex losses, whose L_i it knows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array

LARGEST_SIDE = 1024  # of a matrix whose eigenvectors are sought

_LEAST = 1e-30  # takes the place of a mean square of 0


def estimate(
  kind: str,
  logits_fn: Callable,
  params: Any,
  key: Array,
  draws: int = 16,
  floor: float = 0.1,
) -> list:
  """Estimates L of a net on one batch, leaf by leaf, positive definite.

  Each of the `draws` is a backward pass. The result is as of `positive`; of
  'diagonal' and 'kronecker' it is what `smooth` takes as L, on vectors in the
  order of `ravel_pytree`. Training takes a fresh batch for each draw.
  """
  if kind not in KINDS:
    raise ValueError(f'kind={kind!r}; choose from {sorted(KINDS)}.')

  @jax.jit
  def one(params, key):
    return [KINDS[kind](g) for g in leaves(sampled(logits_fn, params, key))]

  leaves = jax.tree.leaves
  total = [one(params, k) for k in jax.random.split(key, draws)]
  means = jax.tree.map(lambda *each: sum(each) / draws, *total)
  return positive(means, [leaf.size for leaf in leaves(params)], floor)


def sampled(logits_fn: Callable, params: Any, key: Array) -> Any:
  """Draws g = J^T C u / sqrt(B), like params, of mean 0 and covariance L."""
  logits, back = jax.vjp(logits_fn, params)
  p = jax.nn.softmax(logits)
  half = jnp.sqrt(p)
  u = jax.random.rademacher(key, logits.shape, logits.dtype)
  inner = jnp.sum(half * u, axis=-1, keepdims=True)
  count = logits.size / logits.shape[-1]
  (g,) = back((half * u - p * inner) / jnp.sqrt(count))
  return g


# ------------------------- what is kept of a sample: its mean estimates L


def layer(g: Array) -> Array:
  """Computes a number for a leaf, the mean of L's diagonal: E |g|^2 / d_l."""
  return jnp.mean(g**2)


def peak(g: Array) -> Array:
  """Computes a number for a leaf: E of the largest g^2, for theta by leaf."""
  return jnp.max(g**2)


def diagonal(g: Array) -> Array:
  """Computes the diagonal of L, f32[d_l]: E g^2."""
  return jnp.reshape(g**2, -1)


def kronecker(g: Array) -> Array | tuple[Array, Array]:
  """Computes two factors of a leaf that is a matrix; else the diagonal.

    L_leaf ~ E[G G^T] (x) E[G^T G] / E|G|^2

  Our approximation. It has the trace of L_leaf, is L_leaf if that is a
  Kronecker product, and is else one step of the power iteration to the nearest
  one, from the identity. Leaves do not know each other. A side above
  LARGEST_SIDE is refused.
  """
  if g.ndim < 2:
    return diagonal(g)
  rows = g.reshape(-1, g.shape[-1])
  if max(rows.shape) > LARGEST_SIDE:
    raise ValueError(
      f'kronecker: a leaf is {rows.shape[0]} x {rows.shape[1]}; its sides are '
      f"at most {LARGEST_SIDE}. Take 'diagonal' or 'layer'."
    )
  return _dot(rows, rows.T), _dot(rows.T, rows)


KINDS = {
  'layer': layer,
  'peak': peak,
  'diagonal': diagonal,
  'kronecker': kronecker,
}


def positive(moments: list, sizes: Sequence[int], floor: float) -> list:
  """Makes L, leaf by leaf and positive definite, from means of samples.

    numbers, diagonals   D + floor m,  m the mean of the leaf's D
    Kronecker products   m (A + floor I) (x) (B + floor I),  A, B = the factors
                         over the means of their diagonals

  A leaf that no sample felt counts as if its mean were `floor` times that of
  all values. `sizes` are d_l of each leaf.
  """
  means = [_mean(moment) for moment in moments]
  whole = sum(s * m for s, m in zip(sizes, means, strict=True)) / sum(sizes)
  least = floor * jnp.maximum(whole, _LEAST)
  return [
    _damped(moment, jnp.maximum(mean, least), floor)
    for moment, mean in zip(moments, means, strict=True)
  ]


def _mean(moment):
  """Computes the mean of the diagonal of L in a leaf."""
  if isinstance(moment, tuple):
    left, right = moment
    return jnp.trace(left) / (len(left) * len(right))
  return jnp.mean(moment)


def _damped(moment, mean, floor):
  if not isinstance(moment, tuple):
    return moment + floor * mean
  left, right = (_unit(side) + floor * jnp.eye(len(side)) for side in moment)
  return jnp.sqrt(mean) * left, jnp.sqrt(mean) * right


def _unit(side):
  """Divides a factor by the mean of its diagonal; 0 stays 0."""
  mean = jnp.trace(side) / len(side)
  return jnp.where(mean > 0, side / jnp.where(mean > 0, mean, 1), 0)


def _dot(a, b):
  # A TPU would multiply in bfloat16.
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
