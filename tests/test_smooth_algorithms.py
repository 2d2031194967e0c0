"""DCGD+, DIANA+ and ADIANA+ against their dense forms in NumPy, float64.

The quantizer of the comparison is deterministic, so that both can follow the
same path; what is random is held to means and to convergence.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax.quantizers import roots
from moniqua_jax.theory import gammas
from moniqua_jax.workers import AXIS
from tests import helpers, hlo, oracles

N, D, STEPS, LR = helpers.N, 24, 30, 0.1
RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((N, D)).astype(np.float32)
HALVES = RNG.standard_normal((N, D, D)) / D**0.5
MATRICES = HALVES @ HALVES.transpose(0, 2, 1) + 0.2 * np.eye(D)
X0 = RNG.standard_normal(D).astype(np.float32)
BEST = np.linalg.solve(
  MATRICES.sum(0), np.einsum('nij,nj->i', MATRICES, CENTRES)
)
SLOTS = dict(axis_name=AXIS, key=jax.random.key(2), keep=lambda leaf: False)
ALPHA = 0.3
ADIANA = gammas.Adiana(0.3, 0.1, 0.25, 0.5, 0.15, 0.98, 1.0)
ROOTS = roots.root(MATRICES)


def gradient(i, x):
  """Of f_i(x) = |x - c_i|^2 / 2 in the norm of L_i: its matrix is L_i."""
  return MATRICES[i] @ (x - CENTRES[i])


def gradients(x):
  return np.stack([gradient(i, x) for i in range(N)])


def train(algorithm, steps=STEPS, run=mj.simulated, lr=LR):
  """The workers' parameters after some steps, and the state."""
  tx = optax.chain(algorithm, optax.sgd(lr))

  def step(x, state, matrix, centre, k):
    grad_fn = lambda x: matrix @ (x - centre)
    updates, state = tx.update(grad_fn(x), state, x, step=k, grad_fn=grad_fn)
    return optax.apply_updates(x, updates), state

  x = jnp.broadcast_to(jnp.asarray(X0), (N, D))
  state, step = run(tx.init, (0,))(x), run(step, (0, 0, 0, 0, None))
  matrices = jnp.asarray(MATRICES, jnp.float32)
  for k in range(steps):
    x, state = jax.block_until_ready(
      step(x, state, matrices, CENTRES, np.int32(k))
    )
  return np.asarray(x, np.float64), state


def compressor(plus):
  """(quantizer, compress(i, v)): 6 bits to the nearest, within L_i or not."""
  coarse, nearest = mj.uniform(6, D, 'nearest'), oracles.min_max(6)
  if not plus:
    return coarse, lambda i, v: nearest(v)
  known = mj.per_worker(lambda root: mj.smooth(coarse, root), ROOTS, AXIS)
  values, vectors = np.linalg.eigh(MATRICES)
  power = lambda p: vectors * values[:, None] ** p @ vectors.transpose(0, 2, 1)
  half, inverse = power(0.5), power(-0.5)
  return known, lambda i, v: half[i] @ nearest(inverse[i] @ v)


def dcgd(compress, steps):
  x = X0.astype(float)
  for _ in range(steps):
    g = gradients(x)
    x = x - LR * np.mean([compress(i, g[i]) for i in range(N)], axis=0)
  return x


def diana(compress, steps):
  x, h = X0.astype(float), np.zeros((N, D))
  for _ in range(steps):
    g = gradients(x)
    moved = np.stack([compress(i, g[i] - h[i]) for i in range(N)])
    x = x - LR * (h.mean(0) + moved.mean(0))
    h = h + ALPHA * moved
  return x


def adiana(compress, steps):
  """With p = 1, so that no coin is needed."""
  p, y, z, w = ADIANA, X0.astype(float), X0.astype(float), X0.astype(float)
  x, h = y, np.zeros((N, D))
  for _ in range(steps):
    now, then = gradients(x), gradients(w)
    first = np.stack([compress(i, now[i] - h[i]) for i in range(N)])
    second = np.stack([compress(i, then[i] - h[i]) for i in range(N)])
    g = h.mean(0) + first.mean(0)
    h = h + p.alpha * second
    w, y = y, x - p.eta * g
    z = p.beta * z + (1 - p.beta) * x + p.gamma / p.eta * (y - x)
    x = p.theta1 * z + p.theta2 * w + (1 - p.theta1 - p.theta2) * y
  return x


# name -> (algorithm(quantizer), oracle(compress, steps), learning rate)
DENSE = {
  'dcgd': (lambda q: mj.dcgd(q, **SLOTS), dcgd, LR),
  'diana': (lambda q: mj.diana(q, ALPHA, **SLOTS), diana, LR),
  'adiana': (lambda q: mj.adiana(q, ADIANA, **SLOTS), adiana, 1.0),
}
names = pytest.mark.parametrize('name', DENSE)
plusses = pytest.mark.parametrize('plus', [False, True])


@names
def test_full_precision_is_the_dense_form(name):
  algorithm, oracle, lr = DENSE[name]
  x, _ = train(algorithm(mj.full_precision()), lr=lr)
  same = lambda i, v: v
  np.testing.assert_allclose(x, np.tile(oracle(same, STEPS), (N, 1)), atol=1e-4)


@plusses
@names
def test_compression_is_the_dense_form(name, plus):
  """A few steps: then a rounding tie may fall differently in float32."""
  algorithm, oracle, lr = DENSE[name]
  quantizer, compress = compressor(plus)
  x, _ = train(algorithm(quantizer), steps=4, lr=lr)
  dense = oracle(compress, 4)
  np.testing.assert_allclose(x, np.tile(dense, (N, 1)), atol=3e-4)
  assert np.abs(dense - oracle(lambda i, v: v, 4)).max() > 1e-3


def varying():
  steps = jnp.full((N, D), 0.5)
  table = {'root': ROOTS, 'steps': steps}
  make = lambda row: mj.smooth(
    mj.varying_steps(row['steps'], bits=3), row['root']
  )
  return mj.per_worker(make, table, AXIS)


OTHER_RUNNERS = ('sharded', 'pmapped')
against_others = pytest.mark.parametrize(
  'name,runner',
  helpers.tiered(
    [(name, runner) for name in DENSE for runner in OTHER_RUNNERS],
    [('adiana', 'sharded')],
  ),
)


@against_others
def test_all_workers_hold_the_same_bits_under_all_runners(name, runner):
  algorithm, _, lr = DENSE[name]
  ends = []
  for run in (mj.simulated, helpers.RUNNERS[runner]):
    x, _ = train(algorithm(varying()), steps=15, run=run, lr=lr)
    np.testing.assert_array_equal(x, np.tile(x[0], (N, 1)))
    ends.append(x[0])
  # A product of matrices adds in another order under another runner.
  for x in ends[1:]:
    np.testing.assert_allclose(x, ends[0], atol=1e-2)


@pytest.mark.optimized
@against_others
def test_a_diagonal_root_is_equal_to_the_bit_under_all_runners(name, runner):
  """The first message; later gradients are products of matrices."""
  algorithm, _, lr = DENSE[name]
  table = roots.stacked([roots.root(np.diag(m)) for m in MATRICES])
  known = mj.per_worker(
    lambda root: mj.smooth(mj.dithering(3), root), table, AXIS
  )
  grads = jnp.float32(gradients(X0.astype(float)))

  def once(g):
    tx = algorithm(known)
    x = jnp.asarray(X0)
    updates, _ = tx.update(
      g, tx.init(x), x, step=jnp.int32(0), grad_fn=lambda w: g
    )
    return updates

  runners = (mj.simulated, helpers.RUNNERS[runner])
  ends = [run(once, (0,))(grads) for run in runners]
  for x in ends[1:]:
    np.testing.assert_array_equal(x, ends[0])


@names
def test_it_sends_packed_bytes_and_no_float(name):
  algorithm, _, _ = DENSE[name]
  tx = algorithm(varying())

  def step(g, x):
    grad_fn = lambda w: g
    return tx.update(g, tx.init(x), x, step=jnp.int32(0), grad_fn=grad_fn)

  rows = jnp.zeros((N, D))
  run = mj.sharded(step, (0, 0))
  text = run.lower(rows, rows).compile().as_text()
  sent = [*hlo.collectives(text)]
  size = -(-D * 2 // 8) + -(-D // 8) + 4 + 1  # two planes, norm, index
  assert {kind for kind, _, _ in sent} == {'all-to-all'}
  assert {dtype for _, dtype, _ in sent} == {'u8'}
  messages = 2 if name == 'adiana' else 1
  assert sum(b for _, _, b in sent) == messages * N * size


def test_the_mean_of_dcgd_is_unbiased():
  x, count = X0.astype(float), 3000
  grads = jnp.float32(gradients(x))

  def mean(key):
    tx = mj.dcgd(varying(), **(SLOTS | dict(key=key)))
    once = lambda g: tx.update(g, tx.init(g), g, step=jnp.int32(0))[0]
    return jax.vmap(once, axis_name=AXIS)(grads)[0]

  draws = np.asarray(
    jax.lax.map(
      mean, jax.random.split(jax.random.key(0), count), batch_size=100
    )
  )
  z = (draws.mean(0) - gradients(x).mean(0)) / draws.std(0) * count**0.5
  assert np.abs(z).max() < 5


def test_diana_converges_where_dcgd_stops():
  dcgd, _ = train(DENSE['dcgd'][0](varying()), 1500, lr=0.05)
  diana, state = train(DENSE['diana'][0](varying()), 1500, lr=0.05)
  assert np.abs(dcgd[0] - BEST).max() > 0.01
  assert np.abs(diana[0] - BEST).max() < 1e-4
  # The shifts have learned the gradients at the optimum, which are not zero.
  shifts = np.asarray(state[0].error.own)
  np.testing.assert_allclose(shifts, gradients(BEST), atol=2e-3)
  np.testing.assert_allclose(
    state[0].error.mean, np.tile(shifts.mean(0), (N, 1)), atol=1e-5
  )


def test_a_random_coin_moves_w_as_often_as_p_says():
  parameters = ADIANA._replace(p=0.25)
  tx = mj.adiana(mj.full_precision(), parameters, **SLOTS)

  def run(x):
    def step(carry, k):
      x, state = carry
      updates, moved = tx.update(x, state, x, step=k, grad_fn=lambda w: w)
      same = (moved.w == state.w).all()
      return (x - updates, moved), same

    return jax.lax.scan(step, (x, tx.init(x)), jnp.arange(400))[1]

  same = jax.vmap(run, axis_name=AXIS)(jnp.ones((2, D)))
  assert (same[0] == same[1]).all()
  assert abs(1 - same[0].mean() - 0.25) < 0.1


def test_small_leaves_are_exact():
  params = {'w': jnp.zeros((N, 40, 40)), 'b': jnp.zeros((N, 7))}
  grads = jax.tree.map(
    lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape),
    params,
  )
  slots = dict(axis_name=AXIS, key=jax.random.key(0))
  for tx in (
    mj.dcgd(mj.dithering(2), **slots),
    mj.diana(mj.dithering(2), 0.2, **slots),
  ):
    once = lambda g, tx=tx: tx.update(g, tx.init(g), step=jnp.int32(0))[0]
    mean = jax.jit(jax.vmap(once, axis_name=AXIS))(grads)
    exact = np.mean(grads['b'], axis=0)
    np.testing.assert_allclose(mean['b'][0], exact, atol=1e-6)
    assert np.abs(mean['w'][0] - np.mean(grads['w'], axis=0)).max() > 1e-3


@pytest.mark.parametrize('alpha', [0, -0.1, 1.5, float('nan')])
def test_alpha_is_refused_outside_its_range(alpha):
  with pytest.raises(ValueError, match=r'alpha=.*above 0 and at most 1'):
    mj.diana(mj.dithering(1), alpha, **SLOTS)


def test_adiana_says_what_it_needs():
  tx = mj.adiana(mj.dithering(1), ADIANA, **SLOTS)
  with pytest.raises(ValueError, match='adiana: update.. needs params, and'):
    tx.update(jnp.ones(D), tx.init(jnp.ones(D)), step=jnp.int32(0))
