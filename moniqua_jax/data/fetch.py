"""CIFAR-10 as a TFDS directory, from its authors' archive, without TensorFlow.

  python -m moniqua_jax.data.fetch cifar10 DIR

downloads the archive (170 MB), checks it, and writes DIR/cifar10/3.0.2, which
--config.data.data_dir=DIR reads. On a machine without a network give the file,
wherever it was downloaded: --archive=cifar-10-binary.tar.gz.
"""

import argparse
from collections.abc import Iterator
import errno
import hashlib
import io
import json
import pathlib
import shutil
import tarfile
import tempfile
import urllib.request

import numpy as np

from moniqua_jax import command_line, extras

URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
SHA256 = 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
VERSION = '3.0.2'
FILES = {
  'train': [f'data_batch_{i}.bin' for i in range(1, 6)],
  'test': ['test_batch.bin'],
}
SHAPE = (32, 32, 3)
ROW = 1 + 32 * 32 * 3  # a label; then red, green and blue, each row by row


def main(argv=None):
  """The command line."""
  parser = argparse.ArgumentParser(
    'python -m moniqua_jax.data.fetch',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('name', choices=['cifar10'])
  parser.add_argument('folder', metavar='DIR', help='gets cifar10/3.0.2')
  parser.add_argument('--archive', help='the file, if it is there already')
  args = parser.parse_args(command_line.at_home(argv))
  with command_line.one_line_errors(), tempfile.TemporaryDirectory() as folder:
    there = _where(args.folder)
    archive = args.archive or download(pathlib.Path(folder))
    check(archive, SHA256)
    build(archive, there)
  print(f'{there}: --config.data.data_dir={args.folder}')


def download(folder: pathlib.Path) -> pathlib.Path:
  """Downloads the archive into a folder."""
  print(f'{URL} ...')
  file = folder / pathlib.PurePosixPath(URL).name
  try:
    with urllib.request.urlopen(URL, timeout=60) as page:
      with file.open('wb') as out:
        shutil.copyfileobj(page, out)
  except OSError as error:
    raise ValueError(
      f'{URL} cannot be downloaded ({error}). Download it elsewhere, and give '
      'the file: python -m moniqua_jax.data.fetch cifar10 DIR --archive=FILE.'
    ) from error
  return file


def check(archive, sha256: str) -> None:
  """Refuses a file that is not the archive."""
  try:
    with open(archive, 'rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise ValueError(f'--archive={archive}: {error.strerror}.') from error
  if found != sha256:
    raise ValueError(
      f'{archive} has sha256 {found}; {pathlib.PurePosixPath(URL).name} of '
      f'{URL} has {sha256}.'
    )


def build(archive, there: pathlib.Path) -> None:
  """Writes the directory of an archive: all of it, or nothing."""
  there.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=there.parent) as folder:
    path = pathlib.Path(folder, VERSION)
    path.mkdir()
    with tarfile.open(archive) as files:
      members = {pathlib.PurePosixPath(m.name).name: m for m in files}

      def read(name):
        file = files.extractfile(members[name])
        assert file is not None  # the archive is known by its sha256
        return file.read()

      labels = read('batches.meta.txt').decode().split()
      splits = [_write(path, split, map(read, FILES[split])) for split in FILES]
    (path / 'label.labels.txt').write_text('\n'.join(labels) + '\n')
    (path / 'features.json').write_text(_features(len(labels)))
    (path / 'dataset_info.json').write_text(_info(splits))
    path.rename(there)


def images(batch: bytes) -> Iterator[tuple[np.ndarray, int]]:
  """Yields u8[32, 32, 3] and the label, of each row of a file."""
  for row in np.frombuffer(batch, np.uint8).reshape(-1, ROW):
    planes = row[1:].reshape(3, 32, 32)
    yield np.ascontiguousarray(planes.transpose(1, 2, 0)), int(row[0])


def _where(folder) -> pathlib.Path:
  there = pathlib.Path(folder).expanduser() / 'cifar10' / VERSION
  if there.exists():
    raise ValueError(f'{there} is there already; remove it to write it again.')
  return there


def _write(path, split, batches) -> dict:
  """Writes the records of a split; returns what dataset_info.json says of it.

  PNG keeps the pixels as they are.
  """
  with extras.needed('tfds'):
    from array_record.python.array_record_module import ArrayRecordWriter
  with extras.needed('train'):
    from PIL import Image

  file = path / f'cifar10-{split}.array_record-00000-of-00001'
  writer, size, rows = ArrayRecordWriter(str(file), 'group_size:1'), 0, 0
  try:
    for batch in batches:
      for image, label in images(batch):
        png = io.BytesIO()
        Image.fromarray(image).save(png, 'PNG')
        record = _example(f'{split}_{rows:05d}', png.getvalue(), label)
        writer.write(record)
        size, rows = size + len(record), rows + 1
    writer.close()
  except RuntimeError as error:
    said = str(error).split(';')[0]
    raise OSError(errno.EFBIG, said, str(path.parent)) from error
  print(f'{split}: {rows:,} images')
  return {
    'name': split,
    'shardLengths': [str(rows)],
    'numBytes': str(size),
    'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
  }


def _example(name, image, label) -> bytes:
  """A tf.train.Example, as TFDS has it in each record."""
  with extras.needed('tfds'):
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

  text = lambda value: tf_feature_pb2.BytesList(value=[value])
  number = tf_feature_pb2.Int64List(value=[label])
  feature = {
    'id': tf_feature_pb2.Feature(bytes_list=text(name.encode())),
    'image': tf_feature_pb2.Feature(bytes_list=text(image)),
    'label': tf_feature_pb2.Feature(int64_list=number),
  }
  features = tf_feature_pb2.Features(feature=feature)
  return tf_example_pb2.Example(features=features).SerializeToString()


def _features(classes: int) -> str:
  """The text of features.json."""
  base = 'tensorflow_datasets.core.features.'
  size = {'dimensions': [str(side) for side in SHAPE]}
  image = {'shape': size, 'dtype': 'uint8', 'encodingFormat': 'png'}
  kinds: dict[str, tuple[str, dict]] = {
    'id': ('text_feature.Text', {'text': {}}),
    'image': ('image_feature.Image', {'image': image}),
    'label': (
      'class_label_feature.ClassLabel',
      {'classLabel': {'numClasses': str(classes)}},
    ),
  }
  features = {
    name: {'pythonClassName': base + kind} | more
    for name, (kind, more) in kinds.items()
  }
  return json.dumps(
    {
      'pythonClassName': base + 'features_dict.FeaturesDict',
      'featuresDict': {'features': features},
    },
    indent=2,
  )


def _info(splits) -> str:
  """The text of dataset_info.json."""
  return json.dumps(
    {
      'name': 'cifar10',
      'version': VERSION,
      'description': 'CIFAR-10: 60,000 images of 32 x 32 in 10 classes.',
      'location': {'urls': ['https://www.cs.toronto.edu/~kriz/cifar.html']},
      'disableShuffling': True,  # the order of the archive
      'fileFormat': 'array_record',
      'moduleName': 'tensorflow_datasets.core.dataset_builders.adhoc_builder',
      'splits': splits,
    },
    indent=2,
  )


if __name__ == '__main__':
  main()
