"""The two types of this package: a source of images and a dataset.

Shapes: N images in a split, B in a batch, each H x W with C channels.
Everything here is NumPy on the host; JAX sees the finished batches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# u8[B, H, W, C], or where sizes differ a list of B arrays u8[H_i, W_i, C]
Images = np.ndarray | list[np.ndarray]


class Source(NamedTuple):
  """Random access to one split; `len(source.labels)` is its size N.

  Args:
    read: `(indices: int[B]) -> (images, labels: i32[B])`, images as `Images`;
      thread-safe, since batches are prepared ahead in threads.
    labels: i32[N], or anything of length N that `np.asarray` makes so:
      ImageNet's are read from the files only if somebody asks.

  >>> source = in_memory(np.zeros((5, 8, 8, 1), np.uint8), [0, 1, 2, 0, 1])
  >>> images, labels = source.read(np.array([1, 3]))
  >>> images.shape, labels.tolist(), len(source.labels)
  ((2, 8, 8, 1), [1, 0], 5)
  """

  read: Callable[[np.ndarray], tuple[Images, np.ndarray]]
  labels: Any  # i32[N]


class Dataset(NamedTuple):
  """Images to learn from, images to test on, and how to make f32 of both.

  Args:
    train: the training split.
    test: the split that `test_batches` goes through.
    num_classes: labels are 0 to num_classes - 1.
    shape: (H, W, C) of an image as the model sees it.
    augment: `(rng: np.random.Generator, images) -> f32[B, H, W, C]`, for
      training; draws only from `rng`.
    preprocess: `(images) -> f32[B, H, W, C]`, for testing. Training without
      augmentation: `dataset._replace(augment=plain(dataset.preprocess))`.

  >>> from moniqua_jax.data.datasets import synthetic
  >>> dataset = synthetic(6, 4, shape=(8, 8, 1), num_classes=2, seed=0)
  >>> images, _ = dataset.train.read(np.arange(3))
  >>> dataset.augment(np.random.default_rng(0), images).shape
  (3, 8, 8, 1)
  """

  train: Source
  test: Source
  num_classes: int
  shape: tuple[int, int, int]
  augment: Callable[[np.random.Generator, Images], np.ndarray]
  preprocess: Callable[[Images], np.ndarray]


def in_memory(images: np.ndarray, labels) -> Source:
  """A source of arrays: `read(indices) = images[indices], labels[indices]`.

  Returns the source; its `labels` are i32[N].

  >>> in_memory(np.zeros((2, 8, 8, 1), np.uint8), [1, 0]).labels
  array([1, 0], dtype=int32)
  """
  labels = np.asarray(labels, np.int32)
  if len(images) != len(labels):
    raise ValueError(f'{len(images)} images have {len(labels)} labels.')
  return Source(lambda indices: (images[indices], labels[indices]), labels)
