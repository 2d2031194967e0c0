"""A theta of c rms: the rms is unbiased, no start matters, noise is not fed."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import theory
from moniqua_jax.quantizers import base, fitted
from moniqua_jax.quantizers.moniqua import measured
from moniqua_jax.training import quantizer as quantizer_lib
from moniqua_jax.workers import AXIS
from tests import helpers
from tests.test_auto_theta import trained

N, SIZE, DRAWS = 8, 3001, 40
SLOTS = dict(axis_name=AXIS, key=jax.random.key(4))
PAIRS = mj.random_matchings(N, rounds=6, seed=0)


@functools.cache
def squares(bits):
  """(x, y, theta, keys) -> Seen.square and readable of each key; jitted."""

  def one(x, y, theta, key):
    q = measured(theta, bits)
    seen = q.inspect(q.encode(x, key), y)
    return seen.square, seen.readable

  return jax.jit(jax.vmap(one, (None, None, None, 0)))


KEYS = jax.random.split(jax.random.key(0), DRAWS)
APART = {
  'normal': lambda rng: rng.standard_normal(SIZE),
  'heavy': lambda rng: rng.standard_t(3, SIZE),
  'few': lambda rng: (rng.random(SIZE) < 0.02).astype(float),
}


@pytest.mark.parametrize('bits', helpers.tiered(range(1, 9), [1, 4]))
def test_the_square_is_unbiased_at_any_theta(bits):
  rng = np.random.default_rng(bits)
  y = 3 * rng.standard_normal(SIZE)
  for draw in APART.values():
    for times in (1.1, 8.0, 60.0):  # theta over the largest distance
      apart = draw(rng)
      theta = times * np.abs(apart).max()
      x = np.float32(y + apart)
      sizes = np.float32(x), np.float32(y), np.float32(theta)
      square, readable = jax.device_get(squares(bits)(*sizes, KEYS))
      assert readable.all()
      apart = np.abs(x.astype(np.float64) - np.float32(y))
      # A line between two at D < s is worth up to 2 D s: its variance.
      variance = 4 / 3 * np.sum(apart**3) * 2 * theta / (2**bits - 1)
      error, true = math.sqrt(variance / DRAWS) / SIZE, np.mean(apart**2)
      assert abs(square.mean() - true) < 4.5 * error + 2e-3 * true
      assert square.std() < 2 * error * math.sqrt(DRAWS) + 2e-3 * true


def test_the_square_is_rounded_to_its_units_and_not_cut():
  """Half a unit less for each value would be 1 in 10^4 of it."""
  rng, q = np.random.default_rng(3), measured(0.5, 8)
  y = rng.uniform(-0.2, 0.2, SIZE).astype(np.float32)
  x = y + np.float32(0.008) * rng.standard_normal(SIZE).astype(np.float32)

  @jax.jit
  def read(x, y):  # as it was sent, and y itself by the same code
    sent, own = (q.encode(v, KEYS[0]) for v in (x, y))
    return q.inspect(sent, y).square, q.decode(sent, y), q.decode(own, y)

  square, *heard = read(x, y)
  far, own = (np.mean((helpers.f64(v) - y) ** 2) for v in heard)
  np.testing.assert_allclose(square, far - own, rtol=2e-5)


def test_equals_are_at_no_distance_whatever_theta_is():
  x = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
  for theta in (0.01, 100.0):
    square, readable = squares(1)(x, x, np.float32(theta), KEYS)
    assert readable.all() and not square.any()


def test_the_same_bytes_travel_and_the_same_is_seen():
  @jax.jit
  def both(x, y, key):
    plain, also = mj.moniqua(0.5, 4), measured(0.5, 4)
    payloads = [q.encode(x, key) for q in (plain, also)]
    return payloads, plain.inspect(payloads[0], y), also.inspect(payloads[1], y)

  x, y = np.random.default_rng(1).uniform(-0.2, 0.2, (2, 500))
  payloads, plain, also = both(np.float32(x), np.float32(y), KEYS[0])
  np.testing.assert_array_equal(*payloads)
  assert plain[:3] == also[:3] and plain.square == 0 < also.square


@pytest.mark.parametrize('size', [400, 10**6])
@pytest.mark.parametrize('chance', [1e-4, 1e-2])
def test_spread_leaves_the_chance_it_is_given(size, chance):
  tail = math.erfc(fitted.spread(size, chance) / math.sqrt(2))
  np.testing.assert_allclose(size * tail, chance, rtol=1e-6)


D, LIMIT = 10**4, 50.0
C = fitted.spread(D)
RULE = [  # theta, begun, readable, square, heard -> theta, begun
  (1.0, True, True, (0.5 / C) ** 2, 1.0, 0.9, True),  # shrinks by a tenth
  (1.0, True, True, (0.95 / C) ** 2, 1.0, 1.0, True),  # stays in the band
  (1.0, True, True, (0.95 / C) ** 2, 1.04, 1.04, True),  # and on one grid
  (1.0, True, True, (7.0 / C) ** 2, 1.0, 7.0, True),  # grows at once
  (1.0, True, True, 0.0, 9.0, 1.8, True),  # pulled up, but to twice at most
  (1.0, True, False, (0.5 / C) ** 2, 1.0, 2.0, True),  # unreadable
  (1.0, True, False, np.nan, np.nan, 2.0, True),  # from who could say nothing
  (90.0, True, False, 0.0, 1.0, 90.0, True),  # the other end was too small
  (90.0, True, False, 0.0, 90.0, 100.0, True),  # no more than past the limit
  (20.0, False, True, 0.0, 20.0, 20.0, False),  # equals teach nothing
  (20.0, False, False, (0.1 / C) ** 2, 20.0, 0.4, True),  # set in one step
  (0.1, False, False, (99.0 / C) ** 2, 0.1, LIMIT, True),
]


def test_the_rule():
  quantizer = mj.fitted_theta(4, limit=LIMIT)

  @jax.jit
  @jax.vmap
  def observed(theta, begun, readable, square, heard):
    seen = base.Seen(readable[None], heard[None], heard[None], square[None])
    return quantizer.observe(fitted.Fit(theta, begun), seen, jnp.zeros(D))

  kinds = [np.float32, bool, bool, np.float32, np.float32, np.float32, bool]
  columns = zip(zip(*RULE, strict=True), kinds, strict=True)
  *given, theta, begun = (np.array(values, kind) for values, kind in columns)
  found = observed(*given)
  np.testing.assert_allclose(found.theta, theta, rtol=1e-5)
  np.testing.assert_array_equal(found.begun, begun)


RUNS = {
  'pairs, 4 bits': (PAIRS, 4),
  'pairs, 2 bits': (mj.lazy(PAIRS, 0.3), 2),
  'ring, 4 bits': (mj.ring(N), 4),
  'ring, 1 bit': (mj.lazy(mj.ring(N), 0.1), 1),
}


@pytest.mark.parametrize(
  'name,start',
  helpers.tiered(
    [(name, start) for name in RUNS for start in (0.5, 20.0)],
    [('pairs, 4 bits', 20.0)],
  ),
)
def test_no_start_matters_and_a_larger_rate_is_followed(name, start):
  topology, bits = RUNS[name]
  algorithm = mj.dpsgd(topology, mj.fitted_theta(bits, start=start), **SLOTS)
  rate = lambda k: 0.02 if k < 60 else 0.2
  _, seen = trained(algorithm, 80, rate)
  thetas = np.array([fit.theta.max() for fit, _ in seen])
  lost = np.array([(~s.readable).sum() for _, s in seen])
  per_round = N * len(mj.topologies.schedule(topology)[0].edges)
  # All equal, a round that only measures, and then none until the rate jumps;
  # the grid of a few bits and a large start shows a distance to some at first.
  coarse = bits < 4 and start > 1
  assert lost[0] == 0 and (coarse or lost[1] == per_round)
  assert lost[3:60].sum() <= 0.02 * 57 * per_round
  assert thetas[60:].max() > 2 * thetas[59]
  rms = np.sqrt([s.square.max() for _, s in seen[40:60]])
  ratio = thetas[40:60] / rms / fitted.spread(400)
  assert 0.85 < np.median(ratio) < 1.4


@pytest.mark.parametrize('runner', helpers.tiered(['sharded', 'pmapped'], []))
def test_runners_agree_bit_for_bit(runner):
  algorithm = mj.dpsgd(PAIRS, mj.fitted_theta(3), **SLOTS)

  def step(x, state, u, k):
    updates, state = algorithm.update(u, state, x, step=k)
    return x + updates, state

  ends = []
  for run in (mj.simulated, helpers.RUNNERS[runner]):
    x = np.zeros((N, SIZE), np.float32)
    state, go = run(algorithm.init, (0,))(x), run(step, (0, 0, 0, None))
    for k in range(6):
      u = np.random.default_rng(k).standard_normal((N, SIZE))
      x, state = go(x, state, np.float32(u), np.int32(k))
    heard = state.heard
    ends.append(jax.device_get((x, heard.tuned, heard.seen.square)))
  jax.tree.map(np.testing.assert_array_equal, *ends)


# ----------------------------------------------------------------------- theory


@pytest.mark.parametrize('gamma', [1.0, 0.3])
def test_the_noise_floor_of_pairs_is_the_one_derived(gamma):
  floor = theory.noise_floor(mj.lazy(PAIRS, gamma), 'dpsgd', 'rms')
  np.testing.assert_allclose(floor, math.sqrt(2 / math.pi) * gamma, rtol=0.03)


@pytest.mark.parametrize('gain', [0.7, 1.4])
def test_a_theta_of_the_rms_runs_away_from_gain_one_on(gain):
  bits, size = 2, 4000
  c = gain / theory.loop_gain(PAIRS, 'dpsgd', bits, 1.0, 'rms')
  rng = np.random.default_rng(0)
  x, seen = rng.uniform(-0.1, 0.1, (N, size)), []
  for k in range(120):
    topology = PAIRS[k % len(PAIRS)]
    ((i, j),) = {(tuple(range(N)), perm) for _, perm in topology.edges}
    apart = np.sqrt(np.mean((x[list(i)] - x[list(j)]) ** 2, axis=1).max())
    grid = 2 * c * apart / (2**bits - 1)
    u = rng.random(size) - 0.5
    believed = (np.rint(x / grid - u) + u) * grid
    x = x + mj.matrix(topology) @ believed - believed
    seen.append(apart)
  growth = max(seen[-12:]) / max(seen[40:52])
  assert growth > 10 if gain > 1 else growth < 0.1


def limit_of(bits, gamma, **entries):
  config = digits.get_config('moniqua4')
  spec = dict(name='fitted_theta', bits=bits, theta=None)
  config.update(dict(quantizer=spec, gamma=gamma))
  config.quantizer.update(entries)
  schedule = mj.topologies.schedule(mj.lazy(PAIRS, gamma))
  return quantizer_lib.with_limit(config, schedule)['limit']


def test_two_bits_without_slack_are_refused_with_the_gamma_that_helps():
  match = r'gain of dpsgd is 1\.7.*lazy\(topology, 0\.29\)'
  with pytest.raises(ValueError, match=match):
    limit_of(2, 1.0)
  assert limit_of(2, 0.29) > 0 and limit_of(3, 1.0) > 0
  assert limit_of(4, 1.0, chance=0.01) < limit_of(4, 1.0)


def test_an_unknown_distance_is_named():
  with pytest.raises(ValueError, match="distance='mean'; choose from"):
    theory.noise_floor(PAIRS, 'dpsgd', 'mean')


@pytest.mark.parametrize(
  'name,value', [('chance', 0.0), ('shrink', 1.0), ('limit', -1.0)]
)
def test_numbers_out_of_range_are_named(name, value):
  with pytest.raises(ValueError, match=f'{name}={value}; fitted_theta needs'):
    mj.fitted_theta(4, **{name: value})
