"""One worker of an asynchronous run; mpiexec starts as many as there are.

mpiexec --with-ft ulfm --oversubscribe -n 8 \\
  python -m moniqua_jax.asynchronous --config=configs/digits.py:moniqua4 \\
  --workdir=runs/asynchronous
"""

import contextlib
import fcntl
import functools
import io
import os
import pathlib
import shlex
import signal
import sys
import termios
import time
import traceback

import jax

from moniqua_jax import command_line, extras, plots, wire
from moniqua_jax.asynchronous import report, training
from moniqua_jax.asynchronous import worker as worker_lib
from moniqua_jax.asynchronous.averaging import Averaging
from moniqua_jax.asynchronous.log import Log
from moniqua_jax.asynchronous.network import Network
from moniqua_jax.training import monitor, summary, workdir

with command_line.one_line_errors(), extras.needed('train'):
  from absl import app, flags
  from ml_collections import config_flags

  command_line.read_flagfiles()

COMMAND = (
  'mpiexec --with-ft ulfm --oversubscribe -n {} python -m '
  'moniqua_jax.asynchronous'
)

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'What to train, and how; digits if not given.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for metrics, saved states and tables.'
)
_RESUME = flags.DEFINE_bool('resume', False, 'Go on with a stopped run.')
_TIMEOUT = flags.DEFINE_float(
  'timeout', 20.0, 'Seconds of silence, or in one step, that stop the run.'
)
_MAX_STALENESS = flags.DEFINE_integer(
  'max_staleness',
  32,
  'After so many averagings a gradient comes before the next.',
  lower_bound=1,
)
_STEP_SECONDS = flags.DEFINE_float(
  'step_seconds',
  0.0,
  'A step takes at least so long (simulated work).',
  lower_bound=0.0,
)
_SLOW = flags.DEFINE_multi_string(
  'slow', [], "RANK:FACTOR, a worker made slower: '3:4' makes 3 take 4 times."
)

_HELD = contextlib.ExitStack()  # the folder of the run, by process 0


def main(argv, mpi):
  """Trains one worker, and reports on process 0 what all of them did."""
  try:
    with _one_line_errors(mpi.COMM_WORLD.rank):
      network = Network(mpi, _TIMEOUT.value)
    sent = f'worker {network.rank} was sent'
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
      if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does
        signal.signal(
          number, lambda n, _: network.stop(f'{sent} {signal.Signals(n).name}.')
        )
    with _one_line_errors(network.rank):
      process, pace = set_up(argv, network)
    network.during(lambda: training.train(process, pace))
    row = training.finish(process)
    if row is not None:  # process 0
      folder = process.folder.parent
      workdir.note(folder, seconds=row['seconds'])
      print(plots.shown(report.write([folder], folder)))
  except Exception as error:
    stop(network, error)


def set_up(argv, network):
  """All that must be ready before the first message about an averaging."""
  network.same(command_line.given(_CONFIG.value, (_WORKDIR, _RESUME)))
  own, pace, built = network.agreed(lambda: _build(argv, network))
  worker = worker_lib.Worker(built.state)
  before = {}
  if _RESUME.value:  # together, or not at all
    network.agreed(lambda: training.check(worker, own))
    before = training.resume(worker, network, own)
  network.save = lambda: worker.save(own, network.known())
  averaging = Averaging(
    network,
    worker,
    built.ends,
    built.neighbours,
    seed=built.config.seed,
    patience=built.experiment.setup.patience,
    max_staleness=_MAX_STALENESS.value,
  )
  log = Log(own, built, worker, averaging, network, before)
  network.barrier()
  return training.Process(built, worker, averaging, network, log, own), pace


def _build(argv, network):
  command_line.only_flags(argv)
  if not _WORKDIR.value:
    raise ValueError('--workdir is not given; it takes a folder.')
  slow = worker_lib.factors(_SLOW.value, network.n)[network.rank]
  pace = worker_lib.Pace(_STEP_SECONDS.value, slow)
  config, folder = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  config.runner = 'simulated'  # of no use here, and asks for no devices
  built = training.setup(config, network.rank, network.n)
  if network.rank == 0:
    marks = built.experiment.data.marks()
    opened = workdir.opened(folder, config, _RESUME.value, marks)
    _HELD.enter_context(opened)
    if not _RESUME.value:
      command = [*COMMAND.format(network.n).split(), *sys.argv[1:]]
      workdir.note(folder, command=shlex.join(command), mpi=network.library)
    _describe(built, network)
  return folder / f'worker{network.rank}', pace, built


def _describe(built, network):
  state = built.state
  payload, _ = jax.eval_shape(built.ends.speak, state.x, state.tuned, 0, 0, 0)
  rows = {
    'averaging': f'{wire.nbytes(payload):,} bytes from each end, with one '
    'neighbour per step, each worker at its own pace',
    'workers': '; '.join(network.names),
  }
  print(summary.describe(built.experiment))
  print('\n'.join(f'{k:10s} {v}' for k, v in rows.items()), flush=True)


def stop(network, error):
  """Saves this worker, tells the others why, and leaves with status 1."""
  try:
    reason = str(error)
    if isinstance(error, OSError):
      reason = f'worker {network.rank}: {command_line.failure(error)}.'
    elif not isinstance(error, monitor.Stopped):
      traceback.print_exception(error)
      reason = f'worker {network.rank}: {type(error).__name__}: {error}.'
    hint = (
      f'Those that are left saved their state in {_WORKDIR.value}; go on with '
      'the same command and --resume.'
    )
    if not _saved(network):
      hint = (
        'This worker has nothing finite to save, or no place for it: --resume '
        f'takes what was saved before, if anything, in {_WORKDIR.value}.'
      )
    if network.speaks:
      print(f'stopped: {reason} {hint}', file=sys.stderr)
    _wait_until_read(sys.stderr)
    network.halt(reason)
  except Exception:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # MPI cannot be finalised without the worker that is lost


def _wait_until_read(stream):
  """Waits until mpiexec has read what we said, two seconds at most.

  The first worker that ends with a failure ends mpiexec, too, and with it what
  was still in the pipes.
  """
  stream.flush()
  unread, deadline = True, time.monotonic() + 2
  with contextlib.suppress(OSError):  # no pipe
    while unread and time.monotonic() < deadline:
      unread = any(fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))
      time.sleep(0.05)


def _saved(network) -> bool:
  with contextlib.suppress(OSError):
    return network.save()
  return False


@contextlib.contextmanager
def _one_line_errors(rank):
  """Of mistakes that all workers make only worker 0 speaks."""
  silent = contextlib.redirect_stderr(io.StringIO())
  with silent if rank else contextlib.nullcontext():
    with command_line.one_line_errors():
      yield


def _mpi():
  """The module `mpi4py.MPI`; its import starts MPI."""
  try:
    import mpi4py

    mpi4py.rc.thread_level = 'funneled'
    from mpi4py import MPI
  except (ImportError, RuntimeError) as error:
    cause = str(error).splitlines()[0]
    print(
      f"error: asynchronous training needs MPI; pip install 'moniqua_jax[mpi]'"
      f' brings it ({cause}).',
      file=sys.stderr,
    )
    sys.exit(2)
  return MPI


def _parser(argv, rank):
  with _one_line_errors(rank):
    return command_line.parser(argv, __doc__)


if __name__ == '__main__':
  MPI = _mpi()
  app.run(
    functools.partial(main, mpi=MPI),
    flags_parser=functools.partial(_parser, rank=MPI.COMM_WORLD.rank),
  )
