"""The tables that the batteries run over: a new method is a new row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax.quantizers import hadamard

N = 8  # workers, one for each of the 8 CPU devices


def tiered(cases, fast):
  """Parameters: those in `fast`, and the others for `make test-all`."""
  slow = lambda case: pytest.param(
    *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow
  )
  return [case if case in fast else slow(case) for case in cases]


# name -> (quantizer, bits per value, bytes of header for d values,
#          bound on |x_hat - x| for x and the reference closer than theta)
THETA = 0.5


EPS = 2.0**-23  # of float32


def near(d, seed=0, theta=THETA):
  """x and a reference that is closer than theta to it."""
  rng = np.random.default_rng(seed)
  x = 3 * rng.normal(size=d)
  y = x + 0.99 * theta * rng.uniform(-1, 1, size=d)
  return jnp.float32(x), jnp.float32(y)


def f64(x):
  return np.asarray(x, np.float64)


def far(x, y):
  return np.max(np.abs(f64(x) - f64(y)))


def largest(x, y):
  return np.maximum(np.abs(f64(x)), np.abs(f64(y)))


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


def _levels(quantizer, bits, most):
  return quantizer, bits, lambda d: 4 * -(-d // 64), most


def _eden(bits, scale):
  quantizer = mj.eden(bits, scale)

  def payload(d):
    size = hadamard.size(d)
    packed = sum(-(-size * w // 8) for w in (4, 2, 1) if bits & w)
    return packed + 4 * (size // hadamard.block(d)) + 4

  omega = {1: 0.571, 2: 0.133, 3: 0.036, 4: 0.0096}[bits]
  return (
    quantizer,
    0,
    payload,
    lambda x: 8 * np.sqrt(omega * np.mean(x**2)),
  )


def _few(d, kept):
  """A value and the low bits of its place; a bitmap of ones and zeros."""
  low = int(np.log2(d / kept))
  lows = sum(-(-kept * w // 8) for w in (8, 4, 2, 1) if low & w)
  marks = kept + (d - 1) // 2**low + 1
  return 4 * kept + lows + -(-marks // 8)


def _chunked(chunk, keep, bits):
  """A code and a place for each value, a byte a chunk, and a table."""

  def payload(d):
    rows = -(-d // chunk)
    size = -(-d // rows)
    kept = -(-keep * size // chunk)
    packed = lambda count, bits: sum(
      -(-count * w // 8) for w in (8, 4, 2, 1) if bits & w
    )
    low = int(np.log2(size / kept))
    marks = kept + (size - 1) // 2**low + 1
    places = packed(rows * kept, low) + packed(rows * marks, 1)
    return packed(rows * kept, bits) + places + rows + 4 * 2 ** (bits - 1)

  return mj.chunked_top_k(chunk, keep, bits), 0, payload, _norm


def _norm(x):
  return np.linalg.norm(x)


def _halves(s):
  """Between 2^e and 2^(e+1) the error is at most 2^e; below 2^-s it is 2^-s."""
  return lambda x: np.maximum(np.abs(x), 2.0**-s * _norm(x))


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
  'one_bit': _sign('two_mean', 2, lambda x: np.abs(x).max()),
  **{
    f'nuqsgd {bits}': _levels(
      mj.nuqsgd(bits, bucket_size=64), bits, _halves(2 ** (bits - 1) - 2)
    )
    for bits in range(2, 8)
  },
  **{
    f'nuqsgd {bits} no zero': _levels(
      mj.nuqsgd(bits, bucket_size=64, zero_level=False),
      bits,
      lambda x, bits=bits: np.maximum(
        np.abs(x), 2 * 2.0 ** (1 - 2 ** (bits - 1)) * _norm(x)
      ),
    )
    for bits in (1, 3, 4)
  },
  **{
    f'qsgd {bits}': _levels(
      mj.qsgd(bits, bucket_size=64),
      bits,
      lambda x, bits=bits: _norm(x) / (2 ** (bits - 1) - 1),
    )
    for bits in (2, 3, 4, 8)
  },
  **{
    f'qsgdinf {bits}': _levels(
      mj.qsgd(bits, bucket_size=64, norm='linf'),
      bits,
      lambda x, bits=bits: np.abs(x).max() / (2 ** (bits - 1) - 1),
    )
    for bits in (2, 4)
  },
  'leveled': _levels(
    mj.leveled((-1, -0.3, -0.1, 0.2, 1), bucket_size=64, norm='linf'),
    3,
    lambda x: 0.8 * np.abs(x).max(),
  ),
  'terngrad': _levels(
    mj.terngrad(bucket_size=64), 2, lambda x: np.abs(x).max()
  ),
  **{
    f'dithering {s} norms {norm_bits}': (
      mj.dithering(s, norm_bits=norm_bits),
      bits,
      lambda d, header=header: header,
      lambda x, s=s: 1.125 * _norm(x) / s,
    )
    for s, bits, norm_bits, header in (
      (1, 2, 32, 4),
      (3, 3, 16, 2),
      (5, 4, 8, 5),
    )
  },
  'natural': (mj.natural(), 9, lambda d: 0, np.abs),
  **{f'eden {bits}': _eden(bits, 'unbiased') for bits in range(1, 5)},
  'eden 1 least_error': _eden(1, 'least_error'),
  'top_k': (
    mj.top_k(0.25),
    0,
    lambda d: _few(d, -(-d // 4)),
    lambda x: np.abs(x).max(),
  ),
  'chunked_top_k': _chunked(512, 48, 3),
  'random_k': (
    mj.random_k(0.25),
    0,
    lambda d: 4 * -(-d // 4) + 4,
    lambda x: 3 * np.abs(x).max(),
  ),
}

# One of each kind, where the others differ in a number only.
A_KIND_EACH = [
  'full_precision',
  'moniqua 1 dithered',
  'moniqua 3 nearest',
  'moniqua 4 stochastic',
  'uniform 3 stochastic',
  'sign two_mean',
  'nuqsgd 7',
  'nuqsgd 3 no zero',
  'qsgd 4',
  'leveled',
  'terngrad',
  'dithering 5 norms 8',
  'natural',
  'eden 3',
  'top_k',
  'random_k',
]


def talk(name):
  """(x, y, key) -> payload, x_hat of its sender and of y, what y sees."""
  quantizer = QUANTIZERS[name][0]

  def one(x, y, key):
    payload = jax.lax.optimization_barrier(quantizer.encode(x, key))
    own, theirs = quantizer.decode(payload, x), quantizer.decode(payload, y)
    return payload, own, theirs, quantizer.inspect(payload, y)

  return one


@functools.cache
def alone(name):
  """`talk`, compiled once for each size."""
  return jax.jit(talk(name))


@functools.cache
def together(name):
  """`talk` of many pairs and keys, compiled once for each size."""
  return jax.jit(jax.vmap(talk(name)))


# Unbiased: the mean of x_hat over keys is x.
UNBIASED = [
  name
  for name in QUANTIZERS
  if 'dithered' in name or 'stochastic' in name or name == 'full_precision'
] + [
  name
  for name in QUANTIZERS
  if name.startswith(
    ('nuqsgd', 'qsgd', 'leveled', 'natural', 'random_k', 'dithering', 'eden')
  )
  and 'least_error' not in name
]

# One of each kind, where a test compiles a whole round.
A_FEW_QUANTIZERS = [
  'full_precision',
  'moniqua 1 dithered',
  'moniqua 3 nearest',
  'moniqua 4 stochastic',
  'moniqua 8 dithered',
  'uniform 4 stochastic',
  'nuqsgd 4',
]

TOPOLOGIES = {
  'ring': mj.ring(N),
  'torus': mj.torus(2, 4),
  'complete': mj.complete(N),
  'star': mj.star(N),
  'hypercube': mj.hypercube(N),
  'exponential': mj.exponential(N),
  'one_peer_exponential': mj.one_peer_exponential(N),
  'one_peer_hypercube': mj.one_peer_hypercube(N),
  'random_matchings': mj.random_matchings(N, rounds=5, seed=0),
  'lazy ring': mj.lazy(mj.ring(N), 0.2),
}

RUNNERS = {
  'simulated': mj.simulated,
  'sharded': mj.sharded,
  'pmapped': mj.pmapped,
}
