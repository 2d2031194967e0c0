"""When a method is done: at its target, at its floor, or without hope."""

import numpy as np

TARGETS = (1e-2, 1e-6, 1e-10)  # of |x - x*|^2 / |x_0 - x*|^2
_LOST = 1e6  # times the distance of x_0
_EARLIEST = 6_000  # iterations, before hope is given up
_MARGIN = 0.5  # decades by which a straight line must miss


def reason(distance: np.ndarray, most: int | None, last: int) -> str | None:
  """Why a method stops, or None if it goes on.

  A linear rate is a straight line in the logarithm, and with the first, quick
  directions gone it only flattens. So a line through the last half of what was
  seen tells what cannot be reached: a method is given up once its line misses,
  by half a decade at the last iteration, the next target that it has not met.
  """
  k = distance.shape[1]
  if not np.isfinite(distance[:, -1]).all() or distance[:, -1].max() > _LOST:
    return 'diverged'
  met = lambda target: (distance <= target).any(axis=1).all()
  if met(TARGETS[-1]):
    return 'target'
  if k >= last:
    return 'end'
  if most is not None and k >= most:
    return 'floor'
  following = next(target for target in TARGETS if not met(target))
  if k >= _EARLIEST and _at(distance, last) > np.log10(following) + _MARGIN:
    return 'no hope'
  return None


def _at(distance, last) -> float:
  """The logarithm at the last iteration of the seed that has most hope."""
  k = distance.shape[1]
  at = np.arange(k // 2, k, max(1, k // 400))
  lines = np.polyfit(at, np.log10(distance[:, at].T), 1)
  return float(np.min(lines[0] * last + lines[1]))


def hits(distance: np.ndarray, target: float) -> np.ndarray:
  """The first iterate of each seed that is within a target; -1 if none is.

  Returns i64[S].
  """
  within = distance <= target
  return np.where(within.any(axis=1), within.argmax(axis=1), -1)
