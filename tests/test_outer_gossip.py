"""DiLoCo by gossip: the mean goes as DiLoCo's, the workers stay together."""

import functools

import jax
import numpy as np
import optax
import optax.contrib
import pytest

import moniqua_jax as mj
from moniqua_jax import theory
from moniqua_jax.algorithms import turns
from moniqua_jax.algorithms.delayed import delayed as later
from moniqua_jax.workers import AXIS
from tests import helpers, hlo

N, D, H, TURNS = helpers.N, 150, 3, 3
RATE, MOMENTUM = 0.7, 0.9
RNG = np.random.default_rng(0)
X = np.tile(RNG.normal(size=(1, D)), (N, 1)).astype(np.float32)
U = 0.02 * RNG.normal(size=(H * TURNS, N, D)).astype(np.float32)
SLOTS = dict(axis_name=AXIS, key=jax.random.key(2))
NESTEROV = optax.sgd(RATE, MOMENTUM, nesterov=True)
SLACK = mj.lazy(mj.ring(N), 0.2)  # that one bit needs
# name -> the graph, and the quantizer, of what is less than 1 apart
MESSAGES = {
  'f32': (mj.complete(N), mj.full_precision()),
  '8 bits': (mj.ring(N), mj.moniqua(theta=1.0, bits=8)),
  '4 bits': (mj.one_peer_hypercube(N), mj.moniqua(theta=1.0, bits=4)),
  '2 bits': (SLACK, mj.moniqua(theta=1.0, bits=2)),
  '1 bit': (SLACK, mj.moniqua(theta=1.0, bits=1)),
}


def gossip(name):
  topology, quantizer = MESSAGES[name]
  return mj.dpsgd(topology, quantizer, **SLOTS)


@functools.cache
def functions(tx, run=mj.simulated):
  def step(x, u, state, k):
    u, state = tx.update(u, state, x, step=k)
    return x + u, state

  return run(tx.init, (0,)), run(step, (0, 0, 0, None))


def train(tx, updates=U):
  """x after each step, f32[steps, n, d], and the state at the end."""
  init, step = functions(tx)
  x, state, xs = X, init(X), []
  for k, u in enumerate(updates):
    x, state = step(x, u, state, np.int32(k))
    xs.append(np.asarray(x))
  return np.stack(xs), state


def diloco():
  """The mean of the workers after each step, in float64."""
  phi, m, x, means = X.mean(0, float), 0, X.mean(0, float), []
  for k, u in enumerate(U):
    x = x + u.mean(0, float)
    if k % H == H - 1:
      delta = phi - x
      m = MOMENTUM * m + delta
      x = phi = phi - RATE * (delta + MOMENTUM * m)
    means.append(x)
  return np.stack(means)


@pytest.mark.parametrize(
  'name', helpers.tiered(MESSAGES, ['f32', '4 bits', '1 bit'])
)
def test_the_mean_of_the_workers_goes_as_that_of_diloco(name):
  """At any bits, to rounding; all are at one point where the graph says so."""
  xs, state = train(mj.outer(gossip(name), NESTEROV, H))
  assert np.asarray(state.mean.heard.account.unreadable).sum() == 0
  np.testing.assert_allclose(xs.mean(axis=1), diloco(), rtol=0, atol=1e-6)
  np.testing.assert_array_equal(state.anchor, xs[-1])
  if name == 'f32':
    np.testing.assert_allclose(
      xs[H - 1 :: H], diloco()[H - 1 :: H, None] + 0 * X, rtol=0, atol=1e-6
    )


# ------------------------------------------------- steps that go on meanwhile


def delayed(w, delay, updates):
  """What is said of a delay, in float64; w = 1 / n is the mean."""
  x, phi, m, due = (X.astype(float), X.astype(float), 0, {})
  for k, u in enumerate(updates):
    x = x + u + due.pop(k, 0)
    if k % H == H - 1:
      y, delta = x, phi - w @ x
      m = MOMENTUM * m + delta
      phi = phi - RATE * (delta + MOMENTUM * m)
      due[k + delay] = phi - y
    yield x


WAYS = {
  'gossip': (
    mj.ring(N),
    mj.dpsgd(mj.ring(N), mj.full_precision(), **SLOTS),
  ),
  'mean': (mj.complete(N), mj.allreduce(axis_name=AXIS)),
}
DELAYS = [(way, delay) for way in WAYS for delay in range(1, H + 1)]


@pytest.mark.parametrize(
  ('way', 'delay'), helpers.tiered(DELAYS, [('gossip', 2), ('mean', 1)])
)
def test_what_was_sent_arrives_steps_later(way, delay):
  topology, algorithm = WAYS[way]
  updates = np.concatenate([U, U[:H]])
  xs, state = train(mj.outer(algorithm, NESTEROV, H, delay), updates)
  w = mj.topologies.matrix(topology)
  expected = np.stack([*delayed(w, delay, updates)])
  np.testing.assert_allclose(xs, expected, rtol=0, atol=1e-6)
  # The last one is on its way.
  assert (np.asarray(state.heard.turn) == TURNS).all()


@pytest.mark.slow
def test_fragments_arrive_in_turn():
  """One in each second step, each as if it were alone in steps of its own."""
  outer = mj.outer(mj.allreduce(axis_name=AXIS), NESTEROV)
  updates = np.concatenate([U, U[:4]])
  tx = later(mj.streaming(outer, H), 2, 2)
  xs, _ = train(tx, updates)
  w = mj.topologies.matrix(mj.complete(N))
  for f in range(H):
    at = np.s_[f * D // H : (f + 1) * D // H]
    x, phi, m, due = X[:, at].astype(float), X[:, at].astype(float), 0, {}
    for k, u in enumerate(updates):
      x = x + u[:, at] + due.pop(k, 0)
      if k % (2 * H) == 2 * f + 1:
        delta = phi - w @ x
        m = MOMENTUM * m + delta
        phi = phi - RATE * (delta + MOMENTUM * m)
        due[k + 2] = phi - x
      np.testing.assert_allclose(xs[k][:, at], x, rtol=0, atol=1e-6)


@pytest.mark.parametrize('delay', helpers.tiered([1, 2], [2]))
def test_a_fragment_that_is_late_is_so_by_turns_of_its_own(delay):
  """With updates in its turns alone it goes as it would by itself."""
  outer, own = mj.outer(WAYS['mean'][1], NESTEROV, 2, delay), U[:6]
  updates = np.zeros((H * len(own), N, D), np.float32)
  parts = [np.s_[f * D // H : (f + 1) * D // H] for f in range(H)]
  for f, at in enumerate(parts):
    updates[f::H, :, at] = own[:, :, at]
  alone, _ = train(outer, own)
  bad = updates.copy()
  bad[1, 2, 0] = np.nan  # and all else of it is lost
  updates[1, 2] = 0
  streamed = mj.streaming(outer, H)
  (xs, state), (others, _) = train(streamed, bad), train(streamed, updates)
  np.testing.assert_array_equal(xs, others)
  np.testing.assert_array_equal(state.heard.lost, np.arange(N) == 2)
  for f, at in ((0, parts[0]), (2, parts[2])):
    np.testing.assert_allclose(
      xs[f::H, :, at], alone[:, :, at], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize('delay', [-1, 4, 1.5, True])
def test_delays_that_are_none(delay):
  with pytest.raises(ValueError, match=f'delay={delay}; .* at most the 3 from'):
    mj.outer(gossip('f32'), NESTEROV, 3, delay)


def test_a_late_clock_counts_the_same_rounds_later():
  clock = turns.every(((0, 2), (4, 3)))
  late = clock._replace(late=2)
  for step in range(20):
    assert late.before(step) == clock.before(max(0, step - 2))
    assert late.at(step) == (step >= 2 and clock.at(step - 2))
  assert [late.step(i) - clock.step(i) for i in range(5)] == [2] * 5


def test_with_the_whole_step_it_is_local_steps_and_gossip_bit_for_bit():
  plain = mj.every(mj.adapt_then_combine(gossip('4 bits')), H)
  xs, _ = train(mj.outer(gossip('4 bits'), optax.sgd(1.0), H))
  np.testing.assert_array_equal(xs, train(plain)[0])


@pytest.mark.parametrize(
  'topology', [mj.ring(N), mj.lazy(mj.ring(N), 0.5), mj.star(N)]
)
@pytest.mark.parametrize('momentum', [0.0, 0.5, 0.9])
def test_distances_shrink_by_the_radius(topology, momentum):
  """By power iteration of the algorithm itself, written out in NumPy."""
  pull = np.eye(N) - mj.topologies.matrix(topology)
  phi, m, logs = RNG.normal(size=N), np.zeros(N), []
  for _ in range(400):
    phi = phi - phi.mean()
    delta = pull @ phi
    m = momentum * m + delta
    phi = phi - RATE * (delta + momentum * m)
    size = np.hypot(np.linalg.norm(phi), np.linalg.norm(m))
    phi, m, logs = phi / size, m / size, [*logs, np.log(size)]
  seen = np.exp(np.mean(logs[100:]))
  radius = theory.outer_radius(topology, RATE, momentum)
  np.testing.assert_allclose(seen, radius, rtol=0.02)


def test_the_radii_of_a_ring():
  """As they were worked out once: rate and momentum, 8, 16, 32 workers."""
  for (rate, momentum), radii in {
    (1.0, 0.0): (0.805, 0.949, 0.987),
    (0.7, 0.5): (0.657, 0.926, 0.982),
    (0.7, 0.9): (0.882, 0.932, 0.944),
    (0.3, 0.9): (0.921, 0.941, 0.947),
  }.items():
    found = [
      theory.outer_radius(mj.ring(n), rate, momentum) for n in (8, 16, 32)
    ]
    np.testing.assert_allclose(found, radii, atol=1.1e-3)


@pytest.mark.parametrize(('b1', 'b2'), [(0.9, 0.95), (0.9, 0.999), (0.5, 0.5)])
def test_no_gradients_move_adam_further(b1, b2):
  """And the worst ones move it as far as is said."""
  adam, bound = optax.adam(1.0, b1, b2, eps=0.0), theory.adam_step(b1, b2)
  steps = 8000 if b2 > 0.99 else 300
  worst = (b1 / b2) ** np.arange(steps)[::-1, None]
  random = RNG.standard_cauchy(size=(steps, 20))
  gradients = np.hstack([np.maximum(worst, 1e-17), random]).astype(np.float32)
  update = lambda state, g: adam.update(g, state)[::-1]
  _, moves = jax.lax.scan(update, adam.init(gradients[0]), gradients)
  assert np.abs(moves).max() <= bound * (1 + 1e-3)
  if b1 < b2:
    assert abs(float(moves[-1, 0])) > 0.98 * bound
  with pytest.raises(ValueError, match='b1=0.9, b2=0.8'):
    theory.adam_step(0.9, 0.8)


@pytest.mark.parametrize('delay', helpers.tiered([0, 2], [0]))
def test_what_is_not_finite_is_lost_alone(delay):
  bad, without = U.copy(), U.copy()
  bad[1, 2, 7], without[1, 2] = np.nan, 0
  tx = mj.outer(gossip('8 bits'), NESTEROV, H, delay)
  (xs, state), (others, _) = train(tx, bad), train(tx, without)
  np.testing.assert_array_equal(xs, others)
  np.testing.assert_array_equal(state.heard.lost, np.arange(N) == 2)


@pytest.mark.optimized
def test_a_message_of_codes_is_all_that_travels():
  """One permute of bytes, inside of the branch that one step of H takes."""
  tx = mj.streaming(mj.outer(gossip('4 bits'), NESTEROV), 5)
  init, step = functions(tx, mj.sharded)
  lowered = step.lower(X, U[0], init(X), np.int32(0))
  found = list(hlo.collectives(lowered.compile().as_text()))
  rounds = len(mj.one_peer_hypercube(N))
  assert {dtype for _, dtype, _ in found} == {'u8'} and len(found) == rounds
  size = MESSAGES['4 bits'][1].encode(U[0, 0, : D // 5], jax.random.key(0)).size
  assert {bytes_ for *_, bytes_ in found} == {size}


@pytest.mark.parametrize(
  'algorithm',
  [
    lambda q: mj.choco(
      mj.ring(N), q, 0.5, axis_name=AXIS, key=jax.random.key(0)
    ),
    lambda q: mj.quasi_global(gossip('f32'), 0.1),
    lambda q: mj.every(gossip('f32'), 2),
    lambda q: mj.streaming(gossip('f32'), 2),
  ],
)
def test_only_dpsgd_is_without_its_own_way(algorithm):
  with pytest.raises(ValueError, match=r'adapt_then_combine|outer'):
    mj.outer(algorithm(mj.sign()), NESTEROV)


# name -> (behind the outer step, what it asks of a step)
OF_OPTAX = {
  'a loss': (optax.contrib.reduce_on_plateau(), {'value': 1.0}),
  'a key': (optax.add_noise(0.1, 0.5, jax.random.key(0)), {}),
}


@pytest.mark.parametrize('name', OF_OPTAX)
def test_the_outer_optimizer_is_any_of_optax(name):
  behind, asked = OF_OPTAX[name]
  tx = mj.outer(gossip('8 bits'), optax.chain(NESTEROV, behind))
  state = jax.eval_shape(jax.vmap(tx.init, axis_name=AXIS), X)
  update = lambda u, state, x: tx.update(u, state, x, step=0, **asked)
  _, after = jax.eval_shape(jax.vmap(update, axis_name=AXIS), X, state, X)
  assert jax.tree.structure(after) == jax.tree.structure(state)
