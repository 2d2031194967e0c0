"""Two machines that share nothing: their rows, and what happens when one goes.

The slow tier has two network namespaces with a disk of each; it needs Linux,
root and iproute2.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks.network import namespaces
from moniqua_jax.launch import __main__ as launch
from moniqua_jax.launch import multihost, watch, witness
from moniqua_jax.training import checkpoint, parts
from moniqua_jax.training.step import TrainState
from tests import programs
from tests.trained import rows

N = 4


def state(step) -> TrainState:
  """A state of N rows that says its step and its rows."""
  row = np.arange(N, dtype=np.float32)
  params = 100.0 * step + row[:, None] + np.zeros(3, np.float32)
  opt_state = ({'count': np.full(N, step)}, (), {'mu': params * 2})
  return TrainState(params, opt_state, {})


def as_process(patch, me, own, n=2):
  """This process is one of n, with some of the rows."""
  patch.setattr(jax, 'process_index', lambda: me)
  patch.setattr(jax, 'process_count', lambda: n)
  patch.setattr(multihost, 'own', lambda n: list(own))
  take = lambda leaf: leaf[list(own)]
  patch.setattr(multihost, 'to_host', lambda tree: jax.tree.map(take, tree))
  patch.setattr(multihost, 'placed', lambda tree: tree)


def save(workdir, me, own, steps):
  with pytest.MonkeyPatch.context() as patch:
    as_process(patch, me, own)
    checkpoints = checkpoint.manager(workdir)
    for step in steps:
      checkpoint.save(checkpoints, step, state(step))


def restored(workdir):
  like = jax.device_put(jax.tree.map(np.zeros_like, state(0)))
  checkpoints = checkpoint.manager(workdir)
  step, found = checkpoint.restore(checkpoints, like)
  checkpoints.close()
  return step, jax.device_get(found)


def test_one_process_goes_on_with_the_rows_of_many(tmp_path):
  """At the last step that both have; what one saved later is gone."""
  save(tmp_path, 0, [2, 0], [1, 2, 3])
  save(tmp_path, 1, [1, 3], [1, 2])
  step, found = restored(tmp_path)
  assert step == 2
  jax.tree.map(np.testing.assert_array_equal, found, state(2))
  assert sorted(parts.found(tmp_path / 'checkpoints')) == [1, 2]


def test_a_process_goes_on_with_its_rows_of_one(tmp_path, monkeypatch):
  checkpoints = checkpoint.manager(tmp_path)
  checkpoint.save(checkpoints, 5, state(5))
  checkpoints.close()
  as_process(monkeypatch, 1, [3, 1])
  monkeypatch.setattr(multihost, 'table', lambda steps, width: [steps, steps])
  # Reading is not pretended: this is one process, and orbax knows.
  with pytest.MonkeyPatch.context() as patch:
    whole = checkpoint._whole

    def alone(folder):
      patch.setattr(jax, 'process_index', lambda: 0)
      return whole(folder)

    patch.setattr(checkpoint, '_whole', alone)
    step, found = checkpoint.restore(checkpoint.manager(tmp_path), state(0))
  assert step == 5
  take = lambda leaf: leaf[[3, 1]]
  expected = jax.tree.map(take, state(5))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_last_two_are_kept(tmp_path):
  """And nothing of what was being saved when a process was killed."""
  folder = tmp_path / 'checkpoints' / 'process_1_of_2'
  folder.mkdir(parents=True)
  (folder / '3.npz.0a1b2c3d.partial').write_bytes(b'half')
  save(tmp_path, 1, [1, 3], range(1, 6))
  assert sorted(path.name for path in folder.iterdir()) == ['4.npz', '5.npz']
  assert sorted(parts.found(tmp_path / 'checkpoints')) == [4, 5]


@pytest.mark.parametrize(
  'table,expected',
  [
    ([[10, 20, 30], [10, 20]], 20),
    ([[20, 30], [30, 40]], 30),
    ([[], []], 0),
    ([[20, 30], []], 'process 0 .* steps .20, 30.; process 1 .* no step'),
    ([[10], [20]], 'process 0 has those of steps .10.; process 1'),
  ],
)
def test_all_go_on_from_one_step(tmp_path, monkeypatch, table, expected):
  monkeypatch.setattr(multihost, 'table', lambda steps, width: table)
  if isinstance(expected, int):
    assert parts.newest([], tmp_path) == expected
    return
  with pytest.raises(ValueError, match=expected):
    parts.newest([], tmp_path)


def test_rows_that_are_not_here_are_named(tmp_path):
  save(tmp_path, 0, [0, 1], [7])
  (tmp_path / 'config.json').write_text(json.dumps({}))
  with pytest.raises(ValueError, match=r'only the rows \[0, 1\] of 4 are here'):
    checkpoint.last(tmp_path, N)
  save(tmp_path, 1, [2, 3], [7])
  step, found = checkpoint.last(tmp_path, N)
  assert step == 7
  np.testing.assert_array_equal(found['params'], state(7).params)


def test_a_mistake_elsewhere_is_named(monkeypatch):
  monkeypatch.setattr(multihost, 'table', lambda mine, width: [mine, [1]])
  monkeypatch.setattr(watch, 'BEAT', 0)
  with pytest.raises(ValueError, match='process 1 cannot go on'):
    multihost.by_all(lambda: None)
  with pytest.raises(OSError, match='ours'):
    multihost.by_all(lambda: (_ for _ in ()).throw(OSError('ours')))


# ------------------------------------------------------------- who is lost


@pytest.mark.parametrize(
  'me,silent,words,still,expected',
  [
    (0, {}, {}, 0, None),
    (0, {1: 19}, {}, 0, None),
    (0, {1: 21}, {}, 0, 'process 1 gave no sign of life'),
    (1, {0: 21, 2: 22}, {}, 0, 'process 0 gave no sign of life'),
    (1, {1: 99}, {}, 0, None),
    (1, {}, {2: 'no data'}, 0, 'process 2 has ended.* It said: no data'),
    (1, {}, {1: 'no data'}, 0, None),
    (1, {0: 60}, {}, 60, 'process 1 stood still for 60 s'),
  ],
)
def test_who_is_lost(me, silent, words, still, expected):
  seen = watch.Watch(None, me, 3)
  now = time.monotonic()
  seen._heard = {i: now - silent.get(i, 0) for i in range(3)}
  seen._words = words
  lost = seen._lost(now, still)
  assert re.match(expected, lost) if expected else lost is None


WITNESS = f"""
import sys
sys.path.insert(0, {os.path.dirname(witness.__file__)!r})
import witness
witness.SILENCE = 0.3
witness.main()
"""


@pytest.mark.parametrize(
  'beats,words',
  [
    (b'+++', 'process 7 ended without a word'),
    (b'++.', ''),
    (None, 'process 7 stood still'),
  ],
)
def test_a_witness_says_how_a_process_ended(beats, words):
  with subprocess.Popen(['sleep', '60']) as still:
    command = [sys.executable, '-I', '-S', '-c', WITNESS]
    seen = subprocess.Popen(
      [*command, str(still.pid), 'process 7'],
      stdin=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    if beats is None:
      assert still.wait(20) == -signal.SIGKILL  # and nobody beats
    _, err = seen.communicate(beats)
    still.kill()
  assert words in err.decode() and bool(words) == bool(err)


JOINED = """
import sys
from moniqua_jax.launch import initialize, watch
watch.BEAT = 0.0005  # so that its thread is in JAX nearly always
initialize.join(sys.argv[1], 2, int(sys.argv[2]))
"""


def test_a_process_that_is_done_is_not_aborted():
  """As Python ends a thread that comes back from C++ to an end of Python."""
  for _ in range(2):
    address = f'127.0.0.1:{launch.free_port()}'
    pair = [
      subprocess.Popen(
        [sys.executable, '-c', JOINED, address, str(i)],
        env=os.environ | programs.ENVIRONMENT,
        cwd=programs.ROOT,
      )
      for i in range(2)
    ]
    assert [process.wait(60) for process in pair] == [0, 0]


# ------------------------------------------------------------- two namespaces


@pytest.fixture(scope='module')
def network():
  """Two namespaces at 10 Mbit/s."""
  made = namespaces.network(2, namespaces.Link(rate=10e6))
  try:
    found = made.__enter__()
  except namespaces.NetworkError as error:
    pytest.skip(str(error))
  try:
    yield found
  finally:
    made.__exit__(None, None, None)


class Machines:
  """Two processes of train.py, each with a disk of its own at one path."""

  def __init__(self, network, folder):
    self._network, self._folder, self._runs = network, folder, 0
    self.disks = [folder / f'disk{i}' for i in (0, 1)]

  def train(self, *arguments):
    self._runs += 1
    self.processes = [self._started(i, arguments) for i in (0, 1)]

  def said(self, i) -> str:
    return (self._folder / f'said{self._runs}{i}').read_text(errors='replace')

  def ended(self, seconds) -> list[int]:
    """The exit statuses, of processes that all end in time."""
    until = time.monotonic() + seconds
    try:
      return [p.wait(until - time.monotonic()) for p in self.processes]
    finally:
      for process in self.processes:
        process.kill()

  def wait_for_rows(self, n):
    path = self.disks[0] / 'run' / 'metrics.jsonl'
    there = lambda: path.exists() and path.read_text().count('\n') >= n
    alive = lambda: all(p.poll() is None for p in self.processes)
    programs.wait_for(lambda: there() or not alive())
    assert alive(), self.said(0) + self.said(1)

  def _started(self, i, arguments):
    here = self._folder / 'disk'
    for folder in (here, self.disks[i]):
      folder.mkdir(exist_ok=True, parents=True)
    bind = 'mount --bind "$0" "$1" && shift && exec "$@"'
    command = [
      *('sh', '-c', bind, str(self.disks[i]), str(here)),
      *(sys.executable, 'train.py', '--config=configs/digits.py:moniqua4'),
      *('--config.epochs=8.0', '--config.checkpoint_every=1'),
      *('--config.log_every=5', '--config.eval_every=1'),
      f'--workdir={here}/run',
      f'--coordinator_address={self._network.addresses[0]}:{7000 + self._runs}',
      *('--num_processes=2', f'--process_id={i}', *arguments),
    ]
    with (self._folder / f'said{self._runs}{i}').open('w') as file:
      return subprocess.Popen(
        self._network.inside(i, command),
        cwd=programs.ROOT,
        env=os.environ | programs.ENVIRONMENT,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )


@pytest.fixture(scope='module')
def whole(network, tmp_path_factory):
  """The folder of a run that nothing happened to."""
  machines = Machines(network, tmp_path_factory.mktemp('whole'))
  machines.train()
  assert machines.ended(programs.SECONDS) == [0, 0], machines.said(1)
  return machines.disks[0] / 'run'


@pytest.mark.slow
@pytest.mark.parametrize('lost', [0, 1])
@pytest.mark.parametrize('how', ['SIGKILL', 'SIGSTOP'])
def test_both_end_and_go_on(network, whole, tmp_path, how, lost):
  """Within a minute, with a message; resumed, the run is the same."""
  machines = Machines(network, tmp_path)
  machines.train()
  machines.wait_for_rows(6)
  machines.processes[lost].send_signal(getattr(signal, how))
  assert all(machines.ended(60))
  assert f'process {lost} ' in machines.said(1 - lost)
  assert '--resume' in machines.said(1 - lost)
  names = [{p.name for p in disk.glob('run/*')} for disk in machines.disks]
  assert 'metrics.jsonl' in names[0] and 'metrics.jsonl' not in names[1]
  machines.train('--resume')
  assert machines.ended(programs.SECONDS) == [0, 0], machines.said(1)
  assert rows(machines.disks[0] / 'run') == rows(whole)


@pytest.mark.slow
@pytest.mark.parametrize('how,status', [('SIGTERM', 0), ('SIGINT', 130)])
@pytest.mark.usefixtures('heeding')
def test_both_save_after_the_same_step(network, tmp_path, how, status):
  """One is asked, and each has its rows of it on its own disk."""
  machines = Machines(network, tmp_path)
  # theta follows the learning rate, which another number of epochs changes.
  fixed = '--config.theta.name=fixed', '--config.theta.shrink=None'
  machines.train(*fixed, '--config.epochs=500.0')
  machines.wait_for_rows(6)
  machines.processes[1].send_signal(getattr(signal, how))
  assert machines.ended(60) == [status] * 2, machines.said(0)
  assert '--resume' in machines.said(0)
  runs = [disk / 'run' for disk in machines.disks]
  step = rows(runs[0])[-1]['step']
  assert [max(parts.found(run / 'checkpoints')) for run in runs] == [step] * 2
  machines.train(*fixed, '--resume', f'--config.epochs={(step + 11) / 11}')
  assert machines.ended(programs.SECONDS) == [0, 0], machines.said(1)
  assert rows(runs[0])[-1]['step'] == step + 11


@pytest.mark.slow
def test_who_has_no_checkpoint_is_named(network, tmp_path):
  machines = Machines(network, tmp_path)
  machines.train('--config.epochs=1.0')
  assert machines.ended(programs.SECONDS) == [0, 0]
  for path in (machines.disks[1] / 'run' / 'checkpoints').rglob('*.npz'):
    path.unlink()
  machines.train('--resume')
  assert machines.ended(programs.SECONDS) == [2, 2]
  for i in (0, 1):
    assert 'process 1 has those of no step' in machines.said(i)
