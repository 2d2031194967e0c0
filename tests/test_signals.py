"""Signals: one ends a run at the end of a step, two end it at once."""

import errno
import io
import os
import queue
import signal
import subprocess
import sys
import threading

import jax
import pytest

from moniqua_jax.launch import __main__ as launch
from moniqua_jax.launch import watch
from moniqua_jax.training import signals

NAMES = ['SIGTERM', 'SIGHUP', 'SIGINT']


@pytest.fixture(params=NAMES)
def listening(request):
  """A signal that is heard; a program in the background may ignore it."""
  number = getattr(signal, request.param)
  before = signal.signal(number, signal.SIG_DFL)
  yield number
  signal.signal(number, before)


def test_the_first_is_heard_and_the_next_does_what_it_does(listening, capfd):
  with signals.heard() as came:
    assert came() == 0
    signal.raise_signal(listening)
    assert came() == listening
    assert signal.getsignal(listening) == signal.SIG_DFL
    assert f'{listening.name} came: ' in capfd.readouterr().err
  assert signal.getsignal(listening) == signal.SIG_DFL


def test_it_is_heard_where_nobody_reads_what_is_said(listening):
  reader, writer = os.pipe()
  os.close(reader)
  stderr = os.dup(2)
  os.dup2(writer, 2)
  try:
    with signals.heard() as came:
      signal.raise_signal(listening)
      assert came() == listening
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)
    os.close(writer)


def test_who_ignores_a_signal_goes_on_ignoring_it():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with signals.heard() as came:
      signal.raise_signal(signal.SIGHUP)
      assert came() == 0
  finally:
    signal.signal(signal.SIGHUP, before)


def test_another_thread_hears_nothing():
  heard = []

  def listen():
    with signals.heard() as came:
      heard.append(came())

  thread = threading.Thread(target=listen)
  thread.start()
  thread.join()
  assert heard == [0]


@pytest.mark.parametrize(
  'argv,command',
  [
    (['train.py', '--a=b c'], "python train.py '--a=b c' --resume"),
    (['/x/bin/moniqua-train', '--resume'], 'moniqua-train --resume'),
    (
      ['/x/training/__main__.py'],
      'python -m moniqua_jax.training --resume',
    ),
  ],
)
def test_the_command_that_goes_on(argv, command, monkeypatch):
  monkeypatch.setattr(sys, 'argv', argv)
  assert signals.again() == f'Go on with:\n  {command}'
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert signals.again().startswith('Start all processes again')


# ---------------------------------------------------------- of many processes


class Service:
  """The keys and the barrier that processes share."""

  def __init__(self, n):
    self.keys, self._barrier = {}, threading.Barrier(n)

  def key_value_set(self, key, value, allow_overwrite=False):
    self.keys[key] = value

  def key_value_dir_get(self, prefix):
    return [(k, v) for k, v in self.keys.items() if k.startswith(prefix)]

  def wait_at_barrier(self, name, milliseconds):
    self._barrier.wait(milliseconds / 1000)


@pytest.mark.parametrize('ahead', [[0, 0, 0], [3, 0, 1], [0, 40, 2]])
def test_all_end_after_one_step_that_nobody_has_passed(ahead):
  """Wherever each is when one of them is asked."""
  service, n = Service(3), 3
  watches = [watch.Watch(service, i, n) for i in range(n)]
  for each, steps in zip(watches, ahead, strict=True):
    for step in range(steps):
      assert each.leaving(step, 0) == 0
  assert watches[2].leaving(ahead[2], signal.SIGTERM) == 0
  assert service.keys == {'moniqua/leave/2': str(int(signal.SIGTERM))}
  threads = [
    threading.Thread(target=each._agree, args=(signal.SIGTERM,))
    for each in watches
  ]
  for thread in threads:
    thread.start()
  ends = []
  for each, steps in zip(watches, ahead, strict=True):
    step = steps + (each is watches[2])
    while not (number := each.leaving(step, 0)):
      step += 1
    ends.append((step, number))
  for thread in threads:
    thread.join()
  assert len(set(ends)) == 1 and ends[0][1] == signal.SIGTERM
  assert max(ahead) <= ends[0][0] <= max(ahead) + 2


class Full(io.StringIO):
  """A log for which a disk has no room."""

  def write(self, text):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_log_that_is_full_does_not_hide_how_a_process_ended(monkeypatch):
  monkeypatch.setattr(sys, 'stdout', Full())
  program = [sys.executable, '-S', '-c', 'print(1)']
  process = subprocess.Popen(program, stdout=subprocess.PIPE)
  with pytest.raises(OSError, match='No space left'):
    launch._stream(0, process, ended := queue.Queue())
  assert ended.get_nowait() == (0, 0)


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print('ready', flush=True)
time.sleep(100)
"""


@pytest.mark.slow
def test_the_launcher_waits_for_those_it_ends(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM)
  command = [sys.executable, '-m', 'moniqua_jax.launch', '--n=2', '--']
  with subprocess.Popen(
    [*command, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
  ) as process:
    for _ in range(2):
      assert b'ready' in process.stdout.readline()
    process.terminate()
    assert process.wait(30) == 0
    assert b'interrupted' in process.stderr.read()
