"""Moniqua against its Lemma 2 and Algorithm 1 as the paper writes it.

Both are written here in float64 from the paper, not from the codec.
"""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import dither
from moniqua_jax.quantizers import digest
from tests.helpers import EPS, THETA, f64, far, largest, near, tiered
from tests.oracles import circle

KEY = jax.random.key(0)
MONIQUA = [
  (bits, rounding)
  for rounding in ('dithered', 'nearest', 'stochastic')
  for bits in range(1, 9)
  if (bits, rounding) != (1, 'stochastic')
]
SOME = [(1, 'dithered'), (3, 'nearest'), (8, 'dithered'), (4, 'stochastic')]
moniquas = pytest.mark.parametrize('bits,rounding', MONIQUA)
some = pytest.mark.parametrize('bits,rounding', SOME)


def bits_of(numbers):
  return np.asarray(numbers).view(np.uint32)


# ------------------------------------------------------- the lemma and edges


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


@functools.cache
def talk(bits, rounding):
  """One message of any theta, read by its sender and by a neighbour."""

  def one(theta, x, y, key):
    q = mj.moniqua(theta, bits, rounding)
    payload = jax.lax.optimization_barrier(q.encode(x, key))
    return q.decode(payload, x), q.decode(payload, y), q.inspect(payload, y)

  return jax.jit(one)


def check_lemma(bits, rounding, d, theta, steps, seed):
  key = jax.random.key(seed)
  noise = f64(dither.uniform(dither.seed(key), d)) - 0.5
  u = 0 if rounding == 'nearest' else noise
  rng = np.random.default_rng(seed)
  x, y = adversaries(rng, d, theta, steps, bits, rounding, u)
  own, x_hat, seen = talk(bits, rounding)(np.float32(theta), x, y, key)
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
  assert max(far(x, y) - 2 * worst - rounded, 0) <= seen.distance
  assert seen.distance <= far(x, y) + rounded


thetas = st.floats(-4, 4).map(lambda power: np.float32(10.0**power))
reaches = st.floats(-3, 22).map(lambda power: 2.0**power)
seeds = st.integers(0, 2**31 - 1)
often = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
rarely = hypothesis.settings(max_examples=10, deadline=None, derandomize=True)


@pytest.mark.optimized
@moniquas
@often
@hypothesis.given(theta=thetas, steps=reaches, seed=seeds)
def test_lemma(bits, rounding, theta, steps, seed):
  check_lemma(bits, rounding, 1000, theta, steps, seed)


@pytest.mark.parametrize(
  'bits,rounding,d',
  tiered(
    [(*one, d) for one in MONIQUA for d in (1, 7, 8, 4097)],
    [(*one, d) for one in SOME for d in (1, 4097)],
  ),
)
@rarely
@hypothesis.given(theta=thetas, steps=reaches, seed=seeds)
def test_lemma_at_every_size(bits, rounding, d, theta, steps, seed):
  check_lemma(bits, rounding, d, theta, steps, seed)


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
  rng, theta = np.random.default_rng(bits), float(np.float32(theta))
  b_theta, error = circle(theta, bits, 'nearest')
  for steps in (1, 100, 2**16):
    x = np.float32(steps * b_theta / 2**bits * rng.uniform(-1, 1, 4097))
    y = np.float32(f64(x) + 0.999 * theta * rng.uniform(-1, 1, 4097))
    _, x_hat, _ = talk(bits, 'nearest')(np.float32(theta), x, y, KEY)
    expected = algorithm_1(f64(x), f64(y), theta, bits)
    # Where x stands within rounding of the edge of a cell both sides are right.
    to_edge = error - np.abs(f64(x) - expected)
    clear = to_edge > 4 * EPS * (largest(x, y) + theta)
    clear &= np.abs(f64(x) - f64(y)) < theta - edge(
      theta, bits, 'nearest', x, y
    )
    assert clear.mean() > 0.9
    np.testing.assert_array_less(
      np.abs(f64(x_hat) - expected)[clear],
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


# ------------------------------------------------------ unreadable messages


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
    word = digest.fold(digest.reduce_rows(jax.lax.bitwise_xor, [low]))
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
    draw = lambda key: dither.uniform(dither.seed(key), 1)[0]
    u = f64(jax.jit(jax.vmap(draw))(keys)) - 0.5
  step = circle(theta, bits, rounding)[0] / 2**bits
  x = np.float32((np.rint(2**20 * rng.uniform(-1, 1, n)) + 0.5 + u) * step)
  y = np.float32(f64(x) + theta * rng.choice([-1, 1], n))
  y = np.where(np.abs(f64(x) - f64(y)) < theta, y, np.nextafter(y, x))
  assert (np.abs(f64(x) - f64(y)) < theta).all()

  @jax.jit
  @jax.vmap
  def one(x, y, key):
    payload = q.encode(x, key)
    return q.decode(payload, y), q.inspect(payload, y).readable

  hats, readable = one(x[:, None], y[:, None], keys)
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
def test_a_vector_2_to_the_22_steps_long_is_unreadable(bits, rounding, sign):
  step = circle(THETA, bits, rounding)[0] / 2**bits
  x, _ = near(1000)
  q = mj.moniqua(THETA, bits, rounding)
  check_unreadable(q, x.at[3].set(sign * 2.0**22 * step))
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


def test_a_header_with_a_theta_that_no_sender_has_is_unreadable():
  q, (x, _) = mj.moniqua(THETA, 4, digest=False), near(1000)
  payload = np.array(q.encode(x, KEY))
  read = jax.jit(lambda payload: (q.decode(payload, x), q.inspect(payload, x)))
  for theta in (-THETA, 0.0, -0.0, 1e-44, 3e38, np.inf, np.nan):
    payload[-8:-4] = np.frombuffer(np.float32(theta).tobytes(), np.uint8)
    x_hat, seen = read(payload)
    assert not seen.readable and np.isnan(x_hat).all(), theta


# --------------------------------------------------------- theta and errors


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


def test_a_receiver_that_is_not_finite_reads_nothing():
  q = mj.moniqua(0.5, 4, 'nearest')
  x = jnp.zeros(8)
  assert not q.inspect(q.encode(x, KEY), x.at[3].set(np.nan)).readable


def test_a_theta_whose_circle_overflows_is_unreadable():
  q, x = mj.moniqua(3e38, 1), jnp.ones(8)
  payload = q.encode(x, KEY)
  assert not q.inspect(payload, x).readable
  assert np.isnan(q.decode(payload, x)).all()


@pytest.mark.parametrize('bits', [2.0, True])
def test_bits_are_a_whole_number(bits):
  with pytest.raises(ValueError, match='1 to 8 bits, an int'):
    mj.moniqua(0.5, bits)


def test_each_group_of_parts_is_one_pass_over_the_vector(monkeypatch):
  """XLA fuses up to four parts well, and eight not: see tests/test_tpu.py.

  The vector goes through a barrier with what was made of a group, so that the
  next one waits for it; what is mixed leaves as one vector.
  """
  monkeypatch.setenv('MONIQUA_NATIVE', '0')
  d, q = 2 * 8192 + 5, mj.moniqua(THETA, 1)  # eight stripes and a rest
  x = jnp.zeros(d)
  payload = jax.eval_shape(q.encode, x, KEY)
  came, pull = jnp.ones(1, bool), lambda x_hats, came: x_hats[1] - x_hats[0]
  mix = lambda x, *payloads: q.fast.mix(x, payloads, came, pull)
  for expected, fn, *args in (
    (3, lambda x: q.encode(x, KEY), x),
    (9, q.inspect, payload, x),
    (1, mix, x, payload, payload),
  ):
    barriers = [
      eqn
      for eqn in jax.make_jaxpr(fn)(*args).jaxpr.eqns
      if eqn.primitive.name == 'optimization_barrier'
      and any(var.aval.shape == (d,) for var in eqn.outvars)
    ]
    assert len(barriers) == expected
