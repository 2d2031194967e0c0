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

from jax._src import distributed  # nothing public has its keys
from jax.errors import JaxRuntimeError

BEAT = 2  # seconds from one sign of life to the next
SILENCE = 20  # seconds without one after which a process counts as lost
_ALIVE, _ENDED = 'moniqua/alive/', 'moniqua/ended/'
_AGAIN = (
  'Start all processes again; with --resume they go on from the last '
  'checkpoint that all have.'
)


class Watch:
  """What a process knows of the others; `start` begins to look."""

  def __init__(self, client, me: int, n: int):
    self._client, self._me = client, me
    self._heard = dict.fromkeys(range(n), time.monotonic())
    self._words = {}
    self._signals, self._witness = None, None

  def start(self) -> None:
    """Starts the threads and the witness, and listens for SIGTERM."""
    self._witness = _witness(self._me)
    atexit.register(self.leave)
    if threading.current_thread() is threading.main_thread():
      self._signals = _terminations()
    for work in (self._exchange, self._judge):
      threading.Thread(target=work, daemon=True).start()

  def tell(self, words: str) -> None:
    """Leaves last words for the others, if somebody keeps them."""
    key = f'{_ENDED}{self._me}'
    setting = threading.Thread(
      target=_quietly, args=(self._client.key_value_set, key, words)
    )
    setting.daemon = True
    setting.start()
    setting.join(BEAT)
    if self._me == 0:
      time.sleep(2 * BEAT)  # the keys end with process 0

  def leave(self) -> None:
    """Tells the witness that an end will be no surprise."""
    self._beat(b'.')

  def _beat(self, byte):
    with contextlib.suppress(OSError):
      os.write(self._witness, byte)

  def _exchange(self):
    last, count = {}, 0
    while True:
      count += 1
      with contextlib.suppress(JaxRuntimeError):
        keys = self._client
        mine = f'{_ALIVE}{self._me}'
        keys.key_value_set(mine, str(count), allow_overwrite=True)
        for key, value in keys.key_value_dir_get(_ALIVE):
          if last.get(key) != value:
            last[key] = value
            self._heard[_number(key)] = time.monotonic()
        for key, words in keys.key_value_dir_get(_ENDED):
          self._words[_number(key)] = words
      time.sleep(BEAT)

  def _judge(self):
    looked = time.monotonic()
    while True:
      self._beat(b'+')
      waiting = [] if self._signals is None else [self._signals]
      asked, _, _ = select.select(waiting, [], [], 1)
      if asked and signal.SIGTERM in os.read(self._signals, 64):
        self._end(f'process {self._me} got SIGTERM. {_AGAIN}', 143)
      now = time.monotonic()
      if message := self._lost(now, now - looked):
        self._end(message, 1)
      looked = now

  def _end(self, message, status):
    print(file=sys.stderr)  # behind a line of progress
    end(f'error: {message}', status, message)

  def _lost(self, now, still) -> str | None:
    """Says who is lost, if anybody is."""
    if still > SILENCE:
      return (
        f'process {self._me} stood still for {still:.0f} s, and the others '
        f'have given it up. {_AGAIN}'
      )
    for i, words in self._words.items():
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


def start() -> None:
  """Watches the processes that this one has joined."""
  global _watch
  state = distributed.global_state
  _watch = Watch(state.client, state.process_id, state.num_processes)
  _watch.start()


def end(message: str, status: int, words: str = '') -> None:
  """Ends this process at once, and tells the others why.

  A normal exit would wait for all processes, which wait for this one.
  """
  print(message, file=sys.stderr, flush=True)
  if _watch:
    _watch.tell(words or message)
    _watch.leave()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _witness(me) -> int:
  """Starts the witness; returns where it waits for beats."""
  program = pathlib.Path(__file__).with_name('witness.py')
  process = subprocess.Popen(
    [sys.executable, '-I', '-S', program, str(os.getpid()), f'process {me}'],
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    start_new_session=True,  # what ends us by Ctrl-C leaves it alone
  )
  return process.stdin.fileno()


def _terminations() -> int:
  """Makes SIGTERM a byte that a thread can read at once."""
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  signal.signal(signal.SIGTERM, lambda *_: None)
  return reading


def _quietly(fn, *args):
  with contextlib.suppress(JaxRuntimeError):
    fn(*args)


def _number(key) -> int:
  return int(key.rpartition('/')[2])
