"""Constants of compressors in a smoothness matrix, and the steps they allow.

A worker's loss f_i is L_i-smooth for a matrix L_i. It sends C(L_i^(-1/2) v) and
the server multiplies by L_i^(1/2). What the noise then costs is

  omega: E|C(x) - x|^2         <= omega |x|^2       for all x
  calL:  E|C(x) - x|^2_(L_i)   <= calL  |x|^2       for all x,  |v|_M^2 = v'Mv

and calL <= omega lambda_max(L_i). The coordinates of C err independently here,
so that calL sees no more of L_i than its diagonal. C rounds x_j / |x_l| to
multiples of h_j, at random and without bias; x_l is the block of x_j, |.| its
l2 norm. `steps` has the h that are best for a budget, `gammas` the step sizes.

Paper: Wang, Safaryan and Richtarik, "Theoretically better and numerically
faster distributed optimization with smoothness-aware quantization techniques",
arXiv:2106.03524. Its formulas are taken from the code that its authors have
published; what is ours is derived here and checked in
tests/test_smoothness_theory.py. Bounds hold for every x. Exact values do and
are attained, unless steps are so fine that sum h_j^2 < 4 in a block.

`steps` h and `diagonal`, of L_i, are [..., d]; a step per block is
`np.repeat(h, sizes, axis=-1)`. `sizes`: coordinates per block, None for one
block. `probabilities` p are [..., d], drawn independently.
"""

from collections.abc import Sequence

import numpy as np

from moniqua_jax.theory import checked, variance


def norms(x: np.ndarray, sizes: Sequence[int] | None) -> np.ndarray:
  """The l2 norm of every block: |x_l|, f64[..., B]."""
  starts = np.cumsum((0, *checked.blocks(sizes, x.shape[-1])))[:-1]
  return np.sqrt(np.add.reduceat(x * x, starts, axis=-1))


# ------------------------------------------- constants of rounding with steps


def omega(steps: np.ndarray, sizes: Sequence[int] | None = None) -> np.ndarray:
  """The paper's bound of omega: max_l min(|h_l|^2, |h_l|). Section 5."""
  size = norms(checked.positive('steps', steps, axes=1), sizes)
  return np.minimum(size * size, size).max(-1)


def omega_exact(
  steps: np.ndarray, sizes: Sequence[int] | None = None
) -> np.ndarray:
  """The least omega: `calL_exact` for the identity.

  With one step for all it is sqrt(d) h - 1 for sqrt(d) h >= 2, else d h^2 / 4.
  """
  steps = checked.positive('steps', steps, axes=1)
  return calL_exact(steps, np.ones_like(steps), sizes)


def calL(
  steps: np.ndarray, diagonal: np.ndarray, sizes: Sequence[int] | None = None
) -> np.ndarray:
  """The paper's bound of calL: max_l |Diag(L^ll) h_l|_2. Sections 4 and 5."""
  h, diagonal = checked.pair('steps', steps, diagonal)
  return norms(h * diagonal, sizes).max(-1)


def calL_exact(
  steps: np.ndarray, diagonal: np.ndarray, sizes: Sequence[int] | None = None
) -> np.ndarray:
  """The least calL: larger steps gamma than `calL` gives, proven all the same.

    max over blocks and u of  sum_j L_jj h_j^2 u_j (1 - u_j)
    for u_j = |x_j| / (|x_l| h_j) in [0, 1/2] with sum_j h_j^2 u_j^2 <= 1

  A u_j above 1/2 adds to the norm, not to the noise. The problem is concave;
  u_j = L_jj / (2 (L_jj + nu)) solves it, nu >= 0 the root of sum h^2 u^2 = 1.
  If sum h^2 <= 4 then nu = 0, and the value sum L_jj h_j^2 / 4 is a bound.
  """
  h, diagonal = checked.pair('steps', steps, diagonal)
  cuts = np.cumsum(checked.blocks(sizes, h.shape[-1]))[:-1]
  parts = zip(np.split(h, cuts, -1), np.split(diagonal, cuts, -1), strict=True)
  return np.max([_largest(*part) for part in parts], axis=0)


def _largest_of_row(h, diagonal):
  # nu in units of the largest L_jj, so that tolerances are relative.
  weights = diagonal / diagonal.max()
  u = lambda nu: weights / (2 * (weights + nu))
  excess = lambda nu: np.sum((h * u(nu)) ** 2) - 1
  if excess(0) <= 0:
    return np.sum(diagonal * h**2) / 4
  # u < weights / (2 nu), so sum (h u)^2 < 1/4 at this end.
  end = np.linalg.norm(h * weights)
  nu = _root(excess, 0, end)
  return np.sum(diagonal * h**2 * u(nu) * (1 - u(nu)))


_largest = np.vectorize(
  _largest_of_row, signature='(d),(d)->()', otypes=[np.float64]
)


def _root(function, low, high):
  """To the last digits of the root, however small it is."""
  from scipy import optimize  # slow

  limits = np.finfo(np.float64)
  return optimize.brentq(
    function, low, high, xtol=limits.tiny, rtol=4 * limits.eps, maxiter=1000
  )


def dithering_omega(d: int, s: int) -> float:
  """The omega of s equal levels and one norm: min(d / s^2, sqrt(d) / s).

  Source: Lemma 3.1 of arXiv:1610.02132; arXiv:2106.03524 uses it.
  """
  return variance.qsgd_variance(checked.count('s', s), checked.count('d', d))


def expected_nonzeros(
  steps: np.ndarray, sizes: Sequence[int] | None = None
) -> np.ndarray:
  """How many values are sent, at most, in expectation: sum_l |1 / h_l|_2.

  P(x_j is not rounded to 0) <= |x_j| / (|x_l| h_j), then Cauchy-Schwarz. With
  the maximum in place of l2 norms it is sum_j 1 / h_j.
  """
  return norms(1 / checked.positive('steps', steps, axes=1), sizes).sum(-1)


# ------------------------------------------------ constants of sparsification
# arXiv:2102.07245, from the code of arXiv:2106.03524


def sparse_omega(probabilities: np.ndarray) -> np.ndarray:
  """omega of x_j / p_j with probability p_j, else 0: max_j (1 / p_j - 1)."""
  return sparse_calL(probabilities, np.ones(np.shape(probabilities)))


def sparse_calL(probabilities: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
  """calL of independent sparsification: max_j (1 / p_j - 1) L_jj."""
  p = checked.positive('probabilities', probabilities, axes=1)
  if p.max() > 1:
    raise ValueError(f'probabilities up to {p.max()}; they must be in (0, 1].')
  p, diagonal = checked.pair('probabilities', p, diagonal)
  return ((1 / p - 1) * diagonal).max(-1)
