"""One's own data: what is read is what was written; what is wrong is named."""

import hashlib
import io
import tarfile

import numpy as np
from PIL import Image
import pytest

from configs import digits
from moniqua_jax import data
from moniqua_jax.data import fetch
from moniqua_jax.training import registry
from tests.test_faults import full

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 6, 6, 3), np.uint8)
LABELS = np.arange(20) % 3
SPLITS = {'train': slice(0, 14), 'test': slice(14, 20)}


def as_folder(path):
  for split, rows in SPLITS.items():
    for i in range(20)[rows]:
      file = path / split / 'abc'[LABELS[i]] / f'{i:02d}.png'
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(PIXELS[i]).save(file)
  # What systems and notebooks leave there.
  (path / 'train' / '.ipynb_checkpoints').mkdir()
  (path / 'train' / 'a' / '._00.png').write_text('no')
  return str(path)


def as_npz(path, labels=LABELS):
  at, (train, test) = path / 'mine.npz', SPLITS.values()
  x, y = dict(x_train=PIXELS[train], x_test=PIXELS[test]), labels[:, None]
  np.savez(at, y_train=y[train], y_test=y[test], **x)
  return str(at)


def as_splits(images=PIXELS, labels=LABELS):
  return [dict(image=images[s], label=labels[s]) for s in SPLITS.values()]


def pictures(images=PIXELS):
  """As Hugging Face's `datasets` have them: lists of Pillow's images."""
  return [
    dict(
      image=[Image.fromarray(x) for x in split['image']], label=split['label']
    )
    for split in as_splits(images)
  ]


# name -> (folder) -> the dataset of PIXELS, by itself and as a config names it
MADE = {
  'folder': lambda path: data.folder(as_folder(path)),
  'npz': lambda path: data.npz(as_npz(path)),
  'arrays': lambda path: data.arrays(*as_splits()),
  'pictures': lambda path: data.arrays(*pictures()),
  'config folder': lambda path: named('folder', as_folder(path)),
  'config npz': lambda path: named('npz', as_npz(path)),
}


def named(name, path, **more):
  config = digits.get_config()
  config.data.update(name=name, path=path, **more)
  return registry.build(registry.DATASETS, 'data', config.data)


@pytest.mark.parametrize('name', MADE)
def test_pixels_and_labels_are_those_that_were_written(name, tmp_path):
  dataset = MADE[name](tmp_path)
  assert dataset.num_classes == 3 and dataset.shape == (6, 6, 3)
  seen = []
  for source in (dataset.train, dataset.test):
    images, labels = source.read(np.arange(len(source.labels)))
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    seen += zip(map(bytes, images), labels.tolist(), strict=True)
  assert len(dataset.train.labels) == 14
  # A folder goes by classes.
  assert sorted(seen) == sorted(
    zip(map(bytes, PIXELS), LABELS.tolist(), strict=True)
  )
  x = dataset.preprocess(dataset.train.read(np.arange(14))[0])
  np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-5)
  rng = np.random.default_rng(0)
  np.testing.assert_array_equal(
    dataset.augment(rng, PIXELS[:4]), dataset.preprocess(PIXELS[:4])
  )


def test_images_of_many_sizes_are_scaled(tmp_path):
  path = as_folder(tmp_path)
  wide = np.zeros((8, 12, 3), np.uint8)
  wide[:, 2:10] = 200  # its central square
  Image.fromarray(wide).save(tmp_path / 'train' / 'a' / 'wide.png')
  with pytest.raises(ValueError, match=r'wide.png is \(8, 12\) .*image_size=N'):
    data.folder(path)
  dataset = data.folder(path, image_size=4)
  assert dataset.shape == (4, 4, 3) and len(dataset.train.labels) == 15
  images, _ = dataset.train.read(np.arange(15))
  assert 1 == sum((image[1:3, 1:3] == 200).all() for image in images)


def test_images_are_moved_and_mirrored_on_demand(tmp_path):
  dataset = data.arrays(*as_splits(), augment='crop_and_flip')
  rng, again = np.random.default_rng(1), np.random.default_rng(1)
  np.testing.assert_array_equal(
    dataset.augment(rng, PIXELS),
    dataset.preprocess(data.crop_and_flip(again, PIXELS)),
  )


floats = PIXELS / 255.0
one_hot = np.eye(3)[LABELS]
bad = floats.copy()
bad[3, 0, 0, 0] = np.nan
MISTAKES = {
  'train: labels begin with -1': (PIXELS, LABELS - 1),
  'there is a label 7, and 3 classes are': (
    PIXELS,
    np.where(np.arange(20) == 15, 7, LABELS),
  ),
  r'train: labels are float64\[14, 3\], not a whole': (PIXELS, one_hot),
  r'train: labels are float64\[14\], not a whole': (PIXELS, LABELS / 1.0),
  r'train: images are \(14, 108\), not': (PIXELS.reshape(20, -1), LABELS),
  r'train: images are \(14, 3, 6, 6\), with channels first': (
    PIXELS.transpose(0, 3, 1, 2),
    LABELS,
  ),
  'train: images have values that are not finite': (bad, LABELS),
  'not finite in float32': (floats * 1e300, LABELS),
  'there is a label 90 among 14 training images': (PIXELS, LABELS * 45),
  'train: labels go up to 4294967297;': (PIXELS, (LABELS == 1) * (2**32 + 1)),
  'train: images are <U1, not': (np.full((20, 2, 2, 1), 'a'), LABELS),
  'channel 1 is the same in all images': (PIXELS * [1, 0, 1], LABELS),
}


@pytest.mark.parametrize('message', MISTAKES)
def test_what_is_wrong_is_named(message):
  with pytest.raises(ValueError, match=message) as error:
    data.arrays(*as_splits(*MISTAKES[message]))
  assert '\n' not in str(error.value)


def test_splits_that_do_not_fit_are_refused():
  train, test = as_splits()
  few = dict(image=test['image'], label=test['label'][:-1])
  with pytest.raises(ValueError, match='test: 6 images have 5 labels'):
    data.arrays(train, few)
  other = dict(image=test['image'][:, :5], label=test['label'])
  with pytest.raises(ValueError, match=r'\(6, 6, 3\), test images \(5, 6, 3\)'):
    data.arrays(train, other)
  none = dict(image=[], label=[])
  with pytest.raises(ValueError, match='test: there are no images'):
    data.arrays(train, none)
  odd = dict(image=[PIXELS[0], PIXELS[1][:4]], label=[0, 1])
  with pytest.raises(ValueError, match=r'image 1 is \(4, 6, 3\) and image 0'):
    data.arrays(odd, test)


def test_files_that_do_not_fit_are_refused(tmp_path):
  def refused(message, name, path, **more):
    with pytest.raises(ValueError, match=f'^config.data: .*{message}') as error:
      named(name, str(path), **more)
    assert '\n' not in str(error.value)

  refused('nowhere/train has no folders; it takes', 'folder', 'nowhere')
  path = as_folder(tmp_path / 'f')
  (tmp_path / 'f' / 'test' / 'd').mkdir()
  refused(r"f/test has classes \['d'\], which", 'folder', path)
  (tmp_path / 'f' / 'test' / 'd').rmdir()
  refused("augment='flip'; choose from", 'folder', path, augment='flip')
  (tmp_path / 'f' / 'train' / 'a' / 'x.png').write_text('no')
  refused('x.png is no image', 'folder', path)
  refused('is no NPZ file', 'npz', tmp_path / 'none.npz')
  np.savez(tmp_path / 'other.npz', images=PIXELS)
  refused(
    r"has the arrays \['images'\]; it takes", 'npz', tmp_path / 'other.npz'
  )
  lone = dict.fromkeys(('x_train', 'y_train', 'x_test', 'y_test'), 3)
  np.savez(tmp_path / 'lone.npz', **lone)
  refused(r'x_train: images are \(\), not', 'npz', tmp_path / 'lone.npz')
  np.savez_compressed(tmp_path / 'bits.npz', x_train=PIXELS, y_train=PIXELS)
  whole = bytearray((tmp_path / 'bits.npz').read_bytes())
  for at in (100, len(whole) - 30):
    damaged = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
    (tmp_path / 'bits.npz').write_bytes(damaged)
    refused('bits.npz', 'npz', tmp_path / 'bits.npz')
  broken = b'\x89PNG\r\n\x1a\n' + bytes(30)
  (tmp_path / 'f' / 'train' / 'a' / 'x.png').write_bytes(broken)
  refused('x.png is no image', 'folder', path)
  (tmp_path / 'text.npz').write_text('no')
  refused('is no NPZ file', 'npz', tmp_path / 'text.npz')


# ----------------------------------------------------------- CIFAR-10's archive

NAMES = 'airplane automobile bird cat deer dog frog horse ship truck'.split()


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
  """A small one: two images a batch, as the authors' page describes rows."""
  path = tmp_path_factory.mktemp('archive') / 'cifar-10-binary.tar.gz'
  images = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
  names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  rows = [
    bytes([i % 10]) + b''.join(x[..., c].tobytes() for c in range(3))
    for i, x in enumerate(images)
  ]
  files = {'batches.meta.txt': '\n'.join(NAMES).encode()} | {
    name: rows[2 * i] + rows[2 * i + 1] for i, name in enumerate(names)
  }
  with tarfile.open(path, 'w:gz') as tar:
    for name, content in files.items():
      member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return path, images


def run(capsys, *argv):
  try:
    fetch.main(['cifar10', *map(str, argv)])
  except SystemExit as ended:
    return ended.code, capsys.readouterr().err
  return 0, capsys.readouterr().out


def test_the_archive_becomes_a_tfds_directory(
  archive, tmp_path, capsys, monkeypatch
):
  path, images = archive
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setattr(fetch, 'SHA256', digest)
  status, said = run(capsys, tmp_path, f'--archive={path}')
  assert status == 0 and f'--config.data.data_dir={tmp_path}' in said
  dataset = data.cifar10(tmp_path)
  found, labels = dataset.train.read(np.arange(10))
  np.testing.assert_array_equal(found, images[:10])
  assert labels.tolist() == [*range(10)]
  np.testing.assert_array_equal(dataset.test.read([0, 1])[0], images[10:])
  status, said = run(capsys, tmp_path, f'--archive={path}')
  assert status == 2 and 'is there already' in said


def test_a_full_disk_leaves_no_directory(
  archive, tmp_path, capsys, monkeypatch
):
  path, _ = archive
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setattr(fetch, 'SHA256', digest)
  with full(5000):
    status, said = run(capsys, tmp_path, f'--archive={path}')
  assert status == 1 and said.count('\n') == 1
  assert 'File too large. Make room there, then' in said
  assert not list((tmp_path / 'cifar10').iterdir())


def test_an_archive_that_is_not_it_leaves_nothing(archive, tmp_path, capsys):
  path, _ = archive
  for file in (path, tmp_path / 'none'):
    status, said = run(capsys, tmp_path / 'out', f'--archive={file}')
    assert status == 2 and said.count('\n') == 1
    assert fetch.SHA256 in said or 'No such file' in said
  assert not (tmp_path / 'out').exists()


def test_without_a_network_it_says_what_to_do(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(fetch, 'URL', 'http://localhost:9/cifar.tar.gz')
  status, said = run(capsys, tmp_path)
  assert status == 2 and said.count('\n') == 1
  assert 'python -m moniqua_jax.data.fetch cifar10 DIR --archive=FILE' in said


def test_missing_data_names_the_command():
  for more in ({}, {'data_dir': 'nowhere'}):
    with pytest.raises(ValueError, match='moniqua_jax.data.fetch cifar10 DIR'):
      registry.build(registry.DATASETS, 'data', dict(name='cifar10', **more))
