"""Quasi-global momentum against its formula; what it forgets, and refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import topologies
from moniqua_jax.quantizers import base
from moniqua_jax.training import optimizer, resolve
from moniqua_jax.workers import AXIS
from tests import helpers, oracles

N, D = helpers.N, 24
SLOTS = dict(axis_name=AXIS, key=jax.random.key(5))
RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((N, D)).astype(np.float32)
X0 = RNG.standard_normal(D).astype(np.float32) + np.zeros_like(CENTRES)
PAIRS = mj.one_peer_hypercube(N)
WEIGHTS = [topologies.matrix(pairs) for pairs in PAIRS]


def falling(k):
  """A rate that ends at 0, and has been 0 before."""
  return 0.15 * (k != 5) * (k % 1000 < 40) * (1 - k / 80)


# (rate, the other arguments)
CASES = {
  'as published': (lambda k: 0.1, {}),
  'all': (falling, dict(nesterov=True, period=3, warmup=4, mu=0.8)),
  'no memory': (falling, dict(mu=0.0, momentum=0.5)),
}


def trained(quantizer, rate, steps, period=1, **numbers):
  """x and the momentum of all workers, on |x - b_i|^2 / 2."""
  algorithm = mj.every(mj.dpsgd(PAIRS, quantizer, **SLOTS), period)
  tx = mj.quasi_global(algorithm, rate, **numbers)

  def worker(x, b):
    def step(k, carry):
      x, state = carry
      updates, state = tx.update(x - b, state, x, step=k)
      return optax.apply_updates(x, updates), state

    x, state = jax.lax.fori_loop(0, steps, step, (x, tx.init(x)))
    return x, state.momentum

  return map(np.asarray, mj.simulated(worker, (0, 0))(X0, CENTRES))


@pytest.mark.parametrize('name', helpers.tiered(CASES, ['all']))
def test_it_is_the_formula(name):
  rate, numbers = CASES[name]
  x, m = trained(mj.full_precision(), rate, 45, **numbers)
  numbers = dict(beta=numbers.get('momentum', 0.9), mu=0.9) | numbers
  numbers.pop('momentum', None)
  dense = oracles.quasi_global(
    np.float64(X0), lambda x: x - CENTRES, WEIGHTS, rate, 45, **numbers
  )
  np.testing.assert_allclose(x, dense[0], atol=1e-5)
  np.testing.assert_allclose(m, dense[1], atol=2e-5)
  assert np.abs(dense[1]).max() > 0.01


def test_the_mean_follows_the_formula_and_m_forgets_whose_data_it_was():
  """Few bits move no mean; at rest the gradients are large and m is small."""
  x, m = trained(mj.moniqua(4.0, 8), lambda k: 0.02, 900)
  centre = CENTRES.mean(0, keepdims=True).astype(np.float64)
  mean, _ = oracles.quasi_global(
    np.float64(X0[:1]), lambda x: x - centre, [np.eye(1)], lambda k: 0.02,
    900, 0.9, 0.9,
  )  # fmt: skip
  np.testing.assert_allclose(x.mean(0), mean[0], atol=1e-4)
  np.testing.assert_allclose(x.mean(0), centre[0], atol=1e-2)
  of_gradients = np.sqrt(np.mean((x - CENTRES) ** 2))
  assert of_gradients > 0.8 and np.sqrt(np.mean(m**2)) < of_gradients / 8


# ------------------------------------------------------------------- refusals

FULL = mj.full_precision()
DPSGD = mj.dpsgd(mj.ring(N), FULL, **SLOTS)
LAZY = mj.lazy(mj.ring(N), 0.5)
REFUSED = {
  'adpsgd': (lambda: mj.adpsgd(PAIRS, FULL, 2, **SLOTS), 'not of adpsgd, its'),
  'push_sum': (lambda: mj.push_sum(PAIRS, FULL, **SLOTS), 'of unequal mass'),
  'qdgd': (lambda: mj.qdgd(mj.ring(N), FULL, 0.1, **SLOTS), 'not of qdgd, it'),
  'stale': (
    lambda: mj.stale(mj.d2(LAZY, FULL, **SLOTS), LAZY),
    'not of stale_d2, its messages hold',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_it_is_not_defined_for_is_named(name):
  make, words = REFUSED[name]
  with pytest.raises(ValueError, match=f'quasi_global: .*{words}.*use dpsgd'):
    mj.quasi_global(make(), 0.1)


@pytest.mark.parametrize(
  'name,value',
  [
    ('momentum', 0.0),
    ('momentum', 1.0),
    ('mu', 1.0),
    ('mu', -0.1),
    ('warmup', 0.5),
  ],
)
def test_numbers_out_of_range_are_named(name, value):
  with pytest.raises(ValueError, match=f'{name}={value}; quasi_global needs'):
    mj.quasi_global(DPSGD, 0.1, **{name: value})


@pytest.mark.parametrize('rate', [None, '0.1', float('nan')])
def test_a_rate_that_is_none_is_named(rate):
  with pytest.raises(ValueError, match='learning_rate=.*; quasi_global needs'):
    mj.quasi_global(DPSGD, rate)


def test_optax_may_inject_its_numbers():
  """They are traced then, and give what they give when they are known."""
  inject = optax.inject_hyperparams(mj.quasi_global, static_args='warmup')
  both = [make(DPSGD, learning_rate=0.1) for make in (inject, mj.quasi_global)]

  def step(x):
    last = []
    for tx in both:
      _, state = tx.update(x, tx.init(x), x, step=jnp.int32(0))
      last.append(tx.update(x, state, x, step=jnp.int32(1))[0])
    return last

  injected, known = mj.simulated(step, (0,))(CENTRES)
  np.testing.assert_allclose(injected, known, rtol=1e-6)


def test_it_stands_around_every_not_within():
  with pytest.raises(ValueError, match='quasi_global_dpsgd must see each step'):
    mj.every(mj.quasi_global(DPSGD, 0.1), 2)
  around = mj.quasi_global(mj.answered(mj.every(DPSGD, 2)), 0.1)
  assert around.period == 2
  assert around.heard(around.init(jnp.zeros(3))).lost == 0


# ----------------------------------------------------------------- the program

EXACT = dict(quantizer=dict(name='full_precision', bits=None, theta=None))
MISTAKES = {
  'no gossip': (
    dict(gossip=dict(name='none'), reduce=dict(name='allreduce'), **EXACT),
    'config.momentum_kind: quasi_global: not of none, without gossip',
  ),
  'late': (
    dict(gossip=dict(name='adpsgd', delays=1)),
    'config.momentum_kind: quasi_global: not of adpsgd',
  ),
  'overlap': (dict(overlap=True), 'config.overlap=True does not go with it'),
  'momentum of gradients': (
    dict(local_momentum=0.9),
    'config.local_momentum=0.9 does not go with it',
  ),
  'none': (dict(momentum=0.0), 'config.momentum_kind: momentum=0.0; quasi'),
  'its mu': (
    dict(momentum_kind=dict(mu=1.5)),
    'kind.mu=1.5; .* below 1',
  ),
  'another': (
    dict(momentum_kind=dict(name='global')),
    "config.momentum_kind.name='global'; choose from",
  ),
}


def configured(**entries):
  config = digits.get_config('moniqua4')
  config.momentum_kind.name = 'quasi_global'
  config.update(entries)
  return config


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_named(name):
  entries, words = MISTAKES[name]
  with pytest.raises(ValueError, match=words):
    resolve.resolve(configured(**entries))


def test_the_config_chooses_it_and_its_turn_is_that_of_local_steps():
  setup = resolve.resolve(configured(local_steps=4))
  chain = optimizer.make(setup, base.tuned(FULL), None, None, 0.1, None)
  state = jax.eval_shape(chain.chain.init, jnp.zeros(5))
  own = optimizer.Optimizer(*state)
  assert own.gossip.momentum.shape == own.gossip.moved.shape == (5,)
  assert jax.tree.leaves(own.local) == []  # no trace, no rate
  assert chain.gossip.name == 'quasi_global_dpsgd'
