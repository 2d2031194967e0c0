"""Which step h_l is best for each block, if every block has its own norm.

The budget beta counts the values sent, as QSGD bounds them, and the norms:

  sum_l (h_l^-2 + sqrt(d_l) / h_l) + B = beta

Every rule makes h_l A_l = delta for all blocks, with A_l what a coarser step
costs there: N_l = |Diag(L_i^ll)|_2 for DCGD+, sqrt(d_l) + N_l / (n mu) for
DIANA+. In the paper's names sum_l sqrt(d_l) N_l is d T_{i,B}, and
sum_l N_l^2 is d T_{i,1}^2. The h are [..., B], a step for each block of
`sizes`; the functions of `smoothness` take `np.repeat(h, sizes, axis=-1)`.

Section 4 of arXiv:2106.03524, as its authors' code has it, but for the root,
which is ours; their budget is d / n + n, for n blocks. `diagonal` is [..., d];
leading axes are workers. f is mu-strongly convex.
"""

from collections.abc import Sequence

import numpy as np

from moniqua_jax.theory import checked, steps
from moniqua_jax.theory.smoothness import norms


def equal_blocks(d: int, B: int) -> tuple[int, ...]:
  """The sizes of B blocks: floor(d / B) each, and the last has what remains."""
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
  """
  weights = norms(checked.positive('diagonal', diagonal, axes=1), sizes)
  return _root(weights, np.sum(weights**2, -1), beta, sizes) / weights


def block_diana(
  diagonal: np.ndarray, beta: float, sizes: Sequence[int], n: int, mu: float
) -> np.ndarray:
  """`block_dcgd` for A_l = sqrt(d_l) + N_l / (n mu): least max_l h_l A_l.

  h_l sqrt(d_l) bounds omega and h_l N_l bounds calL.
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

  Source: the code of arXiv:2106.03524 for equal blocks.
  """
  sizes = checked.blocks(sizes, sum(sizes))
  return float(_root(np.ones(len(sizes)), len(sizes), beta, sizes)[0])
