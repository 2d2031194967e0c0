"""Eight workers on a ring, on the digits that come with scikit-learn.

  python train.py --config=configs/digits.py:METHOD --workdir=runs/METHOD

METHOD is one of METHODS below. A run takes five seconds on two CPU cores.
Over five seeds (results/digits): D-PSGD, 4 bits and 1 bit within a point.
"""

import ml_collections
from ml_collections import config_dict


def get_config(method: str = 'dpsgd') -> ml_collections.ConfigDict:
  """The config of one method: `configs/digits.py:METHOD`."""
  return choose(default(), METHODS, method, 'configs/digits.py')


def choose(config, methods, method, file) -> ml_collections.ConfigDict:
  """The config with the entries of a method; locked against new entries."""
  if method not in methods:
    raise ValueError(
      f'{file}:{method} is unknown; choose from {sorted(methods)}.'
    )
  config.update(methods[method])
  return config.lock()


def default() -> ml_collections.ConfigDict:
  """Every entry that a config has; the other configs start from it.

  What they are, and what each may be: docs/configs.md, or train.py --help. A
  dict with a `name` is a spec: the name chooses a factory, the others are its
  arguments, and those that are not set keep the factory's default.
  """
  unset = config_dict.placeholder
  config = ml_collections.ConfigDict()
  config.variant = ''
  config.seed = 0
  config.workers = 8
  config.runner = 'simulated'
  config.budget = dict(
    bits=unset(float), link=unset(str), latency=unset(str), compute=unset(str)
  )
  config.pod = dict(data=1, fsdp=1)

  config.model = dict(
    name='mlp',
    hidden=unset(tuple),
    norm=unset(str),
    width=unset(int),
    layers=unset(int),
    heads=unset(int),
    hidden_width=unset(int),
    mlp=unset(str),
  )
  config.data = dict(
    name='digits',
    data_dir=unset(str),
    num_train=unset(int),
    num_test=unset(int),
    shape=unset(tuple),
    num_classes=unset(int),
    seed=unset(int),
    path=unset(str),
    window=unset(int),
    symbols=unset(str),
    image_size=unset(int),
    augment=unset(str),
  )
  config.partition = dict(name='iid', alpha=unset(float))
  config.batch_size = 16  # per worker
  config.epochs = 40.0

  config.learning_rate = dict(
    name='cosine',
    peak=0.1,
    warmup_epochs=unset(float),
    milestones=unset(tuple),
    factor=unset(float),
  )
  config.optimizer = dict(
    name='sgd',
    b1=unset(float),
    b2=unset(float),
    beta=unset(float),
    eps=unset(float),
    every=unset(int),
  )
  config.momentum = 0.9
  config.momentum_kind = dict(name='local', mu=unset(float), warmup=unset(int))
  config.nesterov = False
  config.clip = unset(float)
  config.weight_decay = 0.0

  config.local_momentum = 0.0
  config.reduce = dict(
    name='none',
    strategy=unset(str),
    decay=unset(float),
    rank=unset(int),
    alpha=unset(float),
    eta=unset(float),
    theta1=unset(float),
    theta2=unset(float),
    gamma=unset(float),
    beta=unset(float),
    p=unset(float),
  )
  config.outer = dict(learning_rate=1.0, momentum=0.0, nesterov=False, delay=0)
  config.gossip = dict(
    name='dpsgd',
    gamma=unset(float),
    eta=unset(float),
    epsilon=unset(float),
    delays=unset(int),
  )
  config.local_steps = 1
  config.local_steps_from = ()
  config.rounds = 1
  config.rounds_from = ()
  config.order = 'adapt_with_combine'
  config.fragments = 1
  config.overlap = False
  config.topology = dict(
    name='ring',
    weight=unset(float),
    rows=unset(int),
    cols=unset(int),
    rounds=unset(int),
    seed=unset(int),
    k=unset(int),
  )
  config.gamma = 1.0
  config.quantizer = quantizer()
  config.reduce_quantizer = quantizer()
  config.smoothness = dict(
    name='none',
    refresh=unset(int),
    draws=unset(int),
    floor=unset(float),
    power=unset(float),
    per_worker=unset(bool),
  )
  config.rotated = False
  config.coded = unset(float)
  config.code = dict(name='recursive', probabilities=unset(tuple))
  config.largest_gradient = 1.0
  config.answered = False
  config.patience = unset(int)
  config.theta = dict(name='fixed', shrink=unset(float), power=unset(float))
  config.scales_from = ''

  config.log_every = 10  # steps
  config.probe_every = 0  # steps; distances per parameter leaf, 0 for never
  config.gradient_probe_every = 0  # steps; the noise of the mean gradient
  config.gradient_probe_draws = 10
  config.eval_every = 5.0  # epochs
  config.checkpoint_every = 10.0  # epochs
  config.worker_test_images = 10_000
  config.tensorboard = False
  return config


def quantizer() -> dict:
  """The spec of a quantizer."""
  unset = config_dict.placeholder
  return dict(
    name='full_precision',
    bits=unset(int),
    theta=unset(float),
    rounding=unset(str),
    digest=unset(bool),
    bucket_size=unset(int),
    scale=unset(str),
    start=unset(float),
    safety=unset(float),
    chance=unset(float),
    shrink=unset(float),
    limit=unset(float),
    norm=unset(str),
    zero_level=unset(bool),
    levels=unset(tuple),
    clip=unset(float),
    fraction=unset(float),
    chunk=unset(int),
    keep=unset(int),
    value_bits=unset(int),
    components=unset(int),
    first=unset(tuple),
    every=unset(int),
    norm_bits=unset(int),
  )


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
  # With a theta that finds itself.
  'auto4': dict(quantizer=dict(name='auto_theta', bits=4)),
  'auto1': dict(gamma=0.2, quantizer=dict(name='auto_theta', bits=1)),
}
