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
# What a float32 computation may leave between L_ij and L_ji, of the largest.
_ROUNDED = 1e-6


class Root(NamedTuple):
  """L^{1/2} and L^{-1/2} (or the pseudo-inverse), as factors for `times`."""

  half: Any
  inverse: Any


class Kronecker(NamedTuple):
  """The factor left (x) right, for a block that is a matrix, row by row."""

  left: Array  # f32[a, a]
  right: Array  # f32[b, b], symmetric


def times(factor, x: Array) -> Array:
  """Multiplies a factor and a vector f32[d].

  A factor is f32[d], a diagonal; f32[d, d]; `Kronecker`; or a list of those,
  blocks along the diagonal.
  """
  if _size(factor) != x.size:
    raise ValueError(
      f'L is for {_size(factor)} values, the vector has {x.size}.'
    )
  if isinstance(factor, list):
    ends = np.cumsum([_size(part) for part in factor])
    parts = zip(factor, jnp.split(x, ends[:-1]), strict=True)
    return jnp.concatenate([times(*part) for part in parts])
  if isinstance(factor, Kronecker):
    rows = x.reshape(factor.left.shape[0], factor.right.shape[0])
    return _dot(_dot(factor.left, rows), factor.right).reshape(-1)
  return factor * x if factor.ndim == 1 else _dot(factor, x)


def root(matrix, pseudo_inverse: bool = False) -> Root:
  """Takes the root of a matrix L, or of a stack of full ones, in float64.

  L is symmetric and positive definite: f[d], a diagonal; f[..., d, d]; a pair
  (A, B) for their Kronecker product; or a list of those, blocks along the
  diagonal. With `pseudo_inverse` it may be singular; what it does not see is
  then not sent: right for gradients, which lie in its range, wrong for
  parameters.
  """
  if isinstance(matrix, list):
    return _transposed([root(part, pseudo_inverse) for part in matrix])
  if isinstance(matrix, tuple):
    left, right = (root(part, pseudo_inverse) for part in matrix)
    return Root(*map(Kronecker, left, right))
  matrix = np.asarray(matrix, np.float64)
  if not matrix.ndim or matrix.shape[-1] != matrix.shape[-2:][0]:
    raise ValueError(
      f'L has the shape {matrix.shape}; it is a diagonal, [d], or a matrix, '
      '[d, d].'
    )
  if not np.isfinite(matrix).all():
    raise ValueError('L has an entry that is not finite.')
  if matrix.ndim == 1:
    values = _checked(matrix, pseudo_inverse)
    return Root(*(jnp.asarray(v, jnp.float32) for v in values))
  values, vectors = np.linalg.eigh(_symmetric(matrix))
  halves = _checked(values, pseudo_inverse)
  back = np.swapaxes(vectors, -1, -2)
  return Root(
    *(
      jnp.asarray(vectors * half[..., None, :] @ back, jnp.float32)
      for half in halves
    )
  )


def stacked(roots: Sequence[Root]) -> Root:
  """Stacks roots of one form into a table for `per_worker`, a row a worker."""
  return jax.tree.map(lambda *rows: jnp.stack(rows), *roots)


def _transposed(roots):
  return Root([r.half for r in roots], [r.inverse for r in roots])


def _size(factor) -> int:
  if isinstance(factor, list):
    return sum(map(_size, factor))
  if isinstance(factor, Kronecker):
    return factor.left.shape[0] * factor.right.shape[0]
  return factor.shape[0]


def _dot(a, b):
  # A TPU would multiply in bfloat16.
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _symmetric(matrix):
  """Takes off what rounding parted, in whichever units L is; refuses more."""
  other = np.swapaxes(matrix, -1, -2)
  apart, most = abs(matrix - other).max((-2, -1)), abs(matrix).max((-2, -1))
  if (apart > _ROUNDED * most).any():
    raise ValueError(
      f'L is not symmetric: L and L.T differ by {apart.max():.3g}, where a '
      f'smoothness matrix may by {_ROUNDED:g} of its largest entry. If that is '
      'its rounding, take (L + L.T) / 2.'
    )
  return (matrix + other) / 2


def _checked(values, pseudo_inverse):
  """Returns the square roots of eigenvalues, and their inverses."""
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
