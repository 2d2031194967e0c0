"""Moniqua's experiments: ResNet-110 on CIFAR-10, eight workers on a ring.

  python train.py --config=configs/moniqua_resnet110.py:METHOD \\
    --config.data.data_dir=DATA --workdir=runs/resnet110/METHOD

All but the model is as in configs/moniqua_resnet20.py, with :cpu variants too.
"""

import ml_collections

from moniqua_jax.configs import moniqua_resnet20

METHODS = moniqua_resnet20.METHODS


def get_config(method: str = 'moniqua8') -> ml_collections.ConfigDict:
  """The config of `METHOD` or `METHOD:cpu`."""
  config = moniqua_resnet20.default('resnet110')
  return moniqua_resnet20.choose(config, METHODS, method, 'moniqua_resnet110')
