"""The methods of configs/smoothness_cifar10_cpu.py on the digits: seconds each.

  python train.py --config=configs/smoothness_digits.py:METHOD --workdir=DIR

and one more, adiana4, whose numbers are small enough to learn, not tuned.
"""

import ml_collections

from moniqua_jax.configs import digits, smoothness_cifar10_cpu

FILE = 'configs/smoothness_digits.py'


def get_config(method: str = 'diagonal4') -> ml_collections.ConfigDict:
  """The config of one method: `configs/smoothness_digits.py:METHOD`."""
  config = digits.default()
  if method == 'adiana4':  # gives the whole step
    config.learning_rate.update(name='constant', peak=1.0)
    config.momentum = 0.0
  if method in GRADIENTS:
    config.gossip.name = 'none'
  return digits.choose(config, METHODS, method, FILE)


GRADIENTS = smoothness_cifar10_cpu.gradients(bucket=512, refresh=100)
GRADIENTS['adiana4'] = GRADIENTS['diagonal4'] | dict(
  reduce=dict(
    name='adiana',
    alpha=0.2,
    eta=0.05,
    theta1=0.2,
    theta2=0.5,
    gamma=0.1,
    beta=0.99,
    p=0.1,
  )
)
METHODS = GRADIENTS | smoothness_cifar10_cpu.parameters(512, refresh=0)
