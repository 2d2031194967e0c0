"""ResNet-20 on CIFAR-10, eight workers on a ring, sized for two CPU cores.

  python train.py --config=configs/cifar10_cpu.py:METHOD \\
    --config.data.data_dir=DATA --workdir=runs/cifar10_cpu/METHOD

METHOD is one of METHODS below, DATA a TFDS directory with cifar10/3.0.2. Four
epochs of all 50,000 images, about 13 minutes on two cores; what came of it is
in results/cifar10_cpu. The full-precision runs with the same slack matrix,
slack0.2 and slack0.1, come before moniqua2 and moniqua1, which take theta per
parameter leaf from them: --config.scales_from=runs/cifar10_cpu/slack0.2.
"""

import ml_collections

from moniqua_jax.configs import digits


def get_config(method: str = 'dpsgd') -> ml_collections.ConfigDict:
  """The config of one method: `configs/cifar10_cpu.py:METHOD`."""
  config = digits.default()
  config.runner = 'sharded'
  config.model.update(name='resnet20', norm='batch')
  config.data.update(name='cifar10')
  config.batch_size = 16  # per worker
  config.epochs = 4.0
  config.learning_rate.update(name='cosine', peak=0.1, warmup_epochs=0.25)
  config.nesterov = True
  config.weight_decay = 5e-4
  config.probe_every = 20
  config.eval_every = 1.0
  config.checkpoint_every = 1.0
  config.worker_test_images = 2_000
  return digits.choose(config, METHODS, method, 'configs/cifar10_cpu.py')


def _moniqua(bits, theta, gamma=1.0, power=1.0):
  return dict(
    gamma=gamma,
    quantizer=dict(name='moniqua', bits=bits, theta=theta),
    theta=dict(name='follow', shrink=0.995, power=power),
  )


def _leaf(bits, gamma):
  """One factor for all leaves; theta of each by its first gradients."""
  return dict(
    gamma=gamma,
    quantizer=dict(name='auto_theta', bits=bits, start=0.4),
    smoothness=dict(name='peak', per_worker=False),
  )


def _rotated(**more):
  """Four bits in rotated coordinates, theta from the distances seen."""
  quantizer = dict(name='fitted_theta', bits=4)
  return dict(quantizer=quantizer, rotated=True) | more


def _pairs(**more):
  """One message to one partner, rotated and mixed last."""
  graph = dict(topology=dict(name='one_peer_hypercube'))
  return _rotated(order='adapt_then_combine') | graph | more


def _mean(name, reduce='allreduce', fragments=1, **quantizer):
  """A mean in two passes: of gradients, or in fragments of what was moved."""
  return dict(
    reduce=dict(name=reduce, strategy='scatter_reduce'),
    gossip=dict(name='none'),
    quantizer=dict(name=name, **quantizer),
    fragments=fragments,
  )


METHODS = {
  'allreduce': dict(reduce=dict(name='allreduce'), gossip=dict(name='none')),
  'dpsgd': {},
  'moniqua8': _moniqua(bits=8, theta=0.4),
  'moniqua4': _moniqua(bits=4, theta=0.4),
  'slack0.2': dict(gamma=0.2),
  'slack0.1': dict(gamma=0.1),
  # With theta per leaf, theta counts distances of the probe. It looks every
  # 20 steps and so sees about 0.8 of the largest; some leaves are furthest
  # apart late, so theta follows the root of the rate: following the rate itself
  # wrapped at step 409 (theta=2) and at step 898 (theta=2.8). The dither alone
  # drives neighbours apart too, by a share of theta that grows with gamma: at 1
  # bit and gamma 0.2 to 0.9 theta within 80 steps, at gamma 0.1 to 0.27 theta,
  # to which the gradients add (theta=2.5 wrapped at step 81).
  'moniqua2': _moniqua(bits=2, theta=2.5, gamma=0.2, power=0.5),
  'moniqua1': _moniqua(bits=1, theta=4.5, gamma=0.1, power=0.5),
  # Theta by leaf in one run: in proportion to the leaves' first gradients.
  'leaf2': _leaf(bits=2, gamma=0.2),
  'leaf1': _leaf(bits=1, gamma=0.1),
  # With a theta that finds itself; that of one bit for coordinates all alike.
  'auto4': dict(quantizer=dict(name='auto_theta', bits=4)),
  'auto1': dict(
    gamma=0.1, rotated=True, quantizer=dict(name='auto_theta', bits=1)
  ),
  'rotated4': _rotated(),
  # By the bits that a worker sends for each parameter in each step.
  'sent4': _pairs(),
  'sent2': _pairs(fragments=2),
  'sent1': _pairs(fragments=4),
  'sent0.5': _pairs(fragments=8),
  'sent2_quasi': _pairs(fragments=2, momentum_kind=dict(name='quasi_global')),
  'sent2_beside': _pairs(fragments=2, order='adapt_with_combine'),
  # Dense first, in whole vectors, and sparse later; 2 and 1 bits on average.
  'sent2_dense': _pairs(
    rounds=3, rounds_from=((95, 1),), local_steps_from=((95, 3),)
  ),
  'sent1_dense': _pairs(local_steps_from=((195, 7),)),
  # 2 (8 - 1) / 8 messages of so many bits, 7, 3.5 and 1.75 bits sent; with the
  # biases and norms, whose mean is in full precision, half a bit more.
  'eden4': _mean('eden', bits=4),
  'eden2': _mean('eden', bits=2),
  'eden1': _mean('eden', bits=1),
  # In fragments, of what workers moved, biases and norms as well: 1.84, .93,
  # .51 and .23 bits sent, with EDEN's scales.
  'mean2': _mean('eden', bits=2, fragments=2),
  'mean1': _mean('eden', bits=1, fragments=2),
  'mean0.5': _mean('eden', bits=1, fragments=4),
  'mean0.25': _mean('eden', bits=1, fragments=9),
  # What others would do at 7 and 1.75 bits sent, and half a bit more.
  'nuqsgd4': _mean('nuqsgd', bits=4, bucket_size=8192),
  'ef_sign': _mean('sign', 'error_feedback', bucket_size=64),
}
