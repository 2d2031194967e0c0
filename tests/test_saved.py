"""What is told of a saved run: its last row again, and a model to load."""

import json
import pathlib
import re
import shutil

import jax
import ml_collections
import numpy as np
import pytest

from configs import digits
from moniqua_jax.training import loop, metrics, same_run, saved
from tests import pages, programs, trained

SLOW = pytest.mark.slow
TEXT = 'the cat sat on the mat, ÄÖÜ was it a rat I saw? ' * 20
RUNS = {
  'digits': dict(epochs=0.4, checkpoint_every=0.2),
  'norms': dict(
    model=dict(name='cnn', features=(8,), norm='batch'), epochs=0.2
  ),
  'text': dict(
    model=dict(name='transformer', width=8, layers=1, heads=2),
    data=dict(name='text', window=16, symbols='characters'),
    batch_size=2,
    workers=4,
    epochs=1.0,
  ),
}


@pytest.fixture(autouse=True, scope='module')
def quickly():
  with trained.compiled_quickly():
    yield


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Trains each when it is asked for, in a folder with the text."""
  folder = tmp_path_factory.mktemp('runs')
  (folder / 'cats.txt').write_text(TEXT, 'utf-8')

  def run(name):
    if not (folder / name).exists():
      config = trained.small('dpsgd', **RUNS[name])
      if config.data.name == 'text':
        config.data.path = str(folder / 'cats.txt')
      config.learning_rate.warmup_epochs = 0.0
      loop.train_and_evaluate(config, folder / name)
    return folder / name

  return run


def opened(workdir, given=None):
  return saved.opened(same_run.config_of(workdir, given), str(workdir))


every = pytest.mark.parametrize(
  'name', [pytest.param(n, marks=() if n == 'digits' else SLOW) for n in RUNS]
)


@every
def test_the_last_row_comes_again_and_the_model_as_its_readme_says(
  name, runs, tmp_path, monkeypatch
):
  workdir, made = runs(name), tmp_path / 'model'
  before = {f: f.stat().st_mtime for f in workdir.rglob('*')}
  run = opened(workdir)
  row, last = saved.evaluated(run), metrics.read(workdir)[-1]
  assert {'test/loss', 'test/worst_worker'} <= row.keys() <= last.keys()
  assert row == {key: last[key] for key in row}
  saved.export(run, str(made))
  assert before == {f: f.stat().st_mtime for f in workdir.rglob('*')}
  (code,) = pages.fenced(made / 'README.md', 'python')
  lines = re.findall(r'^\w+ = .*$', code, re.MULTILINE)
  assert len(lines) == 3 and code.endswith('\n'.join(lines) + '\n')
  monkeypatch.chdir(made)
  task = run.experiment.task
  names = {'inputs': task.inputs(task.example(2))}
  exec(code, names)
  assert names['outputs'].shape == task.outputs(2)
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(names['variables'])
  }
  kept = np.load(workdir / 'mean_model/variables.npz')
  assert leaves.keys() == {*kept.files}
  for key, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, kept[key])
  params = jax.tree.leaves(names['variables']['params'])
  np.testing.assert_allclose(
    np.concatenate([leaf.ravel() for leaf in params]),
    run.state.params.mean(axis=0),
    atol=1e-6,
  )
  assert (name == 'norms') == any('batch_stats' in key for key in leaves)
  if name == 'text':
    known = json.loads((made / 'symbols.json').read_text())
    assert [*known] == sorted({*TEXT})


def test_a_run_that_was_stopped_is_as_its_checkpoint(runs, tmp_path):
  whole, stopped = runs('digits'), tmp_path / 'stopped'
  shutil.copytree(whole, stopped)
  shutil.rmtree(max((stopped / 'checkpoints').glob('[0-9]*'), key=_number))
  run, first = opened(stopped), metrics.read(whole)[0]
  assert run.step == first['step'] < metrics.read(whole)[-1]['step']
  assert saved.evaluated(run)['step'] == first['step']


def _number(path: pathlib.Path) -> int:
  return int(path.name)


def test_what_cannot_be_told_is_one_line(runs, tmp_path):
  workdir = runs('digits')
  said = {
    'holds no run: it has no config.json': lambda: opened(tmp_path),
    r'config.seed was 0 and is now 1\. Leave --config and its': lambda: opened(
      workdir, trained.small('dpsgd', seed=1)
    ),
    '--export=.* holds something; name another folder': lambda: saved.export(
      opened(workdir), str(workdir)
    ),
    'it holds no checkpoint yet': lambda: opened(without),
    'config.data gives other labels than when': lambda: opened(other),
  }
  without, other = tmp_path / 'without', tmp_path / 'other'
  shutil.copytree(workdir, without)
  shutil.rmtree(without / 'checkpoints')
  shutil.copytree(workdir, other)
  noted = json.loads((other / 'run.json').read_text())
  noted['data']['labels'] = '0'
  (other / 'run.json').write_text(json.dumps(noted))
  for words, call in said.items():
    with pytest.raises(ValueError, match=words) as error:
      call()
    assert '\n' not in str(error.value)
  # What leaves the state as it is may be another.
  assert opened(workdir, trained.small('dpsgd', worker_test_images=16)).step


def test_a_config_comes_back_from_json(tmp_path):
  """Tuples too, and entries of one's own; what came later has its default."""
  config = digits.get_config('moniqua4').copy_and_resolve_references()
  with config.unlocked():
    config.model = dict(name='mine:Net', sizes=(3, 4))
    config.local_steps_from = ((4, 2),)
  held = json.loads(config.to_json())
  del held['rounds'], held['outer']
  (tmp_path / 'config.json').write_text(json.dumps(held))
  found = same_run.config_of(tmp_path)
  assert found.model.sizes == (3, 4) and found.local_steps_from == ((4, 2),)
  assert found.outer == config.outer and found.quantizer == config.quantizer
  assert found.rounds == 1
  for other, said in (
    (
      dict(gone=3),
      "config has no 'gone'; .* It was written by another version",
    ),
    (dict(model=3), "no attribute 'items' It was written by another version"),
  ):
    (tmp_path / 'config.json').write_text(json.dumps(held | other))
    with pytest.raises(ValueError, match=f'config.json: .*{said}'):
      same_run.config_of(tmp_path)


def test_a_call_of_ones_own_is_python():
  spec = dict(name='tests.trained:small', of=dict(width=3), sizes=(3, 4))
  import_, call = saved._call(ml_collections.ConfigDict(spec), 2)
  assert import_.startswith('# tests.trained is looked for on PYTHONPATH\n')
  names = {}
  exec(import_, names)
  arguments = eval(call.replace('small', 'dict', 1))
  assert names['small'] is trained.small
  assert arguments == dict(of={'width': 3}, sizes=(3, 4))


# ----------------------------------------------------------------- the program


@SLOW
def test_the_program_tells_of_a_run(runs, tmp_path):
  workdir, made = runs('text'), tmp_path / 'model'
  command = 'train.py', f'--workdir={workdir}'
  run = programs.run(
    *command, '--evaluate', f'--export={made}', folder=tmp_path / '1'
  )
  assert run.status == 0 and run.err == '', run.err
  row = json.loads(run.out.splitlines()[0])
  assert row['test/bits_per_character'] > 0 and 'test/worst_worker' in row
  assert 'from moniqua_jax.models import transformer' in run.out
  for flag, said in {
    '--resume': '--resume: --evaluate and --export train nothing',
    '--config=configs/text.py:allreduce': 'holds another run: config.',
  }.items():
    run = programs.run(*command, '--evaluate', flag, folder=tmp_path / '2')
    assert run.status == 2 and run.err.count('\n') == 1 and said in run.err
