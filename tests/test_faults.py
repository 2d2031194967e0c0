"""A disk that is full, read-only or in the way: one line, and nothing is lost.

Here a file may be no longer than a limit of the system, which is as good as a
full disk. `benchmarks.faults` has real ones, and kills; some of it is the slow
tier.
"""

import contextlib
import errno
import json
import os
import pathlib
import random
import resource
import tempfile

import jax
import numpy as np
import pytest

from benchmarks.faults import kinds, runs
from moniqua_jax import command_line
from moniqua_jax.plots import kept, look
from moniqua_jax.training import __main__ as program
from moniqua_jax.training import checkpoint, metrics, whole
from moniqua_jax.training import workdir as workdir_lib
from tests import programs
from tests.test_damage import state
from tests.test_two_machines import as_process
from tests.trained import small

LIMIT = 600  # bytes of a file


@contextlib.contextmanager
def full(limit=LIMIT):
  """Files that are longer fail, and those that are there stay so long."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ------------------------------------------------------------ what is said


def error(number, name='runs/a', other=None):
  return OSError(number, os.strerror(number), name, None, other)


SAID = {
  errno.ENOSPC: 'runs/a: No space left on device. Make room there',
  errno.EDQUOT: 'runs/a: Disk quota exceeded. Make room there',
  errno.EROFS: 'runs/a: Read-only file system. See that it may be read and',
  errno.EACCES: 'runs/a: Permission denied. See that it may be read and wri',
  errno.ENOTDIR: 'runs/a: Not a directory. Move away what is in its place',
  errno.EISDIR: 'runs/a: Is a directory. Move away what is in its place',
  errno.EIO: 'runs/a: Input/output error. Put back a copy that is whole',
}


@pytest.mark.parametrize('number', SAID)
def test_a_failure_is_one_line_and_status_1(number, capsys):
  with (
    pytest.raises(SystemExit) as ended,
    command_line.one_line_errors(),
  ):
    raise error(number)
  said = capsys.readouterr().err
  assert ended.value.code == 1 and said.startswith(f'error: {SAID[number]}')
  assert said.endswith(', then give the same command again.\n')
  assert said.count('\n') == 1


def test_what_is_not_there_was_a_mistake_of_the_command(capsys):
  assert command_line.told(error(errno.ENOENT)) == 2
  assert command_line.told(ValueError('no.')) == 2
  assert command_line.told(OSError('a broken pipe')) == 1
  assert 'error: a broken pipe. See to that, then' in capsys.readouterr().err


@pytest.mark.parametrize('begun', [False, True])
def test_a_run_says_how_to_go_on(begun, tmp_path, monkeypatch, capsys):
  """With --resume if anything of it was written."""

  def fails(config, workdir):
    if begun:
      (tmp_path / 'config.json').write_text('{}')
    raise error(errno.ENOSPC, f'{workdir}/run.json')

  monkeypatch.setattr(program, '_training', fails)
  with pytest.raises(SystemExit) as ended:
    program.train(small(), str(tmp_path))
  assert ended.value.code == 1
  assert capsys.readouterr().err == (
    f'error: {tmp_path}/run.json: No space left on device. Make room there, '
    f'then give the same command again{", with --resume" if begun else ""}.\n'
  )


# ------------------------------------------------------------ what is written


def a_figure(path):
  with look.drawing(4, 3) as fig:
    fig.subplots().plot([1, 2], [3, 4])
  look.save(fig, path)


def a_config(path):
  config = json.loads(small().to_json())
  kept.write([kept.Run('a', [], {'step': 1}, config, {})], path.parent)


WRITERS = {
  'a.json': lambda path: whole.write(path, 'x' * 2 * LIMIT),
  'a.jsonl': lambda path: kept.write_lines(path, [{'x': 1}] * LIMIT),
  'run.json': lambda path: workdir_lib.note(path.parent, x='x' * 2 * LIMIT),
  'config.json': a_config,
  'a.svg': lambda path: a_figure(path.with_suffix('')),
}


@pytest.mark.parametrize('name', WRITERS)
def test_a_full_disk_leaves_what_was_there(name, tmp_path):
  path = tmp_path / name
  path.write_text('{}')
  with full(), pytest.raises(OSError, match='File too large') as failed:
    WRITERS[name](path)
  assert failed.value.filename == str(path)
  assert path.read_text() == '{}' and list(tmp_path.iterdir()) == [path]


def test_rows_that_do_not_fit_are_missed_and_named(tmp_path):
  row = {'step': 1, 'train/loss': 1.0}
  writer = metrics.Writer(tmp_path, False)
  with full(), pytest.raises(OSError, match='File too large') as failed:
    for step in range(100):
      writer.write({**row, 'step': step})
  with contextlib.suppress(OSError):
    writer.close()
  assert failed.value.filename == str(tmp_path / 'metrics.jsonl')
  found = [row['step'] for row in metrics.read(tmp_path)]
  assert found == list(range(len(found))) and len(found) > 5


# Threads of tensorstore, of which one has failed.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_checkpoint_that_does_not_fit_is_named_once(tmp_path, capfd, caplog):
  """And the one before is there, with no rest of the one that failed."""
  with contextlib.closing(checkpoint.manager(tmp_path)) as checkpoints:
    checkpoint.save(checkpoints, 1, state(1))
  checkpoints = checkpoint.manager(tmp_path)
  with full(4000), pytest.raises(OSError, match='File too large') as failed:
    checkpoint.save(checkpoints, 2, state(2))
    checkpoints.close()
  assert failed.value.filename == str(tmp_path / 'checkpoints')
  with contextlib.suppress(OSError):
    checkpoints.close()
  assert capfd.readouterr().err == '' and not caplog.records
  # Threads of the save that failed may still write; a run would end with them.
  programs.wait_for(lambda: not rest_of(tmp_path))
  like = jax.device_put(jax.tree.map(np.zeros_like, state(0)))
  with contextlib.closing(checkpoint.manager(tmp_path)) as checkpoints:
    step, found = checkpoint.restore(checkpoints, like)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, found, state(1))
    assert not list((tmp_path / 'checkpoints').glob('*tmp*'))
    checkpoint.save(checkpoints, 2, state(2))
  names = [path.name for path in (tmp_path / 'checkpoints').iterdir()]
  assert sorted(name for name in names if name[0].isdigit()) == ['1', '2']


def rest_of(workdir):
  """What a manager that is opened now leaves of saves that did not end."""
  checkpoint.manager(workdir).close()
  return list((workdir / 'checkpoints').glob('*tmp*'))


def test_rows_of_a_checkpoint_that_do_not_fit(tmp_path, monkeypatch):
  as_process(monkeypatch, 1, [1, 3])
  checkpoints = checkpoint.manager(tmp_path)
  checkpoint.save(checkpoints, 1, state(1))
  folder = tmp_path / 'checkpoints' / 'process_1_of_2'
  with full(), pytest.raises(OSError, match='File too large') as failed:
    checkpoint.save(checkpoints, 2, state(2))
  assert failed.value.filename == str(folder / '2.npz')
  assert [path.name for path in folder.iterdir()] == ['1.npz']


# ----------------------------------------------------------- what is in the way


OBSTACLES = {
  'the folder of runs': ('', os.mknod, errno.ENOTDIR),
  'the lock': ('.lock0', os.mkdir, errno.EISDIR),
}


@pytest.mark.parametrize('name', OBSTACLES)
def test_a_file_in_the_way_is_named(name, tmp_path):
  path, put, number = OBSTACLES[name]
  runs_ = tmp_path / 'runs'
  folder = runs_ / 'a' if not path else runs_
  if path:
    runs_.mkdir()
  put(runs_ / path)
  with (
    pytest.raises(OSError) as failed,
    workdir_lib.opened(folder, small(), False),
  ):
    pass
  assert failed.value.errno == number
  assert str(runs_) in command_line.failure(failed.value)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
  with workdir_lib.opened(tmp_path, small(), False):
    pass
  for name in ('run.json', 'config.json'):
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with (
      pytest.raises(IsADirectoryError) as failed,
      workdir_lib.opened(tmp_path, small(), True),
    ):
      pass
    assert failed.value.filename == str(tmp_path / name)


def test_rows_before_a_checkpoint_are_missed(tmp_path, capsys):
  """A disk may keep the checkpoint, and lose the end of the metrics."""
  lines = [json.dumps({'step': step, 'seconds': 1.0}) for step in (2, 4, 6)]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  assert workdir_lib.rewind(tmp_path, 6) == 1.0
  assert capsys.readouterr().err == ''
  workdir_lib.rewind(tmp_path, 9)
  assert 'ends with step 6, and the checkpoint is of step 9: the rows be' in (
    capsys.readouterr().err
  )


# ------------------------------------------------------------ real runs


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('faults')
  os.environ |= {'FAULTS_COMPILED': f'{folder}/jax', 'FAULTS_SAID': str(folder)}
  assert runs.run(folder / 'whole').status == 0
  return folder / 'whole'


@pytest.mark.slow
@pytest.mark.parametrize('name', kinds.KINDS)
def test_faults_are_survived(name, undisturbed, tmp_path):
  kind = kinds.KINDS[name]
  if not kind.possible():
    pytest.skip('it takes root')
  for number in range(2):
    rng = random.Random(f'{name} {number}')
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
      folder = pathlib.Path(scratch)
      place = kinds.Place(undisturbed, folder, rng, (1 + number) / 3)
      came = kind.once(place)
    assert came.outcome in (kinds.SURVIVED, kinds.NAMED), came
