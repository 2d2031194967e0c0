"""Eight workers on a ring, on the digits that come with scikit-learn.

  python train.py --config=configs/digits.py:moniqua4 --workdir=runs/moniqua4

METHOD is dpsgd, moniqua4, moniqua1 or allreduce.
"""

import ml_collections


def get_config(method: str = 'dpsgd') -> ml_collections.ConfigDict:
  """The config of one method: `configs/digits.py:METHOD`."""
  config = default()
  if method not in METHODS:
    raise ValueError(
      f'configs/digits.py:{method} is unknown; choose from {sorted(METHODS)}.'
    )
  config.update(METHODS[method])
  config.lock()
  return config


def default() -> ml_collections.ConfigDict:
  """Every entry that a config has; the other configs start from it."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.workers = 8
  # simulated (all on one device), sharded or pmapped (one worker a device).
  config.runner = 'simulated'

  config.model = dict(name='mlp')
  config.data = dict(name='digits')
  config.partition = dict(name='iid')
  config.batch_size = 16  # per worker
  config.epochs = 40.0

  config.learning_rate = dict(name='cosine', peak=0.1)
  config.momentum = 0.9
  config.nesterov = False
  config.weight_decay = 0.0

  config.reduce = dict(name='none')
  config.gossip = dict(name='dpsgd')
  config.topology = dict(name='ring')
  config.gamma = 1.0  # of the slack matrix gamma W + (1 - gamma) I
  config.quantizer = dict(name='full_precision')
  config.theta = dict(name='fixed')  # how theta moves; 'follow' the rate
  config.scales_from = ''  # a full-precision run: theta per parameter leaf

  config.log_every = 10  # steps
  config.probe_every = 0  # steps; distance per leaf, 0 for never
  config.eval_every = 5.0  # epochs
  config.checkpoint_every = 10.0  # epochs
  config.worker_test_images = 10_000  # for the accuracy of every worker
  config.tensorboard = False
  return config


def _moniqua(bits, theta, gamma, shrink):
  return dict(
    gamma=gamma,
    quantizer=dict(name='moniqua', bits=bits, theta=theta),
    theta=dict(name='follow', shrink=shrink),
  )


METHODS = {
  'allreduce': dict(reduce=dict(name='allreduce'), gossip=dict(name='none')),
  'dpsgd': {},
  'moniqua8': _moniqua(bits=8, theta=1.0, gamma=1.0, shrink=0.95),
  'moniqua4': _moniqua(bits=4, theta=1.0, gamma=1.0, shrink=0.95),
  'moniqua1': _moniqua(bits=1, theta=1.0, gamma=0.2, shrink=0.98),
}
