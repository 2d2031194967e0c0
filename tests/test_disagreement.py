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
from moniqua_jax import collectives, topologies
from moniqua_jax.workers import AXIS
from tests import helpers

N, D, STEPS = helpers.N, 1024, 1200
RATE, MOMENTUM, ROOM, RUNS = 0.01, 0.9, 1.3, 5
SLOTS = dict(axis_name=AXIS, key=jax.random.key(1))
SLOW_RING, ONE_PEER = mj.lazy(mj.ring(N), 0.1), mj.one_peer_exponential(N)
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


@pytest.mark.slow
def test_fewer_coordinates_beat_fewer_bits():
  """At the bits sent of 1 bit on a ring, and at an eighth of them."""
  streaming = lambda fragments: functools.partial(
    mj.streaming, fragments=fragments
  )
  one_bit = variance(SLOW_RING, 1)
  assert variance(ONE_PEER, 4, streaming(2)) <= one_bit / 10
  assert variance(ONE_PEER, 4, streaming(16)) <= one_bit
