"""Gossip on bad days, against dense float64.

Rounds, lost messages, gradients that are not finite, thetas too small and
resumes, in any order. The dense model (tests/dense.py) takes from the package
what a message says to whom, and nothing else.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax import gossip, topologies
from moniqua_jax.quantizers import base
from moniqua_jax.workers import AXIS
from tests import days, dense, helpers, oracles
from tests.days import FEW, KEY, MANY, THETA, D, N, close, finite

# ---------------------------------------------- what is lost, what is recorded


class Watched(NamedTuple):
  """State of a watched quantizer: what the test sets, and what it looks at."""

  theta: jax.Array  # f32[], for this worker's next messages
  lost: jax.Array  # bool[n], by sender: whose messages do not arrive here
  sent: jax.Array  # f32[d], what was encoded last


def watched(own: mj.Tuned) -> mj.Tuned:
  """Of a quantizer whose state is theta."""
  return mj.Tuned(
    lambda: Watched(own.init(), jnp.zeros(N, bool), jnp.zeros(D)),
    lambda state, step: losing(own.quantizer(state.theta, step), state.lost),
    lambda state, seen, x: Watched(
      own.observe(state.theta, seen, x), state.lost, x
    ),
    own.answered,
  )


def losing(quantizer: mj.Quantizer, lost: jax.Array) -> mj.Quantizer:
  """The sender's number rides behind its message, and tells if it is lost."""

  def encode(x, key):
    payload = quantizer.encode(x, key)
    return jnp.append(payload, jax.lax.axis_index(AXIS).astype(payload.dtype))

  def judged(seen, payload):
    arrived = ~lost[payload[-1].astype(jnp.int32)]
    return seen._replace(readable=seen.readable & arrived)

  def inspect(payload, reference):
    return judged(quantizer.inspect(payload[:-1], reference), payload)

  def inspect_all(payloads, reference):
    bare = [payload[:-1] for payload in payloads]
    seen = quantizer.fast.inspect_all(bare, reference)
    return [judged(*each) for each in zip(seen, payloads, strict=True)]

  def mix(x, payloads, *args):
    bare = [payload[:-1] for payload in payloads]
    return quantizer.fast.mix(x, bare, *args)

  fast = quantizer.fast or base.Fast()
  fast = fast._replace(
    inspect_all=fast.inspect_all and inspect_all, mix=fast.mix and mix
  )
  decode = lambda payload, y: quantizer.decode(payload[:-1], y)
  return quantizer._replace(
    encode=encode, decode=decode, inspect=inspect, fast=fast
  )


# --------------------------------------------------------------- the rows


class Row(NamedTuple):
  """A gossip algorithm in both forms, and what it promises."""

  make: Callable  # quantizer -> algorithm
  dense: dense.Gossip
  quantizer: Callable  # theta -> Quantizer
  schedule: tuple  # of topologies
  by_sender: bool = False  # whether shares are given away, as in push-sum
  auto: mj.Tuned | None = None  # if theta moves by itself
  period: int = 1  # of `every`
  answered: bool = False
  keeps_mean: bool = True
  remembers: bool = True


def moniqua(theta):
  return mj.moniqua(theta, BITS)


def uniform(theta):
  return mj.uniform(bits=8, bucket_size=16)


def exact(theta):
  return mj.full_precision()


BITS = 6  # of moniqua
SAFETY, SHRINK = 1.5, 0.9
OPTIONS = dict(axis_name=AXIS, key=KEY)
RING = mj.ring(N)
LAZY = mj.lazy(RING, 0.5)
PEERS = mj.one_peer_exponential(N)
MEET = mj.random_matchings(N, rounds=3, seed=1)
UNEVEN = mj.from_graph(
  nx.Graph([*((i, i + 1) for i in range(7)), (0, 2), (2, 5)])
)
DELAYS = (0, 1, 2, 3, 0, 1, 2, 3)


def row(make, model, quantizer, topology, *args, **promises):
  schedule = topologies.schedule(topology)
  build = lambda watched: make(topology, watched, *args, **OPTIONS)
  return Row(build, model, quantizer, schedule, **promises)


def dpsgd(quantizer, topology):
  return row(mj.dpsgd, dense.dpsgd(), quantizer, topology, remembers=False)


def push_sum(topology):
  promises = dict(by_sender=True, keeps_mean=False)
  return row(mj.push_sum, dense.push_sum(), moniqua, topology, **promises)


def answered(given: Row) -> Row:
  make = lambda watched: mj.answered(given.make(watched))
  return given._replace(make=make, answered=True)


def every(given: Row, steps: int) -> Row:
  make = lambda watched: mj.every(given.make(watched), steps)
  model = dense.every(given.dense, steps)
  return given._replace(make=make, dense=model, period=steps)


def quasi_global(given: Row) -> Row:
  """Of rate -1: what comes in is an update, and so is its momentum."""
  numbers = dict(learning_rate=-1.0, momentum=0.9, mu=0.5)
  make = lambda watched: mj.quasi_global(given.make(watched), **numbers)
  model = dense.quasi_global(given.dense, 0.9, 0.5, given.period)
  return given._replace(make=make, dense=model, remembers=True)


def stale(given: Row, model: dense.Gossip) -> Row:
  make = lambda watched: mj.stale(given.make(watched), *given.schedule)
  return given._replace(make=make, dense=model)


def adapt_then_combine(given: Row) -> Row:
  make = lambda watched: mj.adapt_then_combine(given.make(watched))
  return given._replace(make=make, dense=dense.adapt_then_combine())


CHOCO = row(mj.choco, dense.choco(0.5), uniform, LAZY, 0.5)
SQUEEZE = row(mj.deepsqueeze, dense.deepsqueeze(0.5), uniform, LAZY, 0.5)
GOSSIP = {
  'dpsgd': dpsgd(moniqua, RING),
  'dpsgd, one peer': dpsgd(moniqua, PEERS),
  'dpsgd, uniform': dpsgd(uniform, UNEVEN),
  'dpsgd, full precision': dpsgd(exact, RING),
  'dpsgd, answered': answered(dpsgd(moniqua, UNEVEN)),
  'dpsgd, pairs, answered': answered(dpsgd(moniqua, mj.one_peer_hypercube(N))),
  'dpsgd, every third': every(dpsgd(moniqua, PEERS), 3),
  'dpsgd, adapt then combine': adapt_then_combine(dpsgd(moniqua, PEERS)),
  'd2': row(mj.d2, dense.d2(), moniqua, mj.lazy(RING, 0.75)),
  'd2, answered': answered(
    row(mj.d2, dense.d2(), moniqua, mj.lazy(UNEVEN, 0.5))
  ),
  'd2, auto theta': row(
    mj.d2,
    dense.d2(),
    moniqua,
    LAZY,
    auto=mj.auto_theta(BITS, THETA, SAFETY, SHRINK, limit=1e30),
    answered=True,
  ),
  'd2, stale': stale(row(mj.d2, dense.d2(), moniqua, LAZY), dense.extra()),
  'dcd': row(mj.dcd, dense.dcd(), uniform, RING, keeps_mean=False),
  'ecd': row(mj.ecd, dense.ecd(), uniform, RING, keeps_mean=False),
  'choco': CHOCO,
  'choco, every second, answered': answered(every(CHOCO, 2)),
  'choco, stale': stale(CHOCO, dense.stale(CHOCO.dense)),
  'deepsqueeze': SQUEEZE,
  'deepsqueeze, moniqua': row(
    mj.deepsqueeze, dense.deepsqueeze(0.5), moniqua, PEERS, 0.5
  ),
  'deepsqueeze, stale': stale(SQUEEZE, dense.stale(SQUEEZE.dense)),
  'dpsgd, quasi-global': quasi_global(dpsgd(moniqua, PEERS)),
  'choco, every second, quasi-global': quasi_global(every(CHOCO, 2)),
  'push_sum': push_sum(PEERS),
  'push_sum, answered': answered(push_sum(UNEVEN)),
  'push_sum, answered, directed': answered(push_sum(mj.exponential(N))),
  'push_sum, every second': every(push_sum(RING), 2),
  'adpsgd': row(mj.adpsgd, dense.adpsgd(DELAYS), moniqua, MEET, DELAYS),
}


@functools.cache
def compiled(name: str):
  """The algorithm; init and a step of all workers."""
  row = GOSSIP[name]
  tx = row.make(watched(row.auto or days.by_hand(row.quantizer)))

  def step(x, state, u, k):
    updates, state = tx.update(u, state, x, step=k)
    return optax.apply_updates(x, updates), state

  init = mj.simulated(tx.init, (0,))
  return tx, init, mj.simulated(step, (0, 0, 0, None))


def with_heard(state, change: Callable):
  """The state with `change` applied to what was heard."""
  is_heard = lambda node: isinstance(node, gossip.Heard)
  each = lambda node: change(node) if is_heard(node) else node
  return jax.tree.map(each, state, is_leaf=is_heard)


# ------------------------------------------------------------- the machine


class Point(NamedTuple):
  """Where a run is: what a checkpoint holds, and the model beside it."""

  k: int
  x: np.ndarray
  state: tuple
  model: np.ndarray
  memory: tuple
  even: bool  # whether what was left out so far moved the mean nowhere


class Gossip(days.Days):
  """Runs an algorithm, and the dense model of it beside."""

  def first(self, rng):
    self.row = GOSSIP[self.name]
    self.tx, init, self.step = compiled(self.name)
    x = np.tile(rng.normal(size=D), (N, 1))
    state = jax.tree.map(np.asarray, init(x.astype(np.float32)))
    x = x.astype(np.float32)
    model = x.astype(np.float64)
    return Point(0, x, state, model, self.row.dense.start(model), True)

  @stateful.rule(
    seed=days.SEEDS,
    lost=st.lists(st.tuples(days.WORKERS, days.WORKERS), max_size=8),
  )
  def messages_are_lost(self, seed, lost):
    self.live(days.updates(seed), lost=lost)

  def live(self, u, theta=days.ENOUGH, lost=()):
    drop = np.zeros((N, N), bool)
    if self.row.quantizer is not exact:  # it leaves out single values
      for receiver, sender in lost:
        drop[receiver, sender] = receiver != sender
    if self.row.auto:
      own = self.tx.heard(self.at.state).tuned.theta
      theta = own * (theta / THETA)
    self.day(u, theta, drop)

  def run(self, at, u, theta, drop):
    change = lambda heard: heard._replace(
      tuned=heard.tuned._replace(theta=theta, lost=drop)
    )
    result = self.step(at.x, with_heard(at.state, change), u, np.int32(at.k))
    return jax.tree.map(np.asarray, result)

  def checked(self, u, theta, drop, x, state):
    row, at = self.row, self.at
    u = u.astype(np.float64)
    bad = ~np.isfinite(u).all(axis=1)
    if row.remembers:  # the bad step is lost, and counted; the memory is kept
      u[bad] = 0
      assert finite(x) and finite(with_heard(state, lambda heard: ()))
    if row.remembers and bad.any():
      lost = [self.tx.heard(s).lost for s in (state, at.state)]
      np.testing.assert_array_equal(lost[0] - lost[1], bad)
    w, heard, even = self.heard(state, u, theta, drop)
    model, memory = row.dense.lands(w, at.model, u, at.memory, heard, at.k)
    try:
      close(x, model)
    except AssertionError:
      hypothesis.assume(not self.is_between_codes(state, theta))
      raise
    even = even and at.even
    if row.keeps_mean and even and finite(x):
      alone, _ = row.dense.lands(np.eye(N), at.model, u, at.memory, heard, at.k)
      close(x.mean(axis=0), alone.mean(axis=0))
    if row.by_sender and row.answered:
      assert abs(state.mass.sum() - N) < 1e-5 * N
      close(pushed(x, state), pushed(at.x, at.state) + u.sum(axis=0))
    return Point(at.k + 1, x, state, model, memory, even)

  def heard(self, state, u, theta, drop):
    """W, what was said and counted, and whether that moved the mean nowhere."""
    row, at, t = self.row, self.at, self.at.k // self.row.period
    topology = row.schedule[t % len(row.schedule)]
    matrix = topologies.push_matrix if row.by_sender else topologies.matrix
    w, news = matrix(topology), self.tx.heard(state)
    message = row.dense.says(w, at.model, u, at.memory, at.k)
    if message is None:
      return w, None, True
    said, able, read = self.truth(news.tuned.sent, theta, np.int32(t), drop)
    close(news.tuned.sent[able], message[able])
    came, went, told = counted(row, topology, able, read)
    np.testing.assert_array_equal(
      news.seen.readable[:, : len(topology.edges)], told
    )
    if row.auto:
      moved = followed(theta, said, news.tuned.sent, topology, told)
      # What is below the smallest normal number becomes 0.
      tiny = np.finfo(np.float32).tiny
      np.testing.assert_allclose(news.tuned.theta, moved, rtol=1e-4, atol=tiny)
    said = days.own(said)
    kept = np.where(came, w, 0)
    even = np.allclose(kept.sum(axis=0), kept.sum(axis=1))
    return w, dense.Heard(said, came, went), even

  def is_between_codes(self, state, theta):
    """Tells whether an ulp in what was sent makes another code.

    XLA may compute it once more for the record, in a fusion of its own.
    """
    t, sent = np.int32(self.at.k // self.row.period), self.tx.heard(state)
    sent = sent.tuned.sent
    says = lambda x: np.asarray(days.believed(self.row.quantizer)(x, theta, t))
    rng, as_sent = np.random.default_rng(0), days.own(says(sent))
    ways = np.float32([-np.inf, np.inf])[rng.integers(2, size=(8, *sent.shape))]
    apart = [
      np.abs(days.own(says(np.nextafter(sent, way))) - as_sent) for way in ways
    ]
    return np.nanmax(apart) > 1e-4 * np.nanmax(np.abs(sent))

  def truth(self, sent, theta, t, drop):
    """What is made of messages, who could say one, and whether i could read j.

    Readable is what arrived, of who could say it, where it is understood right.
    """
    said = days.believed(self.row.quantizer)(sent, theta, t)
    said = np.asarray(said, np.float64)
    if self.row.quantizer is moniqua:
      days.obeys_lemma_2(sent, said, theta, BITS)
    able = np.isfinite(days.own(said)).all(axis=1)
    read = days.read_right(said, theta) & able & ~drop
    read &= np.isfinite(sent).all(axis=1)[:, None]
    return said, able, read


def pushed(x, state):
  """What push-sum keeps: sum_i w_i z_i."""
  return state.mass.astype(np.float64) @ x


def followed(theta, said, sent, topology, told):
  """The next thetas, by the rule of `auto_theta`.

  Raised where a message was missed, to twice the smaller theta of that edge or
  to the larger one; who could say none has told no theta.
  """
  able = np.isfinite(days.own(said)).all(axis=1)
  worst = [oracles.circle(each, BITS, 'dithered')[1] for each in theta]
  apart = np.abs(said - sent[:, None]).max(axis=2) - worst
  near, together, raised, missed = 0, theta, theta, False
  for k, (_, perm) in enumerate(topology.edges):
    source = np.array(topologies.sources(perm))
    seen = np.where(told[:, k], apart[np.arange(N), source], 0)
    near = np.maximum(near, seen)
    together = np.maximum(together, np.where(able, theta, 0)[source])
    theirs = np.where(able, theta, np.nan)[source]
    theirs = np.where(np.isfinite(theirs), theirs, theta)
    pair = np.stack([theta, theirs])
    edge = np.maximum(pair.max(0), 2 * pair.min(0))
    raised = np.where(told[:, k], raised, np.maximum(raised, edge))
    missed |= ~told[:, k]
  moved = np.maximum(SAFETY * near, SHRINK * together)
  return np.where(missed, raised, moved)


def counted(row, topology, able, read):
  """What came and went, bool[n, n], and what is told of each edge, bool[n, E].

  Who could not say what it holds moves on no edge. A share may be given away
  for nothing, if it is not answered; if it is, it stays with the sender. Of
  messages in full precision single values are left out.
  """
  if row.answered and not row.by_sender:
    read = read & read.T
  me, perms = np.arange(N), [perm for _, perm in topology.edges]
  told = [read[me, topologies.sources(perm)] for perm in perms]
  if row.quantizer is exact:
    return np.ones_like(read), read, np.stack(told, axis=1)
  if not row.by_sender:
    return read & able[:, None], read, np.stack(told, axis=1)
  answers = read if row.answered else np.ones_like(read)
  told = [t & answers[perm, me] for t, perm in zip(told, perms, strict=True)]
  return read, answers & able, np.stack(told, axis=1)


CASES = [(name, examples) for name in GOSSIP for examples in (FEW, MANY)]
A_KIND_EACH = [
  'dpsgd, answered',
  'dpsgd, full precision',
  'd2, stale',
  'dcd',
  'ecd',
  'choco, stale',
  'choco, every second, answered',
  'deepsqueeze, moniqua',
  'push_sum, answered',
  'adpsgd',
]


@pytest.mark.parametrize(
  'name,examples',
  helpers.tiered(CASES, [(name, FEW) for name in A_KIND_EACH]),
)
def test_bad_days(name, examples):
  days.live_through(Gossip, name, examples)


def after_a_theta_far_too_small(name):
  """The points before and after; workers 0 and 1 could not say a thing."""
  run = type('Gossip', (Gossip,), {'name': name})()
  run.start(seed=0)
  for seed in range(3):
    run.all_is_well(seed=seed)
  before = run.at
  run.theta_is_too_small(seed=3, who={0, 1}, part=1e-8)
  return before, run.at, days.updates(3)


@pytest.mark.parametrize(
  'name',
  helpers.tiered(
    [name for name in GOSSIP if name.startswith('push_sum')],
    ['push_sum, answered'],
  ),
)
def test_who_cannot_say_what_it_holds_gives_no_share_away(name):
  before, after, u = after_a_theta_far_too_small(name)
  np.testing.assert_allclose(after.state.mass.sum(), N, rtol=1e-6)
  total = pushed(before.x, before.state) + u.sum(axis=0)
  np.testing.assert_allclose(pushed(after.x, after.state), total, atol=1e-4)


def test_who_cannot_say_what_it_holds_keeps_its_error():
  before, after, _ = after_a_theta_far_too_small('deepsqueeze, moniqua')
  errors = before.state.error, after.state.error
  np.testing.assert_array_equal(errors[1][:2], errors[0][:2])
  assert np.abs(errors[1][2:] - errors[0][2:]).max(axis=1).min() > 0


# Momentum adds up to ten times a gradient: no x could hold that.
HELD = [
  name
  for name in GOSSIP
  if GOSSIP[name].remembers and not name.endswith('quasi-global')
]


@pytest.mark.parametrize('name', helpers.tiered(HELD, A_KIND_EACH))
def test_what_only_a_sum_makes_infinite_stays_in_no_memory(name):
  """A gradient of 3.3e38 is finite; ecd's z of it is not, nor x + late."""
  run = type('Gossip', (Gossip,), {'name': name})()
  run.start(seed=0)
  for k in range(8):
    u = days.updates(k)
    u[2, 3] = 3.3e38 if k == 3 else u[2, 3]
    x, state = run.run(run.at, u, days.ENOUGH, np.zeros((N, N), bool))
    assert finite(x) and finite(with_heard(state, lambda heard: ()))
    run.at = run.at._replace(k=k + 1, x=x, state=state)
