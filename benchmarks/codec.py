"""How fast do quantizers encode, decode and gossip, against a plain copy?

  python benchmarks/codec.py --size=25600000 --repeats=9

Prints one table: medians in milliseconds, and encode and decode as shares of
the speed of `numpy.copyto` on the same vector in the same run. The rows take
turns, so that a load on the machine falls on all of them alike. `round` is all
that a worker of a ring computes in one round: encode, its own decode, two
received messages decoded and inspected, and the mix.

Before anything is timed the bytes are compared with a NumPy reference.
"""

import os
import time
from unittest import mock

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

import moniqua_jax as mj
from moniqua_jax import collectives, gossip
from moniqua_jax.workers import AXIS

_SIZE = flags.DEFINE_integer('size', 25_600_000, 'Values in the vector.')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Turns of every row.')

THETA = 0.01
QUANTIZERS = {
  'full_precision': mj.full_precision(),
  **{
    f'moniqua {b}, {digest}': mj.moniqua(THETA, b, digest=digest == 'digest')
    for b in (1, 2, 4, 8)
    for digest in ('plain', 'digest')
  },
  **{f'uniform {b}': mj.uniform(b) for b in (1, 2, 4, 8)},
  # Of gradients: a round of these is no gossip that anybody would run.
  'qsgd 4': mj.qsgd(4),
  'qsgd 4, linf': mj.qsgd(4, norm='linf'),
  'nuqsgd 4': mj.nuqsgd(4),
  'nuqsgd 4, no zero': mj.nuqsgd(4, zero_level=False),
  'terngrad': mj.terngrad(),
  'sign': mj.sign(64),
  **{f'eden {b}': mj.eden(b) for b in (1, 4)},
  'eden 1, least error': mj.eden(1, 'least_error'),
  'rotated moniqua 4': mj.rotated(mj.moniqua(THETA, 4)),
}
# Of one worker, with two edges: the work of a ring, no wire.
RING = mj.Topology([(1 / 3, (0,)), (1 / 3, (0,))])


def lowbias32(seed, size):
  """The random words of dither.py, in NumPy."""
  word = np.uint32(seed) + np.arange(size, dtype=np.uint32) * np.uint32(
    0x9E3779B9
  )
  word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
  word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
  return word ^ (word >> 16)


def packed(codes, bits):
  """The wire, in NumPy: stripes of whole tiles of 1024 bytes, then the rest."""
  whole = codes.size * bits // 8192 * 8192 // bits
  return np.concatenate(
    [stripes(codes[:whole], bits), stripes(codes[whole:], bits)]
  )


def stripes(codes, bits):
  """Codes in planes, in NumPy: stripe j at bit j * bits."""
  length = -(-codes.size * bits // 8)
  rows = np.zeros((8 // bits, length), np.uint8)
  rows.reshape(-1)[: codes.size] = codes
  shifts = (bits * np.arange(8 // bits, dtype=np.uint8))[:, None]
  return np.bitwise_or.reduce(rows << shifts, axis=0)


def check(size=100_003):
  """Asserts that the packed codes are those of the reference, to a tie."""
  x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
  key = jax.random.key(0)
  u = (lowbias32(jax.random.bits(key), size) >> 8) * 2.0**-24 - 0.5
  for bits in (1, 2, 4, 8):
    payload = np.asarray(jax.jit(mj.moniqua(THETA, bits).encode)(x, key))
    step = 2 * THETA / (2**bits - 1)
    codes = np.rint(x / step - u).astype(np.int64) % 2**bits
    expected = packed(codes.astype(np.uint8), bits)
    # float32 flips those ties of the float64 reference that are within its eps.
    wrong = np.mean(payload[: expected.size] != expected)
    assert wrong < 2.0**-23 * np.abs(x).max() / step * 8 / bits, (bits, wrong)
  for bits in (1, 2, 4, 8):
    q = mj.uniform(bits, rounding='nearest')
    decoded = jax.jit(lambda x, q=q: q.decode(q.encode(x, key), x))
    x_hat = np.asarray(decoded(x))
    rows = np.pad(x, (0, -size % 512), 'edge').reshape(-1, 512)
    span = np.ptp(rows, axis=1, keepdims=True) / (2**bits - 1)
    bound = np.repeat(span, 512, axis=1).reshape(-1)[:size] / 2
    assert (np.abs(x_hat - x) <= bound * (1 + 1e-4) + 1e-6).all(), bits


def ring(quantizer, key):
  """A round of a ring, (x, message, message) -> (x, what is sent, Seen).

  The messages lie in memory, as if they had come: of a worker that hears itself
  XLA would read one for both.
  """

  def worker(x, *received):
    sent, rest = [], iter(received)

    def send(payload, perm, axis_name):
      del perm, axis_name
      sent.append(payload)
      return next(rest)

    with mock.patch.object(collectives, 'send', send):
      mixed, seen = gossip.mixed(
        x, key, topology=RING, quantizer=quantizer, axis_name=AXIS
      )
    return mixed, sent[0], seen

  return worker


def tasks(x):
  """name -> function to time; each returns arrays to wait for."""
  key, rows = jax.random.key(0), {}
  target = np.empty_like(x)
  device_x = jnp.asarray(x)
  rows['numpy.copyto', 'encode'] = lambda: np.copyto(target, x)
  plus_one = jax.jit(lambda x: x + 1)
  rows['x + 1', 'decode'] = lambda: plus_one(device_x)
  for name, q in QUANTIZERS.items():
    encode, decode = jax.jit(q.encode), jax.jit(q.decode)
    payload = encode(device_x, key)
    rows[name, 'encode'] = lambda f=encode: f(device_x, key)
    rows[name, 'decode'] = lambda f=decode, p=payload: f(p, device_x)
    mapped = mj.sharded(ring(q, key), (0, 0, 0))
    given = device_x[None], payload[None], jnp.array(payload)[None]
    rows[name, 'round'] = lambda f=mapped, given=given: f(*given)
  return rows


def main(argv):
  del argv
  check()
  x = np.random.default_rng(0).standard_normal(_SIZE.value, np.float32)
  rows = tasks(x)
  times = {row: [] for row in rows}
  loads = []
  for _ in range(_REPEATS.value + 1):  # the first turn compiles
    loads.append(os.getloadavg()[0])
    for row, run in rows.items():
      began = time.perf_counter()
      jax.block_until_ready(run())
      times[row].append(time.perf_counter() - began)
  median = {row: 1e3 * np.median(ts[1:]) for row, ts in times.items()}
  copy = median['numpy.copyto', 'encode']
  print(
    f'{_SIZE.value:,} values, {4 * _SIZE.value / 1e6:.1f} MB; medians of '
    f'{_REPEATS.value}; load {min(loads):.1f} to {max(loads):.1f}; '
    f'numpy.copyto {copy:.1f} ms, x + 1 {median["x + 1", "decode"]:.1f} ms\n'
  )
  mix = median['full_precision', 'round']
  print(
    '| quantizer | encode ms | x copy | decode ms | x copy | round ms '
    '| x full precision |'
  )
  print('|---|---:|---:|---:|---:|---:|---:|')
  for name in QUANTIZERS:
    encode, decode, whole = (
      median[name, what] for what in ('encode', 'decode', 'round')
    )
    print(
      f'| {name} | {encode:.1f} | {copy / encode:.2f} | {decode:.1f} | '
      f'{copy / decode:.2f} | {whole:.1f} | {whole / mix:.2f} |'
    )


if __name__ == '__main__':
  app.run(main)
