"""SIGTERM, SIGHUP and Ctrl-C: a run ends at the end of a step, and is saved."""

from collections.abc import Callable, Iterator
import contextlib
import os
import shlex
import signal
import sys
import threading

import jax

_NAMES = 'SIGTERM', 'SIGHUP', 'SIGINT'
_HEARD = '{} came: the run ends after this step; a second one ends it at once.'


class Interrupted(KeyboardInterrupt):
  """A run was asked to end, and has; `number` is the signal's."""

  def __init__(self, number: int, said: str):
    super().__init__(said)
    self.number = number

  @property
  def status(self) -> int:
    """Of the exit: 130 for Ctrl-C, 0 for who sends signals to be obeyed."""
    return 130 if self.number == signal.SIGINT else 0


@contextlib.contextmanager
def heard() -> Iterator[Callable[[], int]]:
  """Yields a function that returns the signal that came, 0 before one has.

  A second signal of a kind does what it does to any program. Threads other than
  the main one hear nothing; who ignores a signal (nohup) goes on ignoring it.
  """
  came, before = [], {}

  def take(number, _):
    came.append(number)
    signal.signal(number, signal.SIG_DFL)
    text = _HEARD.format(signal.Signals(number).name)
    # Print may be what was interrupted; the signal may have ended tee as well.
    with contextlib.suppress(OSError):
      os.write(2, f'\n{text}\n'.encode())

  if threading.current_thread() is threading.main_thread():
    numbers = [
      getattr(signal, each) for each in _NAMES if hasattr(signal, each)
    ]
    for number in numbers:
      if signal.getsignal(number) != signal.SIG_IGN:
        before[number] = signal.signal(number, take)
  try:
    yield lambda: came[0] if came else 0
  finally:
    for number, handler in before.items():
      signal.signal(number, handler or signal.SIG_DFL)


def again() -> str:
  """Says how to go on with this run."""
  if jax.process_count() > 1:
    return 'Start all processes again, with --resume.'
  program, *flags = sys.argv
  if program.endswith('__main__.py'):
    program = '-m moniqua_jax.training'
  python = program.endswith('.py') or program.startswith('-m')
  resume = [] if '--resume' in flags else ['--resume']
  words = f'python {program}' if python else os.path.basename(program)
  return (
    f'Go on with:\n  {" ".join([words, *map(shlex.quote, flags + resume)])}'
  )
