"""`train.py` and `moniqua-train`: flags, then training or a laboratory.

moniqua-train --config=configs/digits.py:moniqua4 --workdir=runs/moniqua4
"""

import sys

import jax

from moniqua_jax import command_line, extras

with command_line.one_line_errors(), extras.needed('train'):
  from absl import app, flags, logging
  from ml_collections import config_flags

  from moniqua_jax import plots, pods
  from moniqua_jax.laboratory import driver
  from moniqua_jax.launch import initialize, multihost
  from moniqua_jax.training import experiment, loop, monitor, summary

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'What to train, and how; configs/digits.py if not given.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for metrics, checkpoints and figures.'
)
_RUNNER = flags.DEFINE_string(
  'runner', None, "Instead of config.runner: 'simulated', 'sharded', ..."
)
_RESUME = flags.DEFINE_bool('resume', False, 'Go on from the last checkpoint.')
_START_FROM = flags.DEFINE_string(
  'start_from', None, 'Workdir of a run at whose mean model a new one starts.'
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
  if len(argv) > 1:
    sys.exit(f'error: {argv[1:]} are not flags.')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # checkpoints are talkative
  config = _CONFIG.value
  with command_line.one_line_errors():
    start(config)
  with initialize.ended_together(), command_line.one_line_errors():
    if _DRY_RUN.value:
      print(described(config))
      return
    if _WORKDIR.value is None:
      raise ValueError('--workdir is not given; it takes a folder.')
    multihost.agreed(config.to_json(), '--config')
    try:
      if 'laboratory' in config:
        driver.run(config, _WORKDIR.value, _RESUME.value)
      else:
        train(config, _WORKDIR.value)
    except monitor.Stopped as error:
      print(f'stopped: {error}', file=sys.stderr)
      sys.exit(1)


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
    jax.config.update('jax_num_cpu_devices', devices)


def train(config, workdir):
  """Trains, and draws the report of the run."""
  loop.train_and_evaluate(config, workdir, _RESUME.value, _START_FROM.value)
  if multihost.is_primary():
    print(plots.shown(plots.report([workdir], workdir)))


def described(config) -> str:
  """What a run of the config would do."""
  if 'laboratory' in config:
    return driver.describe(config)
  return summary.describe(experiment.from_config(config))


def run():
  """The console script `moniqua-train`, and train.py."""
  for flag in flags.FLAGS.get_flags_for_module(__name__):
    # --help shows those of the file that was started.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  app.run(main, flags_parser=command_line.parser)


if __name__ == '__main__':
  run()
