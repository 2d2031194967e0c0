"""The folder of a run: what may be in it, what it may be called."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest

from configs import smoothness
from moniqua_jax import command_line
from moniqua_jax.training import checkpoint, metrics, same_run, whole
from moniqua_jax.training import workdir as workdir_lib
from moniqua_jax.training.same_run import MAY_CHANGE
from tests.trained import small


def opened(folder, resume=False, data=()):
  with workdir_lib.opened(folder, small(), resume, dict(data)):
    pass


@pytest.mark.parametrize('name', ['lr[0.1]', 'a*b', '[x]/run', 'what?'])
def test_a_name_that_is_a_pattern_is_refused(tmp_path, name):
  """Orbax would look for its files by it, and save none of the arrays."""
  with pytest.raises(ValueError, match='is a pattern, .*; take a name'):
    opened(tmp_path / name)
  assert not list(tmp_path.iterdir())


def test_an_address_is_no_folder(tmp_path, monkeypatch):
  """What saves checkpoints would find that out at the first of them."""
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    ValueError, match='=gs:/bucket/run: an address is no fold'
  ):
    opened(pathlib.Path('gs://bucket/run'))
  assert not list(tmp_path.iterdir())
  opened(pathlib.Path('of:day/run'))


def test_text_is_utf_8_whatever_the_locale(tmp_path):
  code = 'import pathlib, runpy, sys; _, module, path = sys.argv; '
  code += "runpy.run_path(module)['write'](pathlib.Path(path), '\\xb2 \\u03bb')"
  ascii_ = dict(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
  command = [sys.executable, '-c', code, whole.__file__, tmp_path / 'a.md']
  subprocess.run(command, env=os.environ | ascii_, check=True)
  assert (tmp_path / 'a.md').read_text('utf-8') == '² λ'


# ------------------------------------------------------------ the same run


def plain(config) -> dict:
  return json.loads(config.to_json())


def changed(config, entry):
  """The config with another value of an entry, and none of the rest."""
  other = plain(config)
  *path, last = entry.split('.')
  node = other
  for name in path:
    node = node[name]
  node[last] = 'another'
  return other


ENTRIES = [name for name, _ in command_line.leaves(plain(small()))]
ENTRIES_OF_A_LABORATORY = [
  name for name, _ in command_line.leaves(plain(smoothness.get_config()))
]


def test_all_entries_are_compared_but_those_of_the_table(tmp_path):
  config = small()
  for entry in ENTRIES:
    other, free = changed(config, entry), same_run._among(entry, MAY_CHANGE)
    if free:
      same_run.check(plain(config), other, tmp_path, saved=True)
      continue
    with pytest.raises(ValueError, match=f'config.{entry} was .* is now .ano'):
      same_run.check(plain(config), other, tmp_path, saved=True)
  for entry in ('data.path', 'topology.name', 'local_momentum', 'seed'):
    assert not same_run._among(entry, MAY_CHANGE) and entry in ENTRIES
  assert {each.split('.')[0] for each in MAY_CHANGE} - {'clock'} <= {
    each.split('.')[0] for each in ENTRIES
  }


def test_a_laboratory_goes_on_with_the_same_problem(tmp_path):
  config = smoothness.get_config('libsvm')
  for entry in ENTRIES_OF_A_LABORATORY:
    other = changed(config, entry)
    if entry in MAY_CHANGE:
      same_run.check(plain(config), other, tmp_path, saved=True)
      continue
    with pytest.raises(ValueError, match=f'config.{entry} was') as error:
      same_run.check(plain(config), other, tmp_path, saved=True)
    assert '--start_from' not in str(error.value)


def test_before_the_first_checkpoint_another_quantizer_may_be_tried(tmp_path):
  old, new = (plain(small(method)) for method in ('moniqua4', 'auto4'))
  same_run.check(old, new, tmp_path, saved=False)
  with pytest.raises(ValueError, match='config.quantizer.name was'):
    same_run.check(old, new, tmp_path, saved=True)
  with pytest.raises(ValueError, match='config.seed was'):
    same_run.check(old, plain(small(seed=1)), tmp_path, saved=False)


def test_an_entry_that_older_versions_did_not_have_is_free(tmp_path):
  new = plain(small())
  old = {k: v for k, v in new.items() if k != 'fragments'}
  same_run.check(old, new | {'fragments': 4}, tmp_path, saved=True)


# ------------------------------------------------------ what was there is gone


@pytest.fixture
def stopped(tmp_path):
  """The folder of a run that wrote a checkpoint, of step 11, and 3 rows."""
  opened(tmp_path, data={'labels': 'a', 'shards': 'b'})
  (tmp_path / 'checkpoints' / '11').mkdir(parents=True)
  log = workdir_lib.Log(tmp_path, False, 22, 0)
  for step in (10, 11, 20):
    log.write({'step': step, 'train/loss': 1.0, 'wire/bytes_sent': 1.0})
  log.close()
  return tmp_path


def test_checkpoints_that_were_deleted_are_missed(stopped):
  (stopped / 'checkpoints' / '11').rmdir()
  with pytest.raises(ValueError, match='that of step 11 was written: put it'):
    workdir_lib.Log(stopped, False, 22, 0)
  (stopped / 'checkpoints').rmdir()
  with pytest.raises(ValueError, match='checkpoints is gone: put it back'):
    opened(stopped, resume=True)
  assert len(metrics.read(stopped)) == 3


def test_a_run_of_asynchronous_workers_is_not_begun_again(tmp_path):
  opened(tmp_path)
  workdir_lib.require_saved(tmp_path, 0)
  (tmp_path / 'worker0').mkdir()
  (tmp_path / 'worker0' / 'state.npz').touch()
  opened(tmp_path, resume=True)
  with pytest.raises(ValueError, match='is of asynchronous workers: python -m'):
    workdir_lib.require_saved(tmp_path, 0)


def test_a_laboratory_has_no_model_to_start_from(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'config.json').write_text(smoothness.get_config().to_json())
  with pytest.raises(ValueError, match='--start_from=.* is a laboratory: it'):
    checkpoint.mean_model(str(tmp_path), {})


def test_other_data_under_the_same_name_are_refused(stopped):
  """But not where nothing was learned from them, or nothing is known."""
  with pytest.raises(ValueError, match='config.data gives other labels than'):
    opened(stopped, resume=True, data={'labels': 'c', 'shards': 'b'})
  opened(stopped, resume=True, data={'labels': 'a', 'shards': 'b'})
  opened(stopped, resume=True, data={'images': 'd'})
  (stopped / 'checkpoints' / '11').rmdir()
  opened(stopped, resume=True, data={'labels': 'c'})


def test_who_drops_rows_says_so(stopped, capsys):
  workdir_lib.Log(stopped, False, 22, 11).close()
  assert 'rows after step 11 are dropped (1)' in capsys.readouterr().err
  assert [row['step'] for row in metrics.read(stopped)] == [10, 11]


@pytest.mark.parametrize('left', ['metrics.jsonl', 'run.json', 'checkpoints'])
def test_a_new_run_does_not_go_on_with_what_another_left(stopped, left):
  for path in stopped.iterdir():
    if path.name != left:
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(ValueError, match=f'holds another run .{left}.'):
    opened(stopped)


# ------------------------------------------------- files that are cut, and live


def cut(path, size=None):
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2 if size is None else size])


def test_a_row_that_was_cut_is_left_out(stopped):
  path = stopped / 'metrics.jsonl'
  with path.open('a') as file:
    file.write('{"step": 21, "train/lo')
  assert [row['step'] for row in metrics.read(stopped)] == [10, 11, 20]
  log = workdir_lib.Log(stopped, False, 22, 20)
  log.write({'step': 22, 'train/loss': 1.0, 'wire/bytes_sent': 1.0})
  log.close()
  assert [row['step'] for row in metrics.read(stopped)] == [10, 11, 20, 22]


@pytest.mark.parametrize('line', ['{"step": 1', 'no', '[]', '3', '\xff'])
def test_a_line_that_is_no_row_is_named(stopped, line):
  path = stopped / 'metrics.jsonl'
  first, *rest = path.read_text().splitlines()
  path.write_text('\n'.join([first, line, *rest, '']), encoding='latin-1')
  with pytest.raises(ValueError, match='metrics.jsonl, line 2: '):
    metrics.read(stopped)


@pytest.mark.parametrize('size', [0, 1, None, 'no'])
def test_without_its_config_a_run_is_not_known(stopped, size):
  path = stopped / 'config.json'
  cut(path, size) if size != 'no' else path.write_text('{"seed": [1}')
  with pytest.raises(ValueError, match=r'config.json, line \d+: .* anew: copy'):
    opened(stopped, resume=True)


@pytest.mark.parametrize('size', [0, 1, None])
def test_where_a_run_came_from_is_no_reason_to_stop(stopped, size, capsys):
  cut(stopped / 'run.json', size)
  opened(stopped, resume=True)
  assert 'run.json, line' in capsys.readouterr().err
  assert json.loads((stopped / 'run.json').read_text())['resumed']


def test_a_full_disk_leaves_a_file_as_it_was(stopped, monkeypatch):
  def full(descriptor):
    raise OSError(errno.ENOSPC, 'No space left on device')

  before = {path: path.read_bytes() for path in stopped.glob('*.json*')}
  monkeypatch.setattr(whole.os, 'fsync', full)
  for do in (
    lambda: opened(stopped, resume=True),
    lambda: workdir_lib.note(stopped, seconds=1.0),
    lambda: workdir_lib.rewind(stopped, 10),
  ):
    with pytest.raises((OSError, ValueError), match='No space left'):
      do()
  assert {path: path.read_bytes() for path in stopped.glob('*.json*')} == before


def test_what_is_written_takes_the_place_of_what_was(stopped):
  path, before = stopped / 'run.json', stopped / 'before'
  os.link(path, before)
  workdir_lib.note(stopped, seconds=1.0)
  assert json.loads(path.read_text()) == {
    **json.loads(before.read_text()),
    'seconds': 1.0,
  }
  assert not list(stopped.glob('*.partial'))


def test_a_live_run_keeps_its_folder(stopped):
  """Also from a process that is another one; and only while it lives."""
  with (
    workdir_lib.opened(stopped, small(), True),
    pytest.raises(ValueError, match=f'process {os.getpid()} of .* trains in'),
  ):
    opened(stopped, resume=True)
  opened(stopped, resume=True)


LOCKS = """
import pathlib, sys, time
from moniqua_jax.training import workdir
file = workdir._locked(pathlib.Path(sys.argv[1]))
print('locked', flush=True)
time.sleep(100)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_lock(stopped):
  command = [sys.executable, '-c', LOCKS, str(stopped)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    with pytest.raises(ValueError, match=f'process {process.pid} of'):
      opened(stopped, resume=True)
    process.kill()
  opened(stopped, resume=True)


@pytest.mark.parametrize(
  'spec, command',
  [
    (None, 'tool.py'),
    ('benchmarks.seeds', 'python -m benchmarks.seeds'),
    ('moniqua_jax.training.__main__', 'python -m moniqua_jax.training'),
  ],
)
def test_the_command_of_a_run_can_be_given_again(spec, command, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['/a/tool.py', '--out=a b'])
  spec = spec and types.SimpleNamespace(name=spec)
  monkeypatch.setattr(sys.modules['__main__'], '__spec__', spec)
  said = workdir_lib.provenance()['command']
  assert said == f"{command} '--out=a b'"
