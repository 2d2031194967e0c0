"""Checkpoints that were damaged: never read for good, an older one is used."""

import contextlib
import random
import shutil

import jax
import numpy as np
import pytest

from moniqua_jax.training import checkpoint, digests, parts
from moniqua_jax.training.step import TrainState
from tests.test_two_machines import as_process

N = 4

SLOW = pytest.mark.slow
# Threads of tensorstore, of which one has failed.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def state(step) -> TrainState:
  """A state of N rows of noise, which no compression makes shorter."""
  params = np.random.default_rng(step).normal(size=(N, 500)).astype('f4')
  opt_state = ({'count': np.full(N, step, np.int32)}, (), {'mu': params[:, :9]})
  return TrainState(params, opt_state, {})


def save(workdir, me, own):
  with pytest.MonkeyPatch.context() as patch:
    as_process(patch, me, own)
    checkpoints = checkpoint.manager(workdir)
    for step in (1, 2):
      checkpoint.save(checkpoints, step, state(step))


def restored(workdir, then=lambda checkpoints: None):
  like = jax.device_put(jax.tree.map(np.zeros_like, state(0)))
  with contextlib.closing(checkpoint.manager(workdir)) as checkpoints:
    step, found = checkpoint.restore(checkpoints, like)
    then(checkpoints)
  return step, jax.device_get(found)


@pytest.fixture(scope='module')
def intact(tmp_path_factory):
  """Folders with steps 1 and 2: of one process by orbax, of two by parts."""
  one, two = (tmp_path_factory.mktemp(name) for name in ('one', 'two'))
  with contextlib.closing(checkpoint.manager(one)) as checkpoints:
    for step in (1, 2):
      checkpoint.save(checkpoints, step, state(step))
  save(two, 0, [2, 0])
  save(two, 1, [1, 3])
  return {'one': one, 'two': two}


@pytest.fixture
def copied(intact, tmp_path):
  """kind -> a copy of its folder, and the files of its newest checkpoint."""

  def copy(kind):
    folder = tmp_path / 'run'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(intact[kind], folder)
    newest = parts.found(folder / 'checkpoints')[2]
    files = [file for path in newest for file in (path, *path.rglob('*'))]
    return folder, sorted(file for file in files if file.is_file())

  return copy


def flipped(file, bit):
  data = bytearray(file.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  file.write_bytes(data)


def named(name, do):
  """Does it to the file of the newest checkpoint of that name."""
  return lambda files: [do(file) for file in files if file.name == name]


def emptied(file):
  file.write_bytes(b'')


def largest(files):
  flipped(max(files, key=lambda file: file.stat().st_size), 8 * 2000)


FAULTS = {
  'one, a bit of the largest file': largest,
  'one, no _METADATA': named('_METADATA', lambda file: file.unlink()),
  'one, _METADATA of 0 bytes': named('_METADATA', emptied),
  'one, no manifest': named('manifest.ocdbt', lambda file: file.unlink()),
  'one, digests of 0 bytes': named('metadata', emptied),
  'one, an empty folder': lambda files: [file.unlink() for file in files],
  'two, a bit of the largest file': largest,
  'two, a bit at the end': lambda files: flipped(files[0], 8 * 1200),
  'two, cut': lambda files: files[1].write_bytes(files[1].read_bytes()[:999]),
  'two, 0 bytes': lambda files: emptied(files[1]),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(
  fault, copied, capfd
):
  folder, files = copied(fault.split(',')[0])
  FAULTS[fault](files)
  again = lambda checkpoints: checkpoint.save(checkpoints, 2, state(2))
  step, found = restored(folder, again)
  assert step == 1
  jax.tree.map(np.testing.assert_array_equal, found, state(1))
  said = capfd.readouterr().err
  assert f'{folder}/checkpoints: step 2 is damaged: ' in said
  assert 'goes on from step 1.' in said
  # It is out of the way, and the step could be saved again.
  assert list((folder / 'checkpoints').rglob('2*.damaged'))
  step, found = restored(folder)
  assert step == 2
  jax.tree.map(np.testing.assert_array_equal, found, state(2))


@pytest.mark.parametrize('kind', ['one', 'two'])
def test_where_none_is_intact_nothing_is_begun(kind, copied):
  folder, _ = copied(kind)
  for file in (folder / 'checkpoints').rglob('*'):
    if file.is_file():
      emptied(file)
  with pytest.raises(ValueError, match=r'steps \[1, 2\] no checkpoint is int'):
    restored(folder)
  with pytest.raises(ValueError, match='no checkpoint is intact'):
    checkpoint.last(folder, N)
  assert sorted(parts.found(folder / 'checkpoints')) == [1, 2]


def test_the_mean_model_is_of_the_last_that_is_intact(copied):
  folder, files = copied('one')
  largest(files)
  step, found = checkpoint.last(folder, N)
  assert step == 1
  np.testing.assert_array_equal(found['params'], state(1).params)


def test_older_checkpoints_without_digests_are_read(copied):
  folder, _ = copied('one')
  shutil.rmtree(folder / 'checkpoints' / '2' / 'digests')
  assert restored(folder)[0] == 2


@SLOW
@pytest.mark.parametrize('kind', ['one', 'two'])
def test_no_bit_flips_in_silence(kind, copied):
  """A hundred of them: found, or of no matter."""
  rng = random.Random(0)
  used = set()
  for i in range(100):
    folder, files = copied(kind)
    file = files[i % len(files)]
    if not (size := file.stat().st_size):
      continue
    flipped(file, rng.randrange(8 * size))
    step, found = restored(folder)
    jax.tree.map(np.testing.assert_array_equal, found, state(step))
    used.add(step)
  assert used == {1, 2}


def test_a_digest_is_of_the_bytes():
  leaf = np.arange(6, dtype=np.float32)
  digests.check({'a': leaf}, digests.of({'a': leaf.reshape(2, 3)}))
  zero, minus = np.zeros(1, np.float32), -np.zeros(1, np.float32)
  with pytest.raises(ValueError, match='^a is not what was saved$'):
    digests.check({'a': zero}, digests.of({'a': minus}))
  with pytest.raises(ValueError, match='^b is not what was saved$'):
    digests.check({'a': zero}, digests.of({'a': zero, 'b': zero}))
