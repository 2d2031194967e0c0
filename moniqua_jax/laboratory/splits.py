"""How the rows of a data set are scaled and divided among the workers.

The preprocessing of arXiv:2106.03524, as in its authors' code.
"""

import numpy as np


def row_scaled(features: np.ndarray) -> np.ndarray:
  """Each row divided by its largest absolute entry; rows of zeros stay.

  Returns f64[N, d], between -1 and 1.

  Source: the preprocessing in the authors' code, `maxabs_scale(axis=1)`.
  """
  features = np.asarray(features, np.float64)
  most = np.abs(features).max(axis=1, keepdims=True)
  return features / np.where(most > 0, most, 1.0)


def by_norm(
  features: np.ndarray, labels: np.ndarray, n: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Rows in order of their 2-norm, cut into n equal pieces: unlike workers.

    |a_1| <= |a_2| <= ... <= |a_N|;  worker i has a_{im+1}, ..., a_{im+m}

  Returns f64[n, m, d] and f64[n, m] with m = floor(N / n); the N - nm longest
  rows are dropped.

  Source: the experiments of arXiv:2106.03524, as in the authors' code.
  """
  del seed
  _require_rows(features, labels, n)
  norms = np.linalg.norm(features, axis=1)
  return _cut(features, labels, n, np.argsort(norms, kind='stable'))


def iid(
  features: np.ndarray, labels: np.ndarray, n: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Shuffled rows, cut into n equal pieces: workers that are alike.

  Returns f64[n, m, d] and f64[n, m] with m = floor(N / n); the last N - nm
  rows of the shuffle are dropped.
  """
  _require_rows(features, labels, n)
  order = np.random.default_rng(seed).permutation(len(features))
  return _cut(features, labels, n, order)


def _require_rows(features, labels, n):
  if np.ndim(features) != 2:
    raise ValueError(
      f'features have shape {np.shape(features)}; [rows, features] is wanted.'
    )
  if type(n) is not int or n not in range(1, len(features) + 1):
    raise ValueError(
      f'n={n!r} workers; {len(features)} rows make 1 to {len(features)}.'
    )
  if np.shape(labels) != (len(features),):
    raise ValueError(
      f'labels have shape {np.shape(labels)}; {len(features)} rows have '
      f'{(len(features),)}.'
    )


def _cut(features, labels, n, order):
  m = len(features) // n
  kept = order[: n * m].reshape(n, m)
  return tuple(
    np.asarray(part, np.float64)[kept] for part in (features, labels)
  )
