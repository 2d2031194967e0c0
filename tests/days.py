"""Days that hypothesis draws: rounds of a method, good and bad, and resumes.

A day is some inputs and one round of the package; the test says what must hold
after it. Each method is compiled once: all that varies is in arrays.
"""

import functools
import pickle

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import moniqua_jax as mj
from moniqua_jax import collectives, gossip
from moniqua_jax.workers import AXIS
from tests import helpers, oracles

N = helpers.N
D = 31  # a single turn in any of 31 values shows in moniqua's digest
KEY = jax.random.key(7)
THETA = 4.0
ENOUGH = np.full(N, THETA, np.float32)
FEW, MANY = 6, 100  # runs of a method

WORKERS = st.integers(0, N - 1)
PLACES = st.integers(0, D - 1)
SEEDS = st.integers(0, 2**20)
NOT_FINITE = st.sampled_from([np.nan, np.inf, -np.inf])
PARTS = st.sampled_from([0.1, 1e-3, 1e-8])  # of a theta that is large enough


class Days(stateful.RuleBasedStateMachine):
  """Good and bad days; saves and resumes; a resumed run repeats what was done.

  Subclasses know the first point (`first`), what else a day has besides updates
  and thetas (`live`), a round of the package from a point (`run`), and what
  must hold of its results (`checked`, the next point).
  """

  name = ''
  saved = stateful.Bundle('saved')

  @stateful.initialize(seed=SEEDS)
  def start(self, seed):
    self.at = self.first(np.random.default_rng(seed))
    self.fresh, self.next = None, {}

  @stateful.rule(target=saved)
  def save(self):
    self.fresh = pickle.dumps(self.at)
    return self.fresh

  @stateful.rule(saved=saved)
  def resume(self, saved):
    self.at, self.fresh = pickle.loads(saved), None
    if saved in self.next:
      inputs, expected = self.next[saved]
      again = self.run(self.at, *inputs)
      jax.tree.map(np.testing.assert_array_equal, again, expected)

  @stateful.rule(seed=SEEDS)
  def all_is_well(self, seed):
    self.live(updates(seed))

  @stateful.rule(seed=SEEDS, who=st.sets(WORKERS), part=PARTS)
  def theta_is_too_small(self, seed, who, part):
    self.live(updates(seed), thetas(who, part))

  @stateful.rule(seed=SEEDS, worker=WORKERS, place=PLACES, value=NOT_FINITE)
  def a_gradient_is_not_finite(self, seed, worker, place, value):
    u = updates(seed)
    u[worker, place] = value
    self.live(u)

  def day(self, *inputs):
    result = self.run(self.at, *inputs)
    if self.fresh is not None:
      self.next[self.fresh] = inputs, result
    with np.errstate(invalid='ignore'):  # inf - inf
      self.at, self.fresh = self.checked(*inputs, *result), None


def live_through(machine, name, examples):
  settings = hypothesis.settings(
    max_examples=examples,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
  )
  cls = type(machine.__name__, (machine,), {'name': name})
  stateful.run_state_machine_as_test(cls, settings=settings)


def by_hand(make):
  """A quantizer whose state is theta, which the test sets."""
  return mj.Tuned(
    lambda: jnp.float32(THETA),
    lambda theta, step: make(theta),
    lambda theta, seen, x: theta,
  )


@functools.cache
def believed(make):
  """(sent, theta, step) -> what each worker decodes of each, f32[n, n, d]."""

  def worker(sent, theta, step):
    quantizer = make(theta)
    key = gossip.worker_key(KEY, step, AXIS, quantizer.shared)
    payloads = collectives.gathered(quantizer.encode(sent, key), AXIS)
    return jax.vmap(lambda payload: quantizer.decode(payload, sent))(payloads)

  return mj.simulated(worker, (0, 0, None))


def own(said):
  """What each worker decodes of itself."""
  return np.einsum('iid->id', said)


def read_right(said, theta):
  """bool[n, n]; a wrong turn is at least two thetas away."""
  return (np.abs(said - own(said)) <= theta[:, None] / 2).all(axis=2)


def obeys_lemma_2(sent, said, theta, bits):
  """Who is nearer than theta reads x to delta B, and who can say x, does.

  Lemma 2 of arXiv:2002.11787, with what float32 adds.
  """
  b_theta, worst = np.transpose(
    [oracles.circle(each, bits, 'dithered') for each in theta]
  )
  x, eps = sent.astype(np.float64), helpers.EPS
  size = np.abs(x).max(axis=1)
  able = np.isfinite(own(said)).all(axis=1)
  np.testing.assert_array_equal(able[size < 2.0**21 * b_theta / 2**bits], True)
  largest = np.maximum(size[:, None], size)
  near = np.abs(x[:, None] - x).max(axis=2) < theta - 4 * eps * (
    largest + theta
  )
  error = np.abs(said - x).max(axis=2)
  assert (error <= worst + 4 * eps * (largest + b_theta))[near & able].all()


def updates(seed):
  """Workers that go one way, more or less."""
  rng = np.random.default_rng(seed)
  common, each = rng.normal(size=D), rng.normal(size=(N, D))
  return (0.3 * common + 0.1 * each).astype(np.float32)


def thetas(who, part):
  theta = ENOUGH.copy()
  theta[list(who)] *= part
  return theta


def finite(tree) -> bool:
  floats = [v for v in jax.tree.leaves(tree) if v.dtype.kind == 'f']
  return all(np.isfinite(v).all() for v in floats)


def close(got, expected):
  scale = 1 + np.abs(expected[np.isfinite(expected)]).max(initial=0)
  np.testing.assert_allclose(got, expected, rtol=0, atol=3e-5 * scale)
