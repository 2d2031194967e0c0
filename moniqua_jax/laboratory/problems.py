"""Logistic and ridge regression over n workers, with all that is known of them.

  f(x) = (1/n) sum_i f_i(x)
  f_i(x) = (1/m) sum_j phi(a_ij^T x, b_ij) + lam/2 |x|^2,  phi'' <= c

so that f_i is L_i-smooth for the matrix L_i = (c/m) A_i^T A_i + lam I:

  f_i(x) - f_i(y) - <grad f_i(y), x - y> <= 1/2 |x - y|^2_{L_i}

Wang, Safaryan and Richtarik, "Theoretically Better and Numerically Faster
Distributed Optimization with Smoothness-Aware Quantization Techniques", NeurIPS
2022, arXiv:2106.03524. The matrices, constants and optima are of NumPy, in
float64; the gradients and losses are of JAX, in the dtype of their arguments.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

Array = jax.Array

MATRICES = 2**27  # numbers of all L_i, 1 GiB
LARGEST = 1e100  # of a feature or target
STEPS, HALVINGS = 200, 40  # of Newton's method


class Problem(NamedTuple):
  """A strongly convex finite sum over n workers with m rows each.

  `gradient` and `loss` are of one worker, of (features [m, d], targets [m],
  x [d]); `gradients` are those of all.
  """

  name: str  # for titles and tables
  features: np.ndarray  # f64[n, m, d], the A_i
  targets: np.ndarray  # f64[n, m], the b_i
  lam: float  # of the regularizer, above 0
  residual: Callable[[Array, Array], Array]  # (A_i x, b_i) -> phi', of each row
  gradient: Callable[[Array, Array, Array], Array]
  loss: Callable[[Array, Array, Array], Array]
  matrices: np.ndarray  # f64[n, d, d], the L_i
  L: float  # lambda_max of the mean of the L_i: f is L-smooth
  L_workers: np.ndarray  # f64[n], lambda_max of each L_i
  mu: float  # f is mu-strongly convex: lam, as in the paper's experiments
  optimum: np.ndarray  # f64[d], the x at which grad f is 0

  @property
  def n(self) -> int:
    """The number of workers."""
    return self.features.shape[0]

  @property
  def m(self) -> int:
    """The number of rows of a worker."""
    return self.features.shape[1]

  @property
  def d(self) -> int:
    """The number of features."""
    return self.features.shape[2]

  @property
  def L_max(self) -> float:
    """The largest of the workers' smoothness constants."""
    return float(self.L_workers.max())

  @property
  def diagonals(self) -> np.ndarray:
    """f64[n, d], the diagonals of the L_i."""
    return np.diagonal(self.matrices, axis1=1, axis2=2)


def logistic_regression(
  features: np.ndarray, targets: np.ndarray, lam: float = 1e-3, name: str = ''
) -> Problem:
  """Logistic regression without intercept.

    f_i(x) = (1/m) sum_j log(1 + exp(-b_ij a_ij^T x)) + lam/2 |x|^2,  c = 1/4

  Source: the experiments of arXiv:2106.03524, as in the authors' code.
  """
  features, targets, lam = _checked(features, targets, lam)
  if not np.isin(targets, (-1, 1)).all():
    raise ValueError(
      f'targets={np.unique(targets)[:5]}; logistic regression takes -1 and +1.'
    )
  residual = lambda z, targets: -targets * jax.nn.sigmoid(-targets * z)

  def loss(features, targets, x):
    z = features @ x
    return jnp.mean(jax.nn.softplus(-targets * z)) + lam / 2 * (x @ x)

  optimum = _newton(features.reshape(targets.size, -1), targets.ravel(), lam)
  return _problem(
    name, (features, targets), lam, loss, residual, 1 / 4, optimum
  )


def ridge_regression(
  features: np.ndarray, targets: np.ndarray, lam: float = 1e-3, name: str = ''
) -> Problem:
  """Least squares with a quadratic regularizer, without intercept.

    f_i(x) = (1/2m) |A_i x - b_i|^2 + lam/2 |x|^2,  c = 1

  Here matrix smoothness is an equality.

  Source: the definition of f_i in arXiv:2106.03524, with a square for phi.
  """
  features, targets, lam = _checked(features, targets, lam)
  residual = lambda z, targets: z - targets

  def loss(features, targets, x):
    r = features @ x - targets
    return r @ r / (2 * len(targets)) + lam / 2 * (x @ x)

  optimum = _least_squares(features.reshape(targets.size, -1), targets, lam)
  return _problem(name, (features, targets), lam, loss, residual, 1.0, optimum)


def _checked(features, targets, lam):
  features, targets = np.asarray(features, float), np.asarray(targets, float)
  _check_size(np.shape(features))
  if features.ndim != 3 or not features.size:
    raise ValueError(
      f'features have shape {features.shape}; [workers, rows, features] is '
      'wanted, none of them 0.'
    )
  if targets.shape != features.shape[:2]:
    raise ValueError(
      f'targets have shape {targets.shape}; these features want '
      f'{features.shape[:2]}.'
    )
  for name, array in (('features', features), ('targets', targets)):
    bad = np.argwhere(~(np.abs(array) < LARGEST)).tolist()
    if bad:
      raise ValueError(
        f'{name}{bad[0]} is {array[tuple(bad[0])]}; finite and below '
        f'{LARGEST:g} is wanted, so that squares are.'
      )
  if not 0 < lam < math.inf:
    raise ValueError(
      f'lam={lam!r}; it is above 0 and finite, or L_i is singular and mu is 0.'
    )
  # A Python float takes the dtype of what it meets, one of NumPy does not.
  return features, targets, float(lam)


def _check_size(shape):
  n, _, d = shape if len(shape) == 3 else (0, 0, 0)
  if n * d * d > MATRICES:
    raise ValueError(
      f'{d} features: the {n} matrices L_i would take {n * d * d / 2**27:.0f} '
      f'GiB, above {MATRICES / 2**27:.0f}; take fewer features or workers.'
    )


def _problem(name, given, lam, loss, residual, c, optimum):
  features, targets = given
  _, m, d = features.shape

  def gradient(features, targets, x):
    r = residual(features @ x, targets)
    return r @ features / len(targets) + lam * x

  gram = features.transpose(0, 2, 1) @ features
  matrices = c / m * gram + lam * np.eye(d)
  return Problem(
    name=name,
    features=features,
    targets=targets,
    lam=lam,
    residual=residual,
    gradient=gradient,
    loss=loss,
    matrices=matrices,
    L=float(np.linalg.eigvalsh(matrices.mean(0))[-1]),
    L_workers=np.linalg.eigvalsh(matrices)[:, -1],
    mu=lam,
    optimum=optimum,
  )


def _least_squares(rows, targets, lam):
  """The optimum, f64[d], of ridge regression with rows f64[N, d]."""
  gram = rows.T @ rows / len(rows)
  right = targets.ravel() @ rows / len(rows)
  x = _solve(gram, right, lam)
  terms = np.abs(gram) @ np.abs(x) + np.abs(right) + lam * np.abs(x)
  return _converged(x, gram @ x - right + lam * x, terms)


def _newton(rows, targets, lam):
  """The optimum, f64[d], of logistic regression with rows f64[N, d]."""

  def gradient(x):
    r = -targets * expit(-targets * (rows @ x))
    return r, r @ rows / len(rows) + lam * x

  x = np.zeros(rows.shape[1])
  r, g = gradient(x)
  for _ in range(STEPS):
    weights = np.abs(r) * (1 - np.abs(r)) / len(rows)
    step = _solve(rows.T @ (weights[:, None] * rows), -g, lam)
    # It shortens |g| if it is short enough, from any x.
    shorter = (x + step / 2**k for k in range(HALVINGS))
    tried = ((y, *gradient(y)) for y in shorter)
    better = (t for t in tried if np.linalg.norm(t[2]) < np.linalg.norm(g))
    found = next(better, None)
    if found is None:
      break  # rounding is all that is left of g
    x, r, g = found
  return _converged(
    x, g, np.abs(r) @ np.abs(rows) / len(rows) + lam * np.abs(x)
  )


def _solve(matrix, right, lam):
  try:
    return np.linalg.solve(matrix + lam * np.eye(len(right)), right)
  except np.linalg.LinAlgError:
    raise ValueError(
      f'lam={lam!r} is lost in the rounding of A^T A: take a larger lam.'
    ) from None


def _converged(x, g, terms):
  # What rounding leaves of a sum: some eps of its terms.
  wanted = 1e-14 * np.linalg.norm(terms)
  if not np.linalg.norm(g) <= wanted:
    raise ValueError(
      f'the optimum was not found: |grad f| stays at {np.linalg.norm(g):.1e}, '
      f'above {wanted:.1e}; scale the rows (row_scaled) or take a larger lam.'
    )
  return x


def gradients(problem: Problem, features: Array, targets: Array, x: Array):
  """The gradients of all workers at many points, in one pass through the data.

  With the points in the rows XLA:CPU takes half the time that it takes when the
  gradient of one worker at one point is mapped over both.
  """
  n, m, d = features.shape
  z = (x @ features.reshape(n * m, d).T).reshape(-1, n, m)
  r = problem.residual(z, targets[None])
  return jnp.einsum('cnm,nmd->cnd', r, features) / m + problem.lam * x[:, None]
