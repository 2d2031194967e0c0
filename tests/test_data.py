"""Shards partition, batches are pure, augmentation does what it says."""

import io
import json
import os
from pathlib import Path
import shutil

from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from moniqua_jax import command_line, data
from moniqua_jax.data import datasets, partitions, records

SHAPE = (8, 8, 1)


@pytest.fixture(scope='module')
def toy():
  return data.synthetic(200, 50, shape=SHAPE, num_classes=5, seed=0)


@pytest.fixture(scope='module')
def real_data_dir():
  beside = Path(__file__).parents[2] / 'shared' / 'data' / 'tfds'
  path = Path(os.environ.get('MONIQUA_DATA_DIR', beside))
  if not (path / 'cifar10').is_dir():
    pytest.skip(
      f'no cifar10 in {path}; set MONIQUA_DATA_DIR to a TFDS directory'
    )
  return path


# ------------------------------------------------------------------- shards

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def assert_partition(shards, size):
  assert all(shard.dtype == np.int64 for shard in shards)
  assert sorted(np.concatenate(shards).tolist()) == list(range(size))


@settings(deadline=None, max_examples=50)
@given(LABELS, st.integers(1, 60), st.integers(0, 9))
def test_equal_shards(labels, n, seed):
  n = min(n, len(labels))
  for shards in (
    partitions.iid(labels, n, seed),
    partitions.sorted_by_label(labels, n),
  ):
    assert_partition(shards, len(labels))
    sizes = {len(shard) for shard in shards}
    assert len(shards) == n and max(sizes) - min(sizes) <= 1


@settings(deadline=None, max_examples=50)
@given(LABELS, st.integers(1, 8), st.floats(0.01, 100), st.integers(0, 9))
def test_dirichlet_is_a_partition_or_says_why(labels, n, alpha, seed):
  n = min(n, len(labels))
  try:
    shards = partitions.dirichlet(labels, n, alpha, seed)
  except ValueError as error:
    assert f'alpha={alpha} leaves worker' in str(error)
  else:
    assert len(shards) == n and all(map(len, shards))
    assert_partition(shards, len(labels))


def test_sorted_by_label_is_sorted():
  labels = np.arange(40) % 4
  shards = partitions.sorted_by_label(labels, 4)
  assert [set(labels[shard]) for shard in shards] == [{0}, {1}, {2}, {3}]


def test_dirichlet_is_skewed_for_small_alpha_and_even_for_large():
  labels = np.arange(4000) % 10
  share = {}
  for alpha in (0.1, 1e4):
    shards = partitions.dirichlet(labels, 4, alpha, seed=1)
    counts = [np.bincount(labels[shard], minlength=10) for shard in shards]
    share[alpha] = np.max(counts, axis=0).mean() / 400  # of the largest owner
  assert share[0.1] > 0.6 and share[1e4] < 0.28


def test_shards_repeat_and_follow_the_seed():
  labels = np.arange(100) % 10
  for split in (
    lambda seed: partitions.iid(labels, 4, seed),
    lambda seed: partitions.dirichlet(labels, 4, 1.0, seed),
  ):
    first, again, other = (np.concatenate(split(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize(
  'split, message',
  [
    (lambda x: partitions.iid(x, 4, 0), 'n=4 workers cannot share 3 images'),
    (lambda x: partitions.sorted_by_label(x, 0), 'n=0 workers cannot share'),
    (lambda x: partitions.dirichlet(x, 2, 0.0, 0), 'alpha=0.0 must be pos'),
    (lambda x: partitions.dirichlet(x, 2, np.nan, 0), 'alpha=nan must be pos'),
    (
      lambda x: partitions.dirichlet(x, 2, 1e-3, 0),
      r'alpha=0.001 leaves worker \d of 2 without images',
    ),
  ],
)
def test_shard_errors(split, message):
  with pytest.raises(ValueError, match=message):
    split([0, 0, 0])


# ------------------------------------------------------------------ batches


def index_dataset(size):
  """Image i is the pixel i, so that a batch tells which images it holds."""
  images = np.arange(size, dtype=np.uint8).reshape(-1, 1, 1, 1)
  source = data.in_memory(images, np.zeros(size))
  return data.Dataset(
    source, source, 1, (1, 1, 1), data.plain(np.float32), np.float32
  )


def seen(dataset, shards, steps, **kwargs):
  rows = [
    data.worker_batch(dataset, shards, step=step, **kwargs)['image'].ravel()
    for step in steps
  ]
  return np.concatenate(rows).astype(int)


@pytest.mark.parametrize('batch_size', [1, 3, 4, 7])
def test_each_pass_visits_each_image_once(batch_size):
  dataset, size = index_dataset(40), 10
  shards = partitions.iid(range(40), 4, seed=0)
  passes = seen(
    dataset,
    shards,
    range(3 * size),
    worker=1,
    seed=5,
    batch_size=batch_size,
  ).reshape(-1, size)
  assert (np.sort(passes) == np.sort(shards[1])).all()
  assert (passes[0] != passes[1]).any()


def test_batch_is_pure_and_follows_seed_step_and_worker():
  # Shards of equal content: only the worker's index can make a difference.
  dataset, shards = index_dataset(100), (np.arange(100), np.arange(100))

  def batch(seed, step):
    at = dict(seed=seed, step=step, batch_size=20)
    return data.batch(dataset, shards, **at)['image']

  first = batch(0, 7)
  assert (first == batch(0, 7)).all()
  assert (first != batch(0, 8)).any() and (first != batch(1, 7)).any()
  assert (first[0] != first[1]).any()


def test_batch_stacks_worker_batches(toy):
  shards = partitions.dirichlet(toy.train.labels, 3, 1.0, seed=0)
  at = dict(seed=0, step=11, batch_size=4)
  together = data.batch(toy, shards, **at)
  assert together['image'].shape == (3, 4, *SHAPE)
  assert together['image'].dtype == np.float32
  assert together['label'].shape == (3, 4)
  assert together['label'].dtype == np.int32
  for worker in range(3):
    alone = data.worker_batch(toy, shards, worker=worker, **at)
    for name in ('image', 'label'):
      np.testing.assert_array_equal(alone[name], together[name][worker])


def test_images_keep_their_labels(toy):
  images, labels = toy.train.read(np.arange(200))
  by_image = {
    toy.preprocess(images[i : i + 1]).tobytes(): labels[i] for i in range(200)
  }
  shards = partitions.iid(toy.train.labels, 4, seed=0)
  batch = data.batch(toy, shards, seed=0, step=3, batch_size=9)
  for image, label in zip(
    batch['image'].reshape(-1, *SHAPE), batch['label'].ravel(), strict=True
  ):
    assert by_image[image.tobytes()] == label


def test_augmentation_follows_seed_step_and_worker(toy):
  noisy = toy._replace(augment=lambda rng, images: rng.random(len(images)))
  shards = partitions.iid(toy.train.labels, 2, seed=0)
  draws = [
    data.batch(noisy, shards, seed=seed, step=step, batch_size=2)['image']
    for seed, step in [(0, 0), (0, 1), (1, 0), (0, 0)]
  ]
  assert np.unique(draws).size == 3 * 2 * 2  # all differ but the repetition
  assert (draws[0] == draws[3]).all()


def test_batches_ahead_are_the_batches(toy):
  shards = partitions.iid(toy.train.labels, 4, seed=0)
  ahead = data.batches(toy, shards, seed=1, start=3, stop=15, batch_size=16)
  steps = []
  for step, got in ahead:
    want = data.batch(toy, shards, seed=1, step=step, batch_size=16)
    steps.append(step)
    np.testing.assert_array_equal(got['image'], want['image'])
    np.testing.assert_array_equal(got['label'], want['label'])
  assert steps == list(range(3, 15))


def test_prefetch_passes_errors_on_and_may_be_empty():
  assert list(data.prefetch(str, 4, 4)) == []
  with pytest.raises(ZeroDivisionError):
    list(data.prefetch(lambda i: 1 // i, 0, 3))


def test_batch_size_errors(toy):
  shards = [np.arange(size) for size in (64, 90, 64, 41)]
  message = (
    r'batch_size=64 is larger than the shard of worker 3 \(41 images\); use at '
    r'most 41 or fewer workers\.'
  )
  at = dict(seed=0, batch_size=64)
  with pytest.raises(ValueError, match=message):
    data.batch(toy, shards, step=0, **at)
  with pytest.raises(ValueError, match=message):
    data.worker_batch(toy, shards, worker=0, step=0, **at)
  with pytest.raises(ValueError, match=message):  # before the first next()
    data.batches(toy, shards, start=0, stop=9, **at)
  with pytest.raises(ValueError, match='batch_size=0 must be at least 1'):
    data.batch(toy, shards, seed=0, step=0, batch_size=0)
  with pytest.raises(ValueError, match='batch_size=0 must be at least 1'):
    data.test_batches(toy, 0)


@pytest.mark.parametrize('batch_size', [1, 16, 50, 64])
def test_test_batches_cover_the_split_once(toy, batch_size):
  rows = list(data.test_batches(toy, batch_size))
  assert {row['image'].shape for row in rows} == {(batch_size, *SHAPE)}
  image, label, mask = (
    np.concatenate([row[name] for row in rows])
    for name in ('image', 'label', 'mask')
  )
  images, labels = toy.test.read(np.arange(50))
  assert mask.dtype == np.float32 and mask.sum() == 50
  np.testing.assert_array_equal(image[mask == 1], toy.preprocess(images))
  np.testing.assert_array_equal(label[mask == 1], labels)


# ------------------------------------------------------------- augmentation


def test_crop_and_flip_is_some_window_of_the_padded_image():
  rng = np.random.default_rng(0)
  images = rng.random((64, 6, 5, 2), np.float32) + 1
  out = data.crop_and_flip(rng, images, pad=2)
  padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
  found = []
  for image, got in zip(padded, out, strict=True):
    windows = {
      (top, left, flip): image[top : top + 6, left : left + 5][:, ::flip]
      for top in range(5)
      for left in range(5)
      for flip in (1, -1)
    }
    (where,) = [w for w, want in windows.items() if (want == got).all()]
    found.append(where)
  tops, lefts, flips = map(set, zip(*found, strict=True))
  assert tops == lefts == set(range(5)) and flips == {1, -1}


def test_normalize_is_the_formula():
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
  got = data.normalize(images, [1, 2, 3], [4, 5, 6])
  assert got.dtype == np.float32
  want = (images.astype(np.float64) - [1, 2, 3]) / [4, 5, 6]
  np.testing.assert_allclose(got, want, rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_random_box_lies_inside(height, width, seed):
  rng = np.random.default_rng(seed)
  left, top, right, bottom = data.random_box(rng, height, width)
  assert 0 <= left < right <= width and 0 <= top < bottom <= height
  if min(height, width) >= 60 and max(height, width) <= 300:
    w, h = right - left, bottom - top
    assert 0.7 < w / h < 1.4  # 3:4 to 4:3 but for rounding
    area = w * h / (height * width)
    assert 0.07 < area  # 8 % but for rounding; the fall-back may be smaller


def test_random_box_falls_back_to_the_largest_centred_box():
  box = data.random_box(np.random.default_rng(0), 300, 3)
  assert box == (0, 148, 3, 152)


def test_resizing_keeps_colour_and_place():
  image = np.zeros((64, 128, 3), np.uint8)
  image[:, :64], image[:, 64:] = (200, 0, 0), (0, 0, 100)  # left red
  (centre,) = data.center_crop([image], 16)
  assert (centre[:, :7] == (200, 0, 0)).all()
  assert (centre[:, 9:] == (0, 0, 100)).all()
  crops = data.random_resized_crop(np.random.default_rng(0), [image] * 50, 16)
  assert crops.shape == (50, 16, 16, 3)
  reds = crops[..., 0].astype(int)
  mirrored = reds[:, 0, -1] > reds[:, 0, 0]
  assert 0 < mirrored.sum() < 50


# ----------------------------------------------------------------- datasets


def test_namespaces_list_factories_only():
  assert datasets.__all__ == ['cifar10', 'digits', 'imagenet2012', 'synthetic']
  assert partitions.__all__ == ['dirichlet', 'iid', 'sorted_by_label']
  assert data.__all__ == sorted(data.__all__)


def test_digits_split_is_stratified_scaled_and_fixed():
  dataset, again = data.digits(), data.digits()
  images, labels = dataset.train.read(np.arange(1437))
  x = dataset.preprocess(images)
  assert x.shape == (1437, 8, 8, 1) and x.dtype == np.float32
  assert abs(x.mean()) < 1e-4 and abs(x.std() - 1) < 1e-4
  counts = np.bincount(dataset.test.labels)
  assert counts.sum() == 360 and counts.min() >= 34 and counts.max() <= 37
  np.testing.assert_array_equal(images, again.train.read(np.arange(1437))[0])
  np.testing.assert_array_equal(labels, again.train.labels)


def test_images_that_have_no_room_are_not_made():
  with pytest.raises(ValueError, match='num_train=2000000000 .*GiB .*above 16'):
    data.synthetic(2 * 10**9, 10, (8, 8, 1), 10, seed=0)


def test_synthetic_is_deterministic_and_learnable():
  dataset, again, other = (
    data.synthetic(300, 100, (8, 8, 3), 4, seed) for seed in (0, 0, 1)
  )
  images, labels = dataset.train.read(np.arange(300))
  np.testing.assert_array_equal(images, again.train.read(np.arange(300))[0])
  assert (images != other.train.read(np.arange(300))[0]).any()
  x = dataset.preprocess(images)
  means = np.stack([x[labels == label].mean(0) for label in range(4)])
  x, labels = dataset.test.read(np.arange(100))
  far = np.square(dataset.preprocess(x)[:, None] - means).sum((2, 3, 4))
  assert (far.argmin(1) == labels).mean() > 0.95


def test_in_memory_refuses_a_missing_label():
  with pytest.raises(ValueError, match='2 images have 3 labels'):
    data.in_memory(np.zeros((2, 1, 1, 1)), [0, 1, 2])


# ----------------------------------- TFDS directories, tiny ones and the real


def encode(image, kind):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind)
  return file.getvalue()


def example(image, label):
  feature = tf_feature_pb2.Feature
  pixels = tf_feature_pb2.BytesList(value=[image])
  number = tf_feature_pb2.Int64List(value=[label])
  features = tf_feature_pb2.Features(
    feature={
      'image': feature(bytes_list=pixels),
      'label': feature(int64_list=number),
    }
  )
  return tf_example_pb2.Example(features=features).SerializeToString()


def features_json(shape, classes):
  base = 'tensorflow_datasets.core.features.'
  size = {'dimensions': [str(side) for side in shape]}
  return {
    'pythonClassName': base + 'features_dict.FeaturesDict',
    'featuresDict': {
      'features': {
        'image': {
          'pythonClassName': base + 'image_feature.Image',
          'image': {'shape': size, 'dtype': 'uint8', 'encodingFormat': 'jpeg'},
        },
        'label': {
          'pythonClassName': base + 'class_label_feature.ClassLabel',
          'classLabel': {'numClasses': str(classes)},
        },
      }
    },
  }


def write_tfds(path, name, splits, shape, file_format='array_record'):
  """A TFDS directory of `splits`: {name: [(encoded image, label), ...]}."""
  path.mkdir(parents=True)
  for split, rows in splits.items():
    file = path / f'{name}-{split}.array_record-00000-of-00001'
    writer = ArrayRecordWriter(str(file), 'group_size:1')
    for row in rows:
      writer.write(example(*row))
    writer.close()
  info = {
    'name': name,
    'version': path.name,
    'fileFormat': file_format,
    'moduleName': 'tensorflow_datasets.core.dataset_builders.adhoc_builder',
    'splits': [
      {
        'name': split,
        'shardLengths': [str(len(rows))],
        'numBytes': '1',
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
      for split, rows in splits.items()
    ],
  }
  (path / 'dataset_info.json').write_text(json.dumps(info))
  (path / 'features.json').write_text(json.dumps(features_json(shape, 10)))


@pytest.fixture(scope='module')
def tiny_cifar10(tmp_path_factory):
  root = tmp_path_factory.mktemp('tfds')
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
  rows = [(encode(x, 'PNG'), i % 10) for i, x in enumerate(pixels)]
  splits = {'train': rows[:12], 'test': rows[12:]}
  write_tfds(root / 'cifar10/3.0.2', 'cifar10', splits, (32, 32, 3))
  return root, pixels


def test_cifar10_reads_a_tfds_directory(tiny_cifar10):
  root, pixels = tiny_cifar10
  dataset = data.cifar10(root)
  images, labels = dataset.train.read(np.arange(12))
  np.testing.assert_array_equal(images, pixels[:12])
  assert labels.tolist() == [i % 10 for i in range(12)]
  (row,) = data.test_batches(dataset, 4)
  want = data.normalize(pixels[12:], *datasets._CIFAR10)
  np.testing.assert_array_equal(row['image'], want)
  shards = partitions.sorted_by_label(dataset.train.labels, 2)
  batch = data.batch(dataset, shards, seed=0, step=0, batch_size=5)
  assert batch['image'].shape == (2, 5, 32, 32, 3)


def test_cifar10_reads_slices_of_splits(tiny_cifar10):
  root, pixels = tiny_cifar10
  dataset = data.cifar10(
    root, train_split='train[:75%]', test_split='train[9:]'
  )
  assert len(dataset.train.labels) == 9 and len(dataset.test.labels) == 3
  np.testing.assert_array_equal(dataset.test.read([0])[0], pixels[9:10])


def test_imagenet2012_reads_a_tfds_directory(tmp_path):
  colours = np.arange(0, 240, 24, dtype=np.uint8)
  pixels = [np.full((40 + 3 * c, 60, 3), c, np.uint8) for c in range(10)]
  pixels = [x * 0 + c for x, c in zip(pixels, colours, strict=True)]
  rows = [(encode(x, 'JPEG'), 990 + i) for i, x in enumerate(pixels)]
  rows[3] = (encode(pixels[3][..., 0], 'JPEG'), 993)  # ImageNet has grey files
  splits = {'train': rows[:8], 'validation': rows[8:]}
  path = tmp_path / 'imagenet2012/5.1.0'
  write_tfds(path, 'imagenet2012', splits, (-1, -1, 3))
  dataset = data.imagenet2012(tmp_path, image_size=32)
  assert len(dataset.train.labels) == 8
  assert np.asarray(dataset.train.labels).tolist() == list(range(990, 998))
  shards = partitions.iid(dataset.train.labels, 2, seed=0)
  at = dict(seed=0, batch_size=4)
  ((_, batch),) = data.batches(dataset, shards, start=0, stop=1, **at)
  assert batch['image'].shape == (2, 4, 32, 32, 3)
  want = data.normalize(
    np.broadcast_to(colours[:, None, None, None], (10, 1, 1, 3)),
    *datasets._IMAGENET,
  )
  np.testing.assert_allclose(  # any window of a plain colour is that colour
    batch['image'].mean((2, 3)), want[batch['label'] - 990, 0, 0], atol=0.03
  )
  (row,) = data.test_batches(dataset, 3)
  assert row['mask'].tolist() == [1, 1, 0] and row['label'][1] == 999


def test_missing_data_is_one_clear_line(tiny_cifar10, tmp_path):
  root, _ = tiny_cifar10
  for data_dir in ('/nowhere', root / 'cifar10', '', None):
    with pytest.raises(ValueError, match='contains cifar10/3.0.2') as caught:
      data.cifar10(data_dir)
    shown = data_dir and str(data_dir)
    assert str(caught.value).startswith(f'data_dir={shown!r} has no cifar10/')
    assert '\n' not in str(caught.value)
  with pytest.raises(ValueError, match='has no imagenet2012/5.1.0'):
    data.imagenet2012(root)
  for split in ('valid', 'train[:x]'):
    message = rf"split='{split}' .*one of \['test', 'train'\] or a slice"
    with pytest.raises(ValueError, match=message.replace('[:x]', r'\[:x\]')):
      data.cifar10(root, train_split=split)


def test_unreadable_directories_are_named(tmp_path):
  rows = {'train': [(b'', 0)], 'test': [(b'', 0)]}
  path = tmp_path / 'cifar10/3.0.2'
  write_tfds(path, 'cifar10', rows, (32, 32, 3), file_format='tfrecord')
  with pytest.raises(ValueError, match='stored as tfrecord; prepare it with'):
    data.cifar10(tmp_path)
  path = tmp_path / 'other' / 'cifar10/3.0.2'
  write_tfds(path, 'cifar10', rows, (32, 32, 3))
  next(path.glob('*test*')).unlink()
  with pytest.raises(ValueError, match="split='test' .* lacks 1 of 1 files"):
    data.cifar10(tmp_path / 'other')


class Records(list):
  def __getitems__(self, keys):
    return [self[key] for key in keys]


def test_preloaded_names_the_image_of_another_shape():
  record = {'image': encode(np.zeros((4, 6, 3), np.uint8), 'PNG'), 'label': 0}
  with pytest.raises(ValueError, match=r'image 0 is \(4, 6, 3\), expected'):
    data.preloaded(Records([record]), (6, 4, 3))


def test_real_cifar10_labels(real_data_dir):
  for split, each in (('train', 5000), ('test', 1000)):
    records = data.open_records(real_data_dir, 'cifar10', '3.0.2', split)
    labels = np.asarray(data.on_demand(records).labels)
    assert (np.bincount(labels) == [each] * 10).all()


def test_real_cifar10_pixels(real_data_dir):
  dataset = data.cifar10(
    real_data_dir, train_split='train[:2000]', test_split='test[:10]'
  )
  images, labels = dataset.train.read(np.arange(2000))
  assert images.shape == (2000, 32, 32, 3) and images.dtype == np.uint8
  assert labels[:8].tolist() == [5, 1, 2, 5, 1, 8, 5, 4]
  assert images[0, 0, :2].tolist() == [[137, 157, 129], [88, 108, 80]]
  x = dataset.preprocess(images)
  np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=0.03)
  np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=0.03)


# ------------------------------------------------------------- damaged records


def spoilt(source, folder, damage):
  """A copy of a TFDS directory, whose training file is damaged."""
  root = folder / 'copy'
  shutil.copytree(source, root)
  (file,) = root.glob('*/*/*-train.array_record*')
  whole = file.read_bytes()
  file.write_bytes(damage(whole))
  return root, file


def with_bytes(at):
  """The middle of a record is noise."""
  return lambda whole: whole[:at] + b'\xa5' * 40 + whole[at + 40 :]


DAMAGE = {
  'cut': lambda whole: whole[: len(whole) // 2],
  'empty': lambda whole: b'',
  'noise': with_bytes(20_000),
  'a page': lambda whole: b'<html>not found</html>',
}


@pytest.mark.parametrize('name', DAMAGE)
def test_a_damaged_file_of_records_is_named(name, tiny_cifar10, tmp_path):
  root, file = spoilt(tiny_cifar10[0], tmp_path, DAMAGE[name])
  with pytest.raises(OSError) as error:
    data.cifar10(root)
  said = command_line.failure(error.value)
  assert said.startswith(f'{file}: ') and '\n' not in said
  assert 'record' in said and said.endswith('Put back a copy that is whole')


@pytest.mark.parametrize('name', ['cut', 'noise'])
def test_a_damaged_file_is_named_when_it_is_read(name, tmp_path):
  """Before training where a look at it is enough."""
  noise = np.random.default_rng(0).integers(0, 256, (9, 40, 40, 3), np.uint8)
  rows = [(encode(x, 'PNG'), i) for i, x in enumerate(noise)]
  path = tmp_path / 'whole/imagenet2012/5.1.0'
  splits = {'train': rows, 'validation': rows[:2]}
  write_tfds(path, 'imagenet2012', splits, (-1, -1, 3))
  root, file = spoilt(tmp_path / 'whole', tmp_path, DAMAGE[name])
  with pytest.raises(OSError) as error:
    dataset = data.imagenet2012(root, image_size=8)
    assert name == 'noise'
    shards = partitions.iid(np.arange(9) % 3, 1, seed=0)
    options = dict(seed=0, start=0, stop=9, batch_size=3)
    list(data.batches(dataset, shards, **options))
  assert error.value.filename == str(file) and 'record' in str(error.value)


def test_a_record_that_is_no_image_is_named(tmp_path):
  rows = [(encode(np.zeros((32, 32, 3), np.uint8), 'PNG'), 0)] * 3
  rows[1] = (rows[1][0][:60], 1)
  path = tmp_path / 'cifar10/3.0.2'
  write_tfds(path, 'cifar10', {'train': rows, 'test': rows[:1]}, (32, 32, 3))
  with pytest.raises(OSError, match='record 1 cannot be read') as error:
    data.cifar10(tmp_path)
  assert '3.0.2/cifar10-train.array_record-0000' in error.value.filename


def test_a_record_belongs_to_the_file_that_has_it():
  of = records.Records([], [('a', 3), ('b', 1), ('c', 2)])
  found = [of.damaged(key, ValueError('no')).filename for key in range(6)]
  assert found == ['a', 'a', 'a', 'b', 'c', 'c']
