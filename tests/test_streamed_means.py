"""Means of gradients in fragments: what waits is in a later mean, and once."""

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
GRADIENTS = RNG.normal(size=(STEPS, 1, D)) + 0.3 * RNG.normal(
  size=(STEPS, N, D)
)
GRADIENTS = GRADIENTS.astype(np.float32)
NEAREST = mj.uniform(bits=4, bucket_size=64, rounding='nearest')
SIGN = mj.sign(bucket_size=64)


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
  keeps_all: bool = False  # nothing is lost but what is kept


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
    keeps_all=True,
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
    keeps_all=True,
    **OF_FEEDBACK,
  ),
  'error_feedback, in chunks': Row(
    lambda q: feedback(q, SCATTER),
    SIGN,
    dense.error_feedback(),
    strategy=SCATTER,
    **OF_FEEDBACK,
  ),
  'double_squeeze': Row(
    lambda q: mj.double_squeeze(q, **SLOTS),
    SIGN,
    dense.double_squeeze(),
    signs,
    SCATTER,
    # Chunks of all workers in a row, of each fragment.
    lambda own: (own.error[0], own.error[1].swapaxes(0, 1).reshape(K, SIZE)),
    keeps_all=True,
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
def reduction(name):
  return mj.streaming(METHODS[name].make(METHODS[name].quantizer), K)


@functools.cache
def functions(name, run=mj.simulated):
  """init and update of all workers."""
  tx = reduction(name)
  update = lambda g, state, k: tx.update(g, state, step=k)
  return run(tx.init, (0,)), run(update, (0, 0, None))


def train(name, gradients=GRADIENTS, start=None, first=0):
  """The means, f32[steps, n, d], and the states after each step."""
  init, update = functions(name)
  state, means, states = start or init(GRADIENTS[0]), [], []
  for k, g in enumerate(gradients):
    mean, state = update(g, state, np.int32(first + k))
    state = jax.tree.map(np.asarray, state)
    means.append(np.asarray(mean))
    states.append(state)
  return np.stack(means), states


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


def expected(row):
  """The mean and what waits, f64[d] and f64[n, d], of each step; memories."""
  waiting, out = np.zeros((N, D)), []
  memories = [row.model.start(np.zeros((N, SIZE)))] * K
  for t, g in enumerate(GRADIENTS):
    (begin, end), f = CUTS[t % K], t % K
    waiting, p, mean = waiting + g, np.zeros((N, SIZE)), np.zeros(D)
    p[:, : end - begin] = waiting[:, begin:end]
    of_fragment, memories[f] = mean_of(row, p, memories[f])
    mean[begin:end] = of_fragment[: end - begin]
    waiting[:, begin:end] = 0
    out.append((mean, waiting))
  return out, memories


@pytest.mark.parametrize(
  'name', helpers.tiered([n for n in METHODS if METHODS[n].model], FAST)
)
def test_it_is_the_dense_oracle(name):
  row, (means, states) = METHODS[name], good(name)
  out, memories = expected(row)
  close = functools.partial(np.testing.assert_allclose, atol=3e-5)
  for mean, state, (of_dense, waiting) in zip(means, states, out, strict=True):
    close(mean[0], of_dense)
    close(state.waiting, waiting)
  found = row.memory(states[-1].own)
  for f, memory in enumerate(memories):
    for each, model in zip(found, memory, strict=True):
      close(each[:, f] if model.ndim > 1 else each[f], model)


@methods
def test_nothing_is_lost_and_workers_are_equal_to_the_bit(name):
  """sum of means + what waits + what is kept = the mean of all gradients."""
  row, (means, states) = METHODS[name], good(name)
  np.testing.assert_array_equal(means, means[:, :1] + 0 * means)
  for t, mean in enumerate(means[:, 0]):
    begin, end = CUTS[t % K]
    assert not mean[:begin].any() and not mean[end:].any()
  state, total = states[-1], means[:, 0].astype(float).sum(axis=0)
  left = state.waiting.astype(float).mean(axis=0)
  if row.keeps_all:
    for kept in row.memory(state.own):
      kept = kept.mean(axis=0) if kept.ndim > 2 else kept
      left += np.concatenate(
        [v[: end - begin] for v, (begin, end) in zip(kept, CUTS, strict=True)]
      )
  summed = GRADIENTS.astype(float).mean(axis=1).sum(axis=0)
  off = np.linalg.norm(total + left - summed) / np.linalg.norm(summed)
  assert off < (1e-6 if row.keeps_all else 0.6)
  assert (state.turn == STEPS).all() and not state.lost.any()


# ------------------------------------------------------------------ bad days


@methods
def test_a_gradient_that_is_not_finite_is_lost_and_nothing_else_is(name):
  bad, without = GRADIENTS.copy(), GRADIENTS.copy()
  bad[4, 2, 100], without[4, 2] = np.nan, 0
  (means, states), (others, like) = train(name, bad), train(name, without)
  np.testing.assert_array_equal(means, others)
  lost = states[-1].lost
  assert_equal(states[-1]._replace(lost=0), like[-1]._replace(lost=0))
  np.testing.assert_array_equal(lost, np.arange(N) == 2)


@methods
def test_a_mean_that_is_not_finite_takes_what_waited_and_no_more(name):
  """It overflows, in float32, in any message; the fragment is well again."""
  large, (begin, end) = GRADIENTS.copy(), CUTS[1]
  large[2, :, begin : begin + 2] = 3e38, -3e38  # the next mean of it is step 4
  means, states = train(name, large)
  assert not means[4].any() and np.isfinite(means).all()
  np.testing.assert_array_equal(states[-1].lost, 1)
  of_others = np.delete(np.arange(D), np.s_[begin:end])
  others, like = good(name)
  np.testing.assert_array_equal(means[..., of_others], others[..., of_others])
  np.testing.assert_array_equal(means[:4], others[:4])
  np.testing.assert_array_equal(states[4].waiting, like[4].waiting)
  jax.tree.map(  # its memory, too, is that of before
    lambda v, before: np.testing.assert_array_equal(v[:, 1], before[:, 1]),
    METHODS[name].memory(states[4].own)[:1],
    METHODS[name].memory(like[3].own)[:1],
  )
  assert means[7, :, begin:end].any()


@methods
def test_it_goes_on_from_the_middle_of_a_cycle(name):
  means, states = good(name)
  half = pickle.loads(pickle.dumps(states[4]))
  again, ends = train(name, GRADIENTS[5:], half, first=5)
  np.testing.assert_array_equal(again, means[5:])
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
  row, (means, _) = METHODS[name], good(name)
  init, update = functions(name, helpers.RUNNERS[runner])
  state, zero = init(GRADIENTS[0]), np.int32(0)
  compiled = update.lower(GRADIENTS[0], state, zero).compile()
  for k in range(K + 1):
    mean, state = compiled(GRADIENTS[k], state, np.int32(k))
    np.testing.assert_allclose(mean, means[k], atol=1e-6)
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


@pytest.mark.slow
def test_long_fragments_begin_at_tiles():
  d = 3 * 65536 + 1013
  tx = mj.streaming(mj.allreduce(axis_name=AXIS), 3)
  init, update = mj.simulated(tx.init, (0,)), mj.simulated(tx.update, (0, 0))
  gs = np.random.default_rng(1).normal(size=(4, N, d)).astype(np.float32)
  state, total = init(gs[0]), 0
  for g in gs:
    mean, state = update(g, state)
    total = total + np.asarray(mean, float)
  left = np.asarray(state.waiting, float).mean(axis=0)
  np.testing.assert_allclose(
    total + left, gs.sum(axis=0).mean(axis=0) + 0 * total, atol=1e-5
  )


# ------------------------------------------------------------------ the rest


def test_one_fragment_is_the_reduction_itself():
  tx = allreduce(mj.eden(2), SCATTER)
  assert mj.streaming(tx, 1) is tx


@pytest.mark.parametrize(
  'name', helpers.tiered(METHODS, ['exact', 'error_feedback'])
)
def test_leaves_come_back_as_without_fragments(name):
  """A mean of a bfloat16 gradient is one; small leaves take part."""
  kinds = dict(a=jnp.bfloat16, b=jnp.float32, c=jnp.bfloat16)
  shapes = dict(a=(32, 40), b=(33,), c=())
  leaf = lambda name: jax.ShapeDtypeStruct((N, *shapes[name]), kinds[name])
  tree = {name: leaf(name) for name in shapes}
  quantizer = METHODS[name].quantizer

  def mean_by(tx):
    init = jax.eval_shape(jax.vmap(tx.init, axis_name=AXIS), tree)
    step = lambda g, s, k: tx.update(g, s, step=k)
    step = jax.vmap(step, (0, 0, None), axis_name=AXIS)
    return jax.eval_shape(step, tree, init, np.int32(0))

  plain = METHODS[name].make(quantizer)
  (mean, state), (whole, _) = mean_by(mj.streaming(plain, K)), mean_by(plain)
  assert mean == whole
  assert state.waiting == jax.ShapeDtypeStruct((N, 1314), jnp.float32)


def test_fragments_take_turns_by_their_calls():
  """Of every third step each third would be the same fragment."""
  tx = optax.MultiSteps(reduction('exact'), 3)

  def worker(g):
    step = lambda state, g: tx.update(g, state)[::-1]
    return jax.lax.scan(step, tx.init(g[0]), g)

  gs = np.tile(GRADIENTS[:3], (K, 1, 1)).swapaxes(0, 1)
  state, means = jax.jit(jax.vmap(worker, axis_name=AXIS))(gs)
  total = np.asarray(means)[0].sum(axis=0)
  often = np.repeat(np.arange(1, K + 1), [end - begin for begin, end in CUTS])
  mean = GRADIENTS[:3].mean(axis=(0, 1))
  np.testing.assert_allclose(total, often * mean, atol=1e-5)
  assert (np.asarray(state.inner_opt_state.turn) == K).all()


def test_refusals():
  adiana = mj.adiana(NEAREST, None, **SLOTS)
  for tx, name in (
    (adiana, 'adiana'),
    (transformation.no_reduction(), 'none'),
    (reduction('exact'), 'allreduce'),
  ):
    with pytest.raises(ValueError, match=f'streaming: {name} cannot wait'):
      mj.streaming(tx, K)
  for near in (mj.moniqua(1.0, 4), mj.rotated(mj.moniqua(1.0, 4))):
    with pytest.raises(ValueError, match='streaming: .*moniqua.*take qsgd'):
      mj.streaming(allreduce(near, SCATTER), K)
  few = jax.ShapeDtypeStruct((2,), jnp.float32)
  with pytest.raises(ValueError, match='fragments=3; the vector has 2 values'):
    jax.eval_shape(reduction('exact').init, few)
  init = reduction('exact').init
  state = jax.eval_shape(init, dict(a=few, b=few))
  with pytest.raises(ValueError, match=r"made for other.*'b'.*have no grad"):
    jax.eval_shape(
      lambda g, s: reduction('exact').update(g, s, dict(a=0, b=0)),
      dict(a=few),
      state,
    )
