"""Sees from outside how a process of a run ends; `watch` starts it.

  python witness.py PID NAME ADDRESS

Reads a beat every second. Without one for 40 seconds the process stands still,
as after SIGSTOP, where nothing inside can end it: it is killed. ADDRESS is
where process 0 listens: the runtime of JAX ends all that do not reach it.
"""

import os
import select
import signal
import socket
import sys

SILENCE = 40  # seconds; the others give it up after 20


def main():
  """Waits for the end of the process, and brings it about if need be."""
  pid, name, *address = sys.argv[1:]
  leaving = False
  while True:
    if not select.select([0], [], [], SILENCE)[0]:
      os.kill(int(pid), signal.SIGKILL)
      _say(f'{name} stood still for {SILENCE} s and was ended.')
      return
    beats = os.read(0, 4096)
    leaving = leaving or b'.' in beats
    if not beats:
      break
  if not leaving:
    lost = [each for each in address if each and not _answers(each)]
    _say(
      f'process 0 is lost: nobody listens at {lost[0]} any more, and {name} '
      'ended with it.'
      if lost
      else f'{name} ended without a word of its own: it was killed.'
    )


def _answers(address) -> bool:
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), 2).close()
  except (OSError, ValueError):
    return False
  return True


def _say(what):
  print(
    f'error: {what} Start all processes again; with --resume they go on from '
    'the last checkpoint that all have.',
    file=sys.stderr,
    flush=True,
  )


if __name__ == '__main__':
  main()
