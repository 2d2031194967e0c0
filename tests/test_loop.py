"""The loop: what is written, resuming bit for bit, stopping with a reason."""

import json
import os
import re
import shlex
import signal
import sys

import jax
import numpy as np
import pytest

from configs import cifar10_cpu, digits
import moniqua_jax as mj
from moniqua_jax import extras
from moniqua_jax.training import experiment, loop, metrics, monitor, resolve
from tests import programs
from tests.trained import (
  assert_same_run,
  collectives_of_a_step,
  compiled_quickly,
  described,
  on_made_up_images,
  rows,
  saved,
  signal_in,
  small,
  stop_after,
)

SLOW = pytest.mark.slow
QUASI_GLOBAL = dict(momentum_kind=dict(name='quasi_global'))


@pytest.fixture(autouse=True, scope='module')
def quickly():
  with compiled_quickly():
    yield


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a finished run with 4 bits: two epochs, 22 steps."""
  workdir = tmp_path_factory.mktemp('whole')
  loop.train_and_evaluate(small(tensorboard=True), workdir)
  return workdir


def test_events_without_their_extra_leave_no_folder(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(extras.MissingExtra, match=r'moniqua_jax\[tensorboard\]'):
    loop.train_and_evaluate(small(tensorboard=True), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_run_writes_what_it_promises(whole):
  rows = metrics.read(whole)
  assert rows[-1]['step'] == 22
  assert rows[-1]['test/accuracy'] > 0.5
  assert rows[-1]['gossip/unreadable'] == 0
  per_message = (9610 + 1) // 2 + 12
  assert rows[-1]['wire/bytes_sent'] == 22 * 2 * per_message
  assert 0 < rows[0]['gossip/distance_over_theta'] < 1
  assert {'test/worst_worker', 'gossip/consensus_rms'} <= set(rows[-1])
  run = json.loads((whole / 'run.json').read_text())
  assert run['versions']['jax'] == jax.__version__ and run['seconds'] > 0
  assert run['saved'] == 22  # which is missed where it is gone
  assert (whole / 'config.json').stat().st_size > 0
  assert list(whole.glob('events.out.tfevents.*'))


@pytest.mark.parametrize(
  'runner', ['sharded', pytest.param('pmapped', marks=SLOW)]
)
def test_other_runners_train_the_same(tmp_path, runner, whole):
  loop.train_and_evaluate(small(runner=runner), tmp_path)
  rows = zip(metrics.read(whole), metrics.read(tmp_path), strict=True)
  for one, other in rows:
    assert one['train/loss'] == pytest.approx(other['train/loss'], rel=1e-3)
    assert one['wire/bytes_sent'] == other['wire/bytes_sent']


@pytest.mark.parametrize(
  'bits', [pytest.param(1, marks=SLOW), 3, pytest.param(8, marks=SLOW)]
)
def test_the_step_of_the_loop_sends_packed_bytes_only(bits):
  """What `--runner=sharded` compiles for the digits, seen by its text."""
  config = small(runner='sharded')
  config.quantizer.bits = bits
  found = collectives_of_a_step(config)
  nbytes = mj.wire.packed_size(9610, bits) + 12
  assert found == [('collective-permute', 'u8', nbytes)] * 2


def test_resuming_gives_the_same_bits(tmp_path):
  """With statistics of batch normalisation, momentum, and moving theta."""
  model = dict(name='cnn', features=(8,), norm='batch')
  config = small(model=model, batch_size=8, epochs=0.6, checkpoint_every=0.2)
  loop.train_and_evaluate(config, tmp_path / 'whole')
  stop_after(config, 8, tmp_path / 'killed')
  loop.train_and_evaluate(config, tmp_path / 'killed', resume=True)
  assert_same_run(tmp_path / 'whole', tmp_path / 'killed')


@pytest.mark.parametrize(
  'entries,vectors',
  [
    pytest.param(dict(gossip=dict(name='adpsgd', delays=0)), 0, marks=SLOW),
    (dict(gossip=dict(name='adpsgd', delays=2)), 3),
    pytest.param(dict(gossip=dict(name='choco', gamma=0.5)), 2, marks=SLOW),
    pytest.param(QUASI_GLOBAL | dict(local_steps=4), 2, marks=SLOW),
  ],
)
def test_what_an_algorithm_keeps_is_saved(tmp_path, entries, vectors):
  loop.train_and_evaluate(small('dpsgd', **entries, epochs=0.5), tmp_path)
  step, state = saved(tmp_path)
  leaves = jax.tree.leaves(state['opt_state'][-1])
  kept = [leaf for leaf in leaves if leaf.shape[-1] == 9610]
  assert step > 4 and all(np.any(leaf) for leaf in kept)
  assert sum(leaf.size for leaf in kept) == vectors * 8 * 9610


@pytest.mark.parametrize(
  'name,status',
  [
    ('SIGTERM', 0),
    pytest.param('SIGHUP', 0, marks=SLOW),
    pytest.param('SIGINT', 130, marks=SLOW),
  ],
)
@pytest.mark.usefixtures('heeding')
def test_a_signal_saves_the_step_and_resuming_gives_the_same_bits(
  tmp_path, whole, name, status
):
  handler = signal.getsignal(getattr(signal, name))
  ended = signal_in(small(), 14, getattr(signal, name), tmp_path)
  assert signal.getsignal(getattr(signal, name)) == handler
  assert ended.status == status and 'has all of step 15' in str(ended)
  assert saved(tmp_path)[0] == rows(tmp_path)[-1]['step'] == 15
  loop.train_and_evaluate(small(), tmp_path, resume=True)
  (step, state), (_, expected) = saved(tmp_path), saved(whole)
  assert step == 22
  jax.tree.map(np.testing.assert_array_equal, state, expected)
  tests = lambda folder: [
    r['test/loss'] for r in rows(folder) if 'test/loss' in r
  ]
  assert tests(tmp_path) == tests(whole)


@SLOW
@pytest.mark.parametrize('name,status', [('SIGTERM', 0), ('SIGINT', 130)])
def test_a_program_says_how_to_go_on_and_a_second_signal_ends_it(
  tmp_path, name, status
):
  command = [
    'train.py',
    '--config=configs/digits.py:moniqua4',
    '--config.epochs=60.0',
    f'--workdir={tmp_path}/a run',
  ]
  number, path = getattr(signal, name), tmp_path / 'a run' / 'metrics.jsonl'
  process = programs.started(*command, folder=tmp_path)
  programs.wait_for(lambda: path.exists() and path.stat().st_size)
  os.kill(process.pid, number)
  found, _, said = programs.ended(process, tmp_path)
  assert found == status and f'{name} came: ' in said
  assert saved(tmp_path / 'a run')[0] == metrics.read(path.parent)[-1]['step']
  again = said.split('Go on with:\n  python ')[1].splitlines()[0]
  before = path.stat().st_size
  process = programs.started(*shlex.split(again), folder=tmp_path)
  programs.wait_for(lambda: path.stat().st_size > before)
  for _ in range(2):
    os.kill(process.pid, number)
  assert programs.ended(process, tmp_path).status in (status, -number)


@SLOW
def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
  """SIGKILL in the middle; then the same command with --resume."""
  config = small(epochs=60.0)
  command = [
    'train.py',
    '--config=configs/digits.py:moniqua4',
    '--config.epochs=60.0',
    '--config.eval_every=1.0',
    '--config.checkpoint_every=1.0',
    '--config.learning_rate.warmup_epochs=0.5',
    f'--workdir={tmp_path}/killed',
  ]
  process = programs.started(*command, folder=tmp_path)
  checkpoints = tmp_path / 'killed' / 'checkpoints'
  programs.wait_for(
    lambda: any(file.name.isdigit() for file in checkpoints.glob('*'))
  )
  process.kill()
  process.join()
  step, _ = saved(tmp_path / 'killed')
  assert 0 < step < 660
  resumed = programs.run(*command, '--resume', folder=tmp_path)
  assert resumed.status == 0 and 'Moniqua 4 bits' in resumed.out
  for name in ('table.md', 'figure.png'):
    assert (tmp_path / 'killed' / name).stat().st_size > 0
  loop.train_and_evaluate(config, tmp_path / 'whole')
  assert_same_run(tmp_path / 'whole', tmp_path / 'killed')


# ---------------------------------------------------------- stopped, and why


def test_a_wrap_stops_the_run_and_the_theta_it_suggests_goes_on(tmp_path):
  """At the first try, and without bits thrown away: up to .09 was seen."""
  config = small()
  config.quantizer.theta = 0.02
  with pytest.raises(monitor.Stopped) as stopped:
    loop.train_and_evaluate(config, tmp_path)
  message = str(stopped.value)
  assert 'could not read the message of worker' in message
  assert '--resume' in message and 'last good checkpoint' not in message
  found = re.search(r'theta=0.02: try theta=([\d.]+) \(they are', message)
  assert 0.1 < float(found[1]) < 0.4
  config.quantizer.theta = float(found[1])
  row = loop.train_and_evaluate(config, tmp_path, resume=True)
  assert row['step'] == 22 and row['gossip/unreadable'] == 0
  run = json.loads((tmp_path / 'run.json').read_text())
  changed = run['resumed']['changed']['quantizer']
  assert changed['theta'] == float(found[1])


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
  _, state = saved(tmp_path)
  assert np.isfinite(state['params']).all()


# ------------------------------------------------ folders, and other runs' ends


def test_folders_are_not_mixed_up(tmp_path, whole):
  with pytest.raises(ValueError, match='holds no run'):
    loop.train_and_evaluate(small(), tmp_path, resume=True)
  (tmp_path / 'notes').touch()
  with pytest.raises(ValueError, match='is a file'):
    loop.train_and_evaluate(small(), tmp_path / 'notes')
  with pytest.raises(ValueError, match='holds another run.*--resume'):
    loop.train_and_evaluate(small(), whole)
  with pytest.raises(ValueError, match='config.seed was 0 and is now 1'):
    loop.train_and_evaluate(small(seed=1), whole, resume=True)


def test_other_workers_are_refused_or_start_at_the_mean(tmp_path, whole):
  fewer = small(workers=4, epochs=1.0)
  with pytest.raises(ValueError, match='config.workers was 8 and is now 4'):
    loop.train_and_evaluate(fewer, whole, resume=True)
  loop.train_and_evaluate(fewer, tmp_path, start_from=whole)
  at_mean, began = metrics.read(tmp_path), metrics.read(whole)
  assert at_mean[0]['train/loss'] < began[0]['train/loss'] / 2


def test_theta_per_leaf_from_a_probe(tmp_path):
  probe = small('dpsgd', probe_every=5)
  row = loop.train_and_evaluate(probe, tmp_path / 'probe')
  assert row['test/accuracy'] > 0.5
  measured = json.loads((tmp_path / 'probe/leaf_distance.json').read_text())
  assert list(measured) == [
    f'Dense_{i}/{leaf}' for i in (0, 1) for leaf in ('bias', 'kernel')
  ]
  seen = max(r['gossip/disagreement'] for r in metrics.read(tmp_path / 'probe'))
  assert 0 < max(measured.values()) <= seen * 1.01
  config = small('moniqua1', scales_from=str(tmp_path / 'probe'))
  config.quantizer.theta = 6.0
  row = loop.train_and_evaluate(config, tmp_path / 'scaled')
  assert row['gossip/unreadable'] == 0 and row['test/accuracy'] > 0.5
  means = small('allreduce', scales_from=str(tmp_path / 'probe'))
  means.reduce.strategy = 'all_gather'
  means.quantizer.update(name='qsgd', bits=4)
  experiment.from_config(means)  # of gradients the large leaves alone are sent
  still = json.dumps(measured | {'Dense_1/bias': 0.0})
  (tmp_path / 'probe/leaf_distance.json').write_text(still)
  with pytest.raises(ValueError, match='scales_from=.* 0.0 apart in Dense_1/b'):
    experiment.from_config(config)
  config = small('moniqua1', model=dict(name='cnn'))
  config.scales_from = str(tmp_path / 'probe')
  with pytest.raises(ValueError, match='another model'):
    experiment.from_config(config)


# -------------------------------------------------------------------- configs


@SLOW
@pytest.mark.parametrize('method', digits.METHODS)
def test_every_digits_config_trains(tmp_path, method):
  row = loop.train_and_evaluate(small(method), tmp_path)
  assert row['test/accuracy'] > 0.5


@pytest.mark.parametrize('method', digits.METHODS)
def test_every_digits_config_builds(method):
  text = described(small(method))
  assert '9,610 parameters' in text and '8 workers' in text


@pytest.mark.parametrize('name', ['auto_theta', 'fitted_theta'])
@pytest.mark.parametrize('method', sorted({*digits.METHODS} - {'allreduce'}))
def test_a_theta_that_finds_itself_goes_with_any_method(method, name):
  """Without another flag; what is there already stays."""
  config = digits.get_config(method)
  given = dict(config.quantizer)
  config.quantizer.name = name
  if given['bits'] == 1:
    config.gamma = 0.1  # where a theta from the rms does not run away
  spec = resolve.resolve(config).spec
  assert spec['bits'] == (given['bits'] or 4) and spec['theta'] is None
  first = {'auto_theta': 2 * 1.5 * 0.1, 'fitted_theta': None}[name]
  assert spec['start'] == (given['theta'] or first)
  assert spec['limit'] > (spec['start'] or 0)


@pytest.mark.parametrize('method', cifar10_cpu.METHODS)
def test_every_cifar_config_builds(method):
  text = described(on_made_up_images(cifar10_cpu.get_config(method)))
  assert '269,722 parameters' in text and '8 workers' in text
