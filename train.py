"""Trains a model whose workers send each other a few bits per parameter.

python train.py --config=configs/digits.py:moniqua4 --workdir=runs/moniqua4
"""

import sys

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from moniqua_jax import command_line, description, experiment, guard, loop
from moniqua_jax.laboratory import driver

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
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would run; exit.')


def main(argv):
  if len(argv) > 1:
    sys.exit(f'error: {argv[1:]} are not flags.')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # checkpoints are talkative
  config = _CONFIG.value
  if _RUNNER.value:
    config.runner = _RUNNER.value
  if config.runner != 'simulated':
    # Ignored where there are accelerators; a CPU shows one device otherwise.
    jax.config.update('jax_num_cpu_devices', config.workers)
  convex = 'laboratory' in config
  if convex:
    jax.config.update('jax_enable_x64', True)
  with command_line.one_line_errors():
    if _DRY_RUN.value:
      print(driver.describe(config) if convex else _described(config))
      return
    if _WORKDIR.value is None:
      raise ValueError('--workdir is not given; it takes a folder.')
    run = driver.run if convex else loop.train_and_evaluate
    try:
      run(config, _WORKDIR.value, _RESUME.value)
    except guard.Stopped as error:
      print(f'stopped: {error}', file=sys.stderr)
      sys.exit(1)


def _described(config):
  return description.describe(config, experiment.from_config(config))


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parser)
