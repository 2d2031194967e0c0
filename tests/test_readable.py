"""Readable means finite: bytes that no sender wrote, and messages too long.

A receiver cannot choose what comes in. Whatever the bytes are, they are
readable exactly if all values that they decode to are finite; where a digest
tells more, what is readable is finite.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import gossip
from moniqua_jax.quantizers import numerics
from tests import test_edge_values as edges
from tests.helpers import tiered

D, ROWS = edges.D, 256
SIZES = (8, 8, 4)
STEPS = np.geomspace(0.2, 5, D)
IN_UNITS = lambda c: mj.within(mj.qsgd(4, 8), lambda x: x / c, lambda y: c * y)

QUANTIZERS = {
  **edges.QUANTIZERS,
  'moniqua 1 no digest': mj.moniqua(0.5, 1, digest=False),
  'moniqua 8 no digest': mj.moniqua(0.5, 8, 'stochastic', digest=False),
  'sign two buckets': mj.sign(16, 'minmax'),
  'dithering': mj.dithering(3),
  'dithering norms 16': mj.dithering(3, block_sizes=SIZES, norm_bits=16),
  'dithering norms 8': mj.dithering(3, block_sizes=SIZES, norm_bits=8),
  'varying steps': mj.varying_steps(STEPS),
  'varying traced': mj.varying_steps(jnp.float32(STEPS), bits=5),
  'random_tau': mj.random_tau(np.full(D, 0.5)),
  'coded': mj.coded(mj.nuqsgd(4, 8), 3),
  'scaled': mj.scaled(mj.qsgd(4, 8), ((8, 0.5), (D - 8, 1.0))),
  'per_worker': mj.per_worker(
    IN_UNITS, jnp.linspace(0.5, 1, 5), axis_name='workers'
  ),
}
A_KIND_EACH = [
  'nuqsgd 4',
  'leveled traced',
  'one_bit',
  'uniform 4 stochastic',
  'top_k',
  'natural',
  'moniqua 1 no digest',
  'dithering norms 8',
  'per_worker',
]


def sent(name):
  """Payloads of normal values, on all of `ROWS` workers."""
  quantizer, x = QUANTIZERS[name], np.tile(edges.normal(), (ROWS, 1))
  if name == 'per_worker':
    x = x[:5]
  encode = lambda x: quantizer.encode(x, edges.KEY)
  payloads = jax.jit(jax.vmap(encode, axis_name='workers'))(x)
  return np.resize(np.asarray(payloads), (ROWS, payloads.shape[1]))


def garbage(payloads):
  """Random bytes; and payloads of which a few bytes, or the last, are so."""
  rng = np.random.default_rng(1)
  raw = payloads.view(np.uint8)
  noise = rng.integers(0, 256, raw.shape, dtype=np.uint8)
  some = np.where(rng.random(raw.shape) < 0.1, noise, raw)
  last = np.where(np.arange(raw.shape[1]) >= raw.shape[1] - 12, noise, raw)
  none = np.zeros_like(raw[:1]), np.full_like(raw[:1], 255)
  rows = np.concatenate([noise, some, last, *none])
  return np.ascontiguousarray(rows).view(payloads.dtype)


@pytest.mark.parametrize('name', tiered(QUANTIZERS, A_KIND_EACH))
def test_any_bytes_are_readable_exactly_if_they_decode_to_numbers(name):
  quantizer, payloads = QUANTIZERS[name], garbage(sent(name))

  def read(payload, y):
    return quantizer.decode(payload, y), quantizer.inspect(payload, y).readable

  y = np.tile(edges.normal(), (len(payloads), 1))
  x_hat, readable = jax.jit(jax.vmap(read))(payloads, y)
  finite, readable = np.isfinite(x_hat).all(axis=1), np.asarray(readable)
  if name in edges.MONIQUA:  # the digest tells more
    assert not (readable & ~finite).any()
  else:
    np.testing.assert_array_equal(readable, finite)


# ------------------------------------------------------------------- lengths


BUT_CHUNKED = [name for name in QUANTIZERS if name != 'chunked_top_k']


@pytest.mark.parametrize('name', tiered(QUANTIZERS, BUT_CHUNKED))
def test_a_payload_of_another_length_is_refused_when_it_is_traced(name):
  quantizer = QUANTIZERS[name]
  encode = jax.vmap(
    lambda x: quantizer.encode(x, edges.KEY), axis_name='workers'
  )
  payload = jax.eval_shape(encode, jax.ShapeDtypeStruct((5, D), jnp.float32))
  size, dtype = payload.shape[1], payload.dtype
  reference = jax.ShapeDtypeStruct((D,), jnp.float32)
  for read in (quantizer.decode, quantizer.inspect):
    jax.eval_shape(read, jax.ShapeDtypeStruct((size,), dtype), reference)
    for wrong in (size - 1, size + 1, 2 * size):
      got = jax.ShapeDtypeStruct((wrong,), dtype)
      with pytest.raises(ValueError, match=r'payload of \d+ bytes; .* has \d+'):
        jax.eval_shape(read, got, reference)


# ---------------------------------------------------- a NaN in a long vector


@pytest.mark.parametrize('size', [20, 1024, 20_001])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_full_precision_sees_one_value_wherever_it_is(value, size):
  q, x = mj.full_precision(), np.ones((5, size), np.float32)
  for row, place in enumerate((0, size // 3, size - 1)):
    x[row, place] = value
  see = jax.jit(jax.vmap(lambda x, y: q.inspect(x, y).readable))
  expected = [False, False, False, True, True]
  np.testing.assert_array_equal(see(x, np.ones_like(x)), expected)


def test_a_distance_of_who_is_not_finite_is_none():
  x = np.ones((4, 5000), np.float32)
  x[1, 4321] = np.nan
  largest = np.asarray(jax.jit(jax.vmap(numerics.largest))(x))
  np.testing.assert_array_equal(np.isfinite(largest), [True, False, True, True])
  apart = jax.jit(
    jax.vmap(lambda x: gossip.consensus(x, 'workers'), axis_name='workers')
  )
  assert not np.isfinite(apart(x)).any()
