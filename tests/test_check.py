"""Nothing fails silently, in anybody's loop: check, report, on_unreadable.

Parameters are given in each step, so that it is known who can read whom: all
workers are at 0, but worker 2 in step 3, which stands FAR away and cannot read
its neighbours then, nor they it.
"""

import dataclasses
import functools

from flax import nnx
import jax
from jax._src import dispatch
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax import workers
from moniqua_jax.quantizers import base, unreadable
from moniqua_jax.workers import AXIS
from tests import helpers

N, D, FAR, BAD = 4, 3, 5.0, 3
SLOTS = dict(axis_name=AXIS, key=jax.random.key(0))
MONIQUA = mj.moniqua(theta=1.0, bits=8)
SLOW = mj.lazy(mj.ring(N), 0.25)
LINE = f'step {BAD}: worker 1 could not read the message of worker 2. '


def gossip(how='warn', quantizer=MONIQUA, topology=None):
  topology = topology or mj.lazy(mj.ring(N), 0.5)
  return mj.dpsgd(topology, quantizer, on_unreadable=how, **SLOTS)


@functools.cache
def functions(tx, run=mj.simulated):
  update = lambda x, state, k: tx.update(0 * x, state, x, step=k)[1]
  return run(tx.init, (0,)), run(update, (0, 0, None))


def place(bad: bool, far=FAR):
  x = np.zeros((N, D), np.float32)
  x[2, 1] = far if bad else 0
  return x


def states(tx, steps=6, far=FAR, bad=lambda k: k == BAD):
  """The state after each step."""
  init, update = functions(tx)
  state, seen = init(place(False)), []
  for k in range(steps):
    state = update(place(bad(k), far), state, np.int32(k))
    seen.append(jax.device_get(state))
  jax.effects_barrier()
  return seen


def said(caplog):
  return [r.getMessage() for r in caplog.records if r.name == 'moniqua_jax']


# ------------------------------------------------------- in anybody's own loop


def test_a_plain_loop_says_one_line_and_keeps_the_account(caplog):
  """Of the message that failed first, and of no other, however long ago."""
  seen = states(optax.chain(optax.sgd(0.1), gossip()))
  (line,) = said(caplog)
  assert line.startswith(LINE) and 'check(opt_state)' in line
  assert [mj.check(state, 'ignore') == '' for state in seen[:4]] == [1, 1, 1, 0]
  match = LINE + '.*auto_theta.*so far: 4 of 48 messages'
  last = seen[-1]
  for state in (last, dict(a=[last]), jax.tree.map(jnp.array, last)):
    with pytest.raises(RuntimeError, match=match):
      mj.check(state)


class Model(nnx.Module):
  def __init__(self, w):
    self.w = nnx.Param(w)


def test_flax_nnx_says_it(caplog):
  tx = optax.chain(optax.sgd(0.1), gossip())
  in_axes = dict(in_axes=(0, 0, 0, None), axis_name=AXIS)

  @nnx.vmap
  def make(w):
    model = Model(w)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

  @nnx.jit
  @functools.partial(nnx.vmap, **in_axes)
  def step(model, optimizer, w, k):
    model.w[...] = w
    optimizer.update(
      model, jax.tree.map(jnp.zeros_like, nnx.state(model)), step=k
    )

  model, optimizer = make(place(False))
  for k in range(6):
    step(model, optimizer, place(k == BAD), np.int32(k))
  jax.effects_barrier()
  assert [line.startswith(LINE) for line in said(caplog)] == [True]
  for holder in (optimizer, optimizer.opt_state):
    with pytest.raises(RuntimeError, match=LINE):
      mj.check(holder)
  assert mj.report(optimizer)['gossip/unreadable'] == 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
  """A module as Equinox has it: a dataclass that is a pytree."""

  w: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Trainer:
  model: Module
  opt_state: optax.OptState


def test_a_module_as_of_equinox_says_it(caplog):
  tx = optax.chain(optax.sgd(0.1), gossip())

  @functools.partial(jax.jit)
  @functools.partial(jax.vmap, in_axes=(0, 0, None), axis_name=AXIS)
  def step(trainer, w, k):
    model = dataclasses.replace(trainer.model, w=w)
    still = jax.tree.map(jnp.zeros_like, model)
    updates, state = tx.update(still, trainer.opt_state, model, step=k)
    return Trainer(optax.apply_updates(model, updates), state)

  model = Module(jnp.asarray(place(False)))
  trainer = Trainer(model, jax.vmap(tx.init)(model))
  for k in range(6):
    trainer = step(trainer, place(k == BAD), np.int32(k))
  jax.effects_barrier()
  assert [line.startswith(LINE) for line in said(caplog)] == [True]
  with pytest.raises(RuntimeError, match=LINE):
    mj.check(trainer)


@pytest.mark.parametrize('run', helpers.tiered(helpers.RUNNERS, ['simulated']))
def test_raise_ends_the_program_of_all_workers(run):
  """No device is left waiting for one that stopped."""
  run, ring = helpers.RUNNERS[run], mj.ring(helpers.N)
  init, update = functions(gossip('raise', topology=ring), run)
  x = np.zeros((helpers.N, D), np.float32)
  state = init(x)
  far = np.array(x)
  far[2, 1] = FAR
  with pytest.raises(jax.errors.JaxRuntimeError, match=LINE):
    for k in range(8):
      state = update(far if k == BAD else x, state, np.int32(k))
    jax.block_until_ready(state)
  # The programs that ended so would be waited for in the tests to come.
  dispatch.runtime_tokens.clear()


@pytest.mark.parametrize('how', ['ignore', 'warn'])
def test_it_says_what_it_is_told_to(how, caplog):
  """Sound messages are silent; and a program that says nothing calls nobody."""
  tx = gossip(how)
  states(tx, steps=2)
  assert not said(caplog)
  x = jax.ShapeDtypeStruct((N, D), jnp.float32)
  init, update = functions(tx)
  text = str(update.trace(x, jax.eval_shape(init, x), np.int32(0)).jaxpr)
  assert ('debug_callback' in text) == (how == 'warn')


def test_full_precision_calls_nobody():
  tx = gossip('warn', mj.full_precision())
  x = jax.ShapeDtypeStruct((N, D), jnp.float32)
  init, update = functions(tx)
  state = jax.eval_shape(init, x)
  assert 'callback' not in str(update.trace(x, state, np.int32(0)).jaxpr)


def test_another_word_is_refused():
  words = r"on_unreadable='shout'; choose from \['ignore', 'raise', 'warn'\]"
  for make in (gossip, lambda how: mj.check(gossip().init(None), how)):
    with pytest.raises(ValueError, match=words):
      make('shout')


# ------------------------------------------------------------- what it finds


@pytest.mark.parametrize('size', [2_400_000_000, 5 * 2**32 + 7])
def test_the_report_knows_how_long_a_message_is(size):
  """In full precision 2^31 bytes are half a billion parameters."""
  heard = gossip().init(None).heard
  neighbour = unreadable.Place(0, np.array([[[1, 0]] * 2]), jnp.int32(0))
  account, _ = unreadable.booked(
    heard.account, heard.seen, neighbour, 0, 0, size
  )
  row = mj.report(heard._replace(account=account))
  assert row['wire/bytes_sent'] == 2 * size


def test_the_report_counts_as_the_messages_do():
  seen = states(gossip('ignore'))
  told = [state.heard.seen for state in seen]
  row = mj.report(seen[-1])
  assert row['gossip/unreadable'] == sum((~s.readable).sum() for s in told)
  assert row['gossip/messages'] == sum(s.readable.size for s in told)
  assert row['wire/bytes_sent'] == 6 * 2 * (D + 12)
  assert row['gossip/theta'] == 1 and row['train/lost'] == 0
  far = mj.report(seen[BAD])
  share = far['gossip/disagreement'] / far['gossip/theta']
  assert 0 < far['gossip/distance_over_theta'] == pytest.approx(share)


WRAPPED = {
  'masked': lambda tx: optax.masked(tx, dict(w=True)),
  'MultiSteps': lambda tx: optax.MultiSteps(tx, 2),
  'inject_hyperparams': lambda tx: optax.inject_hyperparams(
    lambda rate: optax.chain(optax.sgd(rate), tx)
  )(rate=0.1),
  'multi_transform': lambda tx: optax.multi_transform({'a': tx}, dict(w='a')),
  'a chain of chains': lambda tx: optax.chain(
    optax.chain(optax.clip(1.0)), optax.chain(optax.sgd(0.1), tx)
  ),
  'quasi_global': lambda tx: mj.quasi_global(tx, 0.1),
  'stale': lambda tx: mj.stale(
    mj.d2(mj.lazy(mj.ring(N), 0.25), MONIQUA, **SLOTS),
    mj.lazy(mj.ring(N), 0.25),
  ),
}


@pytest.mark.parametrize('name', WRAPPED)
def test_it_is_found_anywhere(name):
  state = WRAPPED[name](gossip()).init(dict(w=jnp.zeros(D)))
  assert mj.check(state) == '' and mj.report(state)['gossip/messages'] == 0


COUNTED = {
  'every': (lambda tx: mj.every(tx, 2), BAD),
  'streaming': (lambda tx: mj.streaming(tx, 2), BAD),
  'rounds': (lambda tx: mj.rounds(tx, 2), BAD),
  'streaming of every': (lambda tx: mj.streaming(mj.every(tx, 2), 2), BAD),
}


@pytest.mark.parametrize('name', helpers.tiered(COUNTED, ['streaming']))
def test_steps_are_those_of_the_loop(name, caplog):
  """Though an algorithm is told another; one account of all fragments."""
  wrap, step = COUNTED[name]
  tx = wrap(gossip())
  seen = states(tx, 8, bad=lambda k: k >= BAD)
  (line,) = said(caplog)
  assert line.startswith(f'step {step}: ')
  counted = [~tx.heard(state).seen.readable for state in seen]
  talks = [mj.report(state)['gossip/messages'] for state in seen]
  fresh = np.diff([0, *talks]) > 0
  lost = sum(c.sum() for c, new in zip(counted, fresh, strict=True) if new)
  assert mj.report(seen[-1])['gossip/unreadable'] == lost > 0
  with pytest.raises(RuntimeError, match=f'step {step}: '):
    mj.check(seen[-1])


def test_the_sender_is_that_of_the_round():
  """Pairs that change: 0-1 and 2-3, then 0-2 and 1-3."""
  tx = gossip('ignore', topology=mj.one_peer_hypercube(N))
  for bad, ends in ((3, [0, 2]), (2, [2, 3])):
    state = states(tx, 4, bad=lambda k, bad=bad: k == bad)[-1]
    account = state.heard.account
    first = np.flatnonzero(account.step >= 0)[0]
    assert account.ends[first].tolist() == ends
    np.testing.assert_array_equal(account.messages, 4)


def test_who_cannot_say_what_it_holds_is_the_cause():
  seen = states(gossip('ignore'), far=np.nan)
  with pytest.raises(RuntimeError, match=f'{LINE}Its parameters were not fin'):
    mj.check(seen[-1])


@pytest.mark.slow
def test_an_edge_that_is_answered_fails_after_a_while():
  """Neither end moves; a theta that finds itself has a right to be late."""
  tx = gossip('ignore', base.tuned(MONIQUA)._replace(answered=True))
  last, patience = BAD + unreadable.PATIENCE, unreadable.PATIENCE
  for gap, failed in ((last - 1, ''), (None, f'step {last}: ')):
    bad = lambda k, gap=gap: k >= BAD and k != gap
    state = states(tx, last + 1, bad=bad)[-1]
    assert mj.check(state, 'ignore')[: len(f'step {last}: ')] == failed
    unread = 4 * (patience + (gap is None))
    assert mj.report(state)['gossip/unreadable'] == unread


def test_updates_that_are_lost_for_good_are_said():
  tx = mj.d2(mj.lazy(mj.ring(N), 0.5), MONIQUA, **SLOTS)
  state = tx.init(jnp.zeros(D))
  heard = state.heard

  def lost(n, rounds, first=0):
    account = heard.account._replace(messages=jnp.int32(2 * rounds))
    counts = dict(lost=jnp.int32(n), turn=jnp.int32(first + rounds))
    return state._replace(heard=heard._replace(account=account, **counts))

  assert mj.check(lost(30, 1000)) == mj.check(lost(3, 10)) == ''
  for first in (0, 100_000):  # a loop may go on with a new state
    with pytest.raises(RuntimeError, match='30 updates of worker 0 were not'):
      mj.check(lost(30, 40, first))


def test_a_state_without_gossip_is_refused():
  for fn in (mj.check, mj.report):
    with pytest.raises(ValueError, match='there is no gossip in'):
      fn(optax.sgd(0.1, momentum=0.9).init(jnp.zeros(D)))
    with pytest.raises(ValueError) as error:
      fn({f'layer {i}': jnp.zeros(D) for i in range(100)})
    assert len(str(error.value)) < 400


def test_it_looks_outside_of_jit():
  state = gossip().init(None)
  with pytest.raises(ValueError, match='call it outside of jit'):
    jax.jit(lambda state: mj.check(state))(state)


# ------------------------------------------------- its place in a chain

SGD = optax.sgd(0.1)
DADAM = mj.dadam(0.1, topology=mj.ring(N), **SLOTS)
MEAN = mj.allreduce(mj.sign(), 'all_gather', keep=lambda leaf: False, **SLOTS)
FAULTS = {
  'a clip': (optax.chain(SGD, gossip(), optax.clip(1.0)), 'EmptyState stands'),
  'a schedule': (
    optax.chain(gossip(), optax.scale_by_schedule(lambda k: 0.1)),
    'ScaleByScheduleState stands behind the gossip',
  ),
  'behind a chain': (optax.chain(optax.chain(SGD, gossip()), SGD), 'tuple st'),
  'masked': (
    optax.chain(optax.masked(gossip(), True), optax.clip(1.0)),
    'EmptyState stands behind',
  ),
  'a clip, of dadam': (
    optax.chain(DADAM, gossip(), optax.clip(1.0)),
    'EmptyState stands behind the gossip',
  ),
  'skipped by one': (
    optax.apply_if_finite(optax.chain(SGD, gossip()), 5),
    'ApplyIfFiniteState is around a gossip',
  ),
  'moments skipped by one': (
    optax.chain(optax.apply_if_finite(DADAM, 5), gossip()),
    'ApplyIfFiniteState is around .*dadam takes such a gradient as 0',
  ),
  'a mean skipped by one': (
    optax.chain(optax.apply_if_finite(optax.chain(MEAN, SGD), 5), gossip()),
    'ApplyIfFiniteState is around a gossip, a mean',
  ),
  'skipped in MultiSteps': (
    optax.MultiSteps(gossip(), 2, should_skip_update_fn=optax.skip_not_finite),
    'MultiStepsState is around a gossip',
  ),
  'twice': (optax.chain(gossip(), SGD, gossip()), r'2 gossips .*\[0, 2\]'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_gossip_is_the_last_of_its_chain(name):
  """Checked before the first step; and runners warn when they trace."""
  tx, match = FAULTS[name]
  with pytest.raises(ValueError, match=match):
    mj.check(tx.init(jnp.zeros(D)))
  x = jax.ShapeDtypeStruct((helpers.N, D), jnp.float32)
  for run in helpers.RUNNERS.values():
    with pytest.warns(UserWarning, match=match):
      jax.eval_shape(run(tx.init, (0,)), x)


def test_what_stands_beside_a_chain_is_not_behind_it():
  """Results of a step are no chain, nor are two states of two optimizers."""
  state = optax.chain(SGD, gossip()).init(jnp.zeros(D))
  x, aux = jnp.zeros(D), dict(loss=jnp.zeros(()))
  for tree in (
    (x, state, aux),
    (state, x),
    (aux, state, state),
    [state, state],
  ):
    assert workers.chain_fault(tree) == ''
