"""CIFAR-10 sorted by label, a small net, sized for two CPU cores.

  python train.py --config=configs/cifar10_sorted_cpu.py:METHOD \\
    --config.data.data_dir=DATA --workdir=runs/cifar10_sorted_cpu/METHOD

A small variant of configs/moniqua_d2_vgg16.py, with the rivals: a convolution
net of 24,346 parameters instead of VGG-16, two epochs. METHOD is one of
METHODS. Each method's own number is what six runs chose on the digits
(configs/digits_sorted.py), the learning rate .1; results/cifar10_sorted_cpu
holds these runs, and some at .03 and with theta per leaf.
"""

import ml_collections

from moniqua_jax.configs import digits_sorted

FILE = 'configs/cifar10_sorted_cpu.py'


def get_config(method: str = 'd2moniqua4') -> ml_collections.ConfigDict:
  """The config of one method, with what was chosen for it."""
  return digits_sorted.tuned(base(), METHODS, CHOSEN, method, FILE)


def base() -> ml_collections.ConfigDict:
  """What all methods share."""
  config = digits_sorted.base()
  config.variant = 'cpu'
  config.runner = 'sharded'
  config.model.update(name='cnn', norm='group')
  config.data.update(name='cifar10')
  config.epochs = 2.0
  config.learning_rate.update(warmup_epochs=0.25)
  config.weight_decay = 5e-4
  config.eval_every = config.checkpoint_every = 1.0
  config.worker_test_images = 2_000
  return config


NAMES = (
  'dpsgd',
  'd2',
  'd2moniqua8',
  'd2moniqua4',
  'moniqua4',
  'slack0.5',
  'moniqua2',
  'choco4',
  'choco2',
  'deepsqueeze4',
  'deepsqueeze2',
  'dcd4',
  'dcd2',
  'ecd4',
  'ecd2',
)
METHODS = {name: digits_sorted.methods(epochs=2.0)[name] for name in NAMES}


def _on_digits(name) -> dict:
  """A method's own number as the digits chose it."""
  chosen = digits_sorted.CHOSEN.get(name, {})
  return {k: v for k, v in chosen.items() if k != 'learning_rate.peak'}


CHOSEN = {name: _on_digits(name) for name in NAMES}
