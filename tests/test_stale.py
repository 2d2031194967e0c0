"""Messages that do not wait: EXTRA and its kin, and what they cost."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import data, theory, topologies
from moniqua_jax.training import experiment, overlap
from moniqua_jax.training import step as step_lib
from tests import dense, helpers, oracles
from tests import test_decentralized as battery

N, D, LR, SLOTS = battery.N, battery.D, battery.LR, battery.SLOTS
RING = mj.lazy(mj.ring(N), 0.5)  # lambda_n = 1/3
W = topologies.matrix(RING)
X0, gradient, train = battery.X0, battery.gradient, battery.train
FULL, COARSE = battery.FULL, battery.COARSE

# name -> (algorithm, its dense form, its consensus step)
ALGORITHMS = {
  'd2': (mj.d2, dense.d2, {}),
  'choco': (mj.choco, dense.choco, {'gamma': 0.6}),
  'deepsqueeze': (mj.deepsqueeze, dense.deepsqueeze, {'eta': 0.7}),
}
each = pytest.mark.parametrize('name', ALGORITHMS)


@functools.cache
def built(name, quantizer, topology=RING):
  algorithm, _, kwargs = ALGORITHMS[name]
  algorithm = algorithm(topology, quantizer, **kwargs, **SLOTS)
  return mj.stale(algorithm, topology)


def late(name, *consensus):
  """The dense form that does not wait; D^2 becomes EXTRA."""
  at_once = ALGORITHMS[name][1]
  return dense.extra() if name == 'd2' else dense.stale(at_once(*consensus))


def by_hand(name, steps, **how):
  model = late(name, *ALGORITHMS[name][2].values())
  return dense.trained(model, X0, gradient, [W], LR, steps, **how)


@each
def test_full_precision_is_the_dense_form(name):
  x, _ = train(built(name, FULL))
  np.testing.assert_allclose(x, by_hand(name, battery.STEPS), atol=1e-5)
  _, at_once, kwargs = ALGORITHMS[name]
  waits = dense.trained(at_once(**kwargs), X0, gradient, [W], LR, 5)
  assert np.abs(by_hand(name, 5) - waits).max() > 1e-3


@each
def test_compression_is_the_dense_form(name):
  """A few steps: then a rounding tie may fall differently in float32."""
  x, _ = train(built(name, COARSE), steps=4)
  coarse = by_hand(name, 4, compress=oracles.min_max(6))
  np.testing.assert_allclose(x, coarse, atol=1e-5)
  assert np.abs(coarse - by_hand(name, 4)).max() > 1e-3


@pytest.mark.parametrize('name', helpers.tiered(ALGORITHMS, ['d2']))
def test_nothing_that_is_sent_waits_for_the_gradient(name):
  """A step whose gradient is NaN talks as any other."""
  algorithm = built(name, battery.MONIQUA)

  def step(x, state, u):
    return algorithm.update(u, state, x, step=jnp.int32(3))

  state = mj.simulated(algorithm.init, (0,))(X0)
  x = X0 + 0.1 * np.arange(N, dtype=np.float32)[:, None]
  step = mj.simulated(step, (0, 0, 0))
  moved, after = step(x, state, jnp.zeros((N, D)))
  _, late = step(x, state, jnp.full((N, D), jnp.nan))
  assert np.abs(moved).max() > 0.01 and after.heard.seen.readable.all()
  jax.tree.map(np.testing.assert_array_equal, after.own, late.own)


@each
@pytest.mark.parametrize('bits', helpers.tiered((4, 8), (4,)))
def test_the_mean_moves_by_the_mean_update(name, bits):
  quantizer = battery.MONIQUA if bits == 4 else mj.moniqua(6.0, bits)
  xs, state = battery.trajectory(built(name, quantizer), 20)
  for x, y in zip(xs, xs[1:], strict=False):
    moved = y.mean(0) - x.mean(0) + LR * gradient(x).mean(0)
    np.testing.assert_allclose(moved, 0, atol=2e-6)
  assert np.asarray(state.heard.seen.readable).all()


@pytest.mark.parametrize(
  'name,runner',
  helpers.tiered(
    [
      (name, runner) for name in ALGORITHMS for runner in ('sharded', 'pmapped')
    ],
    [('choco', 'sharded')],
  ),
)
def test_twenty_steps_agree_under_all_runners(name, runner):
  algorithm = built(name, battery.MONIQUA)
  x, _ = train(algorithm, 20)
  y, _ = train(algorithm, 20, helpers.RUNNERS[runner])
  np.testing.assert_allclose(x, y, atol=1e-5)


def test_d2_still_forgets_whose_data_it_was():
  a, b = battery.CURVATURE, battery.CENTRES
  best = (a * b).sum(0) / a.sum()
  x, _ = train(built('d2', FULL), 600)
  assert np.abs(x - best).max() < 1e-4
  every = mj.every(mj.d2(RING, FULL, **SLOTS), 3)
  x, _ = train(mj.stale(every, RING), 1500, lr=0.02)
  assert np.abs(x - best).max() < 0.01


# ------------------------------------------------------- which W, which steps


def room(name, lam):
  """The largest alpha L of the docstring, at an eigenvalue lam >= 0."""
  return (1 + 3 * lam) / 2 if name == 'd2' else (1 + lam) / (2 - lam)


@each
@pytest.mark.parametrize('weight', [0.05, 0.12, 0.2, 0.249])
def test_the_room_for_the_step_size(name, weight):
  """On x^2 / 2, along the eigenvector of lambda_n: 1, -1, 1, ..."""
  w = topologies.matrix(mj.ring(N, weight))
  largest = room(name, 1 - 4 * weight)
  assert largest > 0.5
  model = late(name, *(1.0 for _ in ALGORITHMS[name][2]))
  x = np.array([[1.0, -1.0] * (N // 2)]).T
  for rate, stable in ((largest - 0.02, True), (largest + 0.02, False)):
    left = dense.trained(model, x, lambda x: x, [w], rate, 3000)
    assert (np.abs(left).max() < 1e-3) == stable


def test_a_message_that_is_applied_a_step_late_is_no_way_for_d2():
  """Why u is late and not the whole message: at no W are its modes stable.

  x_{k+1} = 2 x_k - x_{k-1} + (lambda - 1) (2 x_{k-1} - x_{k-2})
  """
  for gap in np.linspace(0.001, 1.3, 50):
    assert np.abs(np.roots([1, -2, 1 + 2 * gap, -gap])).max() > 1


REFUSED = {
  'even ring': mj.ring(N),
  'exactly 0': mj.lazy(mj.ring(N), 0.75),
  'hypercube': mj.hypercube(N),
}


@each
@pytest.mark.parametrize('topology', REFUSED.values(), ids=REFUSED)
def test_it_is_refused_unless_lambda_n_is_positive(name, topology):
  # d2 itself refuses the even ring: what it is built on does not matter here.
  algorithm = ALGORITHMS[name][0](RING, FULL, **SLOTS)
  with pytest.raises(ValueError, match=r'lambda_n\(W\) > 0') as error:
    mj.stale(algorithm, topology)
  text = str(error.value)
  assert text.startswith(f'stale_{name} needs') and '\n' not in text
  gamma = float(re.search(r'lazy\(topology, ([\d.]+)\)', text)[1])
  slow = mj.lazy(topology, gamma)
  assert theory.eigenvalues(slow)[1] > 0.2
  mj.stale(algorithm, slow)


def test_other_refusals():
  for name in ('dcd', 'ecd', 'dpsgd'):
    algorithm = getattr(mj, name)(RING, FULL, **SLOTS)
    with pytest.raises(ValueError, match=f'stale: {name} has no stale form'):
      mj.stale(algorithm, RING)
  several = (RING, mj.lazy(mj.complete(N), 0.5))
  algorithm = mj.deepsqueeze(several, FULL, **SLOTS)
  with pytest.raises(ValueError, match='stale_deepsqueeze'):
    mj.stale(algorithm, several)


# ---------------------------------------------------------------------- theta


@pytest.mark.parametrize('name', ['d2', 'deepsqueeze'])
def test_theta_covers_two_steps(name):
  """Signs that pull the workers apart never wrap within the theory's theta.

  The second message is x_1 + u_0 = x_0 + 2 u_0: apart by two updates of each.
  """
  bits, size = 4, 0.05
  theta = theory.theta(RING, f'stale_{name}', bits, size)
  assert theta > 0.999 * theory.theta(RING, name, bits, size)
  for gamma in (0.999, 0.5, 0.1):  # the first agrees as fast as can be
    quick = mj.lazy(mj.complete(N), gamma)
    assert theory.sums(quick, f'stale_{name}').gradient >= 2 * 2 - 1e-6
  quantizer = mj.moniqua(theta, bits, 'nearest')
  algorithm = ALGORITHMS[name][0](RING, quantizer, **SLOTS)
  algorithm = mj.stale(algorithm, RING)
  rng = np.random.default_rng(0)

  def step(x, state, u, k):
    updates, state = algorithm.update(u, state, x, step=k)
    return x + updates, state

  x, step = jnp.zeros((N, 500)), mj.simulated(step, (0, 0, 0, None))
  state, furthest = mj.simulated(algorithm.init, (0,))(x), 0
  for k in range(80):
    far = 3 * np.sign(np.asarray(x - jnp.mean(x, axis=0, keepdims=True)))
    u = size * np.sign(rng.normal(size=x.shape) + far)
    x, state = step(x, state, u.astype(np.float32), np.int32(k))
    seen = jax.device_get(state.heard.seen)
    assert seen.readable.all()
    furthest = max(furthest, seen.distance.max())
  assert 0.2 * theta < furthest < theta


def test_auto_theta_takes_the_limit_of_the_stale_form():
  spec = dict(name='auto_theta', bits=4, start=1.0, theta=None)
  limits = {}
  for late in (False, True):
    config = digits.get_config('moniqua4')
    config.update(gossip=dict(name='d2'), gamma=0.5, quantizer=spec)
    config.overlap = late
    limits[late] = experiment.from_config(config).quantizer.limit
  gradient = lambda name: theory.sums(RING, name).gradient
  ratio = gradient('stale_d2') / gradient('d2')
  np.testing.assert_allclose(limits[True] / limits[False], ratio, rtol=1e-6)


# ------------------------------------------------------------------- training


def config_of(gossip, **entries):
  config = digits.get_config('moniqua4')
  config.update(dict(gossip=dict(name=gossip), gamma=0.5, overlap=True))
  config.update(entries)
  return config


LATE = dict(overlap=False, local_steps=3)
LATE['outer'] = dict(momentum=0.5, nesterov=True, delay=2)
BESIDE = {
  'dpsgd': {},
  'd2': {},
  'outer': LATE | dict(order='adapt_then_combine'),
  'diloco': LATE | dict(reduce=dict(name='allreduce')),
}
GOSSIP = {'outer': 'dpsgd', 'diloco': 'none'}


@pytest.mark.parametrize('name', helpers.tiered(BESIDE, ['d2']))
def test_two_programs_and_a_third_are_the_one(name):
  gossip = GOSSIP.get(name, name)
  config = config_of(gossip, runner='sharded', **BESIDE[name])
  if name == 'diloco':
    config.quantizer.update(name='full_precision', bits=None, theta=None)
    config.theta.update(name='fixed', shrink=None)
  built = experiment.from_config(config)
  init, one, _ = step_lib.make_steps(built)
  one = built.run(one, (0, 0, None))
  three = overlap.train_step(built, step_lib.make_gradient(built))
  make = built.run(init, (0,))
  states = [make(np.arange(N)), make(np.arange(N))]
  batches = data.batches(
    *built.data,
    seed=0,
    start=0,
    stop=5,
    batch_size=config.batch_size,
  )
  for k, batch in batches:
    states[0], report = one(states[0], batch, np.int32(k))
    states[1], other = three(states[1], batch, np.int32(k))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, (states[0], report), (states[1], other))


# What makes a step of gradients in the gossip, or may talk beside it.
NOT_BESIDE = {
  'quasi-global': dict(momentum_kind=dict(name='quasi_global')),
  'dadam': dict(optimizer=dict(name='dadam')),
  'one of my own': dict(optimizer=dict(name='moniqua_jax:dadam')),
}


@pytest.mark.parametrize('name', NOT_BESIDE)
def test_two_programs_are_for_updates_that_nobody_else_talks_of(
  name, monkeypatch
):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  late = LATE | dict(order='adapt_then_combine')
  assert overlap.pays(config_of('dpsgd', **late))
  assert not overlap.pays(config_of('dpsgd', **late, **NOT_BESIDE[name]))


def test_dpsgd_overlaps_as_it_is():
  plain = experiment.from_config(config_of('dpsgd', overlap=False))
  late = experiment.from_config(config_of('dpsgd'))
  shape = lambda built: jax.tree.structure(
    built.optimizer.chain.init(np.zeros(3, 'f4'))
  )
  assert shape(plain) == shape(late)


MISTAKES = {
  'an even ring': (
    config_of('choco', gamma=1.0),
    r'config.overlap: stale_choco needs lambda_n\(W\) > 0',
  ),
  'a replica': (config_of('dcd'), 'config.overlap: stale: dcd has no stale'),
  'no gossip': (
    config_of('none', reduce=dict(name='allreduce')),
    'config.overlap=True needs gossip',
  ),
}


@pytest.mark.parametrize('config, match', MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_config(config, match):
  with pytest.raises(ValueError, match=match):
    experiment.from_config(config)
