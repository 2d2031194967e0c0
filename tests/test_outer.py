"""Means of what workers moved: one point for all after each, and no drift."""

import functools
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax import bytes_sent
from moniqua_jax.algorithms import large_leaves, transformation
from moniqua_jax.quantizers import base
from moniqua_jax.workers import AXIS
from tests import dense, helpers, hlo, oracles

# Fragments of 63, 63 and 64 values; messages, and chunks of 8, have no padding.
N, D, K, SIZE, STEPS = helpers.N, 190, 3, 64, 11
CUTS = [(f * D // K, (f + 1) * D // K) for f in range(K)]
SLOTS = dict(axis_name=AXIS, key=jax.random.key(2))
RNG = np.random.default_rng(0)
# They start apart, and move in much the same way.
X = RNG.normal(size=(N, D)).astype(np.float32)
U = RNG.normal(size=(STEPS, 1, D)) + 0.3 * RNG.normal(size=(STEPS, N, D))
U = U.astype(np.float32)
NEAREST = mj.uniform(bits=4, bucket_size=64, rounding='nearest')
SIGN = mj.sign(bucket_size=64)
RATE, MOMENTUM = 0.7, 0.9


def signs(v):
  return np.abs(v).mean() * np.where(v >= 0, 1, -1)


class Row(NamedTuple):
  """A reduction, and its dense form where its rounding has one."""

  make: callable
  quantizer: mj.Quantizer = None
  model: dense.Mean = None
  compress: callable = oracles.min_max(4)
  strategy: str = 'all_gather'
  memory: callable = lambda own: ()  # of a state, as the model has it


allreduce = functools.partial(mj.allreduce, **SLOTS)
feedback = functools.partial(mj.error_feedback, **SLOTS)
GATHER, SCATTER = 'all_gather', 'scatter_reduce'
OF_FEEDBACK = dict(memory=lambda own: (own.error,), compress=signs)
METHODS = {
  'exact': Row(
    lambda q: mj.allreduce(axis_name=AXIS),
    None,
    dense.allreduce(),
    lambda v: v,
  ),
  'eden': Row(lambda q: allreduce(q, SCATTER), mj.eden(2), strategy=SCATTER),
  'qsgd': Row(lambda q: allreduce(q, GATHER), mj.qsgd(4, bucket_size=64)),
  'allreduce': Row(lambda q: allreduce(q, GATHER), NEAREST, dense.allreduce()),
  'allreduce, in chunks': Row(
    lambda q: allreduce(q, SCATTER),
    NEAREST,
    dense.allreduce(),
    strategy=SCATTER,
  ),
  'error_feedback': Row(
    lambda q: feedback(q, GATHER),
    SIGN,
    dense.error_feedback(),
    **OF_FEEDBACK,
  ),
  'error_feedback, in chunks': Row(
    lambda q: feedback(q, SCATTER),
    SIGN,
    dense.error_feedback(),
    strategy=SCATTER,
    **OF_FEEDBACK,
  ),
  'SparseLoCo': Row(
    lambda q: feedback(q, 'of_senders', 0.95), mj.chunked_top_k(64, 8)
  ),
  'double_squeeze': Row(
    lambda q: mj.double_squeeze(q, **SLOTS),
    SIGN,
    dense.double_squeeze(),
    signs,
    SCATTER,
    # Chunks of all workers in a row, of each fragment.
    lambda own: (own.error[0], own.error[1].swapaxes(0, 1).reshape(K, SIZE)),
  ),
  'dcgd': Row(lambda q: mj.dcgd(q, **SLOTS), NEAREST, dense.allreduce()),
  'diana': Row(
    lambda q: mj.diana(q, 0.3, **SLOTS),
    NEAREST,
    dense.diana(0.3),
    memory=lambda own: (own.error.own,),
  ),
}
FAST = ['exact', 'eden', 'error_feedback']
methods = pytest.mark.parametrize('name', helpers.tiered(METHODS, FAST))


@functools.cache
def algorithm(name):
  row = METHODS[name]
  outer = optax.sgd(RATE, MOMENTUM, nesterov=True)
  return mj.streaming(mj.outer(row.make(row.quantizer), outer), K)


@functools.cache
def functions(name, run=mj.simulated):
  """init and one step of all workers, from x and u."""
  tx = algorithm(name)

  def step(x, u, state, k):
    u, state = tx.update(u, state, x, step=k)
    return x + u, state

  return run(tx.init, (0,)), run(step, (0, 0, 0, None))


def train(name, updates=U, start=None, first=0):
  """x after each step, f32[steps, n, d], and the states."""
  init, step = functions(name)
  (x, state), xs, states = start or (X, init(X)), [], []
  for k, u in enumerate(updates):
    x, state = step(x, u, state, np.int32(first + k))
    xs.append(np.asarray(x))
    states.append(jax.tree.map(np.asarray, state))
  return np.stack(xs), states


@functools.cache
def good(name):
  return train(name)


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


# ------------------------------------------------------------ what is expected


def chunkwise(compress, v):
  return oracles.each(compress, v.reshape(N, -1)).reshape(-1)


def mean_of(row, p, memory):
  """The mean of p, f64[n, s], by the dense form, and its new memory."""
  none, (x,) = 0 * p, row.model.vectors(p, 0 * p, memory)
  said, chunks = oracles.each(row.compress, x), row.strategy == SCATTER
  if chunks:
    said = np.stack([chunkwise(row.compress, v) for v in x])
    own = np.eye(N, dtype=bool).repeat(SIZE // N, axis=1)
    said = np.where(own, x, said)  # its own chunk stays as it is
  lands = functools.partial(row.model.lands, p, none, memory, (said,))
  mean, _ = lands(dense.Got(none, ()))
  if chunks:
    mean = chunkwise(row.compress, mean)
  return mean, lands(dense.Got(mean[None], ()))[1]


def nesterov(v, delta):
  """The step of the outer optimizer, and its momentum."""
  v = MOMENTUM * v + delta
  return -RATE * (delta + MOMENTUM * v), v


def expected(row):
  """x of each step, f64[n, d], and what is kept of each fragment at the end.

  Where a fragment is shorter than its message there is a 0 more; phi has it,
  too, and in phi it is what the rounding makes of it.
  """
  x, xs, phi = X.astype(float), [], np.zeros((K, SIZE))
  momenta, memories = (
    np.zeros((K, SIZE)),
    [row.model.start(0 * X[:, :SIZE])] * K,
  )
  for f, (begin, end) in enumerate(CUTS):
    phi[f, : end - begin] = x[:, begin:end].mean(axis=0)
  for t, u in enumerate(U):
    (begin, end), f = CUTS[t % K], t % K
    x, held = x + u, np.zeros((N, SIZE))
    held[:, : end - begin] = x[:, begin:end]
    delta, memories[f] = mean_of(row, phi[f] - held, memories[f])
    change, momenta[f] = nesterov(momenta[f], delta)
    phi[f] += change
    x[:, begin:end] = phi[f, : end - begin]
    xs.append(x)
  return xs, phi, memories


@pytest.mark.parametrize(
  'name', helpers.tiered([n for n in METHODS if METHODS[n].model], FAST)
)
def test_it_is_the_dense_oracle(name):
  row, (xs, states) = METHODS[name], good(name)
  out, phi, memories = expected(row)
  close = functools.partial(np.testing.assert_allclose, atol=2e-4)
  for x, of_dense in zip(xs, out, strict=True):
    close(x, of_dense)
  close(states[-1].own.anchor[0], phi)
  found = row.memory(states[-1].own.mean)
  for f, memory in enumerate(memories):
    for each, model in zip(found, memory, strict=True):
      close(each[:, f] if model.ndim > 1 else each[f], model)


@methods
def test_after_a_mean_all_are_at_one_point(name):
  """In phi to the bit; in the parameters but for the rounding of a sum."""
  xs, states = good(name)
  for t, (x, state) in enumerate(zip(xs, states, strict=True)):
    begin, end = CUTS[t % K]
    anchor = state.own.anchor
    np.testing.assert_array_equal(anchor, anchor[:1] + 0 * anchor)
    mine = anchor[:, t % K, : end - begin]
    np.testing.assert_allclose(x[:, begin:end], mine, atol=2e-6)
  assert (states[-1].heard.turn == STEPS).all()
  assert not states[-1].heard.lost.any()


def test_the_mean_of_the_workers_is_kept_by_local_steps():
  """With sgd(1), the default; x_i <- the mean in every second step."""
  tx = mj.outer(mj.allreduce(axis_name=AXIS), steps=2)
  step = lambda x, u, s, k: tx.update(u, s, x, step=k)
  step, state = (
    mj.simulated(step, (0, 0, 0, None)),
    mj.simulated(tx.init, (0,))(X),
  )
  x, plain = X, X.astype(float).mean(axis=0)
  for k, u in enumerate(U):
    moved, state = step(x, u, state, np.int32(k))
    x, plain = x + np.asarray(moved), plain + u.astype(float).mean(axis=0)
    np.testing.assert_allclose(x.mean(axis=0), plain, atol=1e-5)
    if k % 2:
      np.testing.assert_allclose(x, plain + 0 * x, atol=1e-5)
    else:
      assert_equal(np.asarray(moved), u)


def test_momentum_of_the_way_is_that_of_the_mean():
  """quasi_global around it: m <- (x at the last mean - x) / (2 alpha)."""
  mean = mj.outer(mj.allreduce(axis_name=AXIS), steps=2)
  tx = mj.quasi_global(mean, learning_rate=0.1, momentum=0.5, mu=0.0)
  step = lambda x, g, s, k: tx.update(g, s, x, step=k)
  step = mj.simulated(step, (0, 0, 0, None))
  x = plain = np.tile(X[:1], (N, 1))
  state, m, before = mj.simulated(tx.init, (0,))(x), 0, plain
  for k, g in enumerate(U):
    moved, state = step(x, g, state, np.int32(k))
    x, plain = x + np.asarray(moved), plain - 0.1 * (g + 0.5 * m)
    if k % 2:
      plain = plain.mean(axis=0) + 0 * plain
      m, before = (before - plain) / 0.2, plain
    np.testing.assert_allclose(x, plain, atol=1e-5)


# ------------------------------------------------------------------ bad days


@methods
def test_an_update_that_is_not_finite_is_lost_and_nothing_else_is(name):
  bad, without = U.copy(), U.copy()
  bad[4, 2, 100], without[4, 2] = np.nan, 0
  (xs, states), (others, like) = train(name, bad), train(name, without)
  np.testing.assert_array_equal(xs, others)
  lost = states[-1].heard.lost
  np.testing.assert_array_equal(lost, np.arange(N) == 2)
  assert_equal(states[-1].own.anchor, like[-1].own.anchor)


@methods
def test_where_a_mean_is_lost_all_are_back_where_they_were(name):
  """It overflows, in float32, in any message; the others are as they were."""
  large, (begin, end) = U.copy(), CUTS[1]
  large[4, :, begin : begin + 2] = 3e38, -3e38
  xs, states = train(name, large)
  others, like = good(name)
  back = states[3].own.anchor[:, 1, : end - begin]
  np.testing.assert_allclose(xs[4][:, begin:end], back, atol=2e-6)
  np.testing.assert_array_equal(states[4].heard.lost, 1)
  for field in ('anchor', 'own'):
    assert_equal(getattr(states[4].own, field), getattr(states[3].own, field))
  assert np.isfinite(xs).all() and (states[-1].heard.lost == 1).all()
  of_others = np.delete(np.arange(D), np.s_[begin:end])
  np.testing.assert_array_equal(xs[..., of_others], others[..., of_others])


MEANS_OF = {
  'mean': lambda: mj.allreduce(axis_name=AXIS),
  'gossip': lambda: mj.dpsgd(mj.ring(2), mj.full_precision(), **SLOTS),
}


@pytest.mark.parametrize('name', MEANS_OF)
def test_an_optimizer_may_keep_an_infinity(name):
  """As the least loss so far of `reduce_on_plateau`, before the first."""
  keeps = optax.GradientTransformation(
    lambda params: jnp.float32(jnp.inf),
    lambda u, state, params=None: (-u, state),
  )
  tx = mj.outer(MEANS_OF[name](), keeps)
  x = jnp.zeros((2, 3))
  state = mj.simulated(tx.init, (0,))(x)
  step = lambda x, s: tx.update(jnp.ones(3), s, x, step=jnp.int32(0))
  u, state = mj.simulated(step, (0, 0))(x, state)
  np.testing.assert_array_equal(u, 1)
  np.testing.assert_array_equal(state.heard.lost, 0)


def test_a_step_of_the_optimizer_that_is_not_finite_is_lost_alone():
  at_one = lambda count: jnp.where(count == 1, jnp.nan, -1.0)
  mean = mj.allreduce(axis_name=AXIS)
  tx = mj.outer(mean, optax.scale_by_schedule(at_one))
  x = jnp.zeros((2, 3))
  state = mj.simulated(tx.init, (0,))(x)
  step = mj.simulated(
    lambda x, s, k: tx.update(jnp.ones(3), s, x, step=k), (0, 0, None)
  )
  for k, lost in enumerate((0, 1, 2)):  # its count stays where it was
    u, state = step(x, state, jnp.int32(k))
    x = x + u
    np.testing.assert_array_equal(state.heard.lost, lost)
    np.testing.assert_array_equal(x, 1)


@methods
def test_it_goes_on_from_the_middle_of_a_cycle(name):
  xs, states = good(name)
  half = pickle.loads(pickle.dumps(states[4]))
  again, ends = train(name, U[5:], (xs[4], half), first=5)
  np.testing.assert_array_equal(again, xs[5:])
  assert_equal(ends[-1], states[-1])


# ------------------------------------------------------------------ the wire


@pytest.mark.optimized
@pytest.mark.parametrize(
  'name,runner',
  helpers.tiered(
    [(n, r) for n in METHODS for r in ('sharded', 'pmapped')],
    [('error_feedback', 'sharded')],
  ),
)
def test_runners_agree_and_a_fragment_is_sent(name, runner):
  """In bytes, as many as are claimed for a vector of its size."""
  row, (xs, _) = METHODS[name], good(name)
  init, step = functions(name, helpers.RUNNERS[runner])
  x, state, zero = X, init(X), np.int32(0)
  compiled = step.lower(X, U[0], state, zero).compile()
  for k in range(K + 1):
    x, state = compiled(x, U[k], state, np.int32(k))
    np.testing.assert_allclose(x, xs[k], atol=1e-5)
  found = list(hlo.collectives(compiled.as_text()))
  if name == 'exact':
    assert [one[1:] for one in found] == [('f32', 4 * SIZE)]
    return
  assert {dtype for _, dtype, _ in found} == {'u8'}
  vector = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
  claim = bytes_sent.of_reduce(
    row.strategy,
    base.tuned(row.quantizer),
    vector,
    N,
    large_leaves.none_small,
  )
  # Of n rows that a worker gets, its own does not travel.
  gets = sum(nbytes for *_, nbytes in found) * (N - 1) / N
  assert claim.whole.sum() == gets and not claim.exact


# ------------------------------------------------------------------ the rest


def test_refusals():
  adiana = mj.adiana(NEAREST, None, **SLOTS)
  nothing = transformation.no_reduction()
  for tx, name in ((adiana, 'adiana'), (nothing, 'none'), (optax.sgd(1), '')):
    with pytest.raises(ValueError, match=f'outer: .*{name}.* is no mean of'):
      mj.outer(tx)
  for near in (mj.moniqua(1.0, 4), mj.rotated(mj.moniqua(1.0, 4))):
    with pytest.raises(ValueError, match='outer: .*moniqua.*take qsgd'):
      mj.outer(allreduce(near, SCATTER))
  with pytest.raises(ValueError, match='steps=0'):
    mj.outer(allreduce(NEAREST, SCATTER), steps=0)
  for first in (allreduce(NEAREST, SCATTER), nothing):
    with pytest.raises(ValueError, match='streaming: .* is not the last of'):
      mj.streaming(first, K)
  copies = mj.choco(mj.ring(N), mj.full_precision(), gamma=0.5, **SLOTS)
  with pytest.raises(ValueError, match='outer: choco is no mean .*use dpsgd'):
    mj.outer(copies)
  few = jax.ShapeDtypeStruct((2,), jnp.float32)
  with pytest.raises(ValueError, match='fragments=3; the vector has 2 values'):
    jax.eval_shape(algorithm('exact').init, few)
