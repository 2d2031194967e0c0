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
  """Random access to one split; `len(source.labels)` is its size N."""

  # indices: int[B] -> (images, labels: i32[B]); thread-safe, since batches are
  # prepared ahead in threads
  read: Callable[[np.ndarray], tuple[Images, np.ndarray]]
  # i32[N], or anything of length N that `np.asarray` makes so: ImageNet's are
  # read from the files only if somebody asks
  labels: Any


class Dataset(NamedTuple):
  """Images to learn from, images to test on, and how to make f32 of both.

  Training without augmentation:
  `dataset._replace(augment=plain(dataset.preprocess))`.
  """

  train: Source
  test: Source
  num_classes: int  # labels are from 0 on
  shape: tuple[int, ...]  # (H, W, C) of an image as the model sees it, or (T,)
  # (rng, images) -> f32[B, H, W, C], for training; draws only from rng
  augment: Callable[[np.random.Generator, Images], np.ndarray]
  preprocess: Callable[[Images], np.ndarray]  # -> f32[B, H, W, C], for testing
  field: str = 'image'  # the name that these have in a batch, beside 'label'
  task: Any = None  # of training.tasks; None for that of the field
  text: Any = None  # of data.text: what symbols mean


def in_memory(images: np.ndarray, labels) -> Source:
  """A source of arrays: `read(indices) = images[indices], labels[indices]`."""
  labels = np.asarray(labels, np.int32)
  if len(images) != len(labels):
    raise ValueError(f'{len(images)} images have {len(labels)} labels.')
  return Source(lambda indices: (images[indices], labels[indices]), labels)
