"""Images and labels from a TFDS directory, without TensorFlow or a download.

TFDS finds the files and parses the records; Pillow decodes, whether or not
OpenCV is installed (whose JPEG decoder gives other pixels).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import errno
import functools
import io

import numpy as np

from moniqua_jax import extras
from moniqua_jax.data.base import Source, in_memory

# Records read at a time, 30 MB of ImageNet: one by one costs twice the time.
_CHUNK = 256

# The commands that make a TFDS directory.
MADE_BY = {'cifar10': 'python -m moniqua_jax.data.fetch cifar10 DIR'}
TFDS = '`tfds build` of tensorflow-datasets, with --file_format=array_record'


def open_records(data_dir, name: str, version: str, split: str):
  """Random access to the records {'image': bytes, 'label': int} of a split.

  A TFDS data source: `len`, `[i]` and `__getitems__([i, j])`. `split` may be a
  slice, 'train[:90%]'. Nothing is downloaded.

  >>> open_records('/nowhere', 'cifar10', '3.0.2', 'train')
  Traceback (most recent call last):
  ValueError: data_dir='/nowhere' has no cifar10/3.0.2/dataset_info.json; \
data_dir should be the TFDS directory that contains cifar10/3.0.2. To make it: \
python -m moniqua_jax.data.fetch cifar10 DIR.

  Source: https://www.tensorflow.org/datasets/data_source.
  """
  with extras.needed('tfds'):
    import tensorflow_datasets as tfds  # slow, and only these datasets need it

  path = tfds.core.Path(data_dir or '').expanduser() / name / version
  if not data_dir or not (path / 'dataset_info.json').exists():
    raise ValueError(
      f'data_dir={data_dir and str(data_dir)!r} has no {name}/{version}/'
      'dataset_info.json; data_dir should be the TFDS directory that contains '
      f'{name}/{version}. To make it: {MADE_BY.get(name, TFDS)}.'
    )
  builder = tfds.builder_from_directory(path)
  _check_files(builder.info, path, split)
  skip = {'image': tfds.decode.SkipDecoding()}
  source = builder.as_data_source(split, decoders=skip)
  return Records(source, _files(builder.info, split))


class Records:
  """Records of a data source; a damaged one is an `OSError` with its file.

  `files` are (path, how many of the records are in it), in their order.
  """

  def __init__(self, source, files: list[tuple[str, int]]):
    self._source, self._files = source, files

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, key) -> dict:
    return self.__getitems__([key])[0]

  def __getitems__(self, keys) -> list[dict]:
    """Reads several at once."""
    try:
      return self._source.__getitems__(keys)
    except Exception:  # of array_record, protobuf, TFDS
      for key in keys:
        self._look(key)
      raise

  def _look(self, key):
    try:
      self._source.__getitems__([key])
    except Exception as error:
      raise self.damaged(key, error) from error

  def damaged(self, key: int, error: Exception) -> OSError:
    """Makes an error of a record that names its file."""
    ends = np.cumsum([count for _, count in self._files])
    path = self._files[int(np.searchsorted(ends, key, 'right'))][0]
    said = ' '.join(str(error).split())[:120]
    return OSError(errno.EIO, f'record {key} cannot be read ({said})', path)


def decode(encoded: bytes) -> np.ndarray:
  """Pixels u8[H, W, 3] of a JPEG or PNG file, grey and CMYK ones as RGB."""
  with extras.needed('train'):
    from PIL import Image

  return np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))


def preloaded(records, shape: tuple[int, int, int]) -> Source:
  """Decodes all records once, for datasets that fit in memory.

  One thread: small images spend their time in Python, and two threads took as
  long as one.
  """
  images = np.empty((len(records), *shape), np.uint8)
  labels = np.empty(len(records), np.int32)
  for keys in _chunks(len(records)):
    for i, record in zip(keys, records.__getitems__(keys), strict=True):
      image = _image(records, i, record)
      if image.shape != shape:
        raise ValueError(f'image {i} is {image.shape}, expected {shape}.')
      images[i], labels[i] = image, record['label']
  return in_memory(images, labels)


def on_demand(records) -> Source:
  """Reads and decodes an image whenever it is asked for."""

  def read(indices):
    keys = np.asarray(indices).tolist()
    chosen = records.__getitems__(keys)
    images = [_image(records, *pair) for pair in zip(keys, chosen, strict=True)]
    return images, np.array([record['label'] for record in chosen], np.int32)

  return Source(read, _LazyLabels(records))


def _image(records, key, record) -> np.ndarray:
  try:
    return decode(record['image'])
  except Exception as error:  # of Pillow, zlib, struct
    raise records.damaged(key, error) from error


class _LazyLabels:
  """i32[N] that know their length at once and their values when needed."""

  def __init__(self, records):
    self._records = records

  def __len__(self):
    return len(self._records)

  def __array__(self, dtype=None, copy=None):
    return np.array(self._values, dtype=dtype, copy=copy)

  @functools.cached_property
  def _values(self):
    labels = np.empty(len(self), np.int32)

    def fill(keys):
      rows = self._records.__getitems__(keys)
      labels[keys] = [row['label'] for row in rows]

    with ThreadPoolExecutor() as pool:  # mostly waiting for the disk
      list(pool.map(fill, _chunks(len(self))))
    return labels


def _chunks(size) -> Iterator[list[int]]:
  for start in range(0, size, _CHUNK):
    yield list(range(start, min(start + _CHUNK, size)))


def _files(info, split) -> list[tuple[str, int]]:
  """The files of a split, each opened once: whether it has all its records."""
  with extras.needed('tfds'):
    from array_record.python.array_record_module import ArrayRecordReader

  files = []
  for each in info.splits[split].file_instructions:
    path, wanted = str(each.filename), each.examples_in_shard
    try:
      reader = ArrayRecordReader(path)
      found = reader.num_records()
      reader.close()
    except Exception as error:
      found = ' '.join(str(error).split())[:120]
    if found != wanted:
      said = f'{found} records' if isinstance(found, int) else found
      said = f'it should have {wanted} records ({said})'
      raise OSError(errno.EIO, said, path)
    files.append((path, each.take))
  return files


def _check_files(info, path, split):
  try:
    wanted = info.splits[split].filepaths
  except (KeyError, ValueError):
    raise ValueError(
      f'split={split!r} is not in {path}; use one of {sorted(info.splits)} or '
      f"a slice such as 'train[:90%]'."
    ) from None
  if info.file_format.value != 'array_record':
    raise ValueError(
      f'{path} is stored as {info.file_format.value}; prepare it with '
      f'{MADE_BY.get(info.name, TFDS)}.'
    )
  present = {file.name for file in path.iterdir()}
  missing = sorted({file.name for file in wanted} - present)
  if missing:
    raise ValueError(
      f'split={split!r} in {path} lacks {len(missing)} of {len(wanted)} files, '
      f'the first is {missing[0]}.'
    )
