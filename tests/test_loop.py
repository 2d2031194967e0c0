"""The loop: what is written, resuming bit for bit, stopping with a reason."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import cifar10_cpu, digits
import moniqua_jax as mj
from moniqua_jax import data
from moniqua_jax.training import (
  checkpoint,
  experiment,
  loop,
  metrics,
  monitor,
  summary,
)
from moniqua_jax.training import step as step_lib
from tests import hlo

ROOT = pathlib.Path(__file__).parents[1]


def small(method='moniqua4', **entries):
  """The real digits config, over in a second."""
  config = digits.get_config(method).copy_and_resolve_references()
  config.epochs, config.eval_every, config.checkpoint_every = 2.0, 1.0, 1.0
  config.learning_rate.warmup_epochs = 0.5
  with config.unlocked():
    config.update(entries)
  return config


def last_state(workdir, config):
  """The parameters and everything else in a run's last checkpoint."""
  init, _, _ = step_lib.make_steps(experiment.from_config(config))
  like = experiment.from_config(config).run(init, (0,))(np.arange(8))
  checkpoints = checkpoint.manager(workdir)
  step, state = checkpoint.restore(checkpoints, like)
  checkpoints.close()
  return step, jax.tree.map(np.asarray, state)


def assert_same_run(one, other, config):
  step, state = last_state(one, config)
  other_step, other_state = last_state(other, config)
  assert step == other_step > 0
  jax.tree.map(np.testing.assert_array_equal, state, other_state)
  drop = lambda rows: [{**row, 'seconds': 0} for row in rows]
  assert drop(metrics.read(one)) == drop(metrics.read(other))


def test_a_run_writes_what_it_promises(tmp_path, capsys):
  row = loop.train_and_evaluate(small(tensorboard=True), tmp_path)
  rows = metrics.read(tmp_path)
  assert rows[-1]['step'] == row['step'] == 22
  assert rows[-1]['test/accuracy'] > 0.5
  assert rows[-1]['gossip/unreadable'] == 0
  per_message = (9610 + 1) // 2 + 12
  assert rows[-1]['wire/bytes_sent'] == 22 * 2 * per_message
  assert 0 < rows[0]['gossip/distance_over_theta'] < 1
  assert {'test/worst_worker', 'gossip/consensus_rms'} <= set(rows[-1])
  run = json.loads((tmp_path / 'run.json').read_text())
  assert run['versions']['jax'] == jax.__version__ and run['seconds'] > 0
  assert (tmp_path / 'config.json').stat().st_size > 0
  assert list(tmp_path.glob('events.out.tfevents.*'))
  assert 'moniqua, bits 4' in capsys.readouterr().out


@pytest.mark.parametrize('runner', ['sharded', 'pmapped'])
def test_other_runners_train_the_same(tmp_path, runner):
  runs = {}
  for name in ('simulated', runner):
    loop.train_and_evaluate(small(runner=name), tmp_path / name)
    runs[name] = metrics.read(tmp_path / name)
  for one, other in zip(*runs.values(), strict=True):
    assert one['train/loss'] == pytest.approx(other['train/loss'], rel=1e-3)
    assert one['wire/bytes_sent'] == other['wire/bytes_sent']


def collectives_of_a_step(config):
  """What the compiled step of the loop sends."""
  built = experiment.from_config(config)
  init, train_step, _ = step_lib.make_steps(built)
  state = built.run(init, (0,))(np.arange(8))
  batch = data.batch(*built.data, seed=0, step=0, batch_size=16)
  step = built.run(train_step, (0, 0, None))
  text = step.lower(state, batch, np.int32(0)).compile().as_text()
  return list(hlo.collectives(text))


@pytest.mark.parametrize('bits', [1, 3, 8])
def test_the_step_of_the_loop_sends_packed_bytes_only(bits):
  """What `--runner=sharded` compiles for the digits, seen by its text."""
  config = small(runner='sharded')
  config.quantizer.bits = bits
  found = collectives_of_a_step(config)
  nbytes = mj.wire.packed_size(9610, bits) + 12
  assert found == [('collective-permute', 'u8', nbytes)] * 2


class Interrupted(Exception):
  pass


def test_resuming_gives_the_same_bits(tmp_path, monkeypatch):
  """With statistics of batch normalisation, momentum, and moving theta."""
  model = dict(name='cnn', features=(8, 8), norm='batch')
  config = small(model=model, batch_size=8, epochs=0.6, checkpoint_every=0.2)
  loop.train_and_evaluate(config, tmp_path / 'whole')
  real = monitor.Guard.check

  def dies_at_step_8(self, step, report):
    if step == 8:
      raise Interrupted
    return real(self, step, report)

  monkeypatch.setattr(monitor.Guard, 'check', dies_at_step_8)
  with pytest.raises(Interrupted):
    loop.train_and_evaluate(config, tmp_path / 'killed')
  monkeypatch.setattr(monitor.Guard, 'check', real)
  step, _ = last_state(tmp_path / 'killed', config)
  assert 0 < step < 9
  loop.train_and_evaluate(config, tmp_path / 'killed', resume=True)
  assert_same_run(tmp_path / 'whole', tmp_path / 'killed', config)


@pytest.mark.parametrize(
  'gossip,vectors',
  [
    (dict(name='adpsgd', delays=0), 0),
    (dict(name='adpsgd', delays=2), 3),
    (dict(name='choco', gamma=0.5), 2),
  ],
)
def test_what_an_algorithm_keeps_is_saved(tmp_path, gossip, vectors):
  config = small('dpsgd', gossip=gossip)
  loop.train_and_evaluate(config, tmp_path)
  step, state = last_state(tmp_path, config)
  leaves = jax.tree.leaves(state.opt_state[-1])
  kept = [leaf for leaf in leaves if leaf.shape[-1] == 9610]
  assert step == 22 and all(np.any(leaf) for leaf in kept)
  assert sum(leaf.size for leaf in kept) == vectors * 8 * 9610


def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
  """SIGKILL in the middle; then the same command with --resume."""
  config = small(epochs=60.0)
  command = [
    sys.executable,
    'train.py',
    '--config=configs/digits.py:moniqua4',
    '--config.epochs=60.0',
    '--config.eval_every=1.0',
    '--config.checkpoint_every=1.0',
    '--config.learning_rate.warmup_epochs=0.5',
    f'--workdir={tmp_path}/killed',
  ]
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  process = subprocess.Popen(
    command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL
  )
  saved = tmp_path / 'killed' / 'checkpoints'
  deadline = time.monotonic() + 120
  finished = lambda: [f for f in saved.glob('*') if f.name.isdigit()]
  while not finished() and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  step, _ = last_state(tmp_path / 'killed', config)
  assert 0 < step < 660
  resumed = subprocess.run(
    [*command, '--resume'],
    cwd=ROOT,
    env=env,
    check=True,
    capture_output=True,
    text=True,
  )
  assert 'Moniqua 4 bits' in resumed.stdout
  for name in ('table.md', 'figure.svg', 'figure.png'):
    assert (tmp_path / 'killed' / name).stat().st_size > 0
  loop.train_and_evaluate(config, tmp_path / 'whole')
  assert_same_run(tmp_path / 'whole', tmp_path / 'killed', config)


def test_a_wrap_stops_the_run(tmp_path):
  config = small()
  config.quantizer.theta = 0.02
  with pytest.raises(monitor.Stopped) as stopped:
    loop.train_and_evaluate(config, tmp_path)
  message = str(stopped.value)
  assert 'could not read the message of worker' in message
  assert 'theta=0.02: try theta=0.0' in message and '--resume' in message


def test_a_theta_below_float32_stops_the_run(tmp_path):
  config = small()
  config.quantizer.theta = 1e-9
  with pytest.raises(monitor.Stopped, match='step 0: .* larger theta'):
    loop.train_and_evaluate(config, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  config = small('dpsgd', checkpoint_every=0.1)
  config.learning_rate.peak = 1e20
  with pytest.raises(monitor.Stopped, match='loss of worker .* learning rate'):
    loop.train_and_evaluate(config, tmp_path)


def test_the_last_checkpoint_is_a_good_one(tmp_path):
  """A step that ruins the parameters is not saved."""
  config = small('dpsgd', checkpoint_every=0.1, log_every=1)
  config.learning_rate.peak = 1e38
  with pytest.raises(monitor.Stopped):
    loop.train_and_evaluate(config, tmp_path)
  _, state = last_state(tmp_path, config)
  assert np.isfinite(state.params).all()


def test_resume_with_another_theta(tmp_path):
  config = small()
  config.quantizer.theta = 0.02
  with pytest.raises(monitor.Stopped):
    loop.train_and_evaluate(config, tmp_path)
  config.quantizer.theta = 1.0
  row = loop.train_and_evaluate(config, tmp_path, resume=True)
  assert row['step'] == 22
  run = json.loads((tmp_path / 'run.json').read_text())
  assert run['resumed']['changed']['quantizer']['theta'] == 1.0


def test_folders_are_not_mixed_up(tmp_path):
  config = small(epochs=0.2)
  with pytest.raises(ValueError, match='holds no run'):
    loop.train_and_evaluate(config, tmp_path, resume=True)
  (tmp_path / 'notes').touch()
  with pytest.raises(ValueError, match='is a file'):
    loop.train_and_evaluate(config, tmp_path / 'notes')
  loop.train_and_evaluate(config, tmp_path)
  with pytest.raises(ValueError, match='holds another run.*--resume'):
    loop.train_and_evaluate(config, tmp_path)
  with pytest.raises(ValueError, match='config.seed was 0 and is now 1'):
    loop.train_and_evaluate(small(seed=1), tmp_path, resume=True)


def test_theta_per_leaf_from_a_probe(tmp_path):
  probe = small('dpsgd', probe_every=5)
  loop.train_and_evaluate(probe, tmp_path / 'probe')
  measured = json.loads((tmp_path / 'probe/leaf_distance.json').read_text())
  assert list(measured) == [
    f'Dense_{i}/{leaf}' for i in (0, 1) for leaf in ('bias', 'kernel')
  ]
  seen = max(r['gossip/disagreement'] for r in metrics.read(tmp_path / 'probe'))
  assert 0 < max(measured.values()) <= seen * 1.01
  config = small('moniqua1', scales_from=str(tmp_path / 'probe'))
  config.quantizer.theta = 6.0
  row = loop.train_and_evaluate(config, tmp_path / 'scaled')
  assert row['gossip/unreadable'] == 0
  config = small('moniqua1', scales_from=str(tmp_path))
  with pytest.raises(ValueError, match='there is no leaf_distance.json'):
    experiment.from_config(config)
  config = small('moniqua1', model=dict(name='cnn'))
  config.scales_from = str(tmp_path / 'probe')
  with pytest.raises(ValueError, match='another model'):
    experiment.from_config(config)


@pytest.mark.parametrize('method', digits.METHODS)
def test_every_digits_config_trains(tmp_path, method):
  row = loop.train_and_evaluate(small(method), tmp_path)
  assert row['test/accuracy'] > 0.5


@pytest.mark.parametrize('method', cifar10_cpu.METHODS)
def test_every_cifar_config_builds(method):
  """On images that are made up, of the same shape."""
  config = cifar10_cpu.get_config(method)
  config.runner = 'simulated'
  config.data.name = 'synthetic'
  config.data.update(
    num_train=400, num_test=40, shape=(32, 32, 3), num_classes=10, seed=0
  )
  text = summary.describe(experiment.from_config(config))
  assert '269,722 parameters' in text and '8 workers' in text
