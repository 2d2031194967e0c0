"""The datasets by name: two need no files, two read a TFDS directory."""

import functools
import math

import numpy as np

from moniqua_jax import extras
from moniqua_jax.data.augment import (
  center_crop,
  crop_and_flip,
  normalize,
  plain,
  random_resized_crop,
)
from moniqua_jax.data.base import Dataset, in_memory
from moniqua_jax.data.records import on_demand, open_records, preloaded

__all__ = ['cifar10', 'digits', 'imagenet2012', 'synthetic']

LARGEST = 2**32  # values of `synthetic`, 16 GiB

# Mean and standard deviation of the training pixels per channel, 0 to 255.
_CIFAR10 = (
  255 * np.array([0.4914, 0.4822, 0.4465]),
  255 * np.array([0.2470, 0.2435, 0.2616]),
)
_IMAGENET = (
  255 * np.array([0.485, 0.456, 0.406]),
  255 * np.array([0.229, 0.224, 0.225]),
)


def digits() -> Dataset:
  """Handwritten digits that come with scikit-learn: 1437 train, 360 test.

  A fixed stratified split, scaled to zero mean and unit variance over the
  training pixels, never augmented.

  Returns a dataset of f32[8, 8, 1] images in 10 classes.

  >>> dataset = digits()
  >>> len(dataset.train.labels), len(dataset.test.labels), dataset.shape
  (1437, 360, (8, 8, 1))

  Source: Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI
  1998; its test part, as `sklearn.datasets.load_digits` has it.
  """
  with extras.needed('train'):
    from sklearn.datasets import load_digits  # two seconds if the disk is cold
    from sklearn.model_selection import train_test_split

  bunch = load_digits()
  images = bunch.images.astype(np.uint8)[..., None]  # 0 to 16
  train, test, train_labels, test_labels = train_test_split(
    images, bunch.target, test_size=360, stratify=bunch.target, random_state=0
  )
  preprocess = functools.partial(
    normalize, mean=[train.mean()], std=[train.std()]
  )
  return Dataset(
    train=in_memory(train, train_labels),
    test=in_memory(test, test_labels),
    num_classes=10,
    shape=(8, 8, 1),
    augment=plain(preprocess),
    preprocess=preprocess,
  )


def synthetic(
  num_train: int,
  num_test: int,
  shape: tuple[int, int, int],
  num_classes: int,
  seed: int,
) -> Dataset:
  """Balanced classes that can be learned: class mean plus white noise.

  image = clip(round(128 + 32 * mean[label] + 32 * noise), 0, 255) on the scale
  of uint8, mean and noise standard normal; (image - 128) / 32 for the model.
  A class mean is constant on 4 x 4 blocks, so that it survives pooling.

  >>> dataset = synthetic(60, 20, shape=(8, 8, 1), num_classes=3, seed=0)
  >>> np.bincount(dataset.train.labels), dataset.train.read([0])[0].dtype
  (array([20, 20, 20]), dtype('uint8'))
  """
  values = (num_train + num_test) * math.prod(shape)
  if values > LARGEST:
    raise ValueError(
      f'num_train={num_train} and num_test={num_test} images of {shape} are '
      f'{4 * values / 2**30:.0f} GiB when they are made, above 16.'
    )
  rng = np.random.default_rng(seed)
  height, width, channels = shape
  blocks = rng.standard_normal((num_classes, 4, 4, channels), np.float32)
  rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
  means = blocks[:, rows][:, :, columns]  # [num_classes, H, W, C]

  def split(size):
    labels = rng.permutation(np.arange(size) % num_classes)
    images = rng.standard_normal((size, *shape), np.float32)
    images += means[labels]
    pixels = np.clip(np.rint(128 + 32 * images), 0, 255).astype(np.uint8)
    return in_memory(pixels, labels)

  preprocess = functools.partial(
    normalize, mean=[128] * channels, std=[32] * channels
  )
  return Dataset(
    train=split(num_train),
    test=split(num_test),
    num_classes=num_classes,
    shape=shape,
    augment=plain(preprocess),
    preprocess=preprocess,
  )


def cifar10(
  data_dir,
  *,
  version: str = '3.0.2',
  train_split: str = 'train',
  test_split: str = 'test',
) -> Dataset:
  """CIFAR-10: 50,000 + 10,000 images of 32 x 32 in 10 classes.

  `data_dir` is the TFDS directory that contains cifar10/`version`; nothing is
  downloaded. A split like 'train[:90%]' leaves room for validation. All images
  are decoded at once (185 MB, about 10 seconds). To train: pad by 4 black
  pixels, random crop, random mirror. Always: per-channel normalization.

  Source: Krizhevsky, Learning multiple layers of features from tiny images,
  2009; augmentation of He et al., CVPR 2016, section 4.2.
  """
  # Both are opened before the first image is decoded: errors come early.
  train = open_records(data_dir, 'cifar10', version, train_split)
  test = open_records(data_dir, 'cifar10', version, test_split)
  shape = (32, 32, 3)

  def preprocess(images):
    return normalize(images, *_CIFAR10)

  def augment(rng, images):
    # On bytes, then floats: the other order costs four times as much.
    return preprocess(crop_and_flip(rng, images))

  return Dataset(
    train=preloaded(train, shape),
    test=preloaded(test, shape),
    num_classes=10,
    shape=shape,
    augment=augment,
    preprocess=preprocess,
  )


def imagenet2012(
  data_dir,
  *,
  image_size: int = 224,
  version: str = '5.1.0',
  train_split: str = 'train',
  test_split: str = 'validation',
) -> Dataset:
  """ImageNet (ILSVRC 2012): 1.28 million + 50,000 images in 1000 classes.

  As `cifar10`, but images are read and decoded when a batch asks for them and
  made square, of `image_size` pixels a side. To train: a random window of 8 to
  100 % of the area, random mirror. To test: the central 7/8 of the short side.

  Source: Russakovsky et al., ImageNet large scale visual recognition
  challenge, IJCV 2015; see `random_box` and `center_crop` for the windows.
  """
  train = open_records(data_dir, 'imagenet2012', version, train_split)
  test = open_records(data_dir, 'imagenet2012', version, test_split)

  def preprocess(images):
    return normalize(center_crop(images, image_size), *_IMAGENET)

  def augment(rng, images):
    crops = random_resized_crop(rng, images, image_size)
    return normalize(crops, *_IMAGENET)

  return Dataset(
    train=on_demand(train),
    test=on_demand(test),
    num_classes=1000,
    shape=(image_size, image_size, 3),
    augment=augment,
    preprocess=preprocess,
  )
