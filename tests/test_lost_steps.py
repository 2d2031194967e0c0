"""A step that is not finite is lost, and counted; no memory keeps it.

One worker's gradient is infinite, or not a number, in one step. What each
algorithm keeps is finite afterwards, and five steps later it works as one that
has never seen it.
"""

import functools

import jax
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax.quantizers import base
from moniqua_jax.theory import gammas
from moniqua_jax.workers import AXIS
from tests.helpers import N, tiered

KEY = jax.random.key(1)
SLOTS = dict(axis_name=AXIS, key=KEY)
RING = mj.lazy(mj.ring(N), 0.5)
SHAPE, BAD, BAD_WORKER, STEPS = (32, 40), 2, 3, 8
RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=SHAPE)) + np.zeros((N, 1, 1), np.float32)
G = np.float32(0.1 * RNG.normal(size=(STEPS, N, *SHAPE)))
U8, U4 = mj.uniform(8), mj.moniqua(4.0, 4)
ADIANA = gammas.adiana(L=1.0, L_max=1.0, calL_max=2.0, omega=2.0, mu=0.1, n=N)

GOSSIP = {
  'choco': mj.choco(RING, U8, **SLOTS),
  'choco moniqua': mj.choco(RING, U4, **SLOTS),
  'choco auto theta': mj.choco(RING, mj.auto_theta(8, start=2.0), **SLOTS),
  'choco alq': mj.choco(RING, mj.alq(3, 256, first=(0, 3)), **SLOTS),
  'dcd': mj.dcd(RING, U8, **SLOTS),
  'ecd': mj.ecd(RING, U8, **SLOTS),
  'd2': mj.d2(RING, U4, **SLOTS),
  'deepsqueeze': mj.deepsqueeze(RING, U8, **SLOTS),
  'push_sum': mj.push_sum(RING, mj.full_precision(), **SLOTS),
  'adpsgd': mj.adpsgd(RING, U4, 3, **SLOTS),
  'stale d2': mj.stale(mj.d2(RING, U4, **SLOTS), RING),
  'stale choco': mj.stale(mj.choco(RING, U8, **SLOTS), RING),
  'every second choco': mj.every(mj.choco(RING, U8, **SLOTS), 2),
  'streaming choco': mj.streaming(mj.choco(RING, U8, **SLOTS), 3),
  'streaming every choco': mj.streaming(
    mj.every(mj.choco(RING, U8, **SLOTS), 2), 3
  ),
  'every third choco': mj.every(mj.choco(RING, U8, **SLOTS), 3),
  'quasi-global': mj.quasi_global(
    mj.every(mj.dpsgd(RING, U4, **SLOTS), 2), -1.0
  ),
  'answered d2': mj.answered(mj.d2(RING, U4, **SLOTS)),
}
REDUCE = {
  'error_feedback': mj.error_feedback(mj.sign(), **SLOTS),
  'error_feedback gathered': mj.error_feedback(
    mj.top_k(0.1), 'all_gather', **SLOTS
  ),
  'double_squeeze': mj.double_squeeze(mj.sign(), **SLOTS),
  'diana': mj.diana(mj.dithering(3), 0.2, **SLOTS),
  'adiana': mj.adiana(mj.dithering(3), ADIANA, **SLOTS),
  'power_sgd': mj.power_sgd(2, **SLOTS),
  'dcgd': mj.dcgd(mj.natural(), **SLOTS),
  'allreduce alq': mj.allreduce(
    mj.alq(3, 256, first=(0, 3)), 'scatter_reduce', **SLOTS
  ),
}
FORGETFUL = ['dcgd', 'allreduce alq']
A_FEW = [
  'choco',
  'adpsgd',
  'stale d2',
  'double_squeeze',
  'adiana',
]


@functools.cache
def functions(name):
  tx = {**GOSSIP, **REDUCE}[name]
  last = name in GOSSIP

  def step(x, state, g, other, k):
    # What adiana asks for at its other point.
    u, state = tx.update(g, state, x, step=k, grad_fn=lambda w: other)
    return optax.apply_updates(x, u) if last else u, state

  init = mj.simulated(tx.init, (0,))
  return init, mj.simulated(step, (0, 0, 0, 0, None))


def run(name, value, at=BAD):
  """x, or the mean, and the state after each step; `value` comes in one."""
  init, step = functions(name)
  x, state, seen = X, init(X), []
  for k in range(STEPS):
    g = np.array(-G[k] if name in GOSSIP else G[k])
    if k == at:
      g[BAD_WORKER, 5, 7 : 7 + np.size(value)] = value
    out, state = jax.block_until_ready(step(x, state, g, g, np.int32(k)))
    x = out if name in GOSSIP else x
    seen.append(jax.device_get((out, state)))
  return seen


def kept(state):
  """What a state remembers: all but what the last messages told."""
  is_news = lambda node: isinstance(node, base.Seen)
  leaves = jax.tree.leaves(state, is_leaf=is_news)
  return [leaf for leaf in leaves if not is_news(leaf)]


def lost(state):
  return np.asarray(state.heard.lost if hasattr(state, 'heard') else state.lost)


@pytest.mark.parametrize('name', tiered({**GOSSIP, **REDUCE}, A_FEW))
def test_no_memory_keeps_what_is_not_finite(name):
  for value in (np.inf, np.nan, -np.inf):
    seen = run(name, value)
    for _, state in seen:
      assert all(np.isfinite(leaf).all() for leaf in kept(state)), value
    for out, _ in seen[BAD + 1 :]:
      assert np.isfinite(out).all()
    told = np.arange(N) == BAD_WORKER if name in GOSSIP else np.ones(N)
    np.testing.assert_array_equal(lost(seen[-1][1]), told)
    np.testing.assert_array_equal(lost(seen[BAD - 1][1]), 0)


@pytest.mark.parametrize('name', ['choco', 'dcd', 'deepsqueeze'])
def test_what_no_message_can_hold_spoils_no_memory(name):
  """Finite values whose range is beyond float32; nobody reads of them."""
  seen = run(name, [3e38, -3e38])
  for out, state in seen:
    assert np.isfinite(out).all()
    assert all(np.isfinite(leaf).all() for leaf in kept(state))
  assert not seen[BAD][1].heard.seen.readable.all()


def test_who_could_not_say_where_it_goes_stays():
  """With all values of the bucket that no message can hold, 512 of them."""
  before, after = (
    out[BAD_WORKER].ravel()
    for out, _ in run('dcd', [3e38, -3e38])[BAD - 1 : BAD + 1]
  )
  np.testing.assert_array_equal(after[:512], before[:512])
  assert (after[512:] != before[512:]).all()


@pytest.mark.parametrize('name', tiered(GOSSIP, A_FEW))
def test_an_update_that_is_not_finite_counts_as_none(name):
  """And so do all that come after, to the bit."""
  init, step = functions(name)
  x, state = X, init(X)
  for k, (out, _) in enumerate(run(name, np.nan)):
    g = np.array(-G[k])
    g[BAD_WORKER] *= k != BAD
    x, state = step(x, state, g, g, np.int32(k))
    np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize('name', tiered(REDUCE, A_FEW))
def test_a_mean_that_is_not_finite_leaves_the_memory_as_it_was(name):
  """The step is lost; without a memory its mean stays, for who looks."""
  seen = run(name, np.inf)
  if name in FORGETFUL:
    assert not np.isfinite(seen[BAD][0]).all(axis=(1, 2)).any()
  else:
    assert not seen[BAD][0].any()
  told = {'short', 'lost', 'tuned'}
  before, after = seen[BAD - 1][1], seen[BAD][1]
  for field in set(before._fields) - told:
    old, new = (jax.tree.leaves(getattr(s, field)) for s in (before, after))
    for kept_, now in zip(old, new, strict=True):
      if now.dtype != np.uint8:  # a message, which was sent
        np.testing.assert_array_equal(kept_, now)


@pytest.mark.parametrize('name', ['allreduce', 'error_feedback'])
def test_a_mean_beyond_float16_is_lost(name):
  """Values of 60,000 are within it, the norm of eight of them is not."""
  how = dict(strategy='all_gather', keep=lambda leaf: False, **SLOTS)
  tx = getattr(mj, name)(mj.qsgd(2, bucket_size=8), **how)
  g = np.full((N, 64), 6e4, np.float16)
  step = lambda g: tx.update(g, tx.init(g), step=np.int32(0))
  mean, state = mj.simulated(step, (0,))(g)
  np.testing.assert_array_equal(state.lost, 1)
  if name == 'error_feedback':
    assert not mean.any() and not state.error.any()
  else:
    assert np.isinf(mean).any()
