"""Who gets which image: shards of the training set, one per worker.

Each function returns n index arrays i64 that are disjoint, not empty, and
together hold every index 0 to N - 1 once. n: workers, N: images.
"""

import numpy as np

__all__ = ['dirichlet', 'iid', 'sorted_by_label']

Shards = tuple[np.ndarray, ...]  # n arrays i64[N_w]


def iid(labels, n: int, seed: int) -> Shards:
  """Cuts a random permutation of the images into n parts.

  No image is dropped: where n does not divide N the first N mod n workers have
  one image more.
  """
  _check_workers(len(labels), n)
  order = np.random.default_rng(seed).permutation(len(labels))
  return tuple(np.array_split(order.astype(np.int64), n))


def sorted_by_label(labels, n: int) -> Shards:
  """Sorts the images by label and gives each worker one contiguous part.

  The hardest split of the decentralized papers: with n equal to the number of
  classes each worker sees one class. Images of one label keep their order.
  """
  _check_workers(len(labels), n)
  order = np.argsort(np.asarray(labels), kind='stable')
  return tuple(np.array_split(order.astype(np.int64), n))


def dirichlet(labels, n: int, alpha: float, seed: int) -> Shards:
  """Splits each class over the workers in proportions p_c ~ Dir_n(alpha).

  alpha -> infinity is iid, alpha -> 0 gives each class to one worker. Shards
  differ in length. This is the split per class of Yurochkin et al.; Hsu et al.
  (arXiv:1909.06335), often cited for it, draw a mixture of classes per worker
  and keep the shards equally long.

  Source: Yurochkin et al., Bayesian nonparametric federated learning of neural
  networks, ICML 2019, section 4.
  """
  _check_workers(len(labels), n)
  if not (alpha > 0 and np.isfinite(alpha)):
    raise ValueError(f'alpha={alpha!r} must be positive and finite.')
  labels = np.asarray(labels)
  rng = np.random.default_rng(seed)
  owner = np.empty(len(labels), np.int64)  # the worker of each image
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    cuts = np.cumsum(rng.dirichlet(np.full(n, alpha)))[:-1] * len(members)
    for worker, part in enumerate(np.split(members, cuts.astype(np.int64))):
      owner[part] = worker
  shards = tuple(np.flatnonzero(owner == worker) for worker in range(n))
  for worker, shard in enumerate(shards):
    if not len(shard):
      raise ValueError(
        f'alpha={alpha} leaves worker {worker} of {n} without images; use a '
        f'larger alpha, fewer workers or another seed than {seed}.'
      )
  return shards


def _check_workers(images, n):
  if not 1 <= n <= images:
    raise ValueError(
      f'n={n} workers cannot share {images} images; use 1 to {images} workers.'
    )
