"""Short runs of train.py, in processes that can be killed, and their ends."""

import multiprocessing
import os
import pathlib
import runpy
import sys
import time
from typing import NamedTuple

import numpy as np

from moniqua_jax.training import checkpoint, metrics, parts

FLAGS = (
  '--config=digits:moniqua4',
  '--config.epochs=10.0',  # 110 steps
  '--config.log_every=1',  # a signal makes no row that others lack
  '--config.eval_every=5.0',
  '--config.checkpoint_every=0.25',  # of 3 steps each
)
WORKERS = 8
SECONDS = 300  # for a run
# A server has imported what each run imports, and runs are its forks.
FORKED = multiprocessing.get_context('forkserver')
FORKED.set_forkserver_preload(
  ['ml_collections.config_flags', 'moniqua_jax.plots', 'sklearn.datasets']
  + [f'moniqua_jax.training.{name}' for name in ('loop', 'summary')]
)


class Ended(NamedTuple):
  """The exit status of a run, and the last line that is an error."""

  status: int
  said: str
  lines: int  # on stderr that are errors or belong to a traceback


def started(workdir: pathlib.Path, *flags: str):
  """Starts a run; what it says goes to SAID/out and SAID/err."""
  words = ['moniqua-train', *FLAGS, f'--workdir={workdir}', *flags]
  said = pathlib.Path(os.environ['FAULTS_SAID'])
  compiled = os.environ['FAULTS_COMPILED']  # a server that is there has its own
  process = FORKED.Process(
    target=_become, args=(words, said, compiled), daemon=True
  )
  process.start()
  return process


def ended(process) -> Ended:
  """Waits for the end of a run; one that does not come is a failure."""
  process.join(SECONDS)
  if process.exitcode is None:
    process.kill()
    process.join()
  text = pathlib.Path(os.environ['FAULTS_SAID'], 'err').read_text().split('\n')
  errors = [line for line in text if line.startswith(('error:', 'stopped:'))]
  bad = [line for line in text if line.startswith(('Traceback', 'Exception'))]
  warned = [line for line in text if line.startswith('warning:')]
  said = [*errors, *bad, *warned, ''][0]
  return Ended(process.exitcode, said, len(errors) + len(bad))


def run(workdir: pathlib.Path, *flags: str) -> Ended:
  """Runs it until its end."""
  return ended(started(workdir, *flags))


def resumed(workdir: pathlib.Path) -> Ended:
  """Goes on with a run, or begins it where nothing of it was written."""
  there = (workdir / 'config.json').exists()
  return run(workdir, *(['--resume'] if there else []))


def step_of(workdir: pathlib.Path) -> int:
  """The step of the last whole row."""
  try:
    rows = metrics.read(workdir)
  except (ValueError, FileNotFoundError):
    return 0
  return rows[-1]['step'] if rows else 0


def wait(process, condition, seconds: float = SECONDS) -> None:
  """Returns when it holds, or the process has ended."""
  until = time.monotonic() + seconds
  while process.is_alive() and not condition() and time.monotonic() < until:
    time.sleep(0.005)


def differs(one: pathlib.Path, other: pathlib.Path) -> str:
  """Says how the ends of two runs differ; '' if they do not by a bit."""
  (step, state), (at, found) = (
    checkpoint.last(r, WORKERS) for r in (one, other)
  )
  if step != at:
    return f'it ended at step {at}, not {step}'
  if not same(state, found):
    return 'another state'
  rows, others = ([*map(_timeless, metrics.read(r))] for r in (one, other))
  return '' if rows == others else 'other metrics'


def same(one, other) -> bool:
  """Whether two trees have the same bits."""
  one, other = map(parts.names, (one, other))
  return one.keys() == other.keys() and all(
    np.asarray(leaf).tobytes() == np.asarray(other[name]).tobytes()
    for name, leaf in one.items()
  )


def _timeless(row) -> dict:
  return {name: value for name, value in row.items() if name != 'seconds'}


def _become(words, said, compiled):
  import jax

  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_compilation_cache_dir', compiled)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)
  for name, descriptor in (('out', 1), ('err', 2)):
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(said / name, flags, 0o600), descriptor)
  sys.argv = words
  runpy.run_module('moniqua_jax.training', run_name='__main__')
