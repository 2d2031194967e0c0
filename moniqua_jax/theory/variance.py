"""How much noise rounding in buckets adds, before and after a vector is seen.

Quantizers that divide by a norm and round at random to one of two levels
(`nuqsgd`, `qsgd`, `leveled`) promise E|Q(v) - v|^2 <= eps |v|^2 for all v in
R^d, with |.| the l2 norm and d the bucket size. Q errs by

  E|Q(v) - v|^2 = sum_i N^2 (l_{j+1} - r_i) (r_i - l_j),   r_i = v_i / N

for N the norm and l_j, l_{j+1} the levels around r_i.

`eden` rounds to the nearest level where all vectors are alike.

Papers: NUQSGD, arXiv:1908.06077; QSGD, arXiv:1610.02132; ALQ, arXiv:2010.12460;
EDEN, arXiv:2108.08842.
What is ours is derived here and checked in tests/test_variance.py.

d: values that share a norm. l_1: the least level above 0. rho: the largest
ratio of neighbouring levels above 0. a = l_1 sqrt(d). `norm` is that of the
quantizer, 'l2' or 'linf'; eps and ratios refer to |v|_2 anyway.
"""

from collections.abc import Sequence
import math

import numpy as np

# Of the levels of Lloyd and Max for N(0, 1), by bits.
_DISTORTION = {1: 0.363380228, 2: 0.117481848, 3: 0.034547761, 4: 0.009501008}


def nuqsgd_variance(s: int, d: int) -> float:
  """NUQSGD's bound, with the threshold that makes it true.

    eps = 1/8 + d / 4^(s+1)  for d < T,  else sqrt(d) / 2^s - 7/8;  T = 4^(s+1)

  The first branch holds for every d, the second from T on, where both are 9/8.
  Below T the second is false: at s = 3 and d = 128 it is 0.539, and the vector
  of r = 2/3, 1/3 and 126 equal values has 0.560. The levels are 0, 2^-s, ...,
  1/2, 1; the quantizer `nuqsgd` has s = 2^(bits-1) - 2.

  Source: the two branches are the variance theorem of arXiv:1908.06077, as we
  recall it; T is ours.
  """
  square = _square(2.0**-s, d)
  return 1 / 8 + square / 4 if square < 4 else math.sqrt(square) - 7 / 8


def nuqsgd_variance_tight(s: int, d: int) -> float:
  """The least bound that the argument behind `nuqsgd_variance` gives.

    eps = 1/8 + (2/9) d / 4^s  for d <= (81/16) 4^s,  else sqrt(d) / 2^s - 1

  It is the maximum over t in [0, 1] of a t - t^2 + (1 - t^2) / 8, for t^2 the
  part of |v|^2 that lies below l_1. Constant vectors attain the second branch;
  others come near the first if d is large.
  """
  square = _square(2.0**-s, d)
  if square <= 81 / 16:
    return 1 / 8 + 2 / 9 * square
  return math.sqrt(square) - 1


def qsgd_variance(s: int, d: int) -> float:
  """QSGD's bound: eps = min(d / s^2, sqrt(d) / s).

  The levels are 0, 1/s, ..., 1; `qsgd` has s = 2^(bits-1) - 1. It holds for the
  maximum as norm as well.

  Source: Lemma 3.1 of arXiv:1610.02132, as the paper has it.
  """
  square = _square(1 / s if s > 0 else 0, d)
  return min(square, math.sqrt(square))


def leveled_variance(
  levels: Sequence[float], d: int, norm: str = 'l2'
) -> float:
  """A bound for any levels, signed or magnitudes, as for `leveled`.

    eps = (rho - 1)^2 / (4 rho) + inf_{0<p<1} K_p a^(2-p),
    K_p = (1 / (2-p)) ((1-p) / (2-p))^(1-p)

  The infimum is a^2 / 4 for a <= 2, else a - 1. Without the level 0 the second
  part is d l_1^2. Where the two sides differ, l_1 is the larger of both.

  With norm='linf' the largest value is met, and the greater of the two parts
  is enough; the second is (sqrt(1 + a^2) - 1) / 2, the maximum over t of
  (a t - t^2) / (1 + t^2), and without the level 0 d l_1^2 again.

  Source: the infimum is the theorem on general levels of arXiv:2010.12460, as
  we recall it. Its closed form, 'linf', and levels without 0 are ours.
  """
  _require(norm)
  grid = _signed(levels)
  sides = [side[side > 0] for side in (grid, -grid[::-1])]
  square = _square(max(side[0] for side in sides), d)
  rho = max((side[1:] / side[:-1]).max(initial=1) for side in sides)
  between = float((rho - 1) ** 2 / (4 * rho))
  if 0 not in grid:
    return between + square if norm == 'l2' else max(between, square)
  if norm == 'linf':
    return max(between, (math.sqrt(1 + square) - 1) / 2)
  return between + (square / 4 if square <= 4 else math.sqrt(square) - 1)


def eden_variance(bits: int) -> float:
  """EDEN's error, that of every vector: omega = D / (1 - D).

  D = E (z - q)^2 is the distortion of the 2^b levels of Lloyd and Max, q, for z
  of N(0, 1). It is what scale='least_error' has.

  Args:
    bits: b, 1 to 4.

  Returns:
    omega: E|Q(v) - v|^2 = omega |v|^2.

  Raises:
    ValueError: bits outside 1 to 4.

  >>> [round(eden_variance(bits), 4) for bits in (1, 2, 3, 4)]
  [0.5708, 0.1331, 0.0358, 0.0096]

  Source: Section 3 of arXiv:2108.08842, in the limit of many values.
  """
  if bits not in _DISTORTION:
    raise ValueError(f'bits={bits!r}; eden has levels for 1 to 4.')
  return _DISTORTION[bits] / (1 - _DISTORTION[bits])


def expected_nonzeros(l_1: float, d: int) -> float:
  """How many values are not 0 after rounding, at most, in expectation.

    n = 1 / l_1^2 + sqrt(d) / l_1

  For NUQSGD, l_1 = 2^-s, it is 2^(2s) + 2^s sqrt(d), the n_{s,d} of its code
  length; for QSGD, l_1 = 1/s, it is s (s + sqrt(d)). Above d it says nothing.

  Source: Lemma 3.1 of arXiv:1610.02132; for NUQSGD as we recall
  arXiv:1908.06077. At most 1 / l_1^2 values have r >= l_1, and the others
  become nonzero with probability r / l_1, sqrt(d) / l_1 in sum.
  """
  return (1 + math.sqrt(_square(l_1, d))) / l_1**2


def exact_variance(
  v: np.ndarray, levels: Sequence[float], norm: str = 'l2'
) -> float:
  """E|Q(v) - v|^2 / |v|^2 of one bucket v [d], in float64; 0 for v = 0.

  Source: Section 3 of arXiv:1908.06077.
  """
  r, low, high = _cells(v, levels, norm)
  square = np.sum(r * r)
  return float(np.sum((high - r) * (r - low)) / square) if square else 0.0


def exact_nonzeros(
  v: np.ndarray, levels: Sequence[float], norm: str = 'l2'
) -> float:
  """How many values of one bucket are not 0 after rounding, in expectation.

  Source: Section 3 of arXiv:1908.06077.
  """
  r, low, high = _cells(v, levels, norm)
  if not r.any():
    return 0.0
  up = (r - low) / (high - low)
  return float(np.sum(np.where(low == 0, up, np.where(high == 0, 1 - up, 1))))


def _square(l_1, d):
  """a^2, from what makes sense."""
  if not 0 < l_1 <= 1 or d < 1:
    raise ValueError(
      f'd={d!r} and a least level of {float(l_1)!r}; it must be in (0, 1], and '
      'd at least 1.'
    )
  return float(d * l_1**2)


def _require(norm):
  if norm not in ('l2', 'linf'):
    raise ValueError(f"norm={norm!r}; choose 'l2' or 'linf'.")


def _signed(levels):
  levels = np.asarray(levels, np.float64)
  if levels[0] < 0:
    return levels
  return np.concatenate([-levels[levels > 0][::-1], levels])


def _cells(v, levels, norm):
  """r = v / norm(v), and the levels around each r."""
  _require(norm)
  v, grid = np.asarray(v, np.float64), _signed(levels)
  most = np.abs(v).max(initial=0)
  # First by the maximum, so that no square overflows or vanishes.
  r = v / (most or 1)
  if norm == 'l2':
    r = r / (np.linalg.norm(r) or 1)
  cell = np.clip(np.searchsorted(grid, r, 'right') - 1, 0, len(grid) - 2)
  return r, grid[cell], grid[cell + 1]
