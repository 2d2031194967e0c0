"""Data sets of one's own: a folder of images, an NPZ file, arrays.

All of them are held in memory, scaled by mean and deviation of each channel of
the training pixels. What does not fit is refused when it is read, before
training, in one line.
"""

from collections.abc import Mapping
import functools
import pathlib
from typing import Any

import numpy as np

from moniqua_jax import extras
from moniqua_jax.data.augment import center_crop, crop_and_flip, normalize
from moniqua_jax.data.base import Dataset, in_memory

__all__ = ['arrays', 'folder', 'npz']

KINDS = {'.bmp', '.jpeg', '.jpg', '.png', '.webp'}
AUGMENTS = {
  'none': lambda rng, images: images,
  'crop_and_flip': crop_and_flip,
}
# Names of the four arrays of an NPZ file: Keras's, and MedMNIST's.
NAMES = (
  ('x_train', 'y_train', 'x_test', 'y_test'),
  ('train_images', 'train_labels', 'test_images', 'test_labels'),
)


def folder(
  path: str,
  *,
  train: str = 'train',
  test: str = 'test',
  image_size: int | None = None,
  augment: str = 'none',
) -> Dataset:
  """Images in `path`/train/CLASS/ and `path`/test/CLASS/, in colour.

  Classes are the folders of `train` by their names' order. All images have one
  size, or `image_size` says to which their central squares are scaled.
  """
  root = pathlib.Path(path).expanduser()
  classes = _folders(root / train)
  unknown = sorted({*_folders(root / test)} - {*classes})
  if unknown:
    raise ValueError(
      f'{root / test} has classes {unknown}, which {root / train} has not.'
    )
  read = functools.partial(_read, classes=classes, image_size=image_size)
  return _dataset(read(root / train), read(root / test), len(classes), augment)


def npz(path: str, *, augment: str = 'none') -> Dataset:
  """Arrays x_train, y_train, x_test and y_test of an NPZ file; see `arrays`.

  Or train_images, train_labels, test_images and test_labels.
  """
  try:
    with np.load(pathlib.Path(path).expanduser()) as file:
      there = dict(file)
  except Exception as error:  # of zipfile, zlib, NumPy
    raise ValueError(f'path={path!r} is no NPZ file: {error}.') from error
  names = next((names for names in NAMES if {*names} <= {*there}), None)
  if names is None:
    raise ValueError(
      f'{path} has the arrays {sorted(there)}; it takes '
      f'{" or ".join(map(str, NAMES))}.'
    )
  found = [there[name] for name in names]
  train = _checked(found[0], found[1], f'{path}, {names[0]}')
  test = _checked(found[2], found[3], f'{path}, {names[2]}')
  return _dataset(train, test, None, augment)


def arrays(
  train: Mapping,
  test: Mapping,
  *,
  image: str = 'image',
  label: str = 'label',
  num_classes: int | None = None,
  augment: str = 'none',
) -> Dataset:
  """Two splits with columns, as those of Hugging Face's `datasets`.

  split[image] is [N, H, W] or [N, H, W, C], of integers or floats, or a
  sequence of N such images, or of Pillow's; split[label] is N whole numbers
  from 0 on. Classes are counted in `train` if `num_classes` is not given.

  >>> split = {'image': np.eye(8).reshape(4, 4, 4), 'label': [0, 1, 0, 1]}
  >>> arrays(split, split).shape
  (4, 4, 1)
  """
  ours, theirs = (
    _checked(_stacked(split[image], name), split[label], name)
    for name, split in (('train', train), ('test', test))
  )
  return _dataset(ours, theirs, num_classes, augment)


def _folders(path) -> list[str]:
  found = sorted(each.name for each in path.glob('[!.]*') if each.is_dir())
  if not found:
    raise ValueError(
      f'{path} has no folders; it takes {path}/CLASS/IMAGE.png, a folder for '
      'each class.'
    )
  return found


def _read(path, classes, image_size):
  """Reads (images, labels) of a split."""
  files = [
    (file, label)
    for label, name in enumerate(classes)
    for file in sorted((path / name).glob('[!.]*'))
    if file.suffix.lower() in KINDS
  ]
  images: Any = [_decoded(file) for file, _ in files]
  if image_size is not None:
    images = center_crop(images, image_size, fraction=1)
  elif odd := [i for i, x in enumerate(images) if x.shape != images[0].shape]:
    raise ValueError(
      f'{files[odd[0]][0]} is {images[odd[0]].shape[:2]} and {files[0][0]} '
      f'{images[0].shape[:2]} pixels; image_size=N makes all of them N x N.'
    )
  labels = np.array([label for _, label in files], np.int32)
  return _checked(np.array(images), labels, str(path))


def _decoded(file) -> np.ndarray:
  with extras.needed('train'):
    from PIL import Image
  try:
    return np.asarray(Image.open(file).convert('RGB'))
  except Exception as error:  # of Pillow, zlib, struct
    raise ValueError(f'{file} is no image: {error}.') from error


def _stacked(images, where) -> np.ndarray:
  """One array of a sequence of images."""
  if isinstance(images, np.ndarray) and images.dtype != object:
    return images
  images = [np.asarray(image) for image in images]
  for i, image in enumerate(images):
    if image.shape != images[0].shape:
      raise ValueError(
        f'{where}: image {i} is {image.shape} and image 0 {images[0].shape}; '
        'they must be of one shape.'
      )
  return np.array(images)


def _checked(images, labels, where):
  """(images [N, H, W, C] of u8 or f32, labels i32[N]), or what is wrong."""
  labels = np.asarray(labels)
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if images.ndim == 3:
    images = images[..., None]
  wrong = _wrong(images, labels)
  if wrong:
    raise ValueError(f'{where}: {wrong}.')
  kind = np.uint8 if images.dtype == np.uint8 else np.float32
  return images.astype(kind, copy=False), labels.astype(np.int32)


def _wrong(images, labels) -> str | None:
  """What is wrong with images and labels of a split."""
  if images.ndim and not len(images):
    return 'there are no images'
  if images.ndim != 4:
    return f'images are {images.shape}, not [N, H, W] or [N, H, W, C]'
  if images.shape[3] > 4 >= images.shape[1]:
    return f'images are {images.shape}, with channels first; give [N, H, W, C]'
  if images.dtype.kind not in 'uif':
    return f'images are {images.dtype}, not integers or floats'
  most = np.finfo(np.float32).max
  if images.dtype.kind == 'f' and not (np.abs(images) <= most).all():
    return 'images have values that are not finite in float32'
  if labels.ndim != 1 or labels.dtype.kind not in 'ui':
    return (
      f'labels are {labels.dtype}{list(labels.shape)}, not a whole number for '
      'each image'
    )
  if len(labels) != len(images):
    return f'{len(images)} images have {len(labels)} labels'
  if labels.min() < 0:
    return f'labels begin with {labels.min()}, not with 0'
  if labels.max() >= 2**31:
    return f'labels go up to {labels.max()}; they are numbers of classes'
  return None


def _dataset(train, test, num_classes, augment) -> Dataset:
  """The dataset of two splits that are right, each for itself."""
  shape, other = train[0].shape[1:], test[0].shape[1:]
  if shape != other:
    raise ValueError(f'training images are {shape}, test images {other}.')
  if augment not in AUGMENTS:
    raise ValueError(f'augment={augment!r}; choose from {sorted(AUGMENTS)}.')
  count = int(train[1].max()) + 1
  if num_classes is None and count > len(train[1]) > 1:
    raise ValueError(
      f'there is a label {count - 1} among {len(train[1])} training images; '
      'labels are numbers of classes, from 0 on.'
    )
  num_classes = num_classes or count
  largest = max(int(labels.max()) for _, labels in (train, test))
  if largest >= num_classes:
    raise ValueError(
      f'there is a label {largest}, and {num_classes} classes are 0 to '
      f'{num_classes - 1}.'
    )
  std = train[0].std((0, 1, 2), dtype=np.float64)
  if not std.all():
    raise ValueError(f'channel {std.argmin()} is the same in all images.')
  preprocess = functools.partial(
    normalize, mean=train[0].mean((0, 1, 2), dtype=np.float64), std=std
  )
  change = AUGMENTS[augment]
  return Dataset(
    train=in_memory(*train),
    test=in_memory(*test),
    num_classes=num_classes,
    shape=shape,
    augment=lambda rng, images: preprocess(change(rng, images)),
    preprocess=preprocess,
  )
