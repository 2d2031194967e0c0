"""Each algorithm against its dense form in NumPy; what each promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax import topologies
from moniqua_jax.workers import AXIS
from tests import dense, helpers, oracles

N, D, LR, STEPS = helpers.N, 24, 0.1, 50
KEY = jax.random.key(2)
SLOTS = dict(axis_name=AXIS, key=KEY)
RING = mj.lazy(mj.ring(N), 0.75)  # lambda_n = 0: good for D^2 too
W = topologies.matrix(RING)
PAIRS = mj.random_matchings(N, rounds=4, seed=1)
DELAYS = (0, 1, 2, 3, 0, 1, 2, 3)
# Worker 0 sends to two others, the rest to one.
UNEVEN = mj.Topology(
  [
    (0.25, tuple((i + 1) % N for i in range(N))),
    ((0.5, *(0.0,) * (N - 1)), tuple((i + 3) % N for i in range(N))),
  ]
)
RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((N, D)).astype(np.float32)
CURVATURE = RNG.uniform(0.5, 1.5, (N, 1)).astype(np.float32)
X0 = np.broadcast_to(RNG.standard_normal(D).astype(np.float32), (N, D))


def gradient(x):
  """Of f_i(x) = a_i |x - b_i|^2 / 2: workers with their own curvature."""
  return CURVATURE * (x - CENTRES)


@functools.cache
def functions(algorithm, run):
  """init and steps of all workers, compiled once for all numbers of steps."""

  def steps(x, state, a, b, first, last, lr):
    def step(k, carry):
      x, state = carry
      updates = -lr * a * (x - b)
      updates, state = algorithm.update(updates, state, x, step=k)
      return optax.apply_updates(x, updates), state

    return jax.lax.fori_loop(first, last, step, (x, state))

  return run(algorithm.init, (0,)), run(steps, (0, 0, 0, 0, None, None, None))


def advance(algorithm, x, state, first, last, run=mj.simulated, lr=LR):
  """The workers' parameters and states after some more steps."""
  args = CURVATURE, CENTRES, np.int32(first), np.int32(last), np.float32(lr)
  return functions(algorithm, run)[1](x, state, *args)


def trajectory(algorithm, steps):
  """The workers' parameters after each step, and the last state."""
  x, xs = np.array(X0), [X0]
  state = functions(algorithm, mj.simulated)[0](x)
  for k in range(steps):
    x, state = advance(algorithm, x, state, k, k + 1)
    xs.append(x)
  return [np.asarray(x, np.float64) for x in xs], state


@functools.cache
def train(algorithm, steps=STEPS, run=mj.simulated, lr=LR):
  """The workers' parameters after the last step, and the last state."""
  x = np.array(X0)
  state = functions(algorithm, run)[0](x)
  x, state = advance(algorithm, x, state, 0, steps, run, lr)
  return np.asarray(x, np.float64), state


FULL, COARSE = mj.full_precision(), mj.uniform(6, D, 'nearest')
MONIQUA = mj.moniqua(6.0, 4)


def on(topology, factory, **numbers):
  """quantizer -> algorithm; the same one for the same quantizer."""
  return functools.cache(lambda q: factory(topology, q, **numbers, **SLOTS))


# name -> (algorithm(quantizer), its dense form)
DENSE = {
  'dpsgd': (on(RING, mj.dpsgd), dense.dpsgd()),
  'd2': (on(RING, mj.d2), dense.d2()),
  'dcd': (on(RING, mj.dcd), dense.dcd()),
  'ecd': (on(RING, mj.ecd), dense.ecd()),
  'choco': (on(RING, mj.choco, gamma=0.6), dense.choco(0.6)),
  'deepsqueeze': (
    on(RING, mj.deepsqueeze, eta=0.7),
    dense.deepsqueeze(0.7),
  ),
  'qdgd': (on(RING, mj.qdgd, epsilon=0.5), dense.qdgd(0.5)),
}
ALL_BUT_QDGD = [name for name in DENSE if name != 'qdgd']


@pytest.mark.parametrize('name', helpers.tiered(DENSE, ALL_BUT_QDGD))
def test_full_precision_is_the_dense_form(name):
  algorithm, model = DENSE[name]
  x, _ = train(algorithm(FULL))
  expected = dense.trained(model, X0, gradient, [W], LR, STEPS)
  np.testing.assert_allclose(x, expected, atol=1e-5)


@pytest.mark.parametrize('name', helpers.tiered(DENSE, ALL_BUT_QDGD))
def test_compression_is_the_dense_form(name):
  """A few steps: then a rounding tie may fall differently in float32."""
  algorithm, model = DENSE[name]
  x, _ = train(algorithm(COARSE), steps=4)
  given = model, X0, gradient, [W], LR, 4
  coarse = dense.trained(*given, oracles.min_max(6))
  np.testing.assert_allclose(x, coarse, atol=1e-5)
  assert np.abs(coarse - dense.trained(*given)).max() > 1e-3


def test_qdgd_hears_of_neighbours_alone():
  """On most edges of a star most workers hear but themselves."""
  star = mj.star(N)
  x, _ = train(mj.qdgd(star, COARSE, 0.5, **SLOTS), steps=4)
  given = dense.qdgd(0.5), X0, gradient, [topologies.matrix(star)], LR, 4
  coarse = dense.trained(*given, oracles.min_max(6))
  np.testing.assert_allclose(x, coarse, atol=1e-5)


def test_ecd_stands_still_where_nothing_moves():
  """A rounding error of a replica is one of each step from there on."""
  algorithm, x = DENSE['ecd'][0](FULL), np.array(X0)
  state = functions(algorithm, mj.simulated)[0](x)
  x, _ = advance(algorithm, x, state, 0, 300, lr=0.0)
  np.testing.assert_array_equal(x, X0)


def test_adpsgd_is_the_dense_form():
  for delays in (0, 2, DELAYS):
    x, _ = train(mj.adpsgd(PAIRS, FULL, delays, **SLOTS))
    ws = [topologies.matrix(pairs) for pairs in PAIRS]
    each = delays if isinstance(delays, tuple) else (delays,) * N
    model = dense.adpsgd(each)
    expected = dense.trained(model, X0, gradient, ws, LR, STEPS)
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_push_sum_is_the_dense_form_on_an_uneven_graph():
  a = topologies.push_matrix(UNEVEN)
  assert (a > 0).sum(0).tolist() == [3, *(2,) * (N - 1)]  # out-degrees, itself
  assert np.abs(a.sum(1) - 1).max() > 0.2  # not doubly stochastic
  np.testing.assert_allclose(a.sum(0), 1)
  for quantizer, atol in ((FULL, 1e-5), (mj.moniqua(4.0, 8), 0.1)):
    x, state = train(mj.push_sum(UNEVEN, quantizer, **SLOTS))
    model = dense.push_sum()
    expected = dense.trained(model, X0, gradient, [a], LR, STEPS)
    np.testing.assert_allclose(x, expected, atol=atol)
    np.testing.assert_allclose(np.sum(state.mass), N, rtol=1e-5)
    assert state.heard.seen.readable.all()


def test_push_sum_takes_the_plain_mean_where_dpsgd_refuses():
  """Without gradients it ends at the mean of the start."""
  x = jax.random.normal(KEY, (N, D))
  algorithm = mj.push_sum(UNEVEN, FULL, **SLOTS)

  def step(x, state, k):
    updates, state = algorithm.update(jnp.zeros(D), state, x, step=k)
    return x + updates, state

  state, step = (
    mj.simulated(algorithm.init, (0,))(x),
    mj.simulated(step, (0, 0, None)),
  )
  mean = np.mean(x, axis=0, keepdims=True)
  for k in range(200):
    x, state = step(x, state, np.int32(k))
  np.testing.assert_allclose(x, np.repeat(mean, N, axis=0), atol=1e-4)
  with pytest.raises(ValueError, match='dpsgd needs a doubly stochastic W'):
    mj.dpsgd(UNEVEN, FULL, **SLOTS)


@pytest.mark.parametrize('quiet', [False, True])
def test_push_sum_loses_no_mass_unseen(quiet):
  """Some messages wrap. Answered, the whole stays; else what was sent is lost.

  Neither way may a share be given twice: that would be more than there was.
  """
  x = np.random.default_rng(5).uniform(-0.7, 0.7, (N, D)).astype(np.float32)
  algorithm = mj.push_sum(mj.ring(N), mj.moniqua(1.3, 8), **SLOTS)
  algorithm = mj.answered(algorithm) if quiet else algorithm

  def step(x):
    updates, state = algorithm.update(
      jnp.zeros(D), algorithm.init(x), x, step=jnp.int32(0)
    )
    return x + updates, state

  y, state = mj.simulated(step, (0,))(x)
  readable, mass = np.asarray(state.heard.seen.readable), np.asarray(state.mass)
  lost = (~readable).sum()
  assert 0 < lost < readable.size
  if quiet:
    assert mass.sum() == pytest.approx(N, abs=1e-5)
    np.testing.assert_allclose(
      (mass[:, None] * y).sum(0), x.sum(0, dtype=np.float64), atol=1e-5
    )
  else:
    # Every worker gives 1/3 away on an edge; what was not read is gone.
    assert mass.sum() == pytest.approx(N - lost / 3, abs=1e-5)


def test_every_is_local_sgd():
  x, _ = train(mj.every(mj.dpsgd(RING, FULL, **SLOTS), 3))
  model = dense.every(dense.dpsgd(), 3)
  expected = dense.trained(model, X0, gradient, [W], LR, STEPS)
  np.testing.assert_allclose(x, expected, atol=1e-5)
  once, _ = train(mj.every(mj.d2(RING, FULL, **SLOTS), 1))
  twin, _ = train(mj.d2(RING, FULL, **SLOTS))
  np.testing.assert_allclose(once, twin, atol=1e-6)


def test_every_counts_only_its_own_steps():
  """A time-varying topology turns with the messages, not with the steps."""
  turns = mj.ring(N), mj.complete(N)
  ws = [topologies.matrix(topology) for topology in turns]
  x, _ = train(mj.every(mj.dpsgd(turns, FULL, **SLOTS), 2), steps=8)
  dense = np.asarray(X0, np.float64)
  for k in range(8):
    mix = ws[k // 2 % 2] if k % 2 else np.eye(N)
    dense = mix @ dense - LR * gradient(dense)
  np.testing.assert_allclose(x, dense, atol=1e-5)


def test_every_d2_still_forgets_whose_data_it_was():
  best = (CURVATURE * CENTRES).sum(0) / CURVATURE.sum()
  x, _ = train(mj.every(mj.d2(RING, FULL, **SLOTS), 3), 1500, lr=0.02)
  assert np.abs(x - best).max() < 0.01  # local steps cost lr, no more
  y, _ = train(mj.every(mj.dpsgd(RING, FULL, **SLOTS), 3), 1500, lr=0.02)
  assert np.abs(y - best).max() > 0.05


@pytest.mark.slow
def test_qdgd_ends_as_near_as_its_epsilon_is_small():
  """So fast that all have the same way, epsilon steps, behind them."""
  off = {}
  for epsilon in (1.0, 0.25, 0.02):
    algorithm = mj.qdgd(RING, mj.uniform(2, D), epsilon, **SLOTS)
    x, _ = train(algorithm, int(100 / epsilon), lr=0.02)
    exact, _ = train(mj.dpsgd(RING, FULL, **SLOTS), 100, lr=0.02)
    off[epsilon] = np.sqrt(np.mean((x - exact) ** 2))
  assert off[0.25] < 0.7 * off[1.0] and off[0.02] < 0.25 * off[1.0]


# ------------------------------------------------------------ what is promised

BEST = (CURVATURE * CENTRES).sum(0) / CURVATURE.sum()


def test_d2_converges_where_dpsgd_stays_apart():
  dpsgd, _ = train(mj.dpsgd(RING, FULL, **SLOTS), 600)
  d2, _ = train(mj.d2(RING, FULL, **SLOTS), 600)
  assert np.abs(dpsgd - BEST).max() > 0.1
  assert np.abs(d2 - BEST).max() < 1e-5


def shrinking(step):
  return 3.0 * 0.985**step + 1e-4


# In the shape of a loss: a positive definite D, a norm and a step a block.
SHAPE = np.geomspace(0.25, 4, D)
BLOCKS = mj.block([1 / 127, 1 / 63, 1 / 127], (8, 8, 8), norm='linf')
SCALES = ((8, 1.0), (8, 0.75), (8, 1.5))
TORUS = mj.torus(2, 4)
ON_A_TORUS = {
  'dpsgd': on(TORUS, mj.dpsgd),
  'dcd': on(TORUS, mj.dcd),
  'choco': on(TORUS, mj.choco, gamma=0.6),
}

# name -> (algorithm(quantizer), quantizer, distance from full precision)
CONVERGES = {
  **{
    f'{name} {where} smooth blocks': (make, mj.smooth(BLOCKS, SHAPE), 0.02)
    for name in ('choco', 'dcd')
    for where, make in (('ring', DENSE[name][0]), ('torus', ON_A_TORUS[name]))
  },
  **{
    f'dpsgd {where} scaled moniqua': (
      make,
      mj.scaled(mj.moniqua(4.0, 8), SCALES),
      0.1,
    )
    for where, make in (
      ('ring', DENSE['dpsgd'][0]),
      ('torus', ON_A_TORUS['dpsgd']),
    )
  },
  'moniqua d2 8': (DENSE['d2'][0], mj.moniqua(3.0, 8), 0.02),
  'moniqua d2 4': (DENSE['d2'][0], mj.moniqua(3.0, 4), 0.4),
  'moniqua d2 shrinking': (
    DENSE['d2'][0],
    mj.scheduled(lambda theta: mj.moniqua(theta, 8), shrinking),
    1e-4,
  ),
  'moniqua d2 auto': (DENSE['d2'][0], mj.auto_theta(8, start=3.0), 1e-4),
  'choco 8': (DENSE['choco'][0], mj.uniform(8, D, 'nearest'), 0.01),
  'choco eden 2': (
    on(RING, mj.choco, gamma=0.4),
    mj.eden(2, 'least_error'),
    0.02,
  ),
  'choco rotated uniform': (
    DENSE['choco'][0],
    mj.rotated(mj.uniform(6, rounding='nearest')),
    0.02,
  ),
  'choco rotated moniqua': (
    DENSE['choco'][0],
    mj.rotated(mj.scheduled(lambda theta: mj.moniqua(theta, 6), shrinking)),
    0.02,
  ),
  'choco chunked': (
    on(RING, mj.choco, gamma=0.1),
    mj.chunked_top_k(12, 4, 3),
    0.05,
  ),
  'choco 1': (on(RING, mj.choco, gamma=0.1), mj.sign(D), 0.01),
  'deepsqueeze 8': (DENSE['deepsqueeze'][0], mj.uniform(8, D, 'nearest'), 0.02),
  'dcd 8': (DENSE['dcd'][0], mj.uniform(8, D), 0.02),
  'ecd 8': (DENSE['ecd'][0], mj.uniform(8, D), 0.2),
  # Algorithm 3 of the NUQSGD paper. More than 4 bits do not bring it nearer
  # (0.117, 0.118, 0.114 at 4, 5, 8): the spacing of the levels is the limit.
  'ecd nuqsgd 8': (DENSE['ecd'][0], mj.nuqsgd(8, D), 0.2),
  'ecd nuqsgd 4': (DENSE['ecd'][0], mj.nuqsgd(4, D), 0.2),
  'moniqua adpsgd 4': (
    on(PAIRS, mj.adpsgd, delays=2),
    mj.moniqua(4.0, 4),
    0.8,
  ),
}


# Rows of an algorithm that is there with fewer bits, or another quantizer.
AGAIN = (
  'moniqua d2 8',
  'choco 8',
  'ecd nuqsgd 8',
  'ecd nuqsgd 4',
  'dcd ring smooth blocks',
  'choco torus smooth blocks',
  'dpsgd torus scaled moniqua',
  'moniqua d2 4',
  'choco eden 2',
  'choco rotated uniform',
  'choco rotated moniqua',
  'choco chunked',
  'dcd torus smooth blocks',
)
FEWEST = [name for name in CONVERGES if name not in AGAIN]


@pytest.mark.parametrize('name', helpers.tiered(CONVERGES, FEWEST))
def test_few_bits_end_where_full_precision_ends(name):
  algorithm, quantizer, distance = CONVERGES[name]
  x, state = train(algorithm(quantizer), 600)
  y, _ = train(algorithm(FULL), 600)
  assert np.abs(x - y).max() < distance
  assert np.asarray(state.heard.seen.readable).all()


KEEP_THE_MEAN = {
  'd2': DENSE['d2'][0],
  'adpsgd': on(PAIRS, mj.adpsgd, delays=0),
  'choco': DENSE['choco'][0],
  'deepsqueeze': DENSE['deepsqueeze'][0],
  'every dpsgd': lambda q: mj.every(mj.dpsgd(RING, q, **SLOTS), 2),
  'answered dpsgd': lambda q: mj.answered(mj.dpsgd(RING, q, **SLOTS)),
}


@pytest.mark.parametrize(
  'name,quantizer',
  helpers.tiered(
    [(name, q) for name in KEEP_THE_MEAN for q in ('moniqua', 'uniform')],
    [
      *((name, 'moniqua') for name in KEEP_THE_MEAN),
      ('choco', 'uniform'),
      ('deepsqueeze', 'uniform'),
    ],
  ),
)
def test_the_mean_moves_by_the_mean_update(name, quantizer):
  q = {'moniqua': MONIQUA, 'uniform': mj.uniform(4, D)}[quantizer]
  xs, state = trajectory(KEEP_THE_MEAN[name](q), 20)
  for x, y in zip(xs, xs[1:], strict=False):
    moved = y.mean(0) - x.mean(0) + LR * gradient(x).mean(0)
    np.testing.assert_allclose(moved, 0, atol=2e-6)
  assert np.asarray(state.heard.seen.readable).all()


ALL = {
  **{name: algorithm(MONIQUA) for name, (algorithm, _) in DENSE.items()},
  'adpsgd': mj.adpsgd(PAIRS, MONIQUA, DELAYS, **SLOTS),
  'push_sum': mj.push_sum(UNEVEN, MONIQUA, **SLOTS),
  'every': mj.every(mj.d2(RING, MONIQUA, **SLOTS), 3),
  'quasi-global': mj.quasi_global(mj.dpsgd(RING, MONIQUA, **SLOTS), -1.0),
  'answered': mj.answered(mj.d2(RING, MONIQUA, **SLOTS)),
  'choco smooth': mj.choco(RING, mj.smooth(BLOCKS, SHAPE), gamma=0.6, **SLOTS),
  'dcd smooth': mj.dcd(TORUS, mj.smooth(BLOCKS, SHAPE), **SLOTS),
  'dpsgd scaled': mj.dpsgd(TORUS, mj.scaled(MONIQUA, SCALES), **SLOTS),
  'adpsgd uniform': mj.adpsgd(PAIRS, mj.uniform(4, D), DELAYS, **SLOTS),
}


@pytest.mark.parametrize(
  'name,runner',
  helpers.tiered(
    [(name, runner) for name in ALL for runner in ('sharded', 'pmapped')],
    [
      ('answered', 'pmapped'),
      ('choco', 'sharded'),
      ('push_sum', 'sharded'),
    ],
  ),
)
def test_twenty_steps_agree_under_all_runners(name, runner):
  x, _ = train(ALL[name], 20)
  y, _ = train(ALL[name], 20, helpers.RUNNERS[runner])
  np.testing.assert_allclose(x, y, atol=1e-5)


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize('name', ['d2', 'choco', 'dcd', 'ecd', 'qdgd'])
def test_some_take_one_symmetric_topology(name):
  factory = getattr(mj, name)
  with pytest.raises(ValueError, match=f'{name} takes one topology for all'):
    factory(PAIRS, FULL, **SLOTS)
  with pytest.raises(ValueError, match=f'{name} needs a symmetric W'):
    factory(mj.exponential(N), FULL, **SLOTS)


def test_d2_refuses_an_even_ring_and_names_the_fix():
  with pytest.raises(ValueError, match=r'lambda_n.*-0.333.*lazy'):
    mj.d2(mj.ring(N), FULL, **SLOTS)
  mj.d2(mj.ring(5), FULL, **SLOTS)


def test_other_refusals():
  with pytest.raises(ValueError, match='gamma=0; choco needs'):
    mj.choco(RING, FULL, gamma=0, **SLOTS)
  with pytest.raises(ValueError, match='eta=2; deepsqueeze needs'):
    mj.deepsqueeze(RING, FULL, eta=2, **SLOTS)
  for delays in (-1, (1, 2), 0.5):
    with pytest.raises(ValueError, match='delays=.*number of ticks'):
      mj.adpsgd(PAIRS, FULL, delays, **SLOTS)
  with pytest.raises(ValueError, match='steps=0; every needs'):
    mj.every(mj.dpsgd(RING, FULL, **SLOTS), 0)
  with pytest.raises(ValueError, match='every: dcd must see each step'):
    mj.every(mj.dcd(RING, FULL, **SLOTS), 2).init(jnp.zeros(3))
  chain = optax.chain(optax.sgd(0.1), mj.dpsgd(RING, FULL, **SLOTS))
  for name, *args in (
    ('every', 2),
    ('answered',),
    ('quasi_global', 0.1),
    ('adapt_then_combine',),
  ):
    for given in (chain, mj.allreduce(axis_name='workers')):
      with pytest.raises(ValueError, match=f'{name}: .* is no gossip algorit'):
        getattr(mj, name)(given, *args)
  one_way = mj.answered(mj.dpsgd(mj.exponential(N), FULL, **SLOTS))
  with pytest.raises(ValueError, match='answered needs a symmetric W'):
    train(one_way, 1)
  with pytest.raises(ValueError, match='not connected'):
    mj.push_sum(mj.Topology([((0.5, 0.0), (1, 0))]), FULL, **SLOTS)
