"""One process in each namespace; all end together, and in time."""

from collections.abc import Callable
import contextlib
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from benchmarks.network import namespaces
from moniqua_jax import command_line

LOOK_EVERY = 0.2  # seconds
# What a CPU worker should run with, whatever its method. A temporary that goes
# back to the kernel costs a page fault for each 4 KB in the next step, and one
# of a thread's own arena always does: half of a codec's time at 5 M parameters.
ENVIRONMENT = {
  'MALLOC_ARENA_MAX': '1',
  'MALLOC_MMAP_MAX_': '0',
  'MALLOC_TOP_PAD_': str(2**28),
  'MALLOC_TRIM_THRESHOLD_': str(2**36),
  # Where there are vectors of 512 bits, a dither takes two thirds of the time.
  'XLA_FLAGS': '--xla_cpu_prefer_vector_width=512',
}


class Failed(RuntimeError):
  """A process failed, or there was no end in time; one line says which."""


def command(main: Callable[..., int]) -> Callable[..., int]:
  """Makes one line and a status of mistakes, failures and Ctrl-C."""

  @functools.wraps(main)
  def told(argv=None):
    try:
      return main(argv)
    except (ValueError, OSError, Failed) as error:
      return command_line.told(error)
    except KeyboardInterrupt:
      print('interrupted; the namespaces are gone.', file=sys.stderr)
      return 130

  return told


def run(
  network: namespaces.Network,
  commands: list[list[str]],
  logs: pathlib.Path,
  limit: float,
  enough: Callable[[], bool] = lambda: False,
) -> bool:
  """Runs a command for each worker, until all are done.

  Args:
    network: n namespaces.
    commands: n argument lists, run in ENVIRONMENT where this process's own does
      not say otherwise.
    logs: folder for what each process says: process_I.txt.
    limit: seconds.
    enough: asked now and then whether to end them before they are done.

  Returns:
    Whether they were done. Nothing runs any more, as after an error.

  Raises:
    Failed: one ended with an error, or not all were done in time.
  """
  logs.mkdir(parents=True, exist_ok=True)
  ends = time.monotonic() + limit
  with contextlib.ExitStack() as held:
    started = [
      _started(held, network.inside(i, command), logs / f'process_{i}.txt')
      for i, command in enumerate(commands)
    ]
    while not enough():
      states = [process.poll() for process in started]
      if failed := [i for i, status in enumerate(states) if status]:
        raise Failed(_why(failed[0], states[failed[0]], logs))
      if all(status == 0 for status in states):
        return True
      if time.monotonic() > ends:
        raise Failed(f'not done after {limit:g} s; its processes were ended.')
      time.sleep(LOOK_EVERY)
  return False


def _started(held, argv, log):
  file = held.enter_context(log.open('w'))
  process = subprocess.Popen(
    [*_dies_with_us(), *argv],
    env={**ENVIRONMENT, **os.environ},
    stdout=file,
    stderr=subprocess.STDOUT,
    start_new_session=True,  # Ctrl-C is ours alone; we end them
  )
  held.callback(_end, process)
  return process


def _dies_with_us():
  """util-linux's way to end a process when we are killed; not essential."""
  found = shutil.which('setpriv')
  return [found, '--pdeathsig', 'KILL'] if found else []


def _end(process):
  with contextlib.suppress(ProcessLookupError):
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def _why(worker, status, logs):
  time.sleep(1)  # what it says last may be on its way
  said = (logs / f'process_{worker}.txt').read_text(errors='replace')
  lines = [line.strip() for line in said.splitlines() if line.strip()]
  how = f'status {status}' if status > 0 else signal.Signals(-status).name
  last = ' | '.join(line[:300] for line in lines[-2:]) or 'without a word'
  return f'process {worker} ended with {how}: {last}'
