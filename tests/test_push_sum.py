"""Mass and mean while messages are lost, against push-sum in its dense form."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import collectives, topologies
from moniqua_jax.quantizers import base
from moniqua_jax.workers import AXIS
from tests import helpers

N, D, ROUNDS, LR = helpers.N, 6, 1000, 0.02
SLOTS = dict(axis_name=AXIS, key=jax.random.key(3))
RNG = np.random.default_rng(0)
X0 = RNG.standard_normal((N, D)).astype(np.float32)
CENTRES = RNG.standard_normal((N, D)).astype(np.float32)
# [step, receiver, sender]; what a worker tells itself is lost as well.
LOST = RNG.random((ROUNDS, N, N)) < 0.3


def uneven():
  """A symmetric W, of which no two weights of a worker are equal."""
  w = np.triu(RNG.uniform(0.2, 1, (N, N)) * (RNG.random((N, N)) < 0.7), 1)
  w = w + w.T
  w /= 1.1 * w.sum(1).max()
  return w + np.diag(1 - w.sum(1))


def shift(by):
  return tuple((i + by) % N for i in range(N))


W = uneven()
SYMMETRIC = {
  'swaps': mj.from_matrix(W),
  # The same W; read by sender these weights are those of another matrix.
  'shifts': mj.Topology(
    [(W[np.arange(N), np.arange(N) - by], shift(by)) for by in range(1, N)]
  ),
  'star': mj.star(N),
  # Worker 0 hears worker 1 with two weights, and is heard with others.
  'twice': mj.Topology(
    [(w, shift(by)) for w, by in ((0.1, 1), (0.3, 1), (0.2, -1), (0.2, -1))]
  ),
}
ONE_WAY = mj.Topology([(0.25, shift(1)), ((0.5, *(0.0,) * (N - 1)), shift(3))])
ALL = (*SYMMETRIC.values(), ONE_WAY)


def lossy(quantizer, lost=LOST):
  """Sends its index behind the message; unreadable where the table says so."""

  def at(state, step):
    quantizer = tuned.quantizer(state, step)
    row = jnp.asarray(lost)[step % len(lost)]

    def encode(x, key):
      payload = quantizer.encode(x, key)
      return jnp.append(payload, lax.axis_index(AXIS).astype(payload.dtype))

    def inspect(payload, reference):
      sender = payload[-1].astype(jnp.int32)
      seen = quantizer.inspect(payload[:-1], reference)
      gone = row[lax.axis_index(AXIS), sender]
      return seen._replace(readable=seen.readable & ~gone)

    decode = lambda payload, x: quantizer.decode(payload[:-1], x)
    return base.Quantizer(encode, decode, inspect, quantizer.shared)

  tuned = base.tuned(quantizer)
  return tuned._replace(quantizer=at)


@functools.cache
def compiled(algorithm, rounds):
  """x, mass and what was readable after each round, all workers in one scan."""

  def worker(x, b, lr):
    def body(carry, k):
      x, state = carry
      updates, state = algorithm.update(-lr * (x - b), state, x, step=k)
      x = x + updates
      mass = getattr(state, 'mass', jnp.ones(()))
      return (x, state), (x, mass, state.heard.seen.readable)

    return lax.scan(body, (x, algorithm.init(x)), jnp.arange(rounds))[1]

  return mj.simulated(worker, (0, 0, None))


def run(algorithm, rounds, lr=LR):
  every_round = compiled(algorithm, rounds)
  x, mass, readable = every_round(X0, CENTRES, np.float32(lr))
  f64 = lambda rows: np.asarray(rows, np.float64).swapaxes(0, 1)
  return f64(x), f64(mass), np.asarray(readable).swapaxes(0, 1)


def oracle(schedule, rounds, lr, lost, stays):
  """X <- A (X + U), w <- A w, z = X / w, with A as the messages arrived.

  A_ij is what j gives to i. Of a message that is lost it is 0, and then the
  share stays with j, or is gone.
  """
  whole, w, z = X0.astype(np.float64), np.ones(N), X0.astype(np.float64)
  zs, ws = [], []
  for k in range(rounds):
    a = topologies.push_matrix(schedule[k % len(schedule)])
    given = a * (1 - np.eye(N))
    arrived = np.where(lost[k % len(lost)], 0, given)
    kept = 1 - (arrived if stays else given).sum(0)
    a = arrived + np.diag(kept)
    whole, w = a @ (whole - lr * (z - CENTRES)), a @ w
    z = whole / w[:, None]
    zs.append(z)
    ws.append(w)
  return np.array(zs), np.array(ws)


def answered(quantizer, schedule=ALL):
  return mj.answered(mj.push_sum(schedule, quantizer, **SLOTS))


EXACT = answered(lossy(mj.full_precision()))


@functools.cache
def long_run(lr):
  return run(EXACT, ROUNDS, lr)


def test_answered_it_is_the_dense_form_of_the_messages_that_arrived():
  x, mass, _ = long_run(LR)
  z, w = oracle(ALL, ROUNDS, LR, LOST, stays=True)
  np.testing.assert_allclose(x, z, atol=2e-4)
  np.testing.assert_allclose(mass, w, rtol=2e-4)
  assert np.abs(w - 1).max() > 0.5


def test_answered_mass_and_mean_stay_for_a_thousand_rounds():
  x, mass, _ = long_run(0.0)
  np.testing.assert_allclose(mass.sum(1), N, atol=2e-5)
  mean = (mass[..., None] * x).sum(1) / N
  start = X0.mean(0, dtype=np.float64, keepdims=True)
  np.testing.assert_allclose(mean, np.repeat(start, ROUNDS, 0), atol=1e-5)
  np.testing.assert_allclose(x[-1], np.repeat(start, N, 0), atol=1e-5)


def test_answered_readable_is_what_came_and_what_went():
  _, _, readable = long_run(LR)
  for k in range(len(ALL)):
    for e, (_, perm) in enumerate(ALL[k].edges):
      came = ~LOST[k, np.arange(N), topologies.sources(perm)]
      went = ~LOST[k, perm, np.arange(N)]
      np.testing.assert_array_equal(readable[k, :, e], came & went)


@pytest.mark.parametrize(
  'name', helpers.tiered(('uniform', 'moniqua'), ('uniform',))
)
def test_answered_mass_stays_in_bytes_too(name):
  quantizer = {'uniform': mj.uniform(8), 'moniqua': mj.moniqua(6.0, 8)}[name]
  x, mass, _ = run(answered(lossy(quantizer), ALL[1:2]), ROUNDS, 0.0)
  np.testing.assert_allclose(mass.sum(1), N, atol=2e-5)
  mean = (mass[..., None] * x).sum(1) / N
  assert np.abs(mean - X0.mean(0, keepdims=True)).max() < 2e-5


def test_unanswered_what_was_not_read_is_gone():
  """And nothing else: what a worker tells itself is not sent."""
  rounds = len(ALL)
  quantizer = lossy(mj.full_precision())
  x, mass, _ = run(mj.push_sum(ALL, quantizer, **SLOTS), rounds, 0.0)
  z, w = oracle(ALL, rounds, 0.0, LOST, stays=False)
  np.testing.assert_allclose(x, z, atol=1e-5)
  np.testing.assert_allclose(mass, w, rtol=1e-5)
  assert mass[-1].sum() < 0.5 * N


def test_who_could_not_say_what_it_holds_keeps_it():
  quantizer = mj.scheduled(
    lambda theta: mj.moniqua(theta, 8),
    lambda step: jnp.where(step == 0, jnp.nan, 6.0),
  )
  x, mass, readable = run(mj.push_sum(ONE_WAY, quantizer, **SLOTS), 1, 0.0)
  assert not readable.any()
  np.testing.assert_array_equal(x[0], X0)
  np.testing.assert_array_equal(mass[0], 1)


def test_what_a_quantizer_learns_from_is_the_model_without_its_mass():
  quantizer = base.Tuned(
    init=lambda: jnp.zeros(D),
    quantizer=lambda state, step: mj.full_precision(),
    observe=lambda state, seen, x: x,
  )
  tx = mj.push_sum(ONE_WAY, quantizer, **SLOTS)

  def one(u, x):
    return tx.update(u, tx.init(x), x, step=0)[1].heard.tuned

  learned = mj.simulated(one, (0, 0))(CENTRES, X0)
  np.testing.assert_array_equal(learned, X0 + CENTRES)


@pytest.mark.parametrize(
  'name', helpers.tiered(('full_precision', 'uniform'), ('full_precision',))
)
def test_a_message_that_never_came_is_not_read(name, monkeypatch):
  """JAX gives zeros to whom nobody sends: of mass 0, which none has."""
  send = collectives.send

  def broken(payload, perm, axis_name):
    came = send(payload, perm, axis_name)
    down = perm == shift(1) if payload.size > 1 else False
    return jnp.where(down & (lax.axis_index(axis_name) % 2 == 0), 0, came)

  monkeypatch.setattr(collectives, 'send', broken)
  quantizer = {'full_precision': mj.full_precision(), 'uniform': mj.uniform(8)}
  schedule = (SYMMETRIC['shifts'],)
  _, mass, readable = run(answered(quantizer[name], schedule), 50, 0.0)
  assert 0 < readable.mean() < 1
  np.testing.assert_allclose(mass.sum(1), N, atol=1e-5)


def test_auto_theta_finds_itself_where_edges_go_one_way():
  quantizer = mj.auto_theta(8, start=0.02, limit=100.0)
  algorithm = mj.push_sum(ONE_WAY, quantizer, **SLOTS)
  x, mass, readable = run(algorithm, 60, 0.0)
  assert not readable[0].any() and readable[-1].all()
  np.testing.assert_allclose(mass.sum(1), N, atol=1e-5)
  mean = (mass[..., None] * x).sum(1) / N
  assert np.abs(mean - X0.mean(0, keepdims=True)).max() < 1e-5


def test_answered_refuses_a_worker_that_keeps_nothing():
  all_away = mj.Topology([((1.0, *(0.5,) * (N - 1)), shift(1))])
  algorithm = answered(mj.full_precision(), all_away)
  with pytest.raises(ValueError, match=r'worker 0 gives away all.*lazy'):
    run(algorithm, 1)


# ------------------------------------------- others, of a symmetric uneven W

SLOW = mj.lazy(tuple(SYMMETRIC.values()), 0.4)
OTHERS = {
  'dpsgd': lambda q: mj.dpsgd(SLOW, q, **SLOTS),
  'adpsgd': lambda q: mj.adpsgd(SLOW, q, 0, **SLOTS),
  'deepsqueeze': lambda q: mj.deepsqueeze(SLOW, q, 0.5, **SLOTS),
  'd2': lambda q: mj.d2(SLOW[1], q, **SLOTS),
  'choco': lambda q: mj.choco(SLOW[1], q, 0.5, **SLOTS),
  'dcd': lambda q: mj.dcd(SLOW[1], q, **SLOTS),
  'every': lambda q: mj.every(mj.dpsgd(SLOW, q, **SLOTS), 2),
  'stale': lambda q: mj.stale(mj.deepsqueeze(SLOW[1], q, **SLOTS), SLOW[1]),
}


@pytest.mark.parametrize('name', helpers.tiered(OTHERS, ('dpsgd', 'choco')))
def test_answered_the_mean_stays_with_uneven_weights(name):
  algorithm = mj.answered(OTHERS[name](lossy(mj.full_precision())))
  x, _, readable = run(algorithm, ROUNDS, 0.0)
  assert 0.3 < readable.mean() < 0.7
  moved = np.abs(x.mean(1) - X0.mean(0, dtype=np.float64, keepdims=True))
  # Where replicas miss a difference the workers do not agree; their mean stays.
  assert moved.max() < 1e-5 * np.abs(x).max()


def test_a_short_message_brings_its_mass_and_comes_back():
  coded = mj.coded(mj.nuqsgd(4, 256), capacity=3)
  algorithm = mj.push_sum(mj.ring(N), coded, **SLOTS)
  tuned, size = algorithm.message(base.tuned(coded), 512)
  q = tuned.quantizer(tuned.init(), 0)

  @jax.jit
  def there_and_back(x):
    payload = q.encode(x, SLOTS['key'])
    short, fits = q.short.shorten(payload, size)
    return payload, short, q.short.restore(short, size), fits

  x = np.append(np.arange(512) % 97 == 0, 0.75).astype(np.float32)
  payload, short, restored, fits = there_and_back(x)
  assert fits and short.size == q.short.capacity(size) < payload.size
  assert short[-4:].tobytes() == np.float32(0.75).tobytes()
  np.testing.assert_array_equal(restored, payload)
