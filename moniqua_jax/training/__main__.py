"""`train.py` and `moniqua-train`: flags, then training or a laboratory.

  moniqua-train --config=digits:moniqua4 --workdir=runs/moniqua4

--config takes NAME:METHOD, of a config that comes with the package, or
PATH:METHOD of any file.
"""

# What is imported at the top is light: a mistake in a flag ends early.

import json
import pathlib
import re
import sys

import jax

from moniqua_jax import command_line, extras, pods
from moniqua_jax.launch import initialize, multihost

with command_line.one_line_errors(), extras.needed('train'):
  from absl import flags
  from ml_collections import config_flags

  from moniqua_jax.training import same_run, validation

  command_line.read_flagfiles()

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'What to train, and how; digits if not given.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for metrics, checkpoints and figures.'
)
_RUNNER = flags.DEFINE_enum(
  'runner',
  None,
  ['pmapped', 'sharded', 'simulated'],
  'Instead of config.runner.',
)
_RESUME = flags.DEFINE_bool('resume', False, 'Go on from the last checkpoint.')
_START_FROM = flags.DEFINE_string(
  'start_from', None, 'Workdir of a run at whose mean model a new one starts.'
)
_EVALUATE = flags.DEFINE_bool(
  'evaluate', False, 'Test the last checkpoint in --workdir; train nothing.'
)
_EXPORT = flags.DEFINE_string(
  'export', None, 'Folder for the mean model in --workdir; train nothing.'
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would run; exit.')
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of process 0, if there are many.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many; Slurm and mpirun say so themselves.'
)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'This one, from 0.')


def main(argv):
  """Runs what the flags say: a dry run, a laboratory, or training."""
  with command_line.one_line_errors():
    command_line.only_flags(argv)
    config = _config()
    validation.check_entries(config)
    if 'laboratory' in config:
      _check_flags()
    start(config)
  one_line = command_line.one_line_errors()
  with initialize.ended_together(), one_line, extras.needed('train'):
    flags_ = _WORKDIR, _RESUME, _START_FROM, _DRY_RUN
    given = command_line.given(config, flags_)
    multihost.agreed(given, pods.of(config).devices)
    if _DRY_RUN.value:
      print(described(config))
      return
    workdir = _workdir()
    if _of_a_saved_run():
      _tell(config, workdir)
      return
    status = train(config, workdir)
  sys.exit(status)


def _workdir() -> str:
  if not _WORKDIR.value:
    raise ValueError('--workdir is not given; it takes a folder.')
  return _WORKDIR.value


def _of_a_saved_run() -> bool:
  return _EVALUATE.value or _EXPORT.value is not None


def _config():
  """Takes the config of the command, or of the run that it asks about."""
  if not _of_a_saved_run():
    return _CONFIG.value
  for flag in (_RESUME, _START_FROM, _DRY_RUN):
    if flag.value:
      raise ValueError(
        f'--{flag.name}: --evaluate and --export train nothing; leave it out.'
      )
  given = any(re.match(r'--?config($|[=.])', each) for each in sys.argv[1:])
  return same_run.config_of(_workdir(), _CONFIG.value if given else None)


def _check_flags():
  for flag, value in (
    ('runner', _RUNNER.value),
    ('start_from', _START_FROM.value),
  ):
    if value not in (None, 'simulated'):
      raise ValueError(
        f'--{flag}={value}: a laboratory is on one device, and starts at 0; '
        'leave it out.'
      )


def start(config):
  """Joins the other processes, and gives each worker a device if it wants."""
  convex = 'laboratory' in config
  if convex:
    jax.config.update('jax_enable_x64', True)
  three = _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  devices = pods.of(config).devices
  many = initialize.join(*three, devices) > 1
  if many and convex:
    raise ValueError('a laboratory runs in one process.')
  config.runner = _RUNNER.value or ('sharded' if many else config.runner)
  if config.runner != 'simulated' and not many:
    # Ignored where there are accelerators; a CPU shows one device otherwise.
    initialize.show_devices(devices)


def _tell(config, workdir):
  """Tests the last checkpoint of a run, exports its mean model, or both."""
  from moniqua_jax.training import saved

  if jax.process_count() > 1:
    raise ValueError('--evaluate and --export run in one process.')
  run = saved.opened(config, workdir)
  if _EVALUATE.value:
    print(json.dumps(saved.evaluated(run)))
  if _EXPORT.value is not None:
    print(saved.export(run, _EXPORT.value))


def train(config, workdir) -> int:
  """Runs a laboratory or training, and its report; returns the exit status."""
  from moniqua_jax.training import monitor, signals

  run = _laboratory if 'laboratory' in config else _training
  try:
    run(config, workdir)
  except monitor.Stopped as error:
    print(f'stopped: {error}', file=sys.stderr)
    sys.exit(1)
  except OSError as error:
    resume = (pathlib.Path(workdir) / 'config.json').is_file()
    print(
      f'error: {command_line.failure(error)}, then give the same command again'
      f'{", with --resume" if resume else ""}.',
      file=sys.stderr,
    )
    sys.exit(1)
  except signals.Interrupted as error:
    if multihost.is_primary():
      print(f'{error}. {signals.again()}', file=sys.stderr)
    return error.status
  return 0


def _laboratory(config, workdir):
  from moniqua_jax.laboratory import driver

  driver.run(config, workdir, _RESUME.value)


def _training(config, workdir):
  from moniqua_jax import plots
  from moniqua_jax.training import loop, summary

  loop.train_and_evaluate(config, workdir, _RESUME.value, _START_FROM.value)
  if multihost.is_primary():
    print(plots.shown(plots.report([workdir], workdir)))
    if came := summary.came(workdir):
      print(came)


def described(config) -> str:
  """What a run of the config would do."""
  if 'laboratory' in config:
    from moniqua_jax.laboratory import driver

    return driver.describe(config)
  from moniqua_jax.training import experiment, summary

  return summary.describe(experiment.from_config(config))


def run():
  """The console script `moniqua-train`, and train.py."""
  command_line.run(main, __name__, validation.described)


if __name__ == '__main__':
  run()
