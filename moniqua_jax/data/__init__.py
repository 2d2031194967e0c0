"""Datasets, shards and batches: NumPy on the host, no state to save.

In the order of use:

  dataset = cifar10(data_dir)                          datasets.py, own.py
  shards = iid(dataset.train.labels, n, seed)          partitions.py
  batches(dataset, shards, seed=..., start=..., ...)   stream.py
"""

from moniqua_jax.data.augment import (
  center_crop,
  crop_and_flip,
  normalize,
  plain,
  random_box,
  random_resized_crop,
)
from moniqua_jax.data.base import Dataset, Source, in_memory
from moniqua_jax.data.datasets import cifar10, digits, imagenet2012, synthetic
from moniqua_jax.data.own import arrays, folder, npz
from moniqua_jax.data.partitions import dirichlet, iid, sorted_by_label
from moniqua_jax.data.records import (
  MADE_BY,
  decode,
  on_demand,
  open_records,
  preloaded,
)
from moniqua_jax.data.stream import (
  batch,
  batches,
  prefetch,
  test_batches,
  worker_batch,
)
from moniqua_jax.data.text import text

__all__ = [
  'Dataset',
  'MADE_BY',
  'Source',
  'arrays',
  'batch',
  'batches',
  'center_crop',
  'cifar10',
  'crop_and_flip',
  'decode',
  'digits',
  'dirichlet',
  'folder',
  'iid',
  'imagenet2012',
  'in_memory',
  'normalize',
  'npz',
  'on_demand',
  'open_records',
  'plain',
  'prefetch',
  'preloaded',
  'random_box',
  'random_resized_crop',
  'sorted_by_label',
  'synthetic',
  'test_batches',
  'text',
  'worker_batch',
]
