"""Quantizers: one battery over the table of all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import dither, wire
from moniqua_jax.quantizers import base
from tests import helpers, products
from tests.helpers import (
  A_KIND_EACH,
  EPS,
  QUANTIZERS,
  THETA,
  UNBIASED,
  f64,
  largest,
  near,
  tiered,
)

KEY = jax.random.key(0)
D = 1000  # the last bucket of 64 is shorter
SIZES = (1, 7, 8, D, 4097)
DRAWS = 400
rows = pytest.mark.parametrize('name', QUANTIZERS)
# The other bits of moniqua are in test_moniqua.
MOST = [
  name
  for name in QUANTIZERS
  if name in (*A_KIND_EACH, 'moniqua 8 dithered')
  or not name.startswith(
    ('moniqua', 'uniform 2', 'uniform 4', 'eden', 'chunked')
  )
]
most = pytest.mark.parametrize('name', tiered(QUANTIZERS, MOST))
# What cuts a vector into tiles, buckets or places.
BY_SIZE = [
  'moniqua 1 dithered',
  'moniqua 3 nearest',
  'moniqua 4 stochastic',
  'uniform 3 stochastic',
  'sign two_mean',
  'nuqsgd 7',
  'dithering 5 norms 8',
  'top_k',
  'random_k',
]
# Three more are in test_edge_values, with an ordinary vector too.
EAGER = ['moniqua 1 dithered', 'moniqua 4 stochastic', 'dithering 5 norms 8']
BATCHED = [*EAGER, 'moniqua 3 nearest', 'nuqsgd 7', 'leveled', 'random_k']


@functools.cache
def talks(name):
  """Three pairs, and one pair with many keys, sent and read in one call.

  Returns the pairs, the keys, and what `helpers.talk` gives for each.
  """
  pairs = [near(D, seed) for seed in range(3)] + DRAWS * [near(D)]
  x, y = (np.stack(side) for side in zip(*pairs, strict=True))
  keys = jax.random.split(KEY, len(x))
  told = helpers.together(name)(x, y, keys)
  return x, y, keys, jax.tree.map(np.asarray, told)


def require_bound(name, x, y, *heard):
  bound = QUANTIZERS[name][-1]
  exact = name == 'full_precision'
  rounded = 0 if exact else 4 * EPS * (largest(x, y) + THETA)
  for x_hat in heard:
    assert x_hat.shape == x.shape and x_hat.dtype == np.float32
    assert (np.abs(f64(x_hat) - f64(x)) <= bound(f64(x)) + rounded).all()


@most
def test_round_trip_is_within_its_bound(name):
  x, y, _, (_, own, theirs, seen) = talks(name)
  for row in range(4):
    require_bound(name, x[row], y[row], own[row], theirs[row])
  assert np.all(seen.readable)


@pytest.mark.parametrize(
  'name,d',
  tiered(
    [(name, d) for name in QUANTIZERS for d in SIZES],
    [(name, d) for name in BY_SIZE for d in (1, 4097)],
  ),
)
def test_it_is_within_its_bound_at_every_size(name, d):
  x, y = near(d)
  _, own, theirs, seen = helpers.alone(name)(x, y, KEY)
  require_bound(name, x, y, own, theirs)
  assert seen.readable


@pytest.mark.parametrize('d', SIZES)
@rows
def test_payload_is_bytes_of_the_stated_number(name, d):
  q, bits, header, _ = QUANTIZERS[name]
  x = jax.ShapeDtypeStruct((d,), jnp.float32)
  payload = jax.eval_shape(q.encode, x, KEY)
  if name == 'full_precision':
    assert payload.dtype == jnp.float32 and wire.nbytes(payload) == 4 * d
    return
  planes = [w for w in (8, 4, 2, 1) if bits & w]
  packed = sum(-(-d * w // 8) for w in planes)
  assert payload.dtype == jnp.uint8 and payload.ndim == 1
  assert wire.nbytes(payload) == packed + header(d)


@pytest.mark.optimized
@pytest.mark.parametrize('name', tiered(QUANTIZERS, EAGER))
def test_jit_changes_nothing(name):
  q, (x, y) = QUANTIZERS[name][0], near(D)
  payload = q.encode(x, KEY)
  again, own, theirs, _ = jax.jit(helpers.talk(name))(x, y, KEY)
  np.testing.assert_array_equal(again, payload)
  # `low + code * step` of uniform may become one fused operation.
  ulps = 2 * EPS * np.abs(x).max() if 'uniform' in name else 0
  for jitted, reference in ((own, x), (theirs, y)):
    x_hat = q.decode(payload, reference)
    np.testing.assert_allclose(jitted, x_hat, rtol=0, atol=ulps)


@pytest.mark.parametrize('name', tiered(QUANTIZERS, BATCHED))
def test_vmap_is_the_loop(name):
  x, y, keys, told = talks(name)
  for row in range(3):
    alone = helpers.alone(name)(x[row], y[row], keys[row])
    # vmap leaves constants (theta, readable) as they are.
    jax.tree.map(
      lambda one, each, row=row: np.testing.assert_array_equal(
        each[row] if np.ndim(each) > np.ndim(one) else each, one
      ),
      alone,
      told,
    )


# `eden` takes its zero from around a branch, where `products` does not see it.
ROUNDED = [name for name in QUANTIZERS if 'eden' not in name]


@pytest.mark.parametrize('name', tiered(ROUNDED, A_KIND_EACH))
def test_all_who_read_a_message_round_the_same_products(name):
  """Whatever XLA fuses; the sender is one of them."""
  q, x = QUANTIZERS[name][0], jax.ShapeDtypeStruct((D,), np.float32)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('MONIQUA_NATIVE', '0')  # C++ rounds them all
    payload = jax.eval_shape(q.encode, x, KEY)
    for read in (q.decode, q.inspect):
      assert not products.in_sums(read, payload, x)
      assert not products.in_products(read, payload, x, size=D)
    assert not products.in_sums(q.encode, x, KEY)


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('native', '01')
def test_at_the_edge_of_two_codes_the_product_is_rounded(
  native, bits, monkeypatch
):
  """Whether XLA fuses s r + u depends on the program; codes do not."""
  monkeypatch.setenv('MONIQUA_NATIVE', native)
  s, size = np.float32(2 ** (bits - 1) - 1), 512
  u = np.asarray(dither.unit(dither.bits(dither.seed(KEY), 8 * size)))
  rng = np.random.default_rng(0)
  edges = (rng.integers(1, int(s) + 1, u.size) - f64(u)) / s
  x = (edges * (1 + rng.integers(-3, 4, u.size) * 2.0**-24)).astype(np.float32)
  x[::size] = 1.0  # the norm of each bucket
  q = mj.qsgd(bits, size, 'linf')
  codes = wire.unpack(jax.jit(q.encode)(x, KEY), bits, x.size)
  near = np.floor(s * x + u)
  assert 0.02 < np.mean(near != np.floor(f64(s) * x + u))  # in a fused one
  np.testing.assert_array_equal(codes, s + np.minimum(near, s))


@pytest.mark.parametrize('native', '01')
def test_the_least_norm_that_is_no_zero_is_kept(native, monkeypatch):
  monkeypatch.setenv('MONIQUA_NATIVE', native)
  q, least = mj.qsgd(4, norm='linf'), np.float32(2.0**-126)
  x = least * np.float32([1, -1, 0])
  np.testing.assert_array_equal(q.decode(q.encode(x, KEY), x), x)


@pytest.mark.parametrize('name', tiered(UNBIASED, MOST))
def test_the_mean_over_keys_is_x(name):
  x, _, _, (_, _, theirs, _) = talks(name)
  bound = QUANTIZERS[name][-1]
  error = f64(theirs[3:]) - f64(x[3:])
  if name == 'full_precision':
    np.testing.assert_array_equal(error, 0)
    return
  # A coin with a rare side has too small a sample deviation: floor it.
  floor = 0.1 * bound(f64(x[3]))
  z = error.mean(0) / np.maximum(error.std(0), floor) * np.sqrt(DRAWS)
  assert np.abs(z).max() < 5.5
  # All coordinates together: no common drift, and independent keys.
  assert abs(z.sum()) / np.sqrt(z.size) < 5
  assert np.mean(z**2) < 1.4


@rows
def test_shared_says_that_workers_must_share_the_dither(name):
  q, _, _, _ = QUANTIZERS[name]
  assert q.shared == ('dithered' in name)


@rows
def test_tuned_takes_any_quantizer_and_leaves_a_tuned_alone(name):
  quantizer = QUANTIZERS[name][0]
  tuned = base.tuned(quantizer)
  assert tuned.quantizer(tuned.init(), jnp.int32(7)) is quantizer
  assert base.tuned(tuned) is tuned


@pytest.mark.parametrize('thing', [None, 'moniqua', lambda x: x])
def test_tuned_refuses_what_is_neither(thing):
  with pytest.raises(TypeError, match='expected a Quantizer or a Tuned'):
    base.tuned(thing)
