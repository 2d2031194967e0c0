"""What wraps a quantizer: within, scaled, scheduled, and all of a Tuned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from tests.helpers import EPS, THETA, f64, far, largest, near
from tests.oracles import circle

KEY = jax.random.key(0)
SOME = [(1, 'dithered'), (3, 'nearest'), (8, 'dithered'), (4, 'stochastic')]
some = pytest.mark.parametrize('bits,rounding', SOME)


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


def test_scaled_refuses_no_scales():
  with pytest.raises(ValueError, match='a .size, scale. for every leaf'):
    mj.scaled(mj.full_precision(), ())
