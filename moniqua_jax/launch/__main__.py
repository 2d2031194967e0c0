"""Starts all processes of a run on this machine, for a try-out.

  moniqua-launch --n 8 -- moniqua-train --config=digits --workdir=runs/eight

What stands after -- is a file such as train.py or a script of this package.
Each process gets its --coordinator_address, --num_processes and --process_id.
Their output comes with the number of the process in front; when one fails, all
are ended, and so is this command, with its exit status. Ctrl-C and SIGTERM go
to all. On Linux they get SIGTERM when this command is killed, too.
"""

import argparse
import contextlib
import ctypes
import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

from moniqua_jax import command_line

PATIENCE = 60  # seconds to save in, between the request to end and the end


@command_line.one_line_errors()
def main():
  """Reads the command line, runs the processes, and exits as they do."""
  parser = argparse.ArgumentParser(
    prog='python -m moniqua_jax.launch',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--n', type=int, required=True, help='how many')
  parser.add_argument(
    'command', nargs=argparse.REMAINDER, help='-- moniqua-train and its flags'
  )
  args = parser.parse_args()
  command = args.command[1:] if args.command[:1] == ['--'] else args.command
  if args.n < 1 or not command:
    parser.error(
      'it takes --n of 1 or more, and after -- a program, as in --n 8 -- '
      'train.py --config=digits.'
    )
  if re.fullmatch(r'python[\d.]*(\.exe)?', pathlib.Path(command[0]).name):
    parser.error(
      f'{command[0]} is not needed: after -- comes the file or the script that '
      'Python runs, -- train.py --config=...'
    )
  # Ctrl-C comes as an exception; so does the wish of whoever started us.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  sys.exit(run(commands(command, args.n, free_port())))


def free_port() -> int:
  """A port that nobody listens at now."""
  with socket.socket() as probe:
    probe.bind(('', 0))
    return probe.getsockname()[1]


def commands(command: list[str], n: int, port: int) -> list[list[str]]:
  """The command of each process; the first listens at the port."""
  # A console script is beside this Python, whether or not PATH leads there.
  beside = pathlib.Path(sys.executable).parent
  program = shutil.which(command[0], path=beside) or command[0]
  return [
    [
      *(sys.executable, '-u', program, *command[1:]),
      f'--coordinator_address=localhost:{port}',
      f'--num_processes={n}',
      f'--process_id={i}',
    ]
    for i in range(n)
  ]


def run(programs: list[list[str]]) -> int:
  """Runs programs side by side until all are done or one fails."""
  started, ended = [], queue.Queue()
  try:
    for program in programs:
      process = subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_with_us(),
      )
      started.append(process)
    for i, process in enumerate(started):
      threading.Thread(
        target=_stream, args=(i, process, ended), daemon=True
      ).start()
    for _ in started:
      i, status = ended.get()
      if status:
        print(f'process {i} {_why(status)}; all are ended.', file=sys.stderr)
        return _status(status)
    return 0
  except KeyboardInterrupt:
    print('interrupted; all processes are ended.', file=sys.stderr)
    _end(started)
    ends = (_status(process.returncode) for process in started)
    return max(ends, default=130)
  finally:
    _end(started)


def _with_us():
  """What a child does so that it ends with this process, however that ends."""
  if sys.platform != 'linux':
    return None
  library, me = ctypes.CDLL(None), os.getpid()

  def follow():
    library.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != me:
      os._exit(1)

  return follow


def _stream(i, process, ended):
  try:
    with process.stdout:
      for line in process.stdout:
        text = line.decode(errors='replace').rstrip().split('\r')[-1]
        print(f'[{i}] {text}', flush=True)
  finally:
    ended.put((i, process.wait()))


def _status(code) -> int:
  """Of a shell, where a process was ended by a signal."""
  return code if code >= 0 else 128 - code


def _why(status) -> str:
  if status > 0:
    return f'ended with status {status}'
  return f'was ended by {signal.Signals(-status).name}'


def _end(started):
  for process in started:
    process.terminate()
  for process in started:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(PATIENCE)
    process.kill()
    process.wait()


if __name__ == '__main__':
  main()
