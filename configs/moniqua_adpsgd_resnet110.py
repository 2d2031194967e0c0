"""Moniqua on AD-PSGD: ResNet-110 on CIFAR-10, pairs of workers, late updates.

  python train.py --config=configs/moniqua_adpsgd_resnet110.py:METHOD \\
    --config.data.data_dir=DATA --workdir=runs/adpsgd/METHOD

Random matchings of eight workers, updates two ticks late, in a form that can be
repeated bit for bit; `python -m moniqua_jax.asynchronous` takes the same config
with workers that have each their own pace. METHOD:cpu is a small variant.
"""

import ml_collections

from moniqua_jax.configs import moniqua_resnet20


def get_config(method: str = 'moniqua8') -> ml_collections.ConfigDict:
  """The config of `METHOD` or `METHOD:cpu`."""
  config = moniqua_resnet20.default('resnet110')
  config.topology.update(name='random_matchings', rounds=64, seed=0)
  config.gossip.update(name='adpsgd', delays=2)
  return moniqua_resnet20.choose(
    config, METHODS, method, 'moniqua_adpsgd_resnet110'
  )


METHODS = {
  'adpsgd': {},
  'moniqua8': moniqua_resnet20.moniqua(8),
  'moniqua4': moniqua_resnet20.moniqua(4),
  'moniqua2': moniqua_resnet20.moniqua(2, gamma=0.3),
  'moniqua1': moniqua_resnet20.moniqua(1, gamma=0.1),
}
