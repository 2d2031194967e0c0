"""Ends a process of a run when another one is lost, and says which.

Every two seconds each process gives a sign of life, a key of JAX's coordination
service, and looks at those of the others. A thread does it, for a collective
waits as long as it takes. One that ends leaves its last words there; one that
stands still is ended from outside, by `witness`.
"""

import atexit
import contextlib
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
from jax._src import distributed  # nothing public has its keys
from jax.errors import JaxRuntimeError

BEAT = 2  # seconds from one sign of life to the next
SILENCE = 20  # seconds without one after which a process counts as lost
_KEYS = 'moniqua/'  # alive/I, leave/I and ended/I of process I
_GIVEN = 'moniqua_given/'  # I, what process I was given
_STEPS = 'moniqua_steps/'  # I, the step that its loop has reached
_AGAIN = (
  'Start all processes again; with --resume they go on from the last '
  'checkpoint that all have.'
)


class Watch:
  """What a process knows of the others; `start` begins to look."""

  def __init__(self, client, me: int, n: int):
    self._client, self._me = client, me
    self._heard = dict.fromkeys(range(n), time.monotonic())
    self._words, self._going = {}, False
    self._over = threading.Event()
    self._talking = threading.Thread(target=self._exchange, daemon=True)
    self._signals: int | None = None
    self._witness = -1  # no file yet
    # The step of the loop, and the one after which all end.
    self._loop = threading.Lock()
    self._step: int | None = None
    self._asked = self._end_after = self._number = 0

  def start(self) -> None:
    """Starts the threads and the witness, and listens for SIGTERM."""
    address = distributed.global_state.coordinator_address
    self._witness = _witness(self._me, address if self._me else None)
    atexit.register(self._last)
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
      self._signals = _terminations()
    self._talking.start()
    threading.Thread(target=self._judge, daemon=True).start()

  def tell(self, words: str) -> None:
    """Leaves last words for the others, if there are any and a keeper."""
    self._going = True
    if words:
      args = f'{_KEYS}ended/{self._me}', words
      telling = threading.Thread(target=self._set, args=args, daemon=True)
      telling.start()
      telling.join(BEAT)
    if self._me == 0:
      time.sleep(2 * BEAT)  # the keys end with process 0

  def leaving(self, step: int, number: int) -> int:
    """Returns the signal for which all end after this step, or 0."""
    if number and not self._asked:
      self._asked = number
      self._set(f'{_KEYS}leave/{self._me}', str(number))
    with self._loop:
      self._step = step
      return self._number if self._number and step >= self._end_after else 0

  def _agree(self, number):
    """Finds the step after which all end: one that nobody has gone past.

    Loops wait here at the end of their steps until all have said theirs.
    """
    with self._loop, contextlib.suppress(JaxRuntimeError):
      mine = -1 if self._step is None else self._step
      self._client.key_value_set(f'{_STEPS}{self._me}', str(mine))
      self._client.wait_at_barrier('moniqua_leave', 1000 * SILENCE)
      steps = [int(text) for _, text in self._client.key_value_dir_get(_STEPS)]
      self._end_after, self._number = max(steps) + 1, number

  def _set(self, key, value):
    with contextlib.suppress(JaxRuntimeError):
      self._client.key_value_set(key, value, allow_overwrite=True)

  def leave(self) -> None:
    """Tells the witness that an end will be no surprise."""
    self._beat(b'.')

  def _last(self):
    """Waits for the others, and then for our own thread.

    A thread that comes back from JAX's C++ when Python has ended already would
    abort the process.
    """
    self.leave()
    try:
      jax.distributed.shutdown()  # until then we give signs of life
    finally:
      self._over.set()
      self._talking.join(SILENCE)

  def _beat(self, byte):
    with contextlib.suppress(OSError):
      os.write(self._witness, byte)

  def _exchange(self):
    last, count, leave, agreed = {}, 0, 0, False
    while not self._over.wait(BEAT if count else 0):
      count += 1
      self._set(f'{_KEYS}alive/{self._me}', str(count))
      with contextlib.suppress(JaxRuntimeError):
        for key, value in self._client.key_value_dir_get(_KEYS):
          what, number = key.split('/')[-2:]
          if what == 'ended':
            self._words[int(number)] = value
          elif what == 'leave':
            leave = leave or int(value)
          elif last.get(key) != value:
            last[key] = value
            self._heard[int(number)] = time.monotonic()
      if leave and not agreed:
        agreed = True
        self._agree(leave)

  def _judge(self):
    looked = time.monotonic()
    while True:
      self._beat(b'+')
      waiting = [] if self._signals is None else [self._signals]
      asked, _, _ = select.select(waiting, [], [], 1)
      came = os.read(asked[0], 64) if asked else b''
      # In its loop a process ends with the others, after a step.
      if signal.SIGTERM in came and self._step is None:
        got = f'process {self._me} got SIGTERM. {_AGAIN}'
        self._end(got, 143, words=got)
      now = time.monotonic()
      if message := self._lost(now, now - looked):
        self._end(message, 1, words='')  # the others see it, too
      looked = now

  def _end(self, message, status, words):
    if not self._going:
      print(file=sys.stderr)  # behind a line of progress
      end(f'error: {message}', status, words)

  def _lost(self, now, still) -> str | None:
    """Says who is lost, if anybody is."""
    if still > SILENCE:
      return (
        f'process {self._me} stood still for {still:.0f} s, and the others '
        f'have given it up. {_AGAIN}'
      )
    for i, words in sorted(self._words.items()):
      if i != self._me:
        return f'process {i} has ended, and with it the run. It said: {words}'
    # Without process 0, which keeps the keys, nobody is heard: it comes first.
    for i, heard in sorted(self._heard.items()):
      if i != self._me and now - heard > SILENCE:
        return (
          f'process {i} gave no sign of life for {SILENCE} s: it was killed or '
          f'stands still, or the network to it is down. {_AGAIN}'
        )
    return None


_watch: Watch | None = None


def exchanged(text: str) -> list[str]:
  """Returns what all processes gave, in their order. It needs no devices."""
  state: Any = distributed.global_state
  name = f'{_GIVEN}{state.process_id}'
  state.client.key_value_set(name, text, allow_overwrite=True)
  state.client.wait_at_barrier('moniqua_given', 1000 * 3 * SILENCE)
  found = dict(state.client.key_value_dir_get(_GIVEN))
  own = {int(key.split('/')[-1]): value for key, value in found.items()}
  return [own[i] for i in range(state.num_processes)]


def start() -> None:
  """Watches the processes that this one has joined."""
  global _watch
  state = distributed.global_state
  _watch = Watch(state.client, state.process_id, state.num_processes)
  _watch.start()


def leaving(step: int, number: int) -> int:
  """The signal for which all processes end after this step, or 0."""
  return _watch.leaving(step, number) if _watch else number


def end(message: str, status: int, words: str | None = None) -> None:
  """Ends this process at once, and tells the others why.

  A normal exit would wait for all processes, which wait for this one.
  """
  print(message, file=sys.stderr, flush=True)
  if _watch:
    _watch.tell(message if words is None else words)
    _watch.leave()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _witness(me, address) -> int:
  """Starts the witness; returns where it waits for beats."""
  program = pathlib.Path(__file__).with_name('witness.py')
  process = subprocess.Popen(
    [
      *(sys.executable, '-I', '-S', program, str(os.getpid())),
      *(f'process {me}', address or ''),
    ],
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    start_new_session=True,  # what ends us by Ctrl-C leaves it alone
  )
  assert process.stdin is not None
  return process.stdin.fileno()


def _terminations() -> int:
  """Makes SIGTERM a byte that a thread can read at once."""
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  signal.signal(signal.SIGTERM, lambda *_: None)
  return reading
