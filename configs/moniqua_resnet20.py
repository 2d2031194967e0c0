"""Moniqua's experiments: ResNet-20 on CIFAR-10, eight workers on a ring.

  python train.py --config=configs/moniqua_resnet20.py:METHOD \\
    --config.data.data_dir=DATA --workdir=runs/resnet20/METHOD

METHOD is one of METHODS below, DATA a TFDS directory with cifar10/3.0.2. Batch
128 per worker, learning rate .1, a tenth at epochs 250 and 280 of 300, momentum
.9, weight decay 5e-4, theta 2: the settings of arXiv:2002.11787 as we recall
them and as a public configuration repeats them. The numbers of the rivals are
our choice.

METHOD:cpu is a small variant for two CPU cores, and says so in its output; what
came of ResNet-20 on CPUs is in configs/cifar10_cpu.py.
"""

import ml_collections

from moniqua_jax.configs import digits


def get_config(method: str = 'moniqua8') -> ml_collections.ConfigDict:
  """The config of `METHOD` or `METHOD:cpu`."""
  return choose(default('resnet20'), METHODS, method, 'moniqua_resnet20')


def default(model: str) -> ml_collections.ConfigDict:
  """The settings that all of Moniqua's experiments share."""
  config = digits.default()
  config.runner = 'sharded'
  config.model.update(name=model, norm='batch')
  config.data.update(name='cifar10')
  config.batch_size = 128  # per worker
  config.epochs = 300.0
  config.learning_rate.update(name='step', peak=0.1, milestones=(250, 280))
  config.weight_decay = 5e-4
  config.log_every = 50
  config.eval_every = 5.0
  config.checkpoint_every = 10.0
  return config


def choose(config, methods, method, file) -> ml_collections.ConfigDict:
  """The config of `METHOD`, or of `METHOD:cpu`: a small net, two epochs."""
  method, _, variant = method.partition(':')
  if variant not in ('', 'cpu'):
    raise ValueError(f'configs/{file}.py:{method}:{variant}; only :cpu exists.')
  if variant == 'cpu':
    config.variant = 'cpu'
    config.model.update(name='cnn')
    config.batch_size, config.epochs = 16, 2.0
    config.learning_rate.update(milestones=(1.6, 1.8))
    config.eval_every = config.checkpoint_every = 1.0
    config.worker_test_images = 2_000
  return digits.choose(config, methods, method, f'configs/{file}.py')


def moniqua(bits, gamma=1.0, **entries):
  return dict(
    gamma=gamma,
    quantizer=dict(name='moniqua', bits=bits, theta=2.0),
    **entries,
  )


def rival(name, bits, rounding, **own):
  """An algorithm of difference messages, with min-max quantization."""
  return dict(
    gossip=dict(name=name, **own),
    quantizer=dict(name='uniform', bits=bits, rounding=rounding),
  )


METHODS = {
  'allreduce': dict(reduce=dict(name='allreduce'), gossip=dict(name='none')),
  'dpsgd': {},
  'moniqua8': moniqua(8),
  'moniqua4': moniqua(4),
  'moniqua2': moniqua(2, gamma=0.3),
  'moniqua1': moniqua(1, gamma=0.1),
  'slack0.3': dict(gamma=0.3),
  'slack0.1': dict(gamma=0.1),
  'dcd8': rival('dcd', 8, 'stochastic'),
  'ecd8': rival('ecd', 8, 'stochastic'),
  'choco8': rival('choco', 8, 'nearest', gamma=0.9),
  'choco2': rival('choco', 2, 'nearest', gamma=0.3),
  'deepsqueeze8': rival('deepsqueeze', 8, 'nearest', eta=0.9),
  'deepsqueeze2': rival('deepsqueeze', 2, 'nearest', eta=0.1),
}
