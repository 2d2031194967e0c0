"""How far workers stay apart at equal bits: a toy of noise and momentum alone.

A worker's update is momentum .9 of noise of variance 1. At steady state the
variance of the workers around their mean is what gossip leaves of it. Theta is
a third above the largest distance of neighbours, found in a few runs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import collectives, theory, topologies
from moniqua_jax.quantizers import fitted
from moniqua_jax.theory import laws, steady
from moniqua_jax.workers import AXIS
from tests import helpers

N, D, STEPS = helpers.N, 1024, 1200
RATE, MOMENTUM, ROOM, RUNS = 0.01, 0.9, 1.3, 5
SLOTS = dict(axis_name=AXIS, key=jax.random.key(1))
SLOW_RING, ONE_PEER = mj.lazy(mj.ring(N), 0.1), mj.one_peer_exponential(N)
RARE, SLOW = 1e-6, 0.99  # no wraps, though a period's distances differ
PAIR = np.array([[0, 1]])
NOISE = np.random.default_rng(0).standard_normal((N, STEPS, D), np.float32)


def far(x, schedule):
  """The largest distance of this worker from those that it hears of."""
  perms = [perm for topology in schedule for _, perm in topology.edges]
  theirs = jnp.stack([collectives.send(x, perm, AXIS) for perm in perms])
  return jnp.abs(x[None] - theirs).max()


def variance(topology, bits, wrap=lambda algorithm: algorithm):
  """Of the workers around their mean, over the last two thirds of the steps."""
  schedule = topologies.schedule(topology)

  def worker(noise, theta):
    quantizer = mj.moniqua(theta, bits)
    algorithm = wrap(mj.dpsgd(topology, quantizer, **SLOTS))

    def step(carry, given):
      (x, v, state), (t, one) = carry, given
      v, distance = MOMENTUM * v + one, far(x, schedule)
      updates, state = algorithm.update(-RATE * v, state, x, step=t)
      x = x + updates
      away = x - collectives.mean(x, AXIS)
      told = algorithm.heard(state).seen.readable.all()
      return (x, v, state), (jnp.mean(away**2), distance, told)

    start = jnp.zeros(D), jnp.zeros(D), algorithm.init(jnp.zeros(D))
    return jax.lax.scan(step, start, (jnp.arange(STEPS), noise))[1]

  run, theta = mj.simulated(worker, (0, None)), np.float32(1)
  for _ in range(RUNS):
    squares, distance, told = (np.asarray(v) for v in run(NOISE, theta))
    theta = ROOM * distance[:, STEPS // 3 :].max()
  assert told.all()
  return squares[:, STEPS // 3 :].mean()


# ------------------------------------------------------------ what is expected


def grid(w, momentum):
  """E |x_i - mean|^2 without bits, by the eigenvalues of W.

  Of x <- a x + u, u <- m u + noise; a common u changes no distance.
  """
  a, m = np.linalg.eigvalsh(w)[:-1], momentum
  return np.sum((1 + a * m) / (1 - a * m) / (1 - a**2)) / (1 - m**2) / len(w)


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_without_bits_the_eigenvalues_say_it(momentum):
  for topology in (mj.ring(5), SLOW_RING, mj.torus(3, 3)):
    w = topologies.matrix(topology)
    expected = grid(w, momentum)
    found = theory.disagreement(topology, momentum=momentum)
    assert found == pytest.approx(expected, rel=1e-3)


def test_errors_of_a_shared_dither_are_related_as_its_formula_says():
  """One round of two workers: W - I of the errors is all that moves them."""
  rng, n, steps = np.random.default_rng(0), 10**6, 2 / 3
  for r in (0.05, 0.3, 2.0):
    x = np.stack([np.zeros(n), r * rng.standard_normal(n)])
    u = rng.uniform(-0.5, 0.5, n)
    e = (np.rint(x / steps - u) + u) * steps - x
    w = np.full((2, 2), 0.5)
    covariance = np.diag([0, r**2])
    step = steady._step(laws.LAWS['dpsgd'].recursion, w, PAIR, True, True)
    state = np.zeros((8, 8))
    state[:2, :2] = covariance
    # theta is 1 with two bits.
    found, theta = steady._errors(step, state, 0.0, 2, 1 / r, 0.9)
    assert theta == pytest.approx(1)
    np.testing.assert_allclose(found, e @ e.T / n, atol=1e-3 * steps**2)


def test_what_runs_away_is_infinite_and_mistakes_are_named():
  hypercube = mj.one_peer_hypercube(N)
  assert theory.disagreement(hypercube, bits=2) == np.inf
  assert theory.disagreement(hypercube, bits=3) < np.inf
  for arguments, words in (
    (dict(steps=0), 'steps=0; it is a whole number'),
    (dict(fragments=1.5), 'fragments=1.5; it is'),
    (dict(momentum=1.0), 'momentum=1.0; it is at least 0 and below 1'),
    (dict(algorithm='choco'), 'choco sends differences'),
    (dict(algorithm='adpsgd', rounds=2), 'there is no law of adpsgd'),
  ):
    with pytest.raises(ValueError, match=words):
      theory.disagreement(hypercube, **arguments)


GRAPHS = {
  'ring of 8': mj.ring(8),
  'ring of 5': mj.ring(5),
  'slack': mj.lazy(mj.ring(8), 0.4),
  'torus': mj.torus(2, 4),
  'hypercube': mj.one_peer_hypercube(8),
  'hypercube at once': mj.hypercube(8),
  'base graph': mj.base_graph(6),
}
ORDERS = {
  'dpsgd': lambda algorithm: algorithm,
  'atc_dpsgd': mj.adapt_then_combine,
}


def draw(seed):
  """A random setting in which the noise does not make most of the distance."""
  rng = np.random.default_rng(seed)
  pick = lambda items: items[rng.integers(len(items))]
  graph, order = pick([*GRAPHS]), pick([*ORDERS])
  bits, momentum = pick([None, 4, 4, 5, 6, 8]), pick([0.0, 0.5, 0.9])
  steps, rounds = pick([(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (3, 3)])
  fragments = 1 if rounds > 1 else pick([1, 1, 2, 4])
  numbers = dict(momentum=momentum, steps=steps, rounds=rounds)
  return graph, order, numbers | dict(bits=bits, fragments=fragments)


def seen(topology, order, bits, momentum, steps, rounds, fragments, d=512):
  """The variance of a run, of the last 400 steps."""
  quantizer = mj.full_precision()
  if bits:
    quantizer = mj.fitted_theta(bits, chance=RARE, shrink=SLOW)
  algorithm = mj.rounds(mj.dpsgd(topology, quantizer, **SLOTS), rounds)
  algorithm = mj.streaming(mj.every(algorithm, steps), fragments)
  algorithm = ORDERS[order](algorithm)

  def worker(noise):
    def step(carry, given):
      (x, v, state), (t, one) = carry, given
      v = momentum * v + one
      updates, state = algorithm.update(-v, state, x, step=t)
      x = x + updates
      away = x - collectives.mean(x, AXIS)
      return (x, v, state), jnp.mean(away**2)

    start = jnp.zeros(d), jnp.zeros(d), algorithm.init(jnp.zeros(d))
    return jax.lax.scan(step, start, (jnp.arange(600), noise))[1]

  n = topologies.schedule(topology)[0].n
  return np.asarray(mj.simulated(worker, (0,))(NOISE[:n, :600, :d]))[
    :, 200:
  ].mean()


@pytest.mark.parametrize('seed', helpers.tiered(range(30), [3]))
def test_runs_show_what_is_expected(seed):
  graph, order, numbers = draw(seed)
  topology = GRAPHS[graph]
  spread = fitted.spread(512 // numbers['fragments'], RARE)
  expected = theory.disagreement(
    topology, order, spread=spread, shrink=SLOW, **numbers
  )
  found = seen(topology, order, **numbers)
  assert found == pytest.approx(expected, rel=0.15), (graph, order, numbers)


@pytest.mark.slow
def test_fewer_coordinates_beat_fewer_bits():
  """At the bits sent of 1 bit on a ring, and at an eighth of them."""
  streaming = lambda fragments: functools.partial(
    mj.streaming, fragments=fragments
  )
  one_bit = variance(SLOW_RING, 1)
  assert variance(ONE_PEER, 4, streaming(2)) <= one_bit / 10
  assert variance(ONE_PEER, 4, streaming(16)) <= one_bit
