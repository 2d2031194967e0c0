"""A small language model on eight workers, on text that comes with Python.

  python train.py --config=configs/text.py:METHOD --workdir=runs/text/METHOD

METHOD is one of METHODS below; `demo` has a fifth of the parameters. The text
is what Python's `help` knows of its topics, 465,000 characters of CPython 3.11
and more of later ones; the last tenth of each topic is held out.
--config.data.path= takes a file or a folder of your own.
"""

import ml_collections

from moniqua_jax.configs import digits


def get_config(method: str = 'allreduce') -> ml_collections.ConfigDict:
  """The config of one method: `configs/text.py:METHOD`."""
  config = digits.default()
  config.runner = 'sharded'
  config.data.update(name='text', window=128)
  config.model.update(name='transformer', width=128, layers=3, heads=4)
  config.batch_size = 8  # windows of a worker
  config.epochs = 15.0
  config.optimizer.update(name='adamw', b2=0.99)
  config.momentum = 0.0
  config.clip = 1.0
  config.learning_rate.update(name='cosine', peak=0.012, warmup_epochs=1.0)
  config.weight_decay = 0.1
  config.eval_every = 5.0
  config.checkpoint_every = 5.0
  config.worker_test_images = 64
  return digits.choose(config, METHODS, method, 'configs/text.py')


def _moved(steps, fragments=1, outer=(0.7, 0.5, True), **quantizer):
  """A mean of what workers moved in so many steps of their own: DiLoCo."""
  rate, momentum, nesterov = outer
  return dict(
    reduce=dict(
      name='allreduce', strategy='scatter_reduce' if quantizer else None
    ),
    gossip=dict(name='none'),
    quantizer=quantizer or dict(name='full_precision'),
    outer=dict(learning_rate=rate, momentum=momentum, nesterov=nesterov),
    local_steps=steps,
    fragments=fragments,
  )


def _gossip(steps, bits, topology='one_peer_hypercube', **more):
  """Gossip of what workers hold in one step of so many, and a step along it."""
  quantizer = dict(name='fitted_theta', bits=bits)
  return dict(
    topology=dict(name=topology),
    quantizer=quantizer if bits < 32 else dict(name='full_precision'),
    rotated=bits < 32,
    order='adapt_then_combine',
    outer=dict(learning_rate=0.7, momentum=0.5, nesterov=True),
    local_steps=steps,
    **more,
  )


METHODS = {
  'allreduce': dict(reduce=dict(name='allreduce'), gossip=dict(name='none')),
  'diloco10': _moved(10),
  'diloco30': _moved(30),
  'diloco10_eden1': _moved(10, fragments=2, name='eden', bits=1),
  'gossip10': _gossip(10, bits=32),
  'gossip6_4bits': _gossip(6, bits=4),
  'gossip10_4bits': _gossip(10, bits=4),
  'gossip6_2bits': _gossip(6, bits=2, gamma=0.2),
  'demo': dict(model=dict(width=64, layers=2), **_gossip(10, bits=4)),
}
