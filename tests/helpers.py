"""The tables that the batteries run over: a new method is a new row."""

import numpy as np

import moniqua_jax as mj

N = 8  # workers, one for each of the 8 CPU devices

# name -> (quantizer, bits per value, bytes of header for d values,
#          bound on |x_hat - x| for x and the reference closer than theta)
THETA = 0.5


def _moniqua(bits, rounding, delta):
  b_theta = 2 * THETA / (1 - 2 * delta)
  return (
    mj.moniqua(THETA, bits, rounding),
    bits,
    lambda d: 12,
    lambda x: delta * b_theta,
  )


def _uniform(bits, rounding, steps):
  top = 2**bits - 1
  return (
    mj.uniform(bits, bucket_size=64, rounding=rounding),
    bits,
    lambda d: 8 * -(-d // 64),
    lambda x: steps * (x.max() - x.min()) / top,
  )


def _sign(scale, numbers, most):
  return (
    mj.sign(bucket_size=64, scale=scale),
    1,
    lambda d: 4 * numbers * -(-d // 64),
    most,
  )


QUANTIZERS = {
  'full_precision': (mj.full_precision(), 32, lambda d: 0, lambda x: 0.0),
  **{
    f'moniqua {bits} dithered': _moniqua(bits, 'dithered', 2.0 ** -(bits + 1))
    for bits in range(1, 9)
  },
  **{
    f'moniqua {bits} nearest': _moniqua(bits, 'nearest', 2.0 ** -(bits + 1))
    for bits in range(1, 9)
  },
  **{
    f'moniqua {bits} stochastic': _moniqua(bits, 'stochastic', 2.0**-bits)
    for bits in range(2, 9)
  },
  **{
    f'uniform {bits} nearest': _uniform(bits, 'nearest', 0.5)
    for bits in (1, 2, 3, 4, 8)
  },
  **{
    f'uniform {bits} stochastic': _uniform(bits, 'stochastic', 1)
    for bits in (1, 2, 3, 4, 8)
  },
  'sign mean_abs': _sign('mean_abs', 1, lambda x: np.abs(x).max()),
  'sign two_mean': _sign('two_mean', 2, lambda x: np.abs(x).max()),
  'sign minmax': _sign('minmax', 2, lambda x: np.ptp(x) / 2),
}

# Unbiased: the mean of x_hat over keys is x.
UNBIASED = [
  name
  for name in QUANTIZERS
  if 'dithered' in name or 'stochastic' in name or name == 'full_precision'
]

# One of each kind, where a test compiles a whole round.
A_FEW_QUANTIZERS = [
  'full_precision',
  'moniqua 1 dithered',
  'moniqua 3 nearest',
  'moniqua 4 stochastic',
  'moniqua 8 dithered',
  'uniform 4 stochastic',
]

TOPOLOGIES = {
  'ring': mj.ring(N),
  'torus': mj.torus(2, 4),
  'complete': mj.complete(N),
  'star': mj.star(N),
  'hypercube': mj.hypercube(N),
  'exponential': mj.exponential(N),
  'one_peer_exponential': mj.one_peer_exponential(N),
  'random_matchings': mj.random_matchings(N, rounds=5, seed=0),
  'lazy ring': mj.lazy(mj.ring(N), 0.2),
}

RUNNERS = {
  'simulated': mj.simulated,
  'sharded': mj.sharded,
  'pmapped': mj.pmapped,
}
