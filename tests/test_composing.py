"""Algorithms in what others build around them: jit, scan, optax, any floats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax import collectives, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.theory import gammas
from moniqua_jax.workers import AXIS
from tests import helpers

N, KEY = 4, jax.random.key(3)
SLOTS = dict(axis_name=AXIS, key=KEY)
RING, PAIRS = mj.lazy(mj.ring(N), 0.5), mj.one_peer_exponential(N)
MATES = mj.random_matchings(N, rounds=3, seed=0)
FULL, NEAREST = mj.full_precision(), mj.uniform(8, 11, 'nearest')
MONIQUA, ALQ = mj.moniqua(4.0, 8), mj.alq(3, bucket_size=5)
WHOLE = dict(SLOTS, keep=lambda leaf: False)  # no leaf stays exact
CONSTANTS = gammas.adiana(L=1, L_max=1, calL_max=2, omega=2, mu=0.1, n=N)

# quantizer -> the algorithm
GOSSIP = {
  'dpsgd': lambda q: mj.dpsgd(PAIRS, q, **SLOTS),
  'd2': lambda q: mj.d2(RING, q, **SLOTS),
  'dcd': lambda q: mj.dcd(RING, q, **SLOTS),
  'ecd': lambda q: mj.ecd(RING, q, **SLOTS),
  'choco': lambda q: mj.choco(RING, q, gamma=0.5, **SLOTS),
  'deepsqueeze': lambda q: mj.deepsqueeze(MATES, q, eta=0.5, **SLOTS),
  'push_sum': lambda q: mj.push_sum(PAIRS, q, **SLOTS),
  'adpsgd': lambda q: mj.adpsgd(MATES, q, 2, **SLOTS),
  'every': lambda q: mj.every(mj.d2(RING, q, **SLOTS), 2),
  'streaming': lambda q: mj.streaming(mj.d2(RING, q, **SLOTS), 3),
  'rounds': lambda q: mj.rounds(
    mj.push_sum(PAIRS, q, **SLOTS), ((0, 2), (1, 1))
  ),
  'answered': lambda q: mj.answered(mj.dpsgd(MATES, q, **SLOTS)),
  'atc': lambda q: mj.adapt_then_combine(mj.dpsgd(PAIRS, q, **SLOTS)),
  'quasi_global': lambda q: mj.quasi_global(mj.dpsgd(PAIRS, q, **SLOTS), -1.0),
  'stale': lambda q: mj.stale(mj.choco(RING, q, gamma=0.5, **SLOTS), RING),
}
nearest = {name: make(NEAREST) for name, make in GOSSIP.items()}
MEANS = {
  'allreduce': mj.allreduce(axis_name=AXIS),
  'all_gather': mj.allreduce(mj.nuqsgd(4, 11), 'all_gather', **WHOLE),
  'scatter_reduce': mj.allreduce(ALQ, 'scatter_reduce', **WHOLE),
  'error_feedback': mj.error_feedback(mj.sign(4), **WHOLE),
  'double_squeeze': mj.double_squeeze(mj.sign(4), **WHOLE),
  'dcgd': mj.dcgd(mj.dithering(1), **WHOLE),
  'diana': mj.diana(mj.dithering(1), 0.2, **WHOLE),
  'adiana': mj.adiana(mj.dithering(1), CONSTANTS, **WHOLE),
}
ALL = {
  **nearest,
  **MEANS,
  'dpsgd moniqua': mj.dpsgd(PAIRS, MONIQUA, **SLOTS),
  'choco alq': mj.choco(RING, ALQ, 0.5, **SLOTS),
  'dpsgd auto': mj.dpsgd(MATES, mj.auto_theta(8, jnp.float32(4)), **SLOTS),
  'push_sum full': mj.push_sum(PAIRS, FULL, **SLOTS),
  'push_sum moniqua': mj.push_sum(PAIRS, MONIQUA, **SLOTS),
  'quantize': mj.quantize(mj.nuqsgd(4, bucket_size=11), KEY),
  'outer mean': mj.outer(MEANS['all_gather'], steps=2),
  'outer gossip': mj.outer(nearest['dpsgd'], steps=2),
  'outer late': mj.outer(nearest['dpsgd'], steps=2, delay=2),
  'dadam': mj.dadam(0.1, topology=RING, **SLOTS),
  'of_senders': mj.error_feedback(
    mj.chunked_top_k(4, 1, 1), 'of_senders', **WHOLE
  ),
  'all_gather alq': mj.allreduce(ALQ, 'all_gather', **WHOLE),
}
ASK_FOR_THE_AXIS = 'double_squeeze', 'outer mean'


def parameters(dtype=np.float32):
  """A tree for each worker, all of them different."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=(N, *shape)).astype(dtype)
  return {'b': draw(3), 't': draw(1), 'w': draw(7)}


def steps_of(tx, steps, start, params, state):
  """Steps of one worker on |x|^2 / 2, in a scan: no type may change."""
  tx = optax.with_extra_args_support(tx)

  def step(carry, k):
    params, state = carry
    updates = jax.tree.map(lambda v: -v / 8, params)
    updates, state = tx.update(
      updates, state, params, step=k, grad_fn=lambda w: w
    )
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, state), start + jnp.arange(steps))[0]


@functools.cache
def compiled(tx, steps, start=0):
  """(x, state) -> (x, state) of all workers, and what makes the state."""
  run = functools.partial(jax.vmap, axis_name=AXIS)
  steps = jax.jit(
    run(functools.partial(steps_of, tx, steps, start)), donate_argnums=(0, 1)
  )
  return steps, run(tx.init)


def train(tx, steps, x, start=0):
  run, init = compiled(tx, steps, start)
  x = jax.tree.map(jnp.array, x)
  return run(x, init(x))


def types(tree):
  return jax.tree.map(lambda v: (v.shape, v.dtype), tree)


A_FEW = ('d2', 'push_sum full', 'every', 'error_feedback', 'adiana')


@pytest.mark.parametrize(
  'name,dtype',
  helpers.tiered(
    [(name, d) for name in ALL for d in ('float32', 'bfloat16', 'float64')],
    [(name, d) for name in A_FEW for d in ('bfloat16', 'float64')],
  ),
)
def test_it_stands_in_a_scan(name, dtype):
  """With x64 on, so that whatever is float64 by chance shows."""
  with jax.enable_x64(True):
    run, init = compiled(ALL[name], 2)
    x = parameters(dtype)
    state = jax.eval_shape(init, x)
    after, later = jax.eval_shape(run, x, state)
    assert types(after) == types(x) and types(state) == types(later)
    kinds = {v.dtype.name for v in jax.tree.leaves(state)}
    assert 'bfloat16' not in kinds
    assert dtype == 'float64' or 'float64' not in kinds


@pytest.mark.parametrize(
  'name',
  helpers.tiered(ALL, ['every', 'rounds', 'of_senders', 'all_gather alq']),
)
def test_it_stands_in_a_shard_map_that_checks(name):
  """What is of one worker varies over the mesh; that is the default."""
  mesh = jax.make_mesh((N,), (AXIS,), (jax.sharding.AxisType.Auto,))
  rows = jax.sharding.PartitionSpec(AXIS)
  over = functools.partial(
    jax.shard_map, mesh=mesh, in_specs=rows, out_specs=rows
  )
  one = lambda fn: over(
    lambda *own: jax.tree.map(
      lambda v: v[None], fn(*jax.tree.map(lambda v: v[0], own))
    )
  )
  x = parameters()['w']
  state = jax.eval_shape(one(ALL[name].init), x)
  steps = one(functools.partial(steps_of, ALL[name], 2, 0))
  assert types(jax.eval_shape(steps, x, state)) == types((x, state))


@pytest.mark.parametrize('made', ['eager', 'jit'])
@pytest.mark.parametrize('name', ALL)
def test_nothing_is_kept_of_what_is_donated(name, made):
  """Parameters and state share no array, nor do two states."""
  _, init = compiled(ALL[name], 2)
  x = jnp.asarray(parameters()['w'])  # one vector: nothing makes copies of it
  init = jax.jit(init) if made == 'jit' else init
  if made == 'eager' and name not in ASK_FOR_THE_AXIS:
    init, x = ALL[name].init, x[0]
  states = [init(x) for _ in range(1 + (made == 'eager'))]
  arrays = [v for v in jax.tree.leaves((x, states))]
  places = [v.unsafe_buffer_pointer() for v in arrays]
  assert len(set(places)) == len(places)


@pytest.mark.parametrize('name', helpers.tiered(ALL, ['ecd', 'adiana']))
def test_both_are_donated(name):
  x, state = train(ALL[name], 2, parameters()['w'])
  assert all(np.isfinite(v).all() for v in jax.tree.leaves((x, state)[0]))


# ------------------------------------------- updates that lack what is frozen


def one_step(tx, params, updates):
  """The shapes of (updates, state) after a step."""
  tx = optax.with_extra_args_support(tx)
  run = functools.partial(jax.vmap, axis_name=AXIS)
  state = jax.eval_shape(run(tx.init), params)
  update = lambda u, state, x: tx.update(
    u, state, x, step=jnp.int32(0), grad_fn=lambda w: w
  )
  return jax.eval_shape(run(update), updates, state, params)


T = np.ones((N, 1), np.float32)
B = np.ones((N, 3), np.float32)
MISFITS = {
  'another shape': (dict(b=T, t=T), r"updates\['b'\] has shape \(1,\), params"),
  'a scalar': (dict(b=B, t=T[:, 0]), r"updates\['t'\] has shape \(\), params"),
  'a leaf too few': (dict(t=T), r"only in params: \[\"\['b'\]\"\]"),
  'a leaf too many': (dict(b=B, t=T, z=T), r"Only in updates: \[\"\['z'\]\"\]"),
  'one array': (B, 'updates is one array, params is not'),
  'integers': (dict(b=B, t=np.int32(T)), r"updates\['t'\] is int32"),
}


@pytest.mark.parametrize(
  'name,misfit',
  helpers.tiered(
    [(name, misfit) for name in GOSSIP for misfit in MISFITS],
    [
      *(('dcd', misfit) for misfit in MISFITS),
      *((name, 'another shape') for name in ('dpsgd', 'every', 'stale')),
    ],
  ),
)
def test_updates_of_another_kind_are_named(name, misfit):
  updates, words = MISFITS[misfit]
  with pytest.raises(ValueError, match=words):
    one_step(nearest[name], dict(b=B, t=T), updates)


def test_no_update_is_an_update_of_0():
  """As it goes into the vector; an absent parameter has neither."""
  t = np.full(1, 5, np.float32)
  params = {'b': jnp.ones(3), 't': t, 'x': {'y': t, 'z': None}, 'o': None}
  updates = {'b': None, 't': t, 'x': optax.MaskedNode(), 'o': None}
  flat = vectors.flatten_like(updates, params)
  np.testing.assert_array_equal(flat, [0, 0, 0, 5, 0])
  whole = vectors.complete(updates, params)
  assert jax.tree.structure(whole) == jax.tree.structure(params)
  with pytest.raises(ValueError, match="updates.'o'. is one array, params"):
    vectors.complete({**updates, 'o': t}, params)


@pytest.mark.parametrize('name', helpers.tiered(GOSSIP, ['dpsgd', 'stale']))
def test_a_frozen_leaf_still_gossips(name):
  """{'b': None, 't': t} is {'b': 0, 't': t}: to the bit, in all that comes."""
  tx = GOSSIP[name](FULL)
  params = {'b': np.arange(3.0 * N, dtype='f4').reshape(N, 3), 't': T}

  def steps(params, frozen):
    state, b = tx.init(params), None if frozen else jnp.zeros(3)
    for k in range(2):
      updates = {'b': b, 't': params['t'] / 4}
      updates, state = tx.update(updates, state, params, step=jnp.int32(k))
      params = optax.apply_updates(params, updates)
    return params, state

  both = lambda params: (steps(params, True), steps(params, False))
  both = jax.jit(jax.vmap(both, axis_name=AXIS))(params)
  jax.tree.map(np.testing.assert_array_equal, *both)
  moved = np.asarray(both[0][0]['b'])
  np.testing.assert_allclose(moved.mean(0), params['b'].mean(0), atol=1e-5)
  # dcd wants all to start from the same x; every rests in the first step.
  assert name == 'dcd' or np.ptp(moved) < np.ptp(params['b'])


def test_optax_may_mask_what_goes_in():
  """Frozen before the gossip, or kept out of it: then nothing of it is sent."""
  params, labels = dict(b=B, t=T), dict(b='stay', t='go')
  gossip_ = GOSSIP['choco'](NEAREST)
  parts = {'go': optax.sgd(1.0), 'stay': optax.set_to_zero()}
  frozen = optax.chain(optax.multi_transform(parts, labels), gossip_)
  sizes = lambda tree: jax.tree.map(lambda v: v.shape, tree)
  updates, state = one_step(frozen, params, params)
  assert sizes(updates) == sizes(params)
  assert state[1].replica.shape == (N, 4)
  apart = {'go': gossip_, 'stay': optax.set_to_zero()}
  updates, state = one_step(
    optax.multi_transform(apart, labels), params, params
  )
  assert sizes(updates) == sizes(params)
  assert state.inner_states['go'].inner_state.replica.shape == (N, 1)
  masked = optax.masked(gossip_, dict(b=True, t=False))
  updates, state = one_step(masked, params, params)
  assert sizes(updates) == sizes(params)
  assert state.inner_state.replica.shape == (N, 3)


@pytest.mark.parametrize('name', MEANS)
def test_a_mean_leaves_out_who_has_no_gradient(name):
  """Where nothing is remembered of it; else it is named, with the way out."""
  params = dict(b=B, t=T)
  if name in ('allreduce', 'all_gather', 'scatter_reduce', 'dcgd'):
    updates, _ = one_step(MEANS[name], params, dict(b=None, t=T))
    assert updates['b'] is None and updates['t'].shape == T.shape
    return
  words = rf"{name}: what is.*has 1 values.*\[\"\['b'\]\"\].*masked\({name}"
  with pytest.raises(ValueError, match=words):
    one_step(MEANS[name], params, dict(b=None, t=T))
  masked = optax.masked(MEANS[name], dict(b=False, t=True))
  if name != 'adiana':  # its grad_fn takes all parameters
    updates, _ = one_step(masked, params, dict(b=None, t=T))
    assert updates['b'] is None


# ------------------------------------------------ wrappers that leave out steps


def agreed(tx, steps):
  """How far apart the workers are, which start apart and learn nothing."""
  run = functools.partial(jax.vmap, axis_name=AXIS)

  def body(carry, k):
    x, state = carry
    updates, state = tx.update(jnp.zeros_like(x), state, x, step=k)
    return (x + updates, state), None

  def worker(x):
    return jax.lax.scan(body, (x, tx.init(x)), jnp.arange(steps))[0][0]

  x = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
  y = np.asarray(jax.jit(run(worker))(x))
  np.testing.assert_allclose(y.mean(0), x.mean(0), atol=1e-6)
  return np.ptp(y, axis=0).max()


# name -> (wrapper, steps from call to call)
CALLS_SELDOM = {
  'MultiSteps': (lambda tx: optax.MultiSteps(tx, 3), 3),
  'conditionally_transform': (
    lambda tx: optax.conditionally_transform(tx, lambda k: k % 6 == 1),
    6,
  ),
  'conditionally_mask': (
    lambda tx: optax.conditionally_mask(tx, lambda k: k % 3 == 0),
    3,
  ),
}


@pytest.mark.parametrize(
  'name',
  helpers.tiered(CALLS_SELDOM, ['MultiSteps', 'conditionally_transform']),
)
def test_rounds_follow_the_calls(name):
  """One peer a round: after log2 n rounds, each once, all are equal."""
  wrap, every = CALLS_SELDOM[name]
  tx = wrap(mj.dpsgd(mj.one_peer_exponential(8), FULL, **SLOTS))
  assert agreed(tx, 3 * every) < 1e-6


@pytest.mark.parametrize(
  'name', helpers.tiered([n for n in GOSSIP if n != 'every'], ['adpsgd', 'ecd'])
)
def test_every_third_step_is_each_step(name):
  """MultiSteps holds the parameters meanwhile: nothing but time is lost.

  Slots of late updates, ecd's t and the rounds go on by the calls.
  """
  tx, x = GOSSIP[name](NEAREST), parameters()
  if name == 'dcd' or name == 'ecd':  # which start from the same x
    x = jax.tree.map(lambda v: np.repeat(v[:1], N, axis=0), x)
  y, each = train(tx, 5, x)
  wrapper = optax.MultiSteps(tx, 3)
  # (As its `gradient_transformation` it would keep `step=` to itself.)
  seldom = optax.GradientTransformationExtraArgs(wrapper.init, wrapper.update)
  # The first round has the number of its step, here 0.
  z, state = train(seldom, 15, x, start=-2)
  close = functools.partial(np.testing.assert_allclose, atol=2e-6)
  jax.tree.map(close, y, z)
  turn = tx.heard(state.inner_opt_state).turn
  assert (turn == tx.heard(each).turn).all() and (turn >= 5).all()


def test_rounds_begin_with_their_step_and_are_one_number_to_vmap():
  """A loop that starts at step t starts with the round of t.

  And `simulated` runs one round, not all of them and then chooses.
  """
  tx = mj.dpsgd(mj.one_peer_exponential(8), FULL, **SLOTS)
  update = lambda u, state, x, k: tx.update(u, state, x, step=k)
  update = jax.vmap(update, (0, 0, 0, None), axis_name=AXIS)
  x = np.arange(8, dtype='f4')[:, None]
  state = jax.vmap(tx.init, axis_name=AXIS)(x)
  text = str(jax.make_jaxpr(update)(x, state, x, np.int32(1)))
  # A choice of platforms is a condition, too, in this form.
  conditions = text.count('cond[') - text.count('platform_index[')
  assert conditions == 1 and 'select_n' in text
  update = jax.jit(update)
  moved, state = update(0 * x, state, x, np.int32(1))
  hop = topologies.matrix(mj.one_peer_exponential(8)[1])
  np.testing.assert_allclose(x + moved, hop @ x, atol=1e-6)
  assert (state.heard.turn == 2).all()


def test_a_lookahead_stands_before_the_gossip():
  """Fast and slow weights gossip both."""
  fast = optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
  tx = optax.chain(fast, nearest['dpsgd'])
  pair = optax.LookaheadParams(dict(b=B, t=T), dict(b=B, t=T))
  run = functools.partial(jax.vmap, axis_name=AXIS)
  update = run(lambda g, s, x: tx.update(g, s, x, step=jnp.int32(0)))
  state = jax.eval_shape(run(tx.init), pair)
  updates, _ = jax.eval_shape(update, pair.fast, state, pair)
  assert jax.tree.structure(updates) == jax.tree.structure(pair)


# ------------------------------------------------------- means of any numbers


def mean_of(values, dtype):
  mean = jax.jit(jax.vmap(lambda x: collectives.mean(x, AXIS), axis_name=AXIS))
  return mean(jnp.asarray(values, dtype))


@pytest.mark.parametrize(
  'dtype,values,mean',
  [
    ('bfloat16', [256, 1, 1, 1, 1, 1, 1, 1], 33.0),  # 32 if added in bfloat16
    ('float16', [60_000] * 8, 60_000),  # their sum is no float16
    ('float16', [2048, *[1] * 7], 256.875),
    ('float32', [1, 2, 3, 4], 2.5),
    ('complex64', [1j, 3j], 2j),
  ],
)
def test_a_mean_is_added_up_in_float32(dtype, values, mean):
  got = mean_of(values, dtype)
  assert got.dtype == dtype
  np.testing.assert_array_equal(got, jnp.asarray(mean, dtype))


REFUSED = {
  'int32': np.ones(N, np.int32),
  'bool': np.ones(N, bool),
  'key': jax.random.split(KEY, N),
}


@pytest.mark.parametrize('kind', REFUSED)
@pytest.mark.parametrize(
  'name', helpers.tiered(ALL, ['allreduce', 'diana', 'dpsgd', 'quantize'])
)
def test_what_is_no_float_is_named(name, kind):
  params = dict(n=REFUSED[kind], t=T)
  with pytest.raises(ValueError, match=rf"\['n'\] is {kind}.*optax.masked"):
    one_step(ALL[name], params, params)


@pytest.mark.parametrize('name', MEANS)
def test_a_mean_keeps_the_type_of_each_leaf(name):
  params = dict(b=jnp.asarray(B, 'bfloat16'), t=jnp.asarray(T, 'float16'), w=B)
  updates, _ = one_step(MEANS[name], params, params)
  if name == 'adiana':  # x less the next x, of which only the sum is rounded
    params = jax.tree.map(jnp.float32, params)
  assert types(updates) == types(params)


def test_gossip_moves_bfloat16_in_float32():
  """Only the sum is rounded: an update of half a step is not lost before."""
  params = {'b': jnp.ones((N, 3), jnp.bfloat16), 't': T}
  updates, state = one_step(nearest['choco'], params, params)
  assert {v.dtype for v in jax.tree.leaves(updates)} == {jnp.float32.dtype}
  assert state.replica.dtype == jnp.float32


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_what_dcd_rounds_does_not_add_up(dtype):
  """Models are their replicas, rounded once; these stay close together."""
  x = parameters()['w'][:1].repeat(N, axis=0)
  x, state = train(ALL['dcd'], 300, x.astype(dtype))
  np.testing.assert_array_equal(x, state.replica.astype(dtype))
  apart = np.asarray(state.replica - state.replica.mean(0, keepdims=True))
  assert np.abs(apart).max() < 0.01


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_what_ecd_rounds_does_not_add_up(dtype):
  """Else each rounding would be a part of all steps that come."""
  x = parameters()['w'][:1].repeat(N, axis=0)
  ecd = mj.ecd(RING, FULL, **SLOTS)
  x, state = train(ecd, 300, x.astype(dtype))
  np.testing.assert_array_equal(x, state.model.astype(dtype))
  assert np.abs(x).max() < 1e-6
