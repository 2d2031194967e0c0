"""Which step h_l is best for each block, if every block has its own norm.

The budget beta counts the values sent, as QSGD bounds them, and the norms:

  sum_l (h_l^-2 + sqrt(d_l) / h_l) + B = beta

Every rule makes h_l A_l = delta for all blocks, with A_l what a coarser step
costs there: N_l = |Diag(L_i^ll)|_2 for DCGD+, sqrt(d_l) + N_l / (n mu) for
DIANA+. In the paper's names sum_l sqrt(d_l) N_l is d T_{i,B}, and
sum_l N_l^2 is d T_{i,1}^2. The h are [..., B]; the functions of `smoothness`
take `np.repeat(h, sizes, axis=-1)`.

Section 4 of arXiv:2106.03524, as its authors' code has it; their budget is
d / n + n, for n blocks. `diagonal` is [..., d]; leading axes are workers.
"""

from collections.abc import Sequence

import numpy as np

from moniqua_jax.theory import checked, steps
from moniqua_jax.theory.smoothness import norms


def equal_blocks(d: int, B: int) -> tuple[int, ...]:
  """The sizes of B blocks: floor(d / B) each, and the last has what remains.

  Args:
    d: coordinates.
    B: blocks; the authors take n.

  Returns:
    B sizes.

  Raises:
    ValueError: B is not within 1 and d.

  >>> equal_blocks(7, 3)
  (2, 2, 3)

  Source: Section 4 of arXiv:2106.03524.
  """
  d, B = checked.count('d', d), checked.count('B', B)
  if B > d:
    raise ValueError(f'B={B}; it must be within 1 and d={d}.')
  return (d // B,) * (B - 1) + (d - (B - 1) * (d // B),)


def block_dcgd(
  diagonal: np.ndarray, beta: float, sizes: Sequence[int]
) -> np.ndarray:
  """The steps of least calL bound with a norm for each block.

    h_l = delta / N_l,  N_l = |Diag(L^ll)|_2;  calL = delta, the root of
    sum_l (N_l^2 / delta^2 + sqrt(d_l) N_l / delta) = beta - B

  Args:
    diagonal: of L_i, [..., d].
    beta: values sent in expectation, at most, norms included; above B.
    sizes: coordinates per block.

  Returns:
    h, f64[..., B].

  Raises:
    ValueError: beta <= B; an entry is not positive and finite; sizes not of d.

  >>> block_dcgd([3.0, 4.0, 2.0], beta=6.0, sizes=(2, 1)).round(4)
  array([0.8111, 2.0277])

  Source: Section 4 of arXiv:2106.03524; the root is ours.
  """
  weights = norms(checked.positive('diagonal', diagonal, axes=1), sizes)
  return _root(weights, np.sum(weights**2, -1), beta, sizes) / weights


def block_diana(
  diagonal: np.ndarray, beta: float, sizes: Sequence[int], n: int, mu: float
) -> np.ndarray:
  """`block_dcgd` for A_l = sqrt(d_l) + N_l / (n mu): least max_l h_l A_l.

  h_l sqrt(d_l) bounds omega and h_l N_l bounds calL.

  Args:
    diagonal: of L_i, [..., d].
    beta: values sent in expectation, at most, norms included; above B.
    sizes: coordinates per block.
    n: workers.
    mu: f is mu-strongly convex.

  Returns:
    h, f64[..., B].

  Raises:
    ValueError: as for `block_dcgd`; mu is not positive and finite; n < 1.

  >>> block_diana([3.0, 4.0, 2.0], 6.0, (2, 1), n=1, mu=1.0).round(4)
  array([0.8353, 1.7859])

  Source: Section 4 of arXiv:2106.03524; the root is ours.
  """
  weights = norms(steps.relative(diagonal, n, mu), sizes) + np.sqrt(sizes)
  return _root(weights, np.sum(weights**2, -1), beta, sizes) / weights


def _root(weights, square, beta, sizes):
  """delta: left delta^2 = delta sum_l sqrt(d_l) A_l + square."""
  left = _left(beta, sizes)
  half = np.sum(weights * np.sqrt(sizes), -1) / (2 * left)
  return (half + np.sqrt(half**2 + square / left))[..., None]


def _left(beta, sizes):
  """beta - B."""
  beta = float(checked.positive('beta', beta))
  if beta <= len(sizes):
    raise ValueError(
      f'beta={beta}; it must be above B={len(sizes)}, the norms alone.'
    )
  return beta - len(sizes)


def block_uniform(sizes: Sequence[int], beta: float) -> float:
  """One step for all blocks that spends beta.

    (beta - B) h^2 = h sum_l sqrt(d_l) + B

  The authors have it for n equal blocks: h = (sqrt(d_l) + sqrt(d_l + 4 a)) /
  (2 a) with a = beta / n - 1.

  Args:
    sizes: coordinates per block.
    beta: values sent in expectation, at most, norms included; above B.

  Returns:
    h.

  Raises:
    ValueError: beta <= B, or a size below 1.

  >>> round(block_uniform((8,) * 8, beta=16.0), 4)
  3.1463

  Source: the code of arXiv:2106.03524 for equal blocks.
  """
  sizes = checked.blocks(sizes, sum(sizes))
  return float(_root(np.ones(len(sizes)), len(sizes), beta, sizes)[0])


def block_spent(h: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
  """What steps per block cost: sum_l (h_l^-2 + sqrt(d_l) / h_l) + B.

  Args:
    h: steps, [..., B].
    sizes: coordinates per block, B of them.

  Returns:
    f64[...]: values sent in expectation, at most, and the norms.

  Raises:
    ValueError: a step that is not positive and finite, or not one per block.

  >>> float(block_spent([1.0, 0.5], (4, 1)))
  11.0

  Source: Section 4 of arXiv:2106.03524; QSGD's sparsity in every block.
  """
  inverse = 1 / checked.positive('h', h, axes=1)
  sizes = checked.blocks(sizes, sum(sizes))
  if inverse.shape[-1] != len(sizes):
    raise ValueError(
      f'h of shape {inverse.shape}; it must be [..., {len(sizes)}], a step '
      'for each block.'
    )
  return np.sum(inverse**2 + np.sqrt(sizes) * inverse, -1) + len(sizes)
