"""Sees from outside how a process of a run ends; `watch` starts it.

  python witness.py PID NAME

Reads a beat every second. Without one for 40 seconds the process stands still,
as after SIGSTOP, where nothing inside can end it: it is killed.
"""

import os
import select
import signal
import sys

SILENCE = 40  # seconds; the others give it up after 20


def main():
  """Waits for the end of the process, and brings it about if need be."""
  pid, name = int(sys.argv[1]), sys.argv[2]
  leaving = False
  while True:
    if not select.select([0], [], [], SILENCE)[0]:
      os.kill(pid, signal.SIGKILL)
      _say(f'{name} stood still for {SILENCE} s and was ended.')
      return
    beats = os.read(0, 4096)
    leaving = leaving or b'.' in beats
    if not beats:
      break
  if not leaving:
    _say(
      f'{name} ended without a word of its own: it was killed, or the runtime '
      'ended it as process 0 is lost, and says so above.'
    )


def _say(what):
  print(
    f'error: {what} Start all processes again; with --resume they go on from '
    'the last checkpoint that all have.',
    file=sys.stderr,
    flush=True,
  )


if __name__ == '__main__':
  main()
