"""L^{1/2} and its inverse: the coordinates in which a loss is equally smooth.

A smoothness matrix may be full, diagonal, block by block along the diagonal, or
a Kronecker product, as a dense layer has it. Roots are pytrees of float32
arrays, so that a table of them, one for each worker, is a pytree, too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Eigenvalues below this share of the largest count as zero.
_ZERO = 1e-12


class Root(NamedTuple):
  """L^{1/2} and L^{-1/2}, each a factor that `times` takes.

  Attributes:
    half: of L^{1/2}.
    inverse: of L^{-1/2}, or of the pseudo-inverse.
  """

  half: Any
  inverse: Any


class Kronecker(NamedTuple):
  """The factor left (x) right, for a block that is a matrix [a, b], row by row.

  Attributes:
    left: f32[a, a].
    right: f32[b, b], symmetric.
  """

  left: Array
  right: Array


class LowRank(NamedTuple):
  """The factor c I + V diag(v) V^T: for fewer samples than coordinates.

  Attributes:
    scale: f32[], c.
    vectors: f32[d, k], V, orthonormal columns.
    values: f32[k], v.
  """

  scale: Array
  vectors: Array
  values: Array


def times(factor, x: Array) -> Array:
  """The product of a factor and a vector.

  Args:
    factor: f32[d], a diagonal; f32[d, d]; `Kronecker`; `LowRank`; or a list of
      those, blocks along the diagonal.
    x: f32[d].

  Returns:
    f32[d].

  >>> times([jnp.array([2.0]), jnp.eye(2)], jnp.ones(3))
  Array([2., 1., 1.], dtype=float32)
  """
  if isinstance(factor, list):
    ends = np.cumsum([_size(part) for part in factor])
    parts = zip(factor, jnp.split(x, ends[:-1]), strict=True)
    return jnp.concatenate([times(*part) for part in parts])
  if isinstance(factor, Kronecker):
    rows = x.reshape(factor.left.shape[0], factor.right.shape[0])
    return _dot(_dot(factor.left, rows), factor.right).reshape(-1)
  if isinstance(factor, LowRank):
    inside = factor.values * _dot(x, factor.vectors)
    return factor.scale * x + _dot(factor.vectors, inside)
  return factor * x if factor.ndim == 1 else _dot(factor, x)


def root(matrix, pseudo_inverse: bool = False) -> Root:
  """The root of one matrix, or of a stack of full matrices.

  Args:
    matrix: L, symmetric and positive definite: f[d], a diagonal; f[..., d, d];
      a pair (A, B) of matrices for the Kronecker product of both; or a list of
      those, blocks along the diagonal.
    pseudo_inverse: whether L may be singular. What it does not see is then not
      sent: right for gradients, which lie in its range, wrong for parameters.

  Returns:
    `Root`, by eigenvalues in float64, stored in float32.

  Raises:
    ValueError: L is not finite, symmetric and positive definite.

  >>> root(np.array([4.0, 0.25])).half
  Array([2. , 0.5], dtype=float32)
  """
  if isinstance(matrix, list):
    return _transposed([root(part, pseudo_inverse) for part in matrix])
  if isinstance(matrix, tuple):
    left, right = (root(part, pseudo_inverse) for part in matrix)
    return Root(*map(Kronecker, left, right))
  matrix = np.asarray(matrix, np.float64)
  if not np.isfinite(matrix).all():
    raise ValueError('L has an entry that is not finite.')
  if matrix.ndim == 1:
    values = _checked(matrix, pseudo_inverse)
    return Root(*(jnp.asarray(v, jnp.float32) for v in values))
  if not np.allclose(matrix, np.swapaxes(matrix, -1, -2), rtol=1e-8):
    raise ValueError('L is not symmetric; a smoothness matrix is.')
  values, vectors = np.linalg.eigh(matrix)
  halves = _checked(values, pseudo_inverse)
  back = np.swapaxes(vectors, -1, -2)
  return Root(
    *(
      jnp.asarray(vectors * half[..., None, :] @ back, jnp.float32)
      for half in halves
    )
  )


def low_rank_root(features, scale: float, curvature: float) -> Root:
  """The root of (c/m) A^T A + lam I without a matrix of d x d.

    L^{1/2} x = lam^{1/2} x + V ((w + lam)^{1/2} - lam^{1/2}) V^T x

  Args:
    features: A, f64[m, d], m < d.
    scale: lam, above 0.
    curvature: c, of the loss of one sample: 1/4 for the logistic loss.

  Returns:
    `Root` of `LowRank` factors.

  Raises:
    ValueError: lam is not above 0.

  >>> r = low_rank_root(np.ones((1, 4)), 1.0, 1.0)
  >>> bool(jnp.allclose(times(r.half, times(r.inverse, jnp.ones(4))), 1))
  True
  """
  if not scale > 0:
    raise ValueError(f'scale={scale!r}; L is singular without lam above 0.')
  _, singular, back = np.linalg.svd(features, full_matrices=False)
  values = curvature / len(features) * singular**2 + scale
  factor = lambda power: LowRank(
    jnp.float32(scale**power),
    jnp.asarray(back.T, jnp.float32),
    jnp.asarray(values**power - scale**power, jnp.float32),
  )
  return Root(factor(0.5), factor(-0.5))


def stacked(roots: Sequence[Root]) -> Root:
  """A table of roots, one row a worker, for `per_worker`.

  Args:
    roots: of one form.

  Returns:
    `Root` whose arrays have a first axis of n.

  >>> stacked([root(np.ones(2))] * 3).half.shape
  (3, 2)
  """
  return jax.tree.map(lambda *rows: jnp.stack(rows), *roots)


def _transposed(roots):
  return Root([r.half for r in roots], [r.inverse for r in roots])


def _size(factor) -> int:
  if isinstance(factor, Kronecker):
    return factor.left.shape[0] * factor.right.shape[0]
  if isinstance(factor, LowRank):
    return factor.vectors.shape[0]
  return factor.shape[0]


def _dot(a, b):
  # A TPU would multiply in bfloat16.
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _checked(values, pseudo_inverse):
  """Square roots of eigenvalues and their inverses."""
  least, most = np.min(values), np.max(values)
  if most <= 0 or least < -1e-8 * most:
    raise ValueError(
      f'L has the eigenvalue {least:.3g}; a smoothness matrix has none below 0.'
    )
  seen = values > _ZERO * most
  if not (pseudo_inverse or seen.all()):
    raise ValueError(
      f'L is singular: its least eigenvalue is {least:.3g}, its largest '
      f'{most:.3g}. Add lam I (a regulariser), or, for gradients only, take '
      'pseudo_inverse=True.'
    )
  half = np.sqrt(np.where(seen, values, 0))
  return half, np.where(seen, 1 / np.where(seen, half, 1), 0)
