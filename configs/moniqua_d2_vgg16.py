"""Moniqua on D^2: VGG-16 on CIFAR-10, every worker with classes of its own.

  python train.py --config=configs/moniqua_d2_vgg16.py:METHOD \\
    --config.data.data_dir=DATA --workdir=runs/d2/METHOD

Shards are sorted by label. A ring of 8 with weights 1/3 has lambda_n = -1/3,
where D^2 diverges, so that all methods here take gamma .75: 1/2 for oneself and
1/4 for each neighbour. 2 bits and 1 bit go with slack, beside the same slack in
full precision. METHOD:cpu is a small variant; results/cifar10_sorted_cpu is
what came of a small net on CPUs.
"""

import ml_collections

from moniqua_jax.configs import moniqua_resnet20


def get_config(method: str = 'd2moniqua8') -> ml_collections.ConfigDict:
  """The config of `METHOD` or `METHOD:cpu`."""
  config = moniqua_resnet20.default('vgg16')
  config.partition.update(name='sorted_by_label')
  config.model.update(norm='group')  # statistics of one class mislead the rest
  return moniqua_resnet20.choose(config, METHODS, method, 'moniqua_d2_vgg16')


def _d2(bits=None, gamma=0.75):
  method = dict(gossip=dict(name='d2'), gamma=gamma)
  if bits:
    method |= dict(quantizer=dict(name='moniqua', bits=bits, theta=2.0))
  return method


METHODS = {
  'dpsgd': dict(gamma=0.75),
  'd2': _d2(),
  'd2slack0.3': _d2(gamma=0.3),
  'd2slack0.1': _d2(gamma=0.1),
  'd2moniqua8': _d2(8),
  'd2moniqua4': _d2(4),
  'd2moniqua2': _d2(2, gamma=0.3),
  'd2moniqua1': _d2(1, gamma=0.1),
}
