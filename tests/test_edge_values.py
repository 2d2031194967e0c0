"""Zeros, constants, denormals, the largest floats, infinities and NaN.

One law for all quantizers: what is sent is read as finite numbers, or it is
unreadable and not finite. A value that is not finite never becomes one that is.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import wire
from tests.helpers import tiered

BUCKET, D = 8, 20  # two buckets, and one of 4 values
LEAST, MOST = 2.0**-126, float(np.finfo(np.float32).max)
KEY = jax.random.key(3)
THETA = 0.5

LEVELS = (-1.0, -0.3, -0.05, 0.1, 0.6, 1.0)
# One norm for each bucket; what is not finite makes the bucket NaN.
BUCKETED = {
  **{f'nuqsgd {b}': mj.nuqsgd(b, BUCKET) for b in (3, 4, 8)},
  **{
    f'nuqsgd {b} no zero': mj.nuqsgd(b, BUCKET, zero_level=False)
    for b in (1, 3)
  },
  'nuqsgd 4 linf': mj.nuqsgd(4, BUCKET, norm='linf'),
  'qsgd 4 l2': mj.qsgd(4, BUCKET),
  'qsgd 4 linf': mj.qsgd(4, BUCKET, 'linf'),
  'qsgd 8 linf': mj.qsgd(8, BUCKET, 'linf'),
  'leveled magnitudes': mj.leveled((0, 0.1, 0.5, 1), BUCKET),
  'leveled signed': mj.leveled(LEVELS, BUCKET, 'linf'),
  'leveled traced': mj.leveled(jnp.float32(LEVELS), BUCKET),
  'terngrad': mj.terngrad(BUCKET),
  'terngrad unclipped': mj.terngrad(BUCKET, clip=math.inf),
}
LINF = [
  *(name for name in BUCKETED if 'linf' in name or 'terngrad' in name),
  'leveled signed',
]
# What XLA may make of a division, and of a product of three.
CLOSE = {'rtol': 4 * 2.0**-23, 'atol': 0}
SIGNS = {
  'one_bit': mj.one_bit(BUCKET),
  'sign mean_abs': mj.sign(BUCKET, 'mean_abs'),
  'sign minmax': mj.sign(BUCKET, 'minmax'),
}
IN_BUCKETS = {
  **BUCKETED,
  **SIGNS,
  'uniform 4 stochastic': mj.uniform(4, BUCKET, 'stochastic'),
}
SPARSE = {'top_k': mj.top_k(0.3), 'random_k': mj.random_k(0.3)}
OTHERS = {
  'natural': mj.natural(),
  'full_precision': mj.full_precision(),
  'eden': mj.eden(2),
  'chunked_top_k': mj.chunked_top_k(BUCKET, 3, 3),
}
MONIQUA = {
  'moniqua 1': mj.moniqua(THETA, 1),
  'moniqua 4': mj.moniqua(THETA, 4, 'nearest'),
}
NO_REFERENCE = {**IN_BUCKETS, **SPARSE, **OTHERS}
QUANTIZERS = {**NO_REFERENCE, **MONIQUA}


def normal():
  return np.float32(np.random.default_rng(0).normal(size=D))


def with_values(**places):
  x = normal()
  for place, value in places.items():
    x[int(place[1:])] = value
  return x


FINITE = {
  'ordinary': normal(),
  'zeros': np.zeros(D, np.float32),
  'negative zeros': -np.zeros(D, np.float32),
  'a bucket of zeros': np.where(np.arange(D) < BUCKET, 0, normal()),
  'constant': np.full(D, 2.5, np.float32),
  'negative constant': np.full(D, -0.375, np.float32),
  'huge constant': np.full(D, -1e30, np.float32),
  'denormals': np.float32(1e-40) * np.float32([1, -1] * (D // 2)),
  'small': np.float32(2 * LEAST) * np.float32([1, -1] * (D // 2)),
  'denormals among others': with_values(_2=1e-40, _17=-1e-42),
  'one hot': np.float32(np.arange(D) == 9),
  'the largest': np.float32(MOST) * np.float32(np.arange(D) == 18),
  'the largest among others': with_values(_3=MOST, _18=-MOST),
  'all large': np.full(D, 3e38, np.float32),
  'all large, both signs': np.float32(3e38) * np.float32([1, -1] * (D // 2)),
}
# Where the value is.
SPOILED = {
  f'{value} at {place}': (place, with_values(**{f'_{place}': value}))
  for value in (np.nan, np.inf, -np.inf)
  for place in (0, 12, D - 1)
}
SPOILED['nan among zeros'] = (
  D - 1,
  np.where(np.arange(D) < D - 1, 0, np.nan).astype(np.float32),
)
SPOILED['both infinities'] = (5, with_values(_5=np.inf, _6=-np.inf))
SPOILED['infinity and zeros'] = (
  2,
  np.where(np.arange(D) == 2, np.inf, 0).astype(np.float32),
)
CASES = {**FINITE, **{case: x for case, (_, x) in SPOILED.items()}}


def of(table):
  names = list(table)
  fast = [name for name in names if name != 'chunked_top_k']
  return pytest.mark.parametrize('name', tiered(names, fast))


def reference(x):
  """Moniqua's receiver is near x, and finite; others do not look."""
  return np.where(np.isfinite(x).all(), x, np.zeros_like(x))


def talk(name, x, y):
  q = QUANTIZERS[name]
  payload = q.encode(x, KEY)
  return q.decode(payload, y), q.inspect(payload, y).readable


@functools.cache
def results(name):
  """case -> (x_hat, readable), all cases in one call."""
  x = np.stack(list(CASES.values()))
  y = np.stack([reference(row) for row in x])
  found = jax.jit(jax.vmap(functools.partial(talk, name)))(x, y)
  found = zip(*map(np.asarray, found), strict=True)
  return dict(zip(CASES, found, strict=True))


def bucket_of(place):
  return slice(place // BUCKET * BUCKET, (place // BUCKET + 1) * BUCKET)


@of(QUANTIZERS)
def test_a_message_is_readable_exactly_if_it_decodes_to_numbers(name):
  wrong = [
    case
    for case, (x_hat, readable) in results(name).items()
    if bool(readable) != np.isfinite(x_hat).all()
  ]
  assert not wrong


@of(QUANTIZERS)
def test_what_is_not_finite_is_never_read(name):
  found = results(name)
  assert [case for case in SPOILED if found[case][1]] == []


@of(IN_BUCKETS)
def test_a_bucket_that_is_not_finite_spoils_itself_only(name):
  found = results(name)
  for case, (place, x) in SPOILED.items():
    x_hat, spoiled = found[case][0], bucket_of(place)
    assert not np.isfinite(x_hat[spoiled]).any(), case
    others = np.delete(x_hat, np.arange(D)[spoiled])
    assert np.isfinite(others).all(), case
    if not np.delete(x, np.arange(D)[spoiled]).any():
      assert not others.any(), case


def test_natural_spoils_the_value_only():
  for case, (_, x) in SPOILED.items():
    x_hat, _ = results('natural')[case]
    np.testing.assert_array_equal(np.isnan(x_hat), ~np.isfinite(x), case)


@of(SPARSE)
def test_the_sparse_spoil_all_they_send(name):
  for case in SPOILED:
    x_hat, _ = results(name)[case]
    assert np.isnan(x_hat).sum() == 6, case
    assert (np.isnan(x_hat) | (x_hat == 0)).all(), case


@of(MONIQUA)
def test_moniqua_spoils_the_message(name):
  for case in SPOILED:
    assert np.isnan(results(name)[case][0]).all(), case


def test_full_precision_changes_nothing():
  for case, x in CASES.items():
    x_hat, _ = results('full_precision')[case]
    np.testing.assert_array_equal(x_hat, x, case)


# ------------------------------------------------------------ finite values


@of(NO_REFERENCE)
def test_zeros_become_zeros(name):
  found = results(name)
  for case in ('zeros', 'negative zeros'):
    x_hat, readable = found[case]
    assert readable and not x_hat.any(), case
  if name in IN_BUCKETS:
    x_hat, readable = found['a bucket of zeros']
    assert readable and not x_hat[:BUCKET].any() and x_hat[BUCKET:].any()


@of(MONIQUA)
def test_moniqua_is_near_what_is_near_the_receiver(name):
  found = results(name)
  for case in ('zeros', 'constant', 'denormals', 'one hot', 'small'):
    x_hat, readable = found[case]
    assert readable and np.abs(x_hat - CASES[case]).max() <= THETA * 1.01
  # Beyond what float32 resolves for this theta.
  for case in ('huge constant', 'the largest', 'all large'):
    assert not found[case][1]


@of(NO_REFERENCE)
def test_denormals_become_zeros_or_stay(name):
  x_hat, readable = results(name)['denormals']
  assert readable and np.abs(np.float64(x_hat)).max() < 4 * LEAST
  if name in BUCKETED or name == 'natural':
    assert not x_hat.any()
  x_hat, readable = results(name)['denormals among others']
  assert readable and np.abs(x_hat).max() < 100


@of(BUCKETED)
def test_a_single_value_is_its_own_norm(name):
  # TernGrad clips it.
  for case in () if name == 'terngrad' else ('one hot', 'the largest'):
    x_hat, readable = results(name)[case]
    assert readable, case
    at = np.argmax(CASES[case])
    np.testing.assert_allclose(x_hat[at], CASES[case][at], **CLOSE)
    assert not np.delete(x_hat, np.arange(D)[bucket_of(at)]).any(), case


def test_a_bucket_of_one_value_is_its_norm():
  q, x = mj.qsgd(4, bucket_size=1), normal()
  x_hat = jax.jit(lambda x: q.decode(q.encode(x, KEY), x))(x)
  np.testing.assert_allclose(x_hat, x, **CLOSE)


@pytest.mark.parametrize('name', ['qsgd 4 l2', 'nuqsgd 3', 'leveled signed'])
def test_a_code_that_no_sender_writes_is_the_last_level(name):
  q, bits = BUCKETED[name], BUCKETED[name].codes.bits

  @jax.jit
  def read(x, *each):
    _, norms = wire.split(q.encode(x, KEY), bits, D, 4 * 3)
    codes = (jnp.full(D, code, jnp.uint8) for code in each)
    return [q.decode(wire.join(code, bits, norms), x) for code in codes]

  assert q.codes.count < 2**bits
  last, beyond = read(normal(), q.codes.count - 1, 2**bits - 1)
  np.testing.assert_array_equal(beyond, last)


@of(BUCKETED)
def test_small_and_large_norms_are_within_bounds(name):
  # A product of the norm and a level may be a denormal, and vanish.
  x_hat, readable = results(name)['small']
  assert readable and np.abs(x_hat).max() <= 2.01 * LEAST * math.sqrt(BUCKET)
  x_hat, readable = results(name)['the largest among others']
  assert readable and np.isfinite(x_hat).all()
  if name != 'terngrad':
    np.testing.assert_allclose(x_hat[[3, 18]], [MOST, -MOST], **CLOSE)


@of(BUCKETED)
def test_a_norm_beyond_float32_is_unreadable(name):
  for case in ('all large', 'all large, both signs'):
    x_hat, readable = results(name)[case]
    if name in LINF:
      assert readable, case
      np.testing.assert_allclose(x_hat, CASES[case], **CLOSE, err_msg=case)
    else:
      assert not readable and np.isnan(x_hat).all(), case


@of(IN_BUCKETS)
def test_constants_stay_within_their_norm(name):
  for case in ('constant', 'negative constant', 'huge constant'):
    x_hat, readable = results(name)[case]
    assert readable, case
    if name in LINF or name not in BUCKETED:
      np.testing.assert_allclose(x_hat, CASES[case], **CLOSE, err_msg=case)
    most = np.abs(CASES[case][0]) * math.sqrt(BUCKET) * (1 + 1e-6)
    assert np.abs(x_hat).max() <= most, case


def test_natural_rounds_to_a_neighbouring_power_of_two():
  found = results('natural')
  for case, x in FINITE.items():
    x_hat, _ = found[case]
    low = 2.0 ** np.floor(np.log2(np.abs(np.float64(x)) + (x == 0)))
    low = np.where(np.abs(x) >= LEAST, low, 0)
    size = np.abs(np.float64(x_hat))
    # 2^128 is not a float32.
    up = np.isnan(size) & (2 * low == 2.0**128)
    assert ((size == low) | (size == 2 * low) | up).all(), case
    seen = np.isfinite(x_hat)
    assert (x_hat[seen] * np.sign(x[seen]) >= 0).all(), case


def test_top_k_sends_any_finite_value_as_it_is():
  for case, x in FINITE.items():
    x_hat, readable = results('top_k')[case]
    assert readable, case
    sent = x_hat != 0
    np.testing.assert_array_equal(x_hat[sent], x[sent], case)


# ------------------------------------------------------ one value, and modes


@of(NO_REFERENCE)
def test_one_value_is_kept(name):
  x = np.float32([[0.7], [-3.0], [1e-30], [-1e38], [0.0]])
  found = jax.jit(jax.vmap(functools.partial(talk, name)))(x, 0 * x)
  for row, x_hat, readable in zip(x, *map(np.asarray, found), strict=True):
    assert readable
    if name == 'natural':
      assert 0.5 * abs(row) <= abs(x_hat) <= 2 * abs(row)
    elif name == 'chunked_top_k':  # a scale has four bits
      np.testing.assert_allclose(x_hat, row, rtol=1 / 16)
    else:
      np.testing.assert_allclose(x_hat, row, **CLOSE)


@pytest.mark.optimized
@of(tiered(QUANTIZERS, ['nuqsgd 4', 'uniform 4 stochastic', 'top_k']))
def test_the_three_ways_to_run_agree(name):
  """One operation after the other, one vector after the other, and together."""
  one = functools.partial(talk, name)
  jitted, xs = jax.jit(one), np.stack(list(CASES.values()))
  eager = jax.vmap(one)(jnp.asarray(xs), jnp.stack([*map(reference, xs)]))
  each = zip(*map(np.asarray, eager), strict=True)
  for (case, x), (x_hat, readable) in zip(CASES.items(), each, strict=True):
    # Below this a product may be a denormal in one of them and vanish.
    least = 4 * LEAST if case in ('small', 'denormals') else 0
    near = CLOSE | {'atol': least}
    for other in (jitted(x, reference(x)), results(name)[case]):
      np.testing.assert_array_equal(other[1], readable, case)
      if readable:
        np.testing.assert_allclose(other[0], x_hat, **near, err_msg=case)
