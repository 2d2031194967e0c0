"""The NUQSGD family on CIFAR-10, eight workers, sized for two CPU cores.

  python -m benchmarks.nuqsgd_training --data_dir=DATA \\
    --out=results/nuqsgd_cifar10_cpu

runs all METHODS over three seeds, or one of them:

  python train.py --config=configs/nuqsgd_cifar10_cpu.py:nuqsgd4 \\
    --config.data.data_dir=DATA --workdir=runs/nuqsgd4

DATA is a TFDS directory with cifar10/3.0.2. A convolution net of 24,346
parameters, of which 23,040 are quantized as one vector (three buckets); each
worker sends it to all others, as in the paper's Algorithm 1. Learning rate .1,
momentum .9, weight decay 1e-4 for all: the paper's, not tuned for any.
"""

import ml_collections

from moniqua_jax.configs import digits

BUCKET = 8192


def get_config(method: str = 'nuqsgd4') -> ml_collections.ConfigDict:
  """The config of one method: `configs/nuqsgd_cifar10_cpu.py:METHOD`."""
  file = 'configs/nuqsgd_cifar10_cpu.py'
  return digits.choose(base(), METHODS, method, file)


def base() -> ml_collections.ConfigDict:
  """What all methods share."""
  config = digits.default()
  config.runner = 'sharded'
  config.model.update(name='cnn')
  config.data.update(name='cifar10')
  config.batch_size = 16  # per worker
  config.epochs = 1.5
  config.learning_rate.update(name='step', peak=0.1, milestones=(0.75, 1.125))
  config.weight_decay = 1e-4
  config.gossip.update(name='none')
  config.eval_every = 1.5
  config.checkpoint_every = 1.5
  config.worker_test_images = 128  # all workers are equal
  config.gradient_probe_every = 195
  config.gradient_probe_draws = 4
  return config


def quantized(name, reduce='allreduce', **arguments):
  """All-reduce of quantized gradients, each sent to all."""
  return dict(
    reduce=dict(name=reduce, strategy='all_gather'),
    quantizer=dict(name=name, **arguments),
  )


def family(name, bits, **arguments):
  """One of the family on buckets of 8192."""
  return quantized(name, bits=bits, bucket_size=BUCKET, **arguments)


METHODS = {
  # One worker alone: an eighth of the images in each step.
  'sgd': dict(
    workers=1,
    runner='simulated',
    reduce=dict(name='allreduce'),
    epochs=1.5 / 8,
    eval_every=1.5 / 8,
    checkpoint_every=1.5 / 8,
    learning_rate=dict(milestones=(0.75 / 8, 1.125 / 8)),
  ),
  'super_sgd': dict(reduce=dict(name='allreduce')),
  **{
    f'{method}{bits}': family(name, bits, **arguments)
    for bits in (4, 3)
    for method, name, arguments in (
      ('qsgd', 'qsgd', {}),
      ('qsgdinf', 'qsgd', dict(norm='linf')),
      ('nuqsgd', 'nuqsgd', {}),
      ('nuqsgd_no_zero', 'nuqsgd', dict(zero_level=False)),
      ('alq', 'alq', {}),
      ('amq', 'amq', {}),
    )
  },
  'terngrad': quantized('terngrad', bucket_size=BUCKET),
  'ef_sign': quantized(
    'sign', 'error_feedback', bucket_size=64, scale='two_mean'
  ),
}
