"""Trains a model whose workers send each other a few bits per parameter.

python train.py --config=configs/digits.py:moniqua4 --workdir=runs/moniqua4
"""

import sys

from absl import app, flags
import jax
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config', 'configs/digits.py', 'What to train, and how.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for metrics, checkpoints and figures.'
)
_RUNNER = flags.DEFINE_string(
  'runner', None, "Instead of config.runner: 'simulated', 'sharded', ..."
)
_RESUME = flags.DEFINE_bool('resume', False, 'Go on from the last checkpoint.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would run; exit.')


# Warnings only: checkpoints are talkative. --verbosity=0 brings them back.
flags.FLAGS.set_default('verbosity', -1)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1:]} are not flags.')
  config = _CONFIG.value
  if _RUNNER.value:
    config.runner = _RUNNER.value
  if config.runner != 'simulated':
    # Ignored where there are accelerators; a CPU shows one device otherwise.
    jax.config.update('jax_num_cpu_devices', config.workers)
  from moniqua_jax import loop

  try:
    if _DRY_RUN.value:
      print(loop.describe(config))
    elif _WORKDIR.value is None:
      raise ValueError('--workdir is not given; it takes a folder.')
    else:
      loop.train_and_evaluate(config, _WORKDIR.value, _RESUME.value)
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except loop.Stopped as error:
    print(f'stopped: {error}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  app.run(main)
