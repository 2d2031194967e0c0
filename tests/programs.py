"""Programs in processes of their own that need not import everything again.

A server has imported what they all import; each program is a fork of it, and
runs as `python PROGRAM ARGUMENTS` does. All compile as the tests do: see
conftest.
"""

import atexit
from collections.abc import Mapping
import multiprocessing
import os
import pathlib
import runpy
import signal
import sys
import time
from typing import NamedTuple

import jax

ROOT = pathlib.Path(__file__).parents[1]
FORKED = multiprocessing.get_context('forkserver')
# What training.__main__ imports; not itself, for other programs have its flags.
FORKED.set_forkserver_preload(
  [
    'ml_collections.config_flags',
    'moniqua_jax.laboratory.driver',
    'moniqua_jax.plots',
    'moniqua_jax.training.loop',
    'moniqua_jax.training.summary',
    'sklearn.datasets',
  ]
)
SECONDS = 300  # for a program
QUICK = os.environ.get('JAX_DISABLE_MOST_OPTIMIZATIONS', '1') != '0'
if QUICK and jax.__version_info__ < (0, 11):
  # XLA's older code generator for CPUs, of this version at least, compiles in
  # two thirds of the time. XLA looks when it compiles for the first time.
  FLAGS = os.environ.get('XLA_FLAGS', ''), '--xla_cpu_use_fusion_emitters=false'
  os.environ['XLA_FLAGS'] = ' '.join(FLAGS).strip()
SETTINGS = {
  'jax_platforms': os.environ.get('JAX_PLATFORMS', 'cpu'),
  'jax_compilation_cache_dir': str(ROOT / '.pytest_cache' / 'jax'),
  'jax_persistent_cache_min_compile_time_secs': 0.05,
  'jax_disable_most_optimizations': QUICK,
}
# The same, for those that are no forks.
ENVIRONMENT = {name.upper(): str(value) for name, value in SETTINGS.items()}


class Ended(NamedTuple):
  """The exit status of a program, and what it said."""

  status: int
  out: str
  err: str


def run(*command: str, folder, settings: Mapping = ()) -> Ended:
  """Runs a program of the repository until its end."""
  return ended(started(*command, folder=folder, settings=settings), folder)


def started(*command: str, folder, settings: Mapping = ()):
  """Starts a program of the repository; what it says goes into a folder."""
  folder.mkdir(exist_ok=True, parents=True)
  process = FORKED.Process(
    target=_become, args=(command, folder, dict(settings)), daemon=True
  )
  process.start()
  return process


def ended(process, folder) -> Ended:
  """Waits for a program that was started in the folder."""
  process.join(SECONDS)
  late = process.exitcode is None
  process.kill()
  assert not late, f'{process} takes too long'
  said = ((folder / name).read_text() for name in ('out', 'err'))
  return Ended(process.exitcode, *said)


def launched(n, *command: str, folder, settings: Mapping = ()) -> list:
  """Starts all processes of one run, as the launcher does."""
  from moniqua_jax.launch import __main__ as launch

  commands = launch.commands(list(command), n, launch.free_port())
  return [
    started(*line[2:], folder=folder / str(i), settings=settings)
    for i, line in enumerate(commands)
  ]


def finished(processes, folder) -> str:
  """Returns what process 0 said, when all have ended well."""
  for i, process in enumerate(processes):
    status, _, err = ended(process, folder / str(i))
    assert status == 0, err
  return (folder / '0' / 'out').read_text()


def parsed(monkeypatch, *arguments):
  """The config of a command line."""
  from absl import flags
  from ml_collections import config_flags

  from moniqua_jax import command_line

  monkeypatch.setattr(sys, 'argv', ['train.py', *arguments])
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, '', flag_values=values)
  command_line.parse(values, sys.argv)
  return values.config


def heed_signals():
  """As in the foreground: who is started by `&` or nohup ignores them."""
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for(condition):
  """Returns as soon as it holds."""
  until = time.monotonic() + SECONDS
  while not condition():
    assert time.monotonic() < until, 'it takes too long'
    time.sleep(0.02)


def _become(command, folder, settings):
  import jax

  heed_signals()
  for name, value in (SETTINGS | settings).items():
    jax.config.update(name, value)
  for name, descriptor in (('out', 1), ('err', 2)):
    file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, descriptor)
  os.chdir(ROOT)
  sys.argv, sys.path[0] = list(command), str(ROOT)
  try:
    runpy.run_path(command[0], run_name='__main__')
  finally:
    # A fork would end without: of many processes some before the others.
    atexit._run_exitfuncs()
