"""Algorithms: one battery over a table, and what the compiled step sends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax import gossip, topologies, wire
from moniqua_jax.workers import AXIS
from tests import helpers, hlo

N, D, LR = helpers.N, 40, 0.1
KEY = jax.random.key(1)
OTHER_RUNNERS = ('sharded', 'pmapped')

ALGORITHMS = {
  'allreduce': dict(first=mj.allreduce(axis_name=AXIS)),
  **{
    f'dpsgd {name}': dict(
      last=mj.dpsgd(topology, quantizer, axis_name=AXIS, key=KEY)
    )
    for name, topology, quantizer in [
      ('full precision', mj.ring(N), mj.full_precision()),
      ('uniform 8', mj.ring(N), mj.uniform(8)),
      ('moniqua 8', mj.ring(N), mj.moniqua(2.0, 8)),
      ('moniqua 4 torus', mj.torus(2, 4), mj.moniqua(2.0, 4)),
      ('moniqua 4 one peer', mj.one_peer_exponential(N), mj.moniqua(2.0, 4)),
      ('moniqua 1 lazy', mj.lazy(mj.ring(N), 0.2), mj.moniqua(4.0, 1)),
      (
        'moniqua scheduled',
        mj.ring(N),
        mj.scheduled(lambda t: mj.moniqua(t, 4), lambda step: 2.0 - step / 180),
      ),
      (
        'moniqua scaled',
        mj.ring(N),
        mj.scaled(mj.moniqua(1.0, 8), ((10, 2.0), (D - 10, 1.5))),
      ),
    ]
  },
  'streaming': dict(
    last=mj.streaming(
      mj.dpsgd(mj.ring(N), mj.full_precision(), axis_name=AXIS, key=KEY), 2
    )
  ),
}
# The mean of the workers moves by the mean update, exactly.
KEEP_THE_MEAN = [name for name in ALGORITHMS if name.startswith('dpsgd')]


@functools.cache
def chain(first=None, last=None):
  return optax.chain(
    first or optax.identity(),
    optax.sgd(LR, momentum=0.9),
    last or optax.identity(),
  )


def problem(seed=0):
  """Quadratics |x - b_i|^2 / 2: each worker has its own b_i."""
  rng = np.random.default_rng(seed)
  return rng.standard_normal((N, D)).astype(np.float32) / 4


def step_of(tx):
  """A step of one worker: identical for every algorithm."""

  def step(x, state, b, k):
    updates, state = tx.update(x - b, state, x, step=k)
    return optax.apply_updates(x, updates), state

  return step


@functools.cache
def functions(tx, run):
  """init and a step of all workers, compiled once."""
  return run(tx.init, (0,)), run(step_of(tx), (0, 0, 0, None))


def train(tx, run, steps, b):
  x = np.zeros((N, D), np.float32)
  init, step = functions(tx, run)
  state = init(x)
  for k in range(steps):
    # One step in flight: 8 devices on few cores may starve in collectives.
    x, state = jax.block_until_ready(step(x, state, b, np.int32(k)))
  return np.asarray(x), state


def apart(x):
  """How far the one is who is furthest from the mean."""
  return np.abs(x - x.mean(axis=0)).max()


@pytest.mark.parametrize('name', ALGORITHMS)
def test_the_mean_converges_and_the_workers_stay_together(name):
  b = problem()
  x, _ = train(chain(**ALGORITHMS[name]), mj.simulated, 150, b)
  np.testing.assert_allclose(x.mean(axis=0), b.mean(axis=0), atol=2e-2)
  alone, _ = train(chain(), mj.simulated, 150, b)
  # One bit rounds more than those who do not talk are apart.
  share = 1.5 if '1 lazy' in name else 0.8
  assert apart(x) < share * apart(alone)


@pytest.mark.parametrize('name', KEEP_THE_MEAN)
def test_the_mean_moves_by_the_mean_update(name):
  b, tx = problem(), chain(**ALGORITHMS[name])
  alone = chain()  # the same local steps, without gossip
  x, _ = train(tx, mj.simulated, 1, b)
  y, _ = train(alone, mj.simulated, 1, b)
  np.testing.assert_allclose(x.mean(axis=0), y.mean(axis=0), atol=1e-6)
  # Several steps: gradients are linear here, so the means stay equal.
  x, _ = train(tx, mj.simulated, 20, b)
  y, _ = train(alone, mj.simulated, 20, b)
  np.testing.assert_allclose(x.mean(axis=0), y.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(
  'name,runner',
  helpers.tiered(
    [(name, runner) for name in ALGORITHMS for runner in OTHER_RUNNERS],
    [
      ('allreduce', 'sharded'),
      ('dpsgd moniqua 4 one peer', 'sharded'),
      ('dpsgd moniqua scheduled', 'sharded'),
      ('streaming', 'sharded'),
      ('dpsgd moniqua 8', 'pmapped'),
    ],
  ),
)
def test_twenty_steps_agree_under_all_runners(name, runner):
  b, tx = problem(), chain(**ALGORITHMS[name])
  x, _ = train(tx, mj.simulated, 20, b)
  y, _ = train(tx, helpers.RUNNERS[runner], 20, b)
  np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize('name', ALGORITHMS)
def test_the_state_keeps_its_shapes(name):
  tx, b = chain(**ALGORITHMS[name]), problem()
  shapes = lambda tree: jax.tree.map(lambda v: (v.shape, v.dtype), tree)
  _, before = train(tx, mj.simulated, 0, b)
  x = jax.ShapeDtypeStruct((N, D), jnp.float32)
  _, step = functions(tx, mj.simulated)
  _, after = jax.eval_shape(step, x, before, x, np.int32(0))
  assert shapes(before) == shapes(after)


def test_full_precision_is_dense_dpsgd():
  """X_{k+1} = W X_k - alpha m_k, m_k = beta m_{k-1} + G(X_k), in NumPy."""
  b = problem()
  name = 'dpsgd full precision'
  x, _ = train(chain(**ALGORITHMS[name]), mj.simulated, 30, b)
  w = topologies.matrix(mj.ring(N))
  y, m = np.zeros((N, D)), np.zeros((N, D))
  for _ in range(30):
    m = 0.9 * m + (y - b)
    y = w @ y - LR * m
  np.testing.assert_allclose(x, y, atol=1e-5)


def test_moniqua_is_algorithm_1():
  """Against Algorithm 1 in its own form, with a modulo of floats, nearest."""
  b, theta, bits = problem(), 2.0, 8
  tx = chain(
    last=mj.dpsgd(
      mj.ring(N), mj.moniqua(theta, bits, 'nearest'), axis_name=AXIS, key=KEY
    )
  )
  x, _ = train(tx, mj.simulated, 10, b)
  delta = 2.0 ** -(bits + 1)
  big = 2 * theta / (1 - 2 * delta)
  cmod = lambda z, a: z - a * np.floor(z / a + 0.5)
  w = topologies.matrix(mj.ring(N))
  y, m = np.zeros((N, D)), np.zeros((N, D))
  for _ in range(10):
    g = y - b  # line 1
    q = np.round(cmod(y / big, 1) * 2**bits) / 2**bits  # line 2
    own = q * big - cmod(y, big) + y  # line 3
    move = np.zeros((N, D))
    for i in range(N):
      for j in range(N):
        if i != j and w[i, j]:
          theirs = cmod(q[j] * big - y[i], big) + y[i]  # line 4
          move[i] += w[i, j] * (theirs - own[i])  # line 5
    m = 0.9 * m + g
    y = y + move - LR * m  # line 6
  # Rounding ties may flip between float32 and float64; by one step at most.
  assert np.mean(np.abs(x - y) > 1e-4) < 0.01
  assert np.abs(x - y).max() < 2 * big / 2**bits


def test_allreduce_takes_the_mean_gradient():
  b = problem()
  x, _ = train(chain(**ALGORITHMS['allreduce']), mj.simulated, 5, b)
  assert (x == x[:1]).all()
  y, m = np.zeros(D), np.zeros(D)
  for _ in range(5):
    m = 0.9 * m + (y - b.mean(axis=0))
    y = y - LR * m
  np.testing.assert_allclose(x[0], y, atol=1e-5)


def test_parameters_may_be_a_tree():
  algorithm = ALGORITHMS['dpsgd moniqua 4 torus']['last']
  tree = {'b': jnp.ones((N, 3)), 'w': jnp.full((N, 2, 2), 0.5)}

  def step(params, k):
    updates, _ = algorithm.update(
      jax.tree.map(jnp.zeros_like, params),
      algorithm.init(params),
      params,
      step=k,
    )
    return updates

  updates = mj.simulated(step, (0, None))(tree, np.int32(0))
  assert jax.tree.structure(updates) == jax.tree.structure(tree)
  # All are equal: gossip has nothing to do, up to a fused multiply-add.
  for leaf in jax.tree.leaves(updates):
    np.testing.assert_allclose(leaf, 0, atol=2**-22)


def test_seen_rides_in_the_state():
  tx = chain(**ALGORITHMS['dpsgd moniqua 8'])
  _, state = train(tx, mj.simulated, 3, problem())
  seen = state[-1].heard.seen
  assert seen.readable.shape == (N, 2) and seen.readable.all()
  assert (seen.distance > 0).all() and (seen.theta == 2.0).all()


def test_errors():
  with pytest.raises(ValueError, match="strategy='best'; choose from"):
    mj.allreduce(strategy='best', axis_name=AXIS)
  with pytest.raises(ValueError, match='takes no other quantizer'):
    mj.allreduce(mj.uniform(8), axis_name=AXIS)
  mj.allreduce(mj.full_precision(), axis_name=AXIS)
  one_way = mj.Topology([((0.5, 0.1), (1, 0))])
  with pytest.raises(ValueError, match='dpsgd'):
    mj.dpsgd(one_way, mj.full_precision(), axis_name=AXIS, key=KEY)
  apart = mj.Topology([(0.5, (1, 0, 3, 2))])
  with pytest.raises(ValueError, match='connected'):
    mj.dpsgd(apart, mj.full_precision(), axis_name=AXIS, key=KEY)


# ------------------------------------------------------------- on the wire


def compiled_step(quantizer, d):
  algorithm = mj.dpsgd(mj.ring(N), quantizer, axis_name=AXIS, key=KEY)
  tx = chain(last=algorithm)
  x = np.zeros((N, d), np.float32)
  state = jax.eval_shape(mj.sharded(tx.init, (0,)), x)
  step = mj.sharded(step_of(tx), (0, 0, 0, None))
  return step.lower(x, state, x, np.int32(0)).compile().as_text()


@pytest.mark.parametrize('bits', helpers.tiered(range(1, 9), (1, 4, 7)))
def test_only_packed_bytes_travel(bits):
  d = 10_007
  found = list(hlo.collectives(compiled_step(mj.moniqua(1.0, bits), d)))
  permutes = [c for c in found if c[0] == 'collective-permute' and c[2] > 64]
  assert len(permutes) == 2
  least = -(-d * bits // 8)
  for _, dtype, nbytes in permutes:
    assert dtype == 'u8'
    assert least + 4 <= nbytes <= least + 2 + 16
    assert nbytes == wire.packed_size(d, bits) + 12
  others = [c for c in found if c not in permutes]
  assert all(nbytes <= 1024 for _, _, nbytes in others)


def test_full_precision_travels_as_it_is():
  found = list(hlo.collectives(compiled_step(mj.full_precision(), 1000)))
  assert found == [('collective-permute', 'f32', 4000)] * 2


def test_the_count_of_collectives_can_fail():
  """An all-reduce of the parameters would be seen."""
  run = mj.sharded(lambda x: jax.lax.pmean(x, AXIS), (0,))
  text = run.lower(jnp.zeros((N, 1000))).compile().as_text()
  assert list(hlo.collectives(text)) == [('all-reduce', 'f32', 4000)]


def test_quantize_alone():
  tx = mj.quantize(mj.uniform(8, rounding='nearest'), KEY)
  updates = {'a': jnp.linspace(0, 1, 5), 'b': jnp.zeros((2, 2))}
  out, state = tx.update(updates, tx.init(updates))
  assert jax.tree.structure(out) == jax.tree.structure(updates)
  for u, v in zip(jax.tree.leaves(out), jax.tree.leaves(updates), strict=True):
    np.testing.assert_allclose(u, v, atol=1 / 255)
  assert state.count == 1
  with pytest.raises(TypeError, match='quantizer is a Tuned; .*moniqua'):
    mj.quantize(mj.auto_theta(4, 1.0), KEY)
  assert gossip.max_edges((mj.ring(N),)) == 2
