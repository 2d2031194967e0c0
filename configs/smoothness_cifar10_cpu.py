"""Smoothness-aware quantization on CIFAR-10, sized for two CPU cores.

  python -m benchmarks.seeds --config=configs/smoothness_cifar10_cpu.py \\
    --data_dir=DATA --seeds=3 --out=results/smoothness_cifar10_cpu

runs all METHODS, or with --methods=A,B some of them; one of them:

  python train.py --config=configs/smoothness_cifar10_cpu.py:diagonal4 \\
    --config.data.data_dir=DATA --workdir=runs/diagonal4

DATA is a TFDS directory with cifar10/3.0.2. Net, epochs, learning rate and
buckets are those of configs/nuqsgd_cifar10_cpu.py, so that rows compare. A
method that ends in a digit has so many bits, and differs from the one without D
in D alone; its bytes also count the estimates.

  qsgd4, nuqsgd4, ...    gradients without D, each sent to all
  layer4, diagonal4, ... D_i of each worker on qsgd4: DCGD+; shared_: one D
  third_...              D^{1/3} for D: the least noise, see `smoothness`
  diana4, diana_...      DIANA, DIANA+
  choco_ring4, ...       gossip, with D, and with its inverse

Nothing was tuned by training. Of two floors, 1 and .1, we took the one of less
noise for the gradients of one worker in its first 120 steps: 1 for D, .1 for
D^{1/3}.
"""

import ml_collections

from moniqua_jax.configs import digits, nuqsgd_cifar10_cpu

FILE = 'configs/smoothness_cifar10_cpu.py'
KINDS = ('layer', 'diagonal', 'kronecker')
THIRD = {
  'third_diagonal': dict(name='diagonal', floor=0.1, power=1 / 3),
  'third_kronecker': dict(name='kronecker', floor=0.1, power=1 / 3),
}


def get_config(method: str = 'diagonal4') -> ml_collections.ConfigDict:
  """The config of one method: `configs/smoothness_cifar10_cpu.py:METHOD`."""
  return digits.choose(nuqsgd_cifar10_cpu.base(), METHODS, method, FILE)


def shape(name, refresh=0, **arguments):
  """D, estimated at the start and then every `refresh` steps."""
  return dict(smoothness=dict(name=name, refresh=refresh, **arguments))


def gradients(bucket, refresh) -> dict:
  """All methods whose workers send each other gradients."""
  exact = dict(reduce=dict(name='allreduce'))
  return {'super_sgd': exact} | {
    f'{name}{bits}': entries
    for bits in (4, 3)
    for name, entries in _gradients(bits, bucket, refresh).items()
  }


def _gradients(bits, bucket, refresh):
  common = dict(bits=bits, bucket_size=bucket)
  qsgd = dict(quantizer=dict(name='qsgd', **common))
  qsgdinf = dict(quantizer=dict(name='qsgd', norm='linf', **common))
  nuqsgd = dict(quantizer=dict(name='nuqsgd', **common))
  mean = dict(reduce=dict(name='dcgd'))
  # 1 / (1 + omega), omega = min(d / s^2, sqrt(d) / s) of a bucket.
  s = 2 ** (bits - 1) - 1
  alpha = 1 / (1 + min(bucket / s**2, bucket**0.5 / s))
  diana = dict(reduce=dict(name='diana', alpha=round(alpha, 3)))
  shapes = {kind: dict(name=kind, floor=1.0) for kind in KINDS} | THIRD
  own = {
    name: shape(refresh=refresh, **entries) for name, entries in shapes.items()
  }
  shared = {
    f'shared_{name}': shape(refresh=refresh, per_worker=False, **entries)
    for name, entries in shapes.items()
  }
  return {
    'qsgd': mean | qsgd,
    'qsgdinf': mean | qsgdinf,
    'nuqsgd': mean | nuqsgd,
    **{kind: mean | qsgd | D for kind, D in own.items()},
    **{kind: mean | qsgd | D for kind, D in shared.items()},
    'inverse_diagonal': mean | qsgd | shape('diagonal', refresh, power=-1.0),
    **{f'{kind}_inf': mean | qsgdinf | D for kind, D in own.items()},
    **{f'{kind}_nuqsgd': mean | nuqsgd | D for kind, D in own.items()},
    'diana': diana | qsgd,
    **{f'diana_{kind}': diana | qsgd | D for kind, D in own.items()},
  }


def parameters(bucket, refresh) -> dict:
  """All methods whose workers gossip; all share one D."""
  topologies = {
    'ring': dict(name='ring'),
    'torus': dict(name='torus', rows=2, cols=4),
  }
  return {
    f'{name}_{where}{suffix}': entries
    | dict(topology=topology, gradient_probe_every=0)
    for where, topology in topologies.items()
    for (name, suffix), entries in _parameters(bucket, refresh).items()
  }


def _parameters(bucket, refresh):
  rows = {('dpsgd', ''): dict(gossip=dict(name='dpsgd'))}
  for bits, gamma in ((4, 0.9), (3, 0.6)):
    block = dict(
      quantizer=dict(name='block', norm='linf', bits=bits, bucket_size=bucket)
    )
    for name, gossip in (
      ('choco', dict(name='choco', gamma=gamma)),
      ('dcd', dict(name='dcd')),
    ):
      method = dict(gossip=gossip) | block
      rows |= _with_and_without(
        name, bits, method, ('diagonal', 'kronecker'), refresh
      )
  # gamma as in configs/digits_sorted.py; theta finds itself in the coordinates
  # that D gives, for a fixed one that holds without D may wrap with it.
  for bits, gamma in ((4, 1.0), (2, 0.5)):
    theta = dict(name='auto_theta', bits=bits, start=1.5)
    method = dict(gossip=dict(name='dpsgd'), gamma=gamma, quantizer=theta)
    rows |= _with_and_without('moniqua', bits, method, ('layer',), refresh)
  return rows


def _with_and_without(name, bits, method, kinds, refresh):
  """Without D; with D, as gradients want it; with its inverse."""
  rows = {(name, bits): method}
  shared = dict(per_worker=False, floor=1.0, refresh=refresh)
  for kind in kinds:
    for title, power in ((kind, 1.0), (f'inverse_{kind}', -1.0)):
      D = shape(kind, power=power, **shared)
      rows[f'{title}_{name}', bits] = method | D
  if 'kronecker' in kinds:
    third = shape(**(shared | THIRD['third_kronecker']))
    rows[f'third_kronecker_{name}', bits] = method | third
  return rows


METHODS = gradients(8192, refresh=100) | parameters(512, refresh=100)
