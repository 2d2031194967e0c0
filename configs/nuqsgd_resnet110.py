"""NUQSGD's experiments on CIFAR-10: ResNet-110, eight workers.

  python train.py --config=configs/nuqsgd_resnet110.py:METHOD \\
    --config.data.data_dir=DATA --workdir=runs/nuqsgd_resnet110/METHOD

METHOD is one of METHODS below, DATA a TFDS directory with cifar10/3.0.2. Batch
128 per worker, learning rate .1, momentum .9, weight decay 1e-4, 4 bits,
buckets of 8192: the settings of arXiv:1908.06077; 80,000 steps with a tenth of
the rate at 40,000 and 60,000, as in the authors' public code. METHOD_small has
the paper's small batch of 32 per worker, for as many steps. Each worker sends
to all, the paper's Algorithm 1; --config.reduce.strategy=scatter_reduce sends
less, a quarter of it with eight workers.

METHOD:cpu is a small variant for two CPU cores, and says so in its output; the
table of configs/nuqsgd_cifar10_cpu.py is made for them.
"""

import ml_collections

from moniqua_jax.configs import digits, nuqsgd_cifar10_cpu

IMAGES, WORKERS, STEPS = 50_000, 8, 80_000


def get_config(method: str = 'nuqsgd4') -> ml_collections.ConfigDict:
  """The config of `METHOD` or `METHOD:cpu`."""
  method, _, variant = method.partition(':')
  if variant not in ('', 'cpu'):
    raise ValueError(
      f'configs/nuqsgd_resnet110.py:{method}:{variant}; only :cpu exists.'
    )
  config = default('resnet110')
  config.data.update(name='cifar10')
  lasting(config, STEPS, batch_size=32 if method.endswith('_small') else 128)
  if variant == 'cpu':
    shrink(config)
  return digits.choose(config, METHODS, method, 'configs/nuqsgd_resnet110.py')


def default(model: str) -> ml_collections.ConfigDict:
  """The settings that the paper's experiments share."""
  config = digits.default()
  config.runner = 'sharded'
  config.workers = WORKERS
  config.model.update(name=model, norm='batch')
  config.weight_decay = 1e-4
  config.gossip.update(name='none')
  config.log_every = 50
  config.gradient_probe_every = 500  # as in the authors' code
  return config


def lasting(config, steps, batch_size):
  """So many steps, a tenth of the rate after 1/2 and 3/4 of them."""
  per_epoch = IMAGES // (config.workers * batch_size)
  config.batch_size = batch_size
  config.epochs = steps / per_epoch
  config.learning_rate.update(
    name='step',
    peak=0.1,
    milestones=(config.epochs / 2, 3 * config.epochs / 4),
  )
  config.eval_every = config.checkpoint_every = config.epochs / 40


def shrink(config):
  """A small net and two epochs of small batches."""
  config.variant = 'cpu'
  config.model.update(name='cnn', norm='group')
  config.batch_size, config.epochs = 16, 2.0
  config.learning_rate.update(milestones=(1.0, 1.5))
  config.eval_every = config.checkpoint_every = 1.0
  config.worker_test_images = 2_000
  config.gradient_probe_every, config.gradient_probe_draws = 200, 4


_NAMES = ('super_sgd', 'ef_sign', 'nuqsgd4', 'qsgd4', 'qsgdinf4')
METHODS = {
  name: nuqsgd_cifar10_cpu.METHODS[name]
  for name in (*_NAMES, 'nuqsgd_no_zero4', 'terngrad', 'alq4', 'amq4')
}
METHODS |= {f'{name}_small': METHODS[name] for name in _NAMES}
