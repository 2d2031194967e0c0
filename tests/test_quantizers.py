"""Quantizers: one battery over the table, then what each of them promises.

Moniqua is held against its Lemma 2 and against Algorithm 1 as the paper writes
it, in float64; both are written here from the paper, not from the codec.
"""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import dither, wire
from moniqua_jax.quantizers import base, digest
from tests.helpers import QUANTIZERS, THETA, UNBIASED

EPS = 2.0**-23  # of float32
KEY = jax.random.key(0)
SIZES = (1, 7, 8, 1000, 4097)
MONIQUA = [
  (bits, rounding)
  for rounding in ('dithered', 'nearest', 'stochastic')
  for bits in range(1, 9)
  if (bits, rounding) != (1, 'stochastic')
]
SOME = [(1, 'dithered'), (3, 'nearest'), (8, 'dithered'), (4, 'stochastic')]
rows = pytest.mark.parametrize('name', QUANTIZERS)
sizes = pytest.mark.parametrize('d', SIZES)
moniquas = pytest.mark.parametrize('bits,rounding', MONIQUA)
some = pytest.mark.parametrize('bits,rounding', SOME)


def near(d, seed=0, theta=THETA):
  """x and a reference that is closer than theta to it."""
  rng = np.random.default_rng(seed)
  x = 3 * rng.normal(size=d)
  y = x + 0.99 * theta * rng.uniform(-1, 1, size=d)
  return jnp.float32(x), jnp.float32(y)


def bits_of(numbers):
  return np.asarray(numbers).view(np.uint32)


def f64(x):
  return np.asarray(x, np.float64)


def far(x, y):
  return np.max(np.abs(f64(x) - f64(y)))


def largest(x, y):
  return np.maximum(np.abs(f64(x)), np.abs(f64(y)))


# ------------------------------------------------------------- the battery


@sizes
@rows
def test_round_trip_is_within_its_bound(name, d):
  q, _, _, bound = QUANTIZERS[name]
  x, y = near(d)
  payload = q.encode(x, KEY)
  for reference in (x, y):
    x_hat = q.decode(payload, reference)
    assert x_hat.shape == (d,) and x_hat.dtype == jnp.float32
    error = np.abs(f64(x_hat) - f64(x))
    allowed = bound(f64(x)) + (name != 'full_precision') * 4 * EPS * (
      largest(x, y) + THETA
    )
    assert (error <= allowed).all()
  assert q.inspect(payload, y).readable


@sizes
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


@rows
def test_jit_changes_nothing(name):
  q, _, _, _ = QUANTIZERS[name]
  x, y = near(1000)
  payload = q.encode(x, KEY)

  @jax.jit
  def both(x, y, key):
    payload = jax.lax.optimization_barrier(q.encode(x, key))
    return payload, q.decode(payload, y)

  again, jitted = both(x, y, KEY)
  np.testing.assert_array_equal(again, payload)
  x_hat = q.decode(payload, y)
  # `low + code * step` of uniform may become one fused operation.
  ulps = 2 * EPS * np.abs(x).max() if 'uniform' in name else 0
  np.testing.assert_allclose(jitted, x_hat, rtol=0, atol=ulps)


@rows
def test_vmap_is_the_loop(name):
  q, _, _, _ = QUANTIZERS[name]
  pairs = [near(1000, seed) for seed in range(3)]
  x, y = (jnp.stack(side) for side in zip(*pairs, strict=True))
  keys = jax.random.split(KEY, 3)
  payload = jnp.stack([q.encode(*pair) for pair in zip(x, keys, strict=True)])
  np.testing.assert_array_equal(jax.vmap(q.encode)(x, keys), payload)
  for method in (q.decode, q.inspect):
    loop = [method(*pair) for pair in zip(payload, y, strict=True)]
    loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
    batched = jax.vmap(method)(payload, y)
    # vmap leaves constants (theta, readable) as they are.
    jax.tree.map(
      lambda one, each: np.testing.assert_array_equal(
        jnp.broadcast_to(one, each.shape), each
      ),
      batched,
      loop,
    )


@pytest.mark.parametrize('name', UNBIASED)
def test_the_mean_over_keys_is_x(name):
  q, _, _, bound = QUANTIZERS[name]
  (x, y), n = near(1000), 400
  talk = jax.vmap(lambda key: q.decode(q.encode(x, key), y))
  error = f64(talk(jax.random.split(KEY, n))) - f64(x)
  if name == 'full_precision':
    np.testing.assert_array_equal(error, 0)
    return
  # A coin with a rare side has too small a sample deviation: floor it.
  floor = 0.1 * bound(f64(x))
  z = error.mean(0) / np.maximum(error.std(0), floor) * np.sqrt(n)
  assert np.abs(z).max() < 5.5
  # All coordinates together: no common drift, and independent keys.
  assert abs(z.sum()) / np.sqrt(z.size) < 5
  assert np.mean(z**2) < 1.4


@rows
def test_shared_says_that_workers_must_share_the_dither(name):
  q, _, _, _ = QUANTIZERS[name]
  assert q.shared == ('dithered' in name)


# -------------------------------------------------- moniqua: lemma and edges


def delta_of(bits, rounding):
  return 2.0**-bits if rounding == 'stochastic' else 2.0 ** -(bits + 1)


def circle(theta, bits, rounding):
  """B_theta and the error bound delta B_theta, of theta as it is in f32."""
  delta = delta_of(bits, rounding)
  b_theta = 2 * float(np.float32(theta)) / (1 - 2 * delta)
  return b_theta, delta * b_theta


def edge(theta, bits, rounding, x, y):
  """How close to theta |x - y| must not come in float32.

  Where x stands on the edge of a cell *and* y at theta, the two distances add
  up to exactly half a turn, and rounding decides. Two roundings of x / s - u,
  three of y / s - u - code (whose code may be 2^b) and that of s itself can
  move it by eps (3.5 max(|x|, |y|) + 4 theta); the worst that a random search
  found is 1.3 eps (max + theta). At 2^22 steps from zero eps |x| is half a
  step: at 1 bit all of theta. Stochastic rounding has this zone only far out,
  since its theta leaves half a step of room.
  """
  zone = EPS * (3.5 * largest(x, y) + 4 * float(np.float32(theta)))
  b_theta, _ = circle(theta, bits, rounding)
  room = b_theta / 2**bits / 2 if rounding == 'stochastic' else 0
  return np.maximum(zone - room, 0)


def error_bound(theta, bits, rounding, x, y):
  """delta B + 4 eps max(|x|, |y|), and next to zero the rounding of s."""
  _, error = circle(theta, bits, rounding)
  return error * (1 + 2 * EPS) + 4 * EPS * largest(x, y)


def adversaries(rng, d, theta, steps, bits, rounding, u):
  """x on grid points, on edges of cells and beside them; y up to theta away."""
  theta = float(np.float32(theta))
  s = circle(theta, bits, rounding)[0] / 2**bits
  n = np.rint(steps * rng.uniform(-1, 1, size=d))
  edges = np.float32((n + 0.5 + u) * s)
  x = np.choose(
    rng.integers(0, 7, size=d),
    [
      edges,
      np.nextafter(edges, np.float32(np.inf)),
      np.nextafter(edges, np.float32(-np.inf)),
      n * s,
      (0.5 + u) * s,
      steps * s * rng.uniform(-1, 1, size=d),
      np.zeros(d),
    ],
  )
  limit = 0.99 * 2.0**22 * s
  x = np.float32(np.clip(x, -limit, limit))
  sign = rng.choice([-1, 1], size=d)
  gap = theta * np.choose(
    rng.integers(0, 5, size=d),
    [
      np.zeros(d),
      rng.uniform(0, 1, size=d),
      np.full(d, 1 - 1e-6),
      1 - 10 ** rng.uniform(-8, -1, size=d),
      np.ones(d),
    ],
  )
  y = np.float32(f64(x) + sign * gap)
  y = np.where(np.abs(f64(x) - f64(y)) < theta, y, np.nextafter(y, x))
  inside = lambda y: (
    np.abs(f64(x) - f64(y)) < theta - edge(theta, bits, rounding, x, y)
  )
  pulled = theta - 1.01 * edge(theta, bits, rounding, x, y)
  pulled = np.float32(f64(x) + sign * np.maximum(pulled, 0))
  y = np.where(inside(y), y, np.where(inside(pulled), pulled, x))
  return x, np.float32(y)


def talk(theta, x, y, key, bits, rounding):
  """One message, read by its sender and by a neighbour."""
  q = mj.moniqua(theta, bits, rounding)
  payload = q.encode(x, key)
  return q.decode(payload, x), q.decode(payload, y), q.inspect(payload, y)


@functools.cache
def jitted_talk(bits, rounding):
  return jax.jit(functools.partial(talk, bits=bits, rounding=rounding))


def check_lemma(bits, rounding, d, theta, steps, seed, talk):
  key = jax.random.key(seed)
  noise = f64(dither.uniform(dither.seed(key), d)) - 0.5
  u = 0 if rounding == 'nearest' else noise
  rng = np.random.default_rng(seed)
  x, y = adversaries(rng, d, theta, steps, bits, rounding, u)
  own, x_hat, seen = talk(
    jnp.float32(theta), jnp.asarray(x), jnp.asarray(y), key
  )
  # Lemma 2.
  error = np.abs(f64(x_hat) - f64(x))
  allowed = error_bound(theta, bits, rounding, x, y)
  assert (error <= allowed).all(), (error / allowed).max()
  # The corollary: the neighbour reads what the sender reads.
  np.testing.assert_array_equal(bits_of(x_hat), bits_of(own))
  # What the receiver can know.
  assert seen.readable
  assert seen.theta == np.float32(theta)
  rounded = 4 * EPS * (largest(x, y).max() + allowed.max())
  _, worst = circle(theta, bits, rounding)
  assert far(x, y) - 2 * worst - rounded <= seen.distance
  assert seen.distance <= far(x, y) + rounded


thetas = st.floats(-4, 4).map(lambda power: np.float32(10.0**power))
reaches = st.floats(-3, 22).map(lambda power: 2.0**power)
seeds = st.integers(0, 2**31 - 1)
often = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
rarely = hypothesis.settings(max_examples=6, deadline=None, derandomize=True)


@sizes
@moniquas
@rarely
@hypothesis.given(theta=thetas, steps=reaches, seed=seeds)
def test_lemma(bits, rounding, d, theta, steps, seed):
  plain = functools.partial(talk, bits=bits, rounding=rounding)
  check_lemma(bits, rounding, d, theta, steps, seed, plain)


@some
@often
@hypothesis.given(theta=thetas, steps=reaches, seed=seeds)
def test_lemma_under_jit(bits, rounding, theta, steps, seed):
  jitted = jitted_talk(bits, rounding)
  check_lemma(bits, rounding, 4097, theta, steps, seed, jitted)


def test_shared_dither_is_the_same_offset_of_the_grid_on_all_workers():
  _, worst = circle(THETA, 2, 'dithered')
  step = 2 * worst
  x = jnp.stack([near(1000, seed)[0] for seed in range(2)])

  def off_the_common_grid(rounding, keys):
    q = mj.moniqua(THETA, 2, rounding)
    pairs = zip(x, keys, strict=True)
    a, b = (f64(q.decode(q.encode(v, key), v)) for v, key in pairs)
    turns = (a - b) / step
    return np.abs(turns - np.rint(turns))

  shared, private = (KEY, KEY), (KEY, jax.random.key(1))
  assert off_the_common_grid('dithered', shared).max() < 1e-4
  # Distances to the grid are uniform in [0, 1/2) if the seeds differ.
  assert abs(off_the_common_grid('dithered', private).mean() - 0.25) < 0.03
  step = circle(THETA, 2, 'stochastic')[1]
  assert off_the_common_grid('stochastic', private).max() < 1e-4


def cmod(z, a):
  """The element of {z + k a} in [-a/2, a/2)."""
  return z - a * np.floor(z / a + 0.5)


def algorithm_1(x, y, theta, bits):
  """Lines 2 and 4 of Algorithm 1 with the nearest of 2^b points, float64."""
  b_theta = 2 * theta / (1 - 2.0**-bits)
  q = np.rint(cmod(x / b_theta, 1) * 2**bits) / 2**bits
  return cmod(q * b_theta - y, b_theta) + y


@pytest.mark.parametrize('theta', [1e-3, 0.7, 300.0])
@pytest.mark.parametrize('bits', range(1, 9))
def test_nearest_is_algorithm_1_as_the_paper_writes_it(bits, theta):
  rng = np.random.default_rng(bits)
  q, theta = mj.moniqua(theta, bits, 'nearest'), float(np.float32(theta))
  b_theta, error = circle(theta, bits, 'nearest')
  for steps in (1, 100, 2**16):
    x = np.float32(steps * b_theta / 2**bits * rng.uniform(-1, 1, 4097))
    y = np.float32(f64(x) + 0.999 * theta * rng.uniform(-1, 1, 4097))
    x_hat = f64(q.decode(q.encode(jnp.asarray(x), KEY), jnp.asarray(y)))
    expected = algorithm_1(f64(x), f64(y), theta, bits)
    # Where x stands within rounding of the edge of a cell both sides are right.
    to_edge = error - np.abs(f64(x) - expected)
    clear = to_edge > 4 * EPS * (largest(x, y) + theta)
    clear &= np.abs(f64(x) - f64(y)) < theta - edge(
      theta, bits, 'nearest', x, y
    )
    assert clear.mean() > 0.9
    np.testing.assert_array_less(
      np.abs(x_hat - expected)[clear],
      (4 * EPS * (largest(x, y) + theta))[clear],
    )


@some
def test_jit_and_vmap_of_receivers_read_the_same_bits(bits, rounding):
  q, (x, _) = mj.moniqua(THETA, bits, rounding), near(1000)
  rng = np.random.default_rng(1)
  y = jnp.float32(f64(x) + 0.99 * THETA * rng.uniform(-1, 1, (5, 1000)))
  payload = q.encode(x, KEY)
  own = bits_of(q.decode(payload, x))
  decode = jax.vmap(q.decode, in_axes=(None, 0))
  for x_hats in (decode(payload, y), jax.jit(decode)(payload, y)):
    for x_hat in x_hats:
      np.testing.assert_array_equal(bits_of(x_hat), own)


# --------------------------------------------- moniqua: unreadable messages


def wrapped(x, places, theta, bits, rounding, rng):
  """A reference within theta of x but a whole turn away at `places`."""
  b_theta, _ = circle(theta, bits, rounding)
  y = f64(x) + 0.4 * theta * rng.uniform(-1, 1, size=x.size)
  y[places] += b_theta * rng.choice([-1, 1], size=len(places))
  return np.float32(y)


@moniquas
def test_the_digest_sees_wraps(bits, rounding):
  rng = np.random.default_rng(0)
  q, (x, _) = mj.moniqua(THETA, bits, rounding), near(1000)
  payload = q.encode(x, KEY)
  own = f64(q.decode(payload, x))
  b_theta, _ = circle(THETA, bits, rounding)
  for count in (1, 34, 999):
    places = rng.permutation(1000)[:count]
    y = jnp.asarray(wrapped(x, places, THETA, bits, rounding, rng))
    turns = np.rint((f64(q.decode(payload, y)) - own) / b_theta)
    assert set(np.flatnonzero(turns)) == set(places)
    assert not q.inspect(payload, y).readable


def folded(turns):
  """The digest in Python integers: the XOR of bytes, rotated by place."""
  digest = 0
  for place, turn in enumerate(turns):
    byte, left = int(turn) % 256, place % 32
    digest ^= (byte << left | byte >> 32 - left) % 2**32
  return digest


@pytest.mark.parametrize('size', [1, 31, 32, 33, 127, 128, 129, 1000])
def test_the_digest_is_the_rotated_xor(size):
  rng = np.random.default_rng(size)
  for reach in (1, 200, 2**22):
    turns = rng.integers(-reach, reach + 1, size=size)
    low = digest.lanes(digest.low_byte(jnp.float32(turns)))
    word = digest.fold(digest.reduce_rows(lax.bitwise_xor, [low]))
    assert word.dtype == jnp.uint32 and int(word) == folded(turns)


def test_packed_words_keep_turns_and_the_order_of_parts():
  parts = np.linspace(0, 0.999, 5001, dtype=np.float32)
  turns = np.float32(np.random.default_rng(0).integers(-500, 500, parts.size))
  words = digest.pack(jnp.asarray(turns), jnp.asarray(parts))
  low, back = digest.unpack(words)
  np.testing.assert_array_equal(low, turns.astype(np.int64) % 256)
  unit = np.where(parts < 0.5, 2.0**-24, 2.0**-23)
  assert (np.abs(f64(back) - f64(parts)) <= unit / 2).all()
  assert (np.diff(np.asarray(words).astype(np.int64)) > 0).all()
  for none in (1.0, 7.0, np.inf, np.nan):
    word = digest.pack(jnp.zeros(()), jnp.float32(none))
    assert word > words[-1] and jnp.isnan(digest.unpack(word)[1])


def test_one_wrong_turn_by_any_number_is_seen():
  x, _ = near(1000)
  q = mj.moniqua(THETA, 1, 'nearest')
  payload, (turn, _) = q.encode(x, KEY), circle(THETA, 1, 'nearest')
  for wrong in (1, -1, 2, -4, 100, 128, 255, -1000):
    for place in (0, 500, 999):
      seen = q.inspect(payload, x.at[place].add(wrong * turn))
      assert not seen.readable


@some
def test_half_the_theta_it_needs_is_reported(bits, rounding):
  """Neighbours that theta covers, and that theta / 2 does not."""
  x, _ = near(1000)
  rng = np.random.default_rng(0)
  y = jnp.float32(f64(x) + 0.999 * THETA * rng.choice([-1, 1], size=1000))
  enough = mj.moniqua(THETA, bits, rounding)
  assert enough.inspect(enough.encode(x, KEY), y).readable
  half = mj.moniqua(THETA / 2, bits, rounding)
  payload = half.encode(x, KEY)
  assert far(half.decode(payload, y), half.decode(payload, x)) > THETA
  assert not half.inspect(payload, y).readable


def test_how_seldom_the_digest_misses_many_wraps():
  """Two wraps: 1 in 64 (half of those 32 places apart, near zero); then less.

  Never in one stretch of 25: the lowest bit of the first one stands alone.
  """
  rng = np.random.default_rng(0)
  q, (x, _) = mj.moniqua(THETA, 2, 'nearest'), near(1024)
  payload, n = q.encode(x, KEY), 2000
  readable = jax.jit(jax.vmap(lambda y: q.inspect(payload, y).readable))

  def missed(places):
    y = [wrapped(x, p, THETA, 2, 'nearest', rng) for p in places]
    return int(readable(jnp.asarray(np.stack(y))).sum())

  assert missed([[]] * n) == n
  for count, chance in ((2, 1 / 64), (3, 1e-3), (4, 1e-3), (8, 0), (700, 0)):
    places = [rng.permutation(1024)[:count] for _ in range(n)]
    assert missed(places) <= n * chance + 5 * np.sqrt(n * chance)
  stretches = [
    start + rng.permutation(25)[: rng.integers(1, 26)]
    for start in rng.integers(0, 999, size=n)
  ]
  assert missed(stretches) == 0


@some
def test_a_wrong_turn_at_the_very_edge_is_seen(bits, rounding):
  """In the zone that the lemma leaves out the digest speaks instead."""
  rng = np.random.default_rng(0)
  theta = float(np.float32(0.3))
  q, n = mj.moniqua(theta, bits, rounding), 4096
  keys = jax.random.split(KEY, n)
  u = 0
  if rounding != 'nearest':
    u = jax.vmap(lambda key: dither.uniform(dither.seed(key), 1)[0])(keys)
    u = f64(u) - 0.5
  step = circle(theta, bits, rounding)[0] / 2**bits
  x = np.float32((np.rint(2**20 * rng.uniform(-1, 1, n)) + 0.5 + u) * step)
  y = np.float32(f64(x) + theta * rng.choice([-1, 1], n))
  y = np.where(np.abs(f64(x) - f64(y)) < theta, y, np.nextafter(y, x))
  assert (np.abs(f64(x) - f64(y)) < theta).all()

  def one(x, y, key):
    payload = q.encode(x, key)
    return q.decode(payload, y), q.inspect(payload, y).readable

  hats, readable = jax.vmap(one)(x[:, None], y[:, None], keys)
  allowed = error_bound(theta, bits, rounding, x, y)
  good = np.abs(f64(hats[:, 0]) - f64(x)) <= allowed
  np.testing.assert_array_equal(readable, good)
  if rounding == 'stochastic':
    assert good.all()
  else:
    assert not good.all()  # The zone is real: else it must go from `edge`.


@some
def test_without_a_digest_four_bytes_are_saved_and_wraps_not_seen(
  bits, rounding
):
  rng = np.random.default_rng(0)
  q = mj.moniqua(THETA, bits, rounding)
  quiet = mj.moniqua(THETA, bits, rounding, digest=False)
  x, near_x = near(1000)
  payload = quiet.encode(x, KEY)
  np.testing.assert_array_equal(payload, q.encode(x, KEY)[:-4])
  for count in (1, 2, 500):
    places = rng.permutation(1000)[:count]
    y = jnp.asarray(wrapped(x, places, THETA, bits, rounding, rng))
    assert quiet.inspect(payload, y).readable
  np.testing.assert_array_equal(
    quiet.decode(payload, near_x), q.decode(q.encode(x, KEY), near_x)
  )


def check_unreadable(q, x):
  payload = q.encode(x, KEY)
  for reference in (x, jnp.zeros_like(x), jnp.ones_like(x)):
    assert not q.inspect(payload, reference).readable
    assert np.isnan(q.decode(payload, reference)).all()


@pytest.mark.parametrize('digest', [True, False])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@some
def test_a_vector_that_is_not_finite_is_unreadable_as_a_whole(
  bits, rounding, value, digest
):
  q, (x, _) = mj.moniqua(THETA, bits, rounding, digest), near(1000)
  for place in (0, 500, 999):
    check_unreadable(q, x.at[place].set(value))
  check_unreadable(q, jnp.full(1000, value, jnp.float32))


@pytest.mark.parametrize('sign', [-1, 1])
@moniquas
def test_a_vector_beyond_2_to_the_22_steps_is_unreadable(bits, rounding, sign):
  step = circle(THETA, bits, rounding)[0] / 2**bits
  x, _ = near(1000)
  q = mj.moniqua(THETA, bits, rounding)
  check_unreadable(q, x.at[3].set(sign * 2.0**22 * step * (1 + 2 * EPS)))
  inside = x.at[3].set(sign * 2.0**22 * step * (1 - 2 * EPS))
  payload = q.encode(inside, KEY)
  assert q.inspect(payload, inside).readable
  assert np.isfinite(q.decode(payload, inside)).all()


@pytest.mark.parametrize('theta', [1e-8, 1e-38, 1e-44, 0.0, -1.0, np.nan])
@some
def test_an_array_theta_without_use_is_unreadable(bits, rounding, theta):
  """Too small for x, zero, negative: what the factory does not look at."""
  check_unreadable(
    mj.moniqua(jnp.float32(theta), bits, rounding), near(1000)[0]
  )


# ------------------------------------------------- moniqua: theta and errors


@some
def test_theta_is_read_from_the_header(bits, rounding):
  sender = mj.moniqua(0.3, bits, rounding)
  receiver = mj.moniqua(7.0, bits, rounding)
  x, y = near(1000, theta=0.3)
  payload = sender.encode(x, KEY)
  x_hat = receiver.decode(payload, y)
  np.testing.assert_array_equal(x_hat, sender.decode(payload, x))
  assert (
    np.abs(f64(x_hat) - f64(x)) <= error_bound(0.3, bits, rounding, x, y)
  ).all()
  seen = receiver.inspect(payload, y)
  assert seen.readable and seen.theta == np.float32(0.3)


@some
def test_theta_may_be_traced_and_batched(bits, rounding):
  x, y = near(64, theta=0.1)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None, None, None))
  def both(theta, x, y, key):
    q = mj.moniqua(theta, bits, rounding)
    payload = q.encode(x, key)
    return payload, q.decode(payload, y)

  thetas = jnp.float32([0.1, 0.25, 3.0])
  payloads, x_hats = both(thetas, x, y, KEY)
  for theta, payload, x_hat in zip(thetas, payloads, x_hats, strict=True):
    q = mj.moniqua(float(theta), bits, rounding)
    np.testing.assert_array_equal(payload, q.encode(x, KEY))
    np.testing.assert_array_equal(x_hat, q.decode(payload, y))


@pytest.mark.parametrize('theta', [0, 0.0, -1, -0.5, np.nan, np.inf, -np.inf])
def test_moniqua_refuses_theta_by_value(theta):
  with pytest.raises(ValueError, match=f'theta={theta!r};'):
    mj.moniqua(theta, 4)


@pytest.mark.parametrize('bits', [0, 9, -1, 2.5, True])
def test_quantizers_refuse_bits_by_value(bits):
  for make in (lambda: mj.moniqua(1.0, bits), lambda: mj.uniform(bits)):
    with pytest.raises(ValueError, match=f'bits={bits!r};'):
      make()


def test_quantizers_refuse_an_unknown_rounding_by_name():
  for make in (mj.moniqua, mj.uniform):
    with pytest.raises(ValueError, match="rounding='up'; choose from"):
      make(1, 4, rounding='up')


def test_one_stochastic_bit_is_refused_and_one_dithered_bit_named():
  with pytest.raises(ValueError, match="bits=1 has delta = 1/2.*'dithered'"):
    mj.moniqua(1.0, 1, 'stochastic')


# ------------------------------------------------------------------- uniform

uniforms = pytest.mark.parametrize('rounding', ['nearest', 'stochastic'])


def send(q, x, key=KEY):
  payload = q.encode(x, key)
  return q.decode(payload, jnp.zeros_like(x)), q.inspect(payload, x)


@uniforms
@pytest.mark.parametrize('bits', [1, 3, 8])
def test_uniform_holds_its_bound_bucket_by_bucket(bits, rounding):
  rng = np.random.default_rng(bits)
  x = np.float32(rng.normal(size=333) * np.repeat(10.0 ** np.arange(-4, 5), 37))
  x_hat, _ = send(mj.uniform(bits, 37, rounding), jnp.asarray(x))
  buckets, hats = f64(x).reshape(9, 37), f64(x_hat).reshape(9, 37)
  low, high = buckets.min(1, keepdims=True), buckets.max(1, keepdims=True)
  step = (high - low) / (2**bits - 1)
  rounded = 4 * EPS * np.maximum(-low, high)
  worst = {'nearest': 0.5, 'stochastic': 1.0}[rounding] * step
  assert (np.abs(hats - buckets) <= worst + rounded).all()
  # On one of the 2^b points of the bucket, and at its ends themselves.
  points = (hats - low) / step
  assert (np.abs(points - np.rint(points)) * step <= rounded).all()
  at_end = (buckets == low) | (buckets == high)
  assert at_end.sum() == 18
  assert (np.abs(hats - buckets) <= rounded)[at_end].all()
  np.testing.assert_array_equal(hats.min(1, keepdims=True), low)


def test_uniform_nearest_is_the_nearest_point_of_the_bucket():
  x = np.float32(np.random.default_rng(0).normal(size=64))
  x_hat, _ = send(mj.uniform(3, 64, 'nearest'), jnp.asarray(x))
  points = np.linspace(f64(x).min(), f64(x).max(), 8)
  nearest = np.abs(f64(x)[:, None] - points).min(1)
  error = np.abs(f64(x_hat) - f64(x))
  np.testing.assert_allclose(error, nearest, atol=4 * EPS * np.abs(x).max())


@uniforms
@pytest.mark.parametrize('value', [0.0, -0.1, 1e-30, 3e38])
def test_uniform_sends_a_constant_bucket_exactly(value, rounding):
  x = jnp.full(100, value, jnp.float32).at[:40].set(jnp.arange(40.0))
  for bits in (1, 5, 8):
    x_hat, seen = send(mj.uniform(bits, 20, rounding), x)
    np.testing.assert_array_equal(x_hat[40:], x[40:])
    assert seen.readable


@uniforms
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_uniform_decodes_a_bucket_that_is_not_finite_to_nan_there_only(
  value, rounding
):
  x, _ = near(100)
  q = mj.uniform(4, 30, rounding)
  clean, _ = send(q, x)
  for place in (0, 30, 59, 99):
    bucket = np.arange(100) // 30 == place // 30
    x_hat, seen = send(q, x.at[place].set(value))
    assert np.isnan(x_hat[bucket]).all()
    np.testing.assert_array_equal(x_hat[~bucket], clean[~bucket])
    assert not seen.readable


@uniforms
@pytest.mark.parametrize('d', [1, 7, 1000])
def test_uniform_with_a_bucket_per_value_is_exact(d, rounding):
  x, _ = near(d)
  q = mj.uniform(2, 1, rounding)
  np.testing.assert_array_equal(send(q, x)[0], x)
  payload = jax.eval_shape(q.encode, x, KEY)
  assert wire.nbytes(payload) == -(-d * 2 // 8) + 8 * d


@uniforms
def test_uniform_with_a_bucket_larger_than_the_vector_is_one_bucket(rounding):
  x, _ = near(1000)
  whole, large = mj.uniform(4, 1000, rounding), mj.uniform(4, 4097, rounding)
  np.testing.assert_array_equal(large.encode(x, KEY), whole.encode(x, KEY))
  np.testing.assert_array_equal(send(large, x)[0], send(whole, x)[0])


@pytest.mark.parametrize('bucket_size', [0, -1, 1.5, None])
def test_uniform_refuses_a_bucket_size_by_value(bucket_size):
  with pytest.raises(ValueError, match=f'bucket_size={bucket_size!r};'):
    mj.uniform(4, bucket_size)


def test_uniform_and_full_precision_see_the_distance():
  x, y = near(100)
  for q in (mj.full_precision(), mj.uniform(8, 100, 'nearest')):
    payload = q.encode(x, KEY)
    seen = q.inspect(payload, y)
    assert seen.distance == pytest.approx(far(q.decode(payload, y), y))
    assert seen.readable and np.isinf(seen.theta)
  bad = mj.full_precision().inspect(x.at[5].set(jnp.nan), y)
  assert not bad.readable


# ------------------------------------------------------------------- signs


def by_hand(x, scale):
  """One bucket, in NumPy."""
  x = f64(x)
  if scale == 'mean_abs':
    return np.where(x >= 0, 1, -1) * np.abs(x).mean()
  if scale == 'two_mean':
    up = x >= 0
    return np.where(up, x[up].mean(), x[~up].mean())
  return np.where(x >= (x.min() + x.max()) / 2, x.max(), x.min())


@pytest.mark.parametrize('scale', ['mean_abs', 'two_mean', 'minmax'])
def test_sign_is_its_formula_bucket_by_bucket(scale):
  x, _ = near(150)  # two buckets and a shorter one
  x_hat, seen = send(mj.sign(64, scale), x)
  expected = [by_hand(x[i : i + 64], scale) for i in (0, 64, 128)]
  np.testing.assert_allclose(x_hat, np.concatenate(expected), rtol=1e-5)
  assert seen.readable


def test_sign_contracts_as_error_feedback_needs_it():
  """|x - C(x)|^2 = (1 - |x|_1^2 / (d |x|_2^2)) |x|^2, for one bucket."""
  x, _ = near(1000)
  x_hat, _ = send(mj.sign(1000), x)
  x = f64(x)
  left = ((x - x_hat) ** 2).sum() / (x**2).sum()
  share = np.abs(x).sum() ** 2 / (1000 * (x**2).sum())
  assert left == pytest.approx(1 - share, rel=1e-4)


def test_sign_says_what_it_cannot_read_and_refuses_by_value():
  x, _ = near(100)
  for scale in ('mean_abs', 'two_mean', 'minmax'):
    for value in (np.nan, np.inf):
      assert not send(mj.sign(30, scale), x.at[42].set(value))[1].readable
  zeros, seen = send(mj.sign(30), jnp.zeros(100))
  assert seen.readable and (zeros == 0).all()
  with pytest.raises(ValueError, match='bucket_size=0;'):
    mj.sign(0)
  with pytest.raises(ValueError, match="scale='max'; choose from"):
    mj.sign(scale='max')


# --------------------------------------- within, scaled, scheduled and Tuned


@some
def test_within_maps_the_reference_too(bits, rounding):
  """Theta holds in the new coordinates: here a quarter of it, and a shift."""
  inner = mj.moniqua(THETA, bits, rounding)
  q = mj.within(inner, lambda x: 4 * x + 1000, lambda z: (z - 1000) / 4)
  assert q.shared == inner.shared
  x, y = near(1000, theta=THETA / 4)
  payload = q.encode(x, KEY)
  np.testing.assert_array_equal(payload, inner.encode(4 * x + 1000, KEY))
  x_hat = q.decode(payload, y)
  _, worst = circle(THETA / 4, bits, rounding)
  assert far(x_hat, x) <= worst + 4 * EPS * 1100
  np.testing.assert_array_equal(x_hat, q.decode(payload, x))
  seen = q.inspect(payload, y)
  assert seen.readable
  # Distances are in the new coordinates.
  assert seen.distance <= 4 * far(x, y) + 4 * EPS * 1100
  assert seen.distance >= 4 * (far(x, y) - 2 * worst) - 4 * EPS * 1100
  # A whole turn is a quarter as long here.
  turn = circle(THETA, bits, rounding)[0] / 4
  assert not q.inspect(payload, x.at[0].add(turn)).readable
  # Nobody said that 4 x + 1000 is as long as x.
  assert q.codes is None and mj.scaled(inner, ((9, 2.0),)).codes == inner.codes


@some
def test_scaled_gives_each_leaf_its_own_theta(bits, rounding):
  scales = ((300, 1.0), (1, 8.0), (600, 0.03), (99, 0.7))
  q = mj.scaled(mj.moniqua(THETA, bits, rounding), scales)
  scale = np.concatenate([np.full(size, c) for size, c in scales])
  rng = np.random.default_rng(0)
  x = np.float32(3 * rng.normal(size=1000))
  gap = 0.99 * THETA * scale * rng.choice([-1, 1], size=1000)
  y = np.float32(f64(x) + gap)
  payload = q.encode(jnp.asarray(x), KEY)
  x_hat = q.decode(payload, jnp.asarray(y))
  _, worst = circle(THETA, bits, rounding)
  error, rounded = np.abs(f64(x_hat) - f64(x)), 8 * EPS * largest(x, y)
  assert (error <= scale * worst + rounded).all()
  # Fine leaves are fine, and coarse ones use their room.
  assert error[301:901].max() < error[:300].max() / 10
  np.testing.assert_array_equal(x_hat, q.decode(payload, jnp.asarray(x)))
  seen = q.inspect(payload, jnp.asarray(y))
  assert seen.readable and seen.theta == np.float32(THETA)
  assert seen.distance <= THETA
  # The payload is as long as without scales, and a leaf too far is seen.
  plain = mj.moniqua(THETA, bits, rounding)
  assert payload.shape == plain.encode(jnp.asarray(x), KEY).shape
  too_far = jnp.asarray(y).at[500].add(0.03 * 2 * THETA * np.sign(gap[500]))
  assert not q.inspect(payload, too_far).readable


@pytest.mark.parametrize('size', [1, 9, 11])
def test_scaled_refuses_a_vector_of_another_length(size):
  q = mj.scaled(mj.moniqua(1.0, 4), ((4, 1.0), (6, 2.0)))
  payload = q.encode(jnp.ones(10), KEY)
  message = f'for 10 values, the vector has {size}'
  with pytest.raises(ValueError, match=message):
    q.encode(jnp.ones(size), KEY)
  for method in (q.decode, q.inspect):
    with pytest.raises(ValueError, match=message):
      method(payload, jnp.ones(size))


@pytest.mark.parametrize(
  'pair',
  [(0, 1.0), (-3, 1.0), (3, 0.0), (3, -1.0), (3, np.nan), (3, np.inf)],
)
def test_scaled_refuses_a_size_or_scale_by_place_and_value(pair):
  with pytest.raises(ValueError) as error:
    mj.scaled(mj.full_precision(), ((4, 1.0), pair))
  assert f'scales[1]=({pair[0]}, {pair[1]});' in str(error.value)


def test_scheduled_theta_follows_the_step_under_jit():
  schedule = lambda step: 0.5 * 0.9**step
  tuned = mj.scheduled(lambda theta: mj.moniqua(theta, 4), schedule)
  x, _ = near(100)
  state = tuned.init()
  assert jax.tree.leaves(state) == []

  @jax.jit
  def encode(step):
    return tuned.quantizer(state, step).encode(x, KEY)

  for step in (0, 1, 30):
    expected = mj.moniqua(float(np.float32(schedule(step))), 4)
    seen = expected.inspect(encode(jnp.int32(step)), x)
    np.testing.assert_allclose(seen.theta, schedule(step), rtol=1e-6)
  assert tuned.observe(state, seen, x) == state


def counting():
  """A Tuned that moves: theta doubles each time it has observed something."""
  return mj.Tuned(
    init=lambda: jnp.float32(1),
    quantizer=lambda state, step: mj.moniqua(state * THETA, 4),
    observe=lambda state, seen, x: 2 * state + 0 * x[0],
  )


def test_within_of_a_tuned_is_a_tuned_in_the_other_coordinates():
  to, back = (lambda x: 4 * x), (lambda z: z / 4)
  heard = []
  inner = counting()._replace(
    observe=lambda state, seen, x: heard.append((seen, x)) or 2 * state
  )
  tuned = mj.within(inner, to, back)
  assert isinstance(tuned, mj.Tuned)
  x, y = near(100, theta=THETA / 4)
  state = tuned.init()
  for doubled in (1, 2, 4):
    q = tuned.quantizer(state, jnp.int32(0))
    plain = mj.within(mj.moniqua(doubled * THETA, 4), to, back)
    payload = q.encode(x, KEY)
    np.testing.assert_array_equal(payload, plain.encode(x, KEY))
    np.testing.assert_array_equal(
      q.decode(payload, y), plain.decode(payload, y)
    )
    assert q.shared
    seen = q.inspect(payload, y)
    state = tuned.observe(state, seen, x)
    assert heard[-1][0] is seen
    np.testing.assert_array_equal(heard[-1][1], 4 * x)


def test_scaled_of_a_tuned_is_a_tuned():
  tuned = mj.scaled(counting(), ((60, 1.0), (40, 0.5)))
  x, _ = near(100)
  q = tuned.quantizer(tuned.init(), jnp.int32(0))
  plain = mj.scaled(mj.moniqua(THETA, 4), ((60, 1.0), (40, 0.5)))
  np.testing.assert_array_equal(q.encode(x, KEY), plain.encode(x, KEY))


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


def test_a_receiver_that_is_not_finite_reads_nothing():
  q = mj.moniqua(0.5, 4, 'nearest')
  x = jnp.zeros(8)
  assert not q.inspect(q.encode(x, KEY), x.at[3].set(np.nan)).readable


def test_a_theta_whose_circle_overflows_is_unreadable():
  q, x = mj.moniqua(3e38, 1), jnp.ones(8)
  payload = q.encode(x, KEY)
  assert not q.inspect(payload, x).readable
  assert np.isnan(q.decode(payload, x)).all()


def test_scaled_refuses_no_scales():
  with pytest.raises(ValueError, match='a .size, scale. for every leaf'):
    mj.scaled(mj.full_precision(), ())


@pytest.mark.parametrize('bits', [2.0, np.uint8(8)])
def test_bits_are_a_plain_int(bits):
  with pytest.raises(ValueError, match='1 to 8 bits, an int'):
    mj.moniqua(0.5, bits)
