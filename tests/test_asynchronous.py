"""Workers that are processes: averagings, slow workers, lost ones, mistakes."""

from collections import defaultdict, deque
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, smoothness
import moniqua_jax as mj
from moniqua_jax.asynchronous import report, training
from moniqua_jax.asynchronous import worker as worker_lib
from moniqua_jax.asynchronous.averaging import Averaging
from moniqua_jax.asynchronous.network import Network
from moniqua_jax.asynchronous.pair import ends
from moniqua_jax.asynchronous.worker import Worker, WorkerState
from moniqua_jax.training import metrics, monitor
from tests import programs

ROOT = programs.ROOT
KEY = jax.random.key(0)
MPIEXEC = shutil.which('mpiexec', path=pathlib.Path(sys.executable).parent)
needs_mpi = pytest.mark.skipif(
  MPIEXEC is None or importlib.util.find_spec('mpi4py') is None,
  reason="needs MPI: pip install 'moniqua_jax[mpi]'",
)
EXACT, EIGHT_BITS = mj.full_precision(), mj.moniqua(theta=1.0, bits=8)
QUANTIZERS = {
  'full precision': EXACT,
  'moniqua 8 dithered': EIGHT_BITS,
  'moniqua 1 dithered': mj.moniqua(theta=1.0, bits=1),
  'moniqua 4 stochastic': mj.moniqua(1.0, 4, rounding='stochastic'),
  'auto theta 4': mj.auto_theta(bits=4, start=1.0),
}


# ------------------------------------------------------------ the arithmetic


@functools.cache
def compiled(quantizer, rank=0, weight=0.5):
  return ends(quantizer, key=KEY, rank=rank, weight=weight)


def both_sides(quantizer, x_i, x_j, weight=0.5):
  """One averaging as its two ends see it: seen and move of each."""
  tuned = mj.quantizers.base.tuned(quantizer).init()
  i, j = (compiled(quantizer, rank, weight) for rank in (0, 1))
  at = dict(tuned=tuned, clock=3)
  q_i, own_i = i.speak(x_i, **at, asker=0, event=7)
  q_j, own_j = j.speak(x_j, **at, asker=0, event=7)
  return i.listen(q_j, x_i, own_i, **at), j.listen(q_i, x_j, own_j, **at)


@pytest.mark.parametrize('name', QUANTIZERS)
def test_the_two_moves_are_opposite_bit_for_bit(name):
  x_i = jax.random.normal(KEY, (1001,))
  x_j = x_i + jax.random.uniform(KEY, (1001,), minval=-0.9, maxval=0.9)
  sides = both_sides(QUANTIZERS[name], x_i, x_j, weight=0.1)
  (seen_i, move_i), (seen_j, move_j) = sides
  assert seen_i.readable and seen_j.readable
  np.testing.assert_array_equal(move_i, -move_j)
  assert jnp.abs(move_i).max() > 0


def test_full_precision_meets_in_the_middle():
  x_i, x_j = jnp.array([0.0, 4.0]), jnp.array([2.0, -4.0])
  (_, move_i), (_, move_j) = both_sides(EXACT, x_i, x_j)
  np.testing.assert_array_equal(x_i + move_i, [1.0, 0.0])
  np.testing.assert_array_equal(x_j + move_j, [1.0, 0.0])


def test_an_unreadable_message_moves_nobody():
  """Too far apart in one coordinate: at least one end sees it."""
  x_i = jnp.zeros(1001)
  x_j = x_i.at[17].set(2.5)
  sides = both_sides(EIGHT_BITS, x_i, x_j, weight=0.1)
  assert not all(bool(seen.readable) for seen, _ in sides)


# ------------------------------------- who averages with whom, without MPI


class Post:
  """A network in one process, whose messages the test delivers."""

  def __init__(self, rank, n, channels):
    self.rank, self.n, self.handlers = rank, n, {}
    self.idle, self._channels = None, channels

  def send(self, to, kind, number=0, body=b''):
    body = np.frombuffer(bytes(body), np.uint8)
    self._channels[self.rank, to].append((kind, number, body))

  def clock(self):
    return 0

  def wake(self):
    pass


def a_group(n, vectors, quantizer, patience=0, **options):
  """n workers that may all ask each other, and their channels."""
  channels, group = defaultdict(deque), []
  tuned = mj.quantizers.base.tuned(quantizer).init()
  for rank in range(n):
    worker = Worker(WorkerState(jnp.asarray(vectors[rank]), (), {}, tuned))
    averaging = Averaging(
      Post(rank, n, channels),
      worker,
      compiled(quantizer),
      [other for other in range(n) if other != rank],
      patience=patience,
      **options,
    )
    group.append((worker, averaging))
  return group, channels


def deliver(group, channels, rng):
  """Messages in any order that MPI may have, until all is quiet."""
  for _ in range(10_000):
    for _, averaging in group:
      if rng.random() < 0.5:
        averaging._network.idle()
    waiting = [channel for channel, queue in channels.items() if queue]
    if waiting:
      source, to = waiting[rng.integers(len(waiting))]
      kind, *content = channels[source, to].popleft()
      group[to][1]._network.handlers[kind](source, *content)
    elif not any(a.busy or a._wanted for _, a in group):
      return
  raise AssertionError('the workers wait for each other')


@pytest.mark.parametrize('seed', range(3))
def test_no_order_of_messages_locks_or_moves_the_mean(seed):
  n, rng = 5, np.random.default_rng(seed)
  vectors = 0.1 * rng.normal(size=(n, 33)).astype(np.float32)
  group, channels = a_group(n, vectors, EIGHT_BITS)
  for _ in range(40):
    for worker, averaging in group:
      if rng.random() < 0.8:
        averaging.ask()
      worker.steps += 1
    deliver(group, channels, rng)
    assert all(a._settled.is_set() for _, a in group)
  after = np.stack([worker.state.x for worker, _ in group])
  np.testing.assert_allclose(after.mean(0), vectors.mean(0), atol=1e-6)
  assert np.ptp(after, axis=0).max() < 0.1 * np.ptp(vectors, axis=0).max()
  assert sum(a.concluded for _, a in group) > 40
  assert sum(a.unreadable for _, a in group) == 0


def test_a_worker_waits_for_higher_ranks_only():
  """All in a circle ask at once: one is declined, and nobody waits for ever."""
  vectors, rng = np.zeros((3, 4), np.float32), np.random.default_rng(0)
  group, channels = a_group(3, vectors, EXACT)
  for rank, (_, averaging) in enumerate(group):
    averaging._neighbours = [(rank + 1) % 3]
    averaging.ask()
    averaging._network.idle()
  deliver(group, channels, rng)
  assert [a.declined for _, a in group] == [0, 0, 1]
  assert [a.concluded for _, a in group] == [1, 2, 1]


def test_a_gradient_is_overtaken_only_so_often():
  vectors, rng = np.zeros((2, 4), np.float32), np.random.default_rng(0)
  group, channels = a_group(2, vectors, EXACT, max_staleness=2)
  (_, asking), (late, asked) = group
  late.begin()
  for _ in range(5):
    asking.ask()
    deliver(group, channels, rng)
  assert (asking.concluded, asking.declined) == (2, 3)
  assert late.descend(jnp.zeros(4), (), {}) == 2
  asking.ask()
  deliver(group, channels, rng)
  assert asking.concluded == 3


def test_what_cannot_be_read_is_left_out_by_both_and_stops_the_run():
  vectors, rng = np.zeros((2, 33), np.float32), np.random.default_rng(0)
  vectors[1, 3] = 1.4
  group, channels = a_group(2, vectors, EIGHT_BITS, patience=1)
  (worker, averaging), (other, _) = group
  worker.steps = 41
  averaging.ask()
  deliver(group, channels, rng)
  np.testing.assert_array_equal(worker.state.x, vectors[0])
  np.testing.assert_array_equal(other.state.x, vectors[1])
  assert [a.unreadable for _, a in group] == [1, 1]
  averaging.ask()
  with pytest.raises(monitor.Stopped, match='step 41 of worker 0') as stopped:
    deliver(group, channels, rng)
  found = re.search(
    r'could not read the message of worker \d .* theta=1: try theta=([\d.]+)',
    str(stopped.value),
  )
  assert float(found[1]) >= 1.4


def test_auto_theta_finds_a_larger_one():
  vectors, rng = np.zeros((2, 50), np.float32), np.random.default_rng(0)
  vectors[1] = np.linspace(0, 3, 50)
  quantizer = mj.auto_theta(bits=4, start=0.1)
  group, channels = a_group(2, vectors, quantizer, patience=20)
  for _ in range(30):
    group[0][1].ask()
    deliver(group, channels, rng)
  after = np.stack([worker.state.x for worker, _ in group])
  assert 0 < group[0][1].unreadable < 20
  assert np.ptp(after, axis=0).max() < 0.3 * 3  # theta itself shrinks slowly
  np.testing.assert_allclose(after.mean(0), vectors.mean(0), atol=1e-6)


# -------------------------------------------------- who is there, without MPI


class Silence:
  """`mpi4py.MPI` to worker 0 of two while the other says nothing."""

  Exception, Status = RuntimeError, object
  rank, size = 0, 2

  def __init__(self):
    self.COMM_WORLD, self.sent = self, []

  def Isend(self, content, to, kind):
    self.sent.append((to, kind))
    return self

  def Test(self):
    return True

  def Ibarrier(self):
    return self

  def allgather(self, me):
    return [me, 'process 17 on elsewhere']

  def Improbe(self, status):
    return None

  def Get_failed(self):
    raise NotImplementedError

  def Get_processor_name(self):
    return 'here'

  def Get_library_version(self):
    return 'MPI 4, of the test'


def test_a_silent_worker_is_lost_after_the_timeout():
  quiet = Network(Silence(), timeout=2.0)
  began = time.monotonic()
  with pytest.raises(
    monitor.Stopped, match='lost worker 1 .process 17 on else'
  ):
    quiet.serve(lambda: False)
  assert 1.9 < time.monotonic() - began < 30
  assert quiet.speaks and len(quiet._mpi.sent) > 4  # it was not silent itself


def test_a_step_that_hangs_is_named():
  network = Network(Silence(), timeout=5.0)
  network.step_began = time.monotonic() - 6.0
  with pytest.raises(
    monitor.Stopped, match='worker 0 .* hangs: its step takes'
  ):
    network.serve(lambda: False)


def test_a_process_that_slept_does_not_blame_the_others():
  network = Network(Silence(), timeout=4.0)
  network._heard -= 100.0
  network._turned -= 100.0  # as if it had been stopped, and is continued
  end = time.monotonic() + 0.6
  network.serve(lambda: time.monotonic() > end)


def test_a_signal_and_an_error_beside_the_messages_end_the_run():
  network = Network(Silence(), timeout=4.0)
  with pytest.raises(ZeroDivisionError):
    network.during(lambda: 1 / 0)
  network.stop('SIGTERM')
  with pytest.raises(monitor.Stopped, match='SIGTERM'):
    network.during(lambda: time.sleep(5))
  with pytest.raises(ValueError, match='--timeout=1.0; .* take 2.0 s or more'):
    Network(Silence(), timeout=1.0)


# ------------------------------------------------------ resuming, without MPI


class OfTwo:
  """The network of worker 0 of two, the other of which sums what it is told."""

  rank, n, steps = 0, 2, 0

  def __init__(self, x, weight):
    self._other = np.float32([*x, weight])

  def sum(self, array):
    return array + self._other

  def largest(self, known):
    return np.maximum(known, [3, 9])


def resumed(folder, other, mine=None):
  """The worker after --resume, and its last row; `mine` is what it saved."""
  if mine is not None:
    Worker(WorkerState(jnp.array(mine), (), {}, ())).save(
      folder, np.uint32([5, 2])
    )
  worker = Worker(WorkerState(jnp.zeros(2), (), {}, ()))
  return worker, training.resume(worker, other, folder)


def test_all_resume_at_the_mean_of_what_was_saved(tmp_path):
  rows = [{'step': step, 'seconds': 1.0} for step in (3, 7)]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  worker, row = resumed(tmp_path, OfTwo([3.0, 5.0], 1), mine=[1.0, 3.0])
  np.testing.assert_array_equal(worker.state.x, [2.0, 4.0])
  assert worker.steps == 5 and row['step'] == 3
  assert len(metrics.read(tmp_path)) == 1
  worker, _ = resumed(tmp_path, OfTwo([0.0, 0.0], 0))  # the other has nothing
  np.testing.assert_array_equal(worker.state.x, [1.0, 3.0])


def test_a_worker_that_lost_its_state_takes_that_of_the_others(tmp_path):
  worker, row = resumed(tmp_path, OfTwo([3.0, 5.0], 1))
  np.testing.assert_array_equal(worker.state.x, [3.0, 5.0])
  assert worker.steps == 3 and row == {}
  with pytest.raises(ValueError, match='holds no worker.*/state.npz'):
    resumed(tmp_path, OfTwo([0.0, 0.0], 0))


def test_the_row_of_a_run_has_what_its_task_measures(monkeypatch, tmp_path):
  """As bits for a character; of a worker that is alone."""
  some = types.SimpleNamespace
  network = some(
    rank=0,
    n=1,
    barrier=lambda *_: None,
    known=dict,
    sum=lambda x: x,
    gather=lambda row: row[None],
    during=lambda fn: fn(),
  )
  worker = some(state=some(x=np.zeros(3), model_state={}), save=lambda *_: None)
  row = {source: 1.0 for source, _ in training.OF_ALL.values()}
  log = some(write=lambda **more: row | more)
  task = some(measures=lambda loss: {'test/twice': 2 * loss})
  built = some(experiment=some(task=task), config=some(tensorboard=False))
  folder = tmp_path / 'worker0'
  folder.mkdir()
  (folder / 'metrics.jsonl').write_text('{}\n')
  monkeypatch.setattr(training, '_evaluate', lambda *_: (1.5, 0.5))
  result = training.finish((built, worker, None, network, log, folder))
  assert (result['test/loss'], result['test/twice']) == (1.5, 3.0)
  assert metrics.read(tmp_path)[0]['test/twice'] == 3.0


# ----------------------------------------------------------------- mistakes


def config_of(n, method='moniqua4', **entries):
  config = digits.get_config(method)
  config.workers = n
  config.update(entries)
  return config


@pytest.mark.parametrize(
  'n, config, message',
  [
    (1, config_of(1), '1 process; workers average in pairs'),
    (4, config_of(8), 'config.workers=8, but mpiexec started 4 processes'),
    (4, config_of(4, gossip={'name': 'd2'}), "config.gossip.name='d2'"),
    (4, config_of(4, 'allreduce'), "config.gossip.name='none'"),
    (4, config_of(4, reduce={'name': 'allreduce'}), 'config.reduce.name='),
    (4, config_of(4, budget={'bits': 1.0}), 'config.budget.bits=1.0: '),
    (4, config_of(4, rounds_from=((5, 2),)), r'config.rounds_from=\(\(5, 2\),'),
    (
      4,
      config_of(4, optimizer={'name': 'dadam'}, momentum=0.0),
      "config.optimizer.name='dadam': .* take 'adamw'",
    ),
    (4, smoothness.get_config(), 'of a laboratory: train.py runs it'),
    (4, config_of(4, batch_size=400), 'batch_size=400 is larger than the shar'),
    (4, config_of(4, topology={'name': 'rign'}), "config.topology.name='rign'"),
    (
      4,
      config_of(4, topology={'name': 'ring', 'weight': 0.5}),
      'config.gossip: dpsgd: .* lambda = -1 of W',
    ),
  ],
)
def test_what_does_not_fit_is_named(n, config, message):
  with pytest.raises(ValueError, match=message):
    training.setup(config, rank=0, n=n)


def test_the_momentum_of_gradients_is_that_of_all_steps():
  config = config_of(2, local_momentum=0.5, momentum=0.0)
  built = training.setup(config, rank=0, n=2)
  batch = next(training._batches(built, 0, first=0))
  first, opt_state, *_ = built.descend(built.state, batch, 0)
  later = built.state._replace(opt_state=opt_state)  # at the same place
  np.testing.assert_allclose(
    built.descend(later, batch, 0)[0], 1.5 * first, rtol=0, atol=1e-6
  )


@pytest.mark.parametrize('text', ['3', '4:2', '1:0.5', 'one:4', '-1:4'])
def test_who_is_slow_is_checked(text):
  with pytest.raises(ValueError, match=f'--slow={text}; it takes RANK:FACTOR'):
    worker_lib.factors([text], n=4)


def test_a_worker_without_neighbour_is_named():
  alone = mj.Topology([(0.5, (1, 0, 2))])
  assert training.neighbours((alone,), rank=1) == [0]
  with pytest.raises(ValueError, match='worker 2 no neighbour'):
    training.neighbours((alone,), rank=2)


def test_without_mpi_one_line_says_how_to_install_it(tmp_path):
  program = tmp_path / 'without_mpi.py'
  program.write_text(
    "import sys, runpy; sys.modules['mpi4py'] = None\n"
    "runpy.run_module('moniqua_jax.asynchronous', run_name='__main__')"
  )
  status, _, err = programs.run(str(program), folder=tmp_path)
  assert status == 2
  assert len(err.splitlines()) == 1
  assert "pip install 'moniqua_jax[mpi]'" in err


# ---------------------------------------------------------- with real processes


@pytest.fixture(scope='module')
def environment():
  return {
    **os.environ,
    **programs.ENVIRONMENT,
    'OMPI_ALLOW_RUN_AS_ROOT': '1',
    'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
  }


PROGRAM = ('-m', 'moniqua_jax.asynchronous')


def mpi_command(n, *arguments):
  """As docs/many_hosts.md has it."""
  mpiexec = [MPIEXEC, '--with-ft', 'ulfm', '--oversubscribe', '-n', str(n)]
  return [*mpiexec, sys.executable, *arguments]


def finished(command, environment):
  return subprocess.run(
    command,
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=240,
  )


def steps_in(workdir):
  """The last step that each of three workers has written; 0 for none."""
  steps = []
  for rank in range(3):
    with contextlib.suppress(ValueError, IndexError):  # not there, half written
      steps.append(metrics.read(workdir / f'worker{rank}')[-1]['step'])
  return steps if len(steps) == 3 else [0]


def interrupted(rank, number, workdir, environment, *arguments):
  """Sends a signal to one of three workers in training.

  For half a second mpiexec has no time to read what the others say of it.
  Returns the exit status, what stderr said, and the seconds until then.
  """
  out, err = workdir.with_suffix('.out'), workdir.with_suffix('.err')
  command = mpi_command(
    3,
    *PROGRAM,
    '--config.workers=3',
    '--config.epochs=1000.0',
    '--step_seconds=0.02',
    f'--workdir={workdir}',
    *arguments,
  )
  start = max(steps_in(workdir))
  with out.open('w') as stdout, err.open('w') as stderr:
    process = subprocess.Popen(
      command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr
    )
    try:
      deadline = time.monotonic() + 200
      while min(steps_in(workdir)) <= start:
        assert process.poll() is None, err.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
      pids = re.findall(r'process (\d+) on', out.read_text())
      began = time.monotonic()
      process.send_signal(signal.SIGSTOP)
      os.kill(int(pids[rank]), number)
      time.sleep(0.5)
      process.send_signal(signal.SIGCONT)  # which it hands on to all of them
      if number == signal.SIGSTOP:
        time.sleep(0.5)
        os.kill(int(pids[rank]), number)
      status = process.wait(timeout=60)
    finally:
      process.kill()
      process.wait()
  return status, err.read_text(), time.monotonic() - began


AVERAGE = """
import json
import mpi4py
mpi4py.rc.thread_level = 'funneled'
from mpi4py import MPI
import jax, numpy as np
from moniqua_jax import moniqua
from moniqua_jax.asynchronous import *
from moniqua_jax.training import monitor

network = Network(MPI)
x = 0.1 * jax.random.normal(jax.random.key(network.rank), (1000,))
others = [other for other in range(network.n) if other != network.rank]

def averaging_by(worker, theta):
  key, rank = jax.random.key(0), network.rank
  arithmetic = ends(moniqua(theta, bits=8), key=key, rank=rank)
  averaging = Averaging(network, worker, arithmetic, others)
  network.barrier()
  def often():
    for _ in range(50):
      averaging.ask()
      averaging.wait()
      worker.steps += 1
  network.during(often)
  network.barrier(lambda: not averaging.busy)
  return averaging

def mean_and_spread(x):
  mean = network.sum(np.float64(x)) / network.n
  return mean, float(network.largest(np.abs(np.float64(x) - mean)).max())

worker = Worker(WorkerState(x, (), {}, ()))
before, spread_before = mean_and_spread(x)
averaging = averaging_by(worker, theta=1.0)
after, spread_after = mean_and_spread(worker.state.x)
if network.rank == 0:
  print(json.dumps({
    'moved': float(np.abs(after - before).max()),
    'spread': [spread_before, spread_after],
    'averagings': averaging.concluded,
    'bytes': network.bytes_sent,
  }), flush=True)
try:
  averaging_by(Worker(WorkerState(x, (), {}, ())), theta=0.05)
except monitor.Stopped as stopped:
  network.halt(str(stopped))
  print(stopped)
"""


@needs_mpi
def test_processes_meet_at_their_mean_or_say_why_not(environment):
  """The second time with a theta that is too small, and all are told."""
  done = finished(mpi_command(3, '-c', AVERAGE), environment)
  assert done.returncode == 0, done.stderr
  first, *stopped = done.stdout.splitlines()
  found = json.loads(first)
  assert found['moved'] < 1e-6
  assert found['spread'][1] < 0.05 * found['spread'][0]
  # One payload of 1000 bytes in each averaging, and small change.
  payloads = found['averagings'] * (1000 + 12)
  assert payloads < found['bytes'] < 1.3 * payloads
  assert len(stopped) == 3
  for line in stopped:
    assert re.search(r'\d could not read the message of worker \d', line)
    assert re.search(r'than theta=0.05: try theta=0.[1-9]', line)


@needs_mpi
@pytest.mark.slow
def test_a_slow_worker_does_not_slow_its_neighbour(environment, tmp_path):
  """Which averages with it, and no other, in each of its steps."""
  done = finished(
    mpi_command(
      2,
      *PROGRAM,
      '--config=configs/digits.py:moniqua4',
      '--config.workers=2',
      '--config.gossip.name=adpsgd',
      '--config.learning_rate.warmup_epochs=0.5',
      '--config.epochs=2.0',
      '--step_seconds=0.03',
      '--slow=1:4',
      f'--workdir={tmp_path}',
    ),
    environment,
  )
  assert done.returncode == 0, done.stderr
  rows = [metrics.read(tmp_path / f'worker{r}')[-1] for r in range(2)]
  fast, slow = (row['pace/steps_per_second'] for row in rows)
  assert fast > 2.5 * slow
  (row,) = metrics.read(tmp_path)
  assert min(row['test/accuracy'], row['test/worst_worker']) > 0.8
  assert row['gossip/unreadable'] == 0 < row['gossip/messages']
  assert 0 < row['gossip/distance_over_theta'] < 1
  assert sum(row['step'] for row in rows) >= 2 * row['step']
  payload = (9610 + 1) // 2 + 12
  for own in rows:
    sent = own['pace/averagings'] * payload
    assert sent < own['wire/bytes_sent'] < 1.2 * sent + 10_000
    assert 0 < own['pace/staleness'] <= 32
  table = (tmp_path / 'table.md').read_text()
  assert 'AD-PSGD, Moniqua 4 bits' in table and re.search(r'\|\s+1 \|', table)
  assert 'mpiexec --with-ft ulfm --oversubscribe -n 2 python' in table
  assert report.main([str(tmp_path), f'--out={tmp_path}/report']) == 0


@needs_mpi
def test_a_killed_worker_is_named(environment, tmp_path):
  """The slow one is not taken for a lost one."""
  workdir = tmp_path / 'run'
  found = interrupted(1, signal.SIGKILL, workdir, environment, '--slow=2:4')
  assert '--resume' in check_lost(found, r'1 \(process \d+ on .*: dead')
  saved = {file.parent.name for file in workdir.glob('*/state.npz')}
  assert saved >= {'worker0', 'worker2'}
  noted = json.loads((workdir / 'run.json').read_text())
  assert {*noted['data']} == {'labels', 'shards'}  # which --resume compares


def check_lost(found, words):
  """The one line that names the lost worker."""
  status, said, seconds = found
  assert status != 0 and seconds < 30
  (line,) = [line for line in said.splitlines() if line.startswith('stopped')]
  assert re.search(f'lost worker {words}', line)
  return line


@pytest.mark.slow
@needs_mpi
def test_a_run_that_lost_a_worker_goes_on(environment, tmp_path):
  """First one is stopped, then, after --resume, one is killed."""
  workdir = tmp_path / 'run'
  arguments = '--timeout=5', '--slow=2:4'
  found = interrupted(0, signal.SIGSTOP, workdir, environment, *arguments)
  line = check_lost(found, r'0 \(process \d+ on .*silent for 5 s')
  assert '--resume' in line
  saved = {file.parent.name for file in workdir.glob('*/state.npz')}
  assert saved >= {'worker1', 'worker2'}
  before = steps_in(workdir)

  found = interrupted(1, signal.SIGKILL, workdir, environment, '--resume')
  check_lost(found, r'1 \(process \d+ on .*: dead')
  assert (workdir / 'worker0' / 'state.npz').exists()
  assert min(steps_in(workdir)) > max(before)
  for rank in range(3):  # also of the worker that was lost
    rows = metrics.read(workdir / f'worker{rank}')
    for counted in ('step', 'seconds', 'wire/bytes_sent', 'pace/averagings'):
      assert min(np.diff([row[counted] for row in rows])) >= 0


@pytest.mark.slow
@needs_mpi
def test_a_mistake_gets_one_line_from_one_process(environment, tmp_path):
  command = mpi_command(2, *PROGRAM, f'--workdir={tmp_path}', '--slow=3:4')
  done = finished(command, environment)
  assert done.returncode == 2
  errors = [line for line in done.stderr.splitlines() if 'error' in line]
  assert errors == [
    'error: --slow=3:4; it takes RANK:FACTOR, a rank below 2 and a factor of '
    '1 or more.'
  ]


@pytest.mark.slow
@needs_mpi
def test_different_commands_are_named_by_worker_0(environment, tmp_path):
  one = [*PROGRAM, f'--workdir={tmp_path}/run']
  command = [*mpi_command(1, *one), ':', '-n', '1', sys.executable, *one]
  done = finished([*command, '--config.seed=3'], environment)
  assert done.returncode == 2 and not (tmp_path / 'run').exists()
  (line,) = [line for line in done.stderr.splitlines() if 'error' in line]
  assert line == (
    'error: the workers were given different commands: --config.seed is 0 for '
    'worker 0, 3 for 1.'
  )


def test_what_is_broken_is_named_before_a_run_goes_on(tmp_path):
  state = worker_lib.WorkerState(jnp.ones(2), (), {}, ())
  worker = worker_lib.Worker(state)
  worker.save(tmp_path, np.zeros(2, np.uint32))
  training.check(worker, tmp_path)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
  with pytest.raises(ValueError, match='metrics.jsonl, line 2: '):
    training.check(worker, tmp_path)
  whole = (tmp_path / 'state.npz').read_bytes()
  for data in (
    whole[:50],
    b'',
    whole.replace(b'\x00\x00\x80?', b'\x00\x00\x81?'),
  ):
    (tmp_path / 'state.npz').write_bytes(data)
    with pytest.raises(ValueError, match='state.npz is damaged .*or remove it'):
      training.check(worker, tmp_path)
