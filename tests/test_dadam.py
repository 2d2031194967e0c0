"""Adam whose second moments agree, and the bytes in which they travel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax.training import loop
from moniqua_jax.workers import AXIS
from tests import helpers, hlo, trained

N, D, STEPS, EVERY = helpers.N, 300, 9, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
# Of unlike size on each worker, and over seven decades.
G = RNG.normal(size=(STEPS, N, D)) * 10 ** RNG.uniform(-6, 1, size=(N, D))
G = G.astype(np.float32)
SLOTS = dict(axis_name=AXIS, key=jax.random.key(1))
NUMBERS = dict(b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.1)


# ---------------------------------------------------------------- the message


@pytest.fixture(scope='module')
def sent():
  q = mj.float8(bucket_size=64)
  v = np.concatenate([10 ** RNG.uniform(-12, 5, 1000), [0, 1e-38, 3e38, 1.0]])
  v = v.astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 400)
  coded = jax.jit(jax.vmap(lambda k: q.decode(q.encode(v, k), v)))
  return q, v, np.asarray(coded(keys), np.float64)


def test_a_value_comes_as_one_of_its_two_neighbours(sent):
  q, v, v_hat = sent
  rows = np.pad(v, (0, -v.size % 64)).reshape(-1, 64)
  most = np.repeat(rows.max(axis=1), 64)[: v.size].astype(float)
  bound = v / 8 * (1 + 1e-6) + 2.0**-31 * 9 / 8 * most
  assert (np.abs(v_hat - v) <= bound).all()
  assert max(len({*column}) for column in v_hat.T) == 2
  assert (v_hat[:, v == 0] == 0).all() and (v_hat >= 0).all()
  assert q.encode(v, jax.random.key(0)).size == v.size + 4 * len(rows)


def test_rounding_has_no_bias(sent):
  _, v, v_hat = sent
  deviation = v_hat.std(axis=0) / np.sqrt(len(v_hat)) + 1e-6 * v
  off = (v_hat.mean(axis=0) - v) / np.maximum(deviation, 1e-300)
  some = v_hat.std(axis=0) > 0
  assert np.abs(off[some]).max() < 5 and abs(off[some].mean()) < 0.15


def test_what_is_not_finite_says_so():
  q = mj.float8()
  for bad in (np.nan, np.inf):
    v = jnp.array([1.0, bad, 2.0])
    assert not q.inspect(q.encode(v, jax.random.key(0)), v).readable
  with pytest.raises(ValueError, match='bucket_size=0'):
    mj.float8(0)


# -------------------------------------------------------------- the algorithm


def dadam(quantizer=None, topology=None, **more):
  topology = topology or mj.ring(N)
  more = NUMBERS | SLOTS | more
  return mj.dadam(
    0.1, every=EVERY, topology=topology, quantizer=quantizer, **more
  )


@functools.cache
def functions(tx, run=mj.simulated):
  step = lambda g, x, state, k: tx.update(g, state, x, step=k)
  return run(tx.init, (0,)), run(step, (0, 0, 0, None))


def train(tx, gradients=G):
  init, step = functions(tx)
  state, us, vs = init(X), [], []
  for k, g in enumerate(gradients):
    u, state = step(g, X, state, np.int32(k))
    us.append(np.asarray(u))
    vs.append(np.asarray(state.v))
  return np.stack(us), np.stack(vs), state


def expected(w):
  """In float64, as the docstring has it."""
  m = v = 0
  for k, g in enumerate(G.astype(float), 1):
    m = NUMBERS['b1'] * m + (1 - NUMBERS['b1']) * g
    v = NUMBERS['b2'] * v + (1 - NUMBERS['b2']) * g**2
    if k % EVERY == 0:
      v = np.maximum(0, w @ v)
    root = np.sqrt(v / (1 - NUMBERS['b2'] ** k)) + NUMBERS['eps']
    way = m / (1 - NUMBERS['b1'] ** k) / root
    yield -0.1 * (way + NUMBERS['weight_decay'] * X)


def test_in_full_precision_it_is_the_dense_oracle():
  us, *_ = train(dadam(mj.full_precision()))
  dense = np.stack([*expected(mj.topologies.matrix(mj.ring(N)))])
  np.testing.assert_allclose(us, dense, rtol=2e-4, atol=1e-6)


def test_a_worker_alone_is_adamw():
  one = mj.Topology([(1.0, (0,))])
  tx = mj.dadam(
    0.1,
    every=1,
    topology=one,
    quantizer=mj.full_precision(),
    **NUMBERS,
    **SLOTS,
  )
  adamw = optax.adamw(0.1, **NUMBERS)
  init, step = functions(tx)
  own, state = init(X[:1]), adamw.init(X[0])
  for k, g in enumerate(G[:, 0]):
    u, own = step(g[None], X[:1], own, np.int32(k))
    want, state = adamw.update(g, state, X[0])
    np.testing.assert_allclose(u[0], want, rtol=1e-5, atol=1e-7)


def test_second_moments_agree_and_are_never_negative():
  _, vs, state = train(dadam())
  assert (vs >= 0).all() and not np.asarray(state.told.lost).any()
  talk = vs[EVERY - 1 :: EVERY]
  _, alone, _ = train(dadam(topology=mj.lazy(mj.ring(N), 1e-6)))
  apart = lambda v: np.log10(v[-1].max(0) / np.maximum(v[-1].min(0), 1e-30))
  assert np.median(apart(vs)) < 0.5 * np.median(apart(alone))
  assert len(talk) == STEPS // EVERY


def test_a_gradient_that_is_not_finite_is_lost_alone():
  bad, without = G.copy(), G.copy()
  bad[2, 3, 7], without[2, 3] = np.inf, 0
  (us, vs, state), (others, like, _) = (
    train(dadam(), bad),
    train(dadam(), without),
  )
  np.testing.assert_array_equal(us, others)
  np.testing.assert_array_equal(vs, like)
  np.testing.assert_array_equal(state.told.lost, np.arange(N) == 3)


@pytest.mark.optimized
def test_a_byte_for_a_value_is_all_that_travels():
  init, step = functions(dadam(), mj.sharded)
  text = step.lower(G[0], X, init(X), np.int32(0)).compile().as_text()
  found = list(hlo.collectives(text))
  size = D + 4 * -(-D // 256)
  assert [one[1:] for one in found] == [('u8', size)] * 2


def test_what_is_refused():
  with pytest.raises(ValueError, match='no theta holds for all of them'):
    dadam(mj.moniqua(theta=1.0, bits=4))
  ring = dict(topology=mj.ring(N), **SLOTS)
  with pytest.raises(ValueError, match='every=0; dadam needs'):
    mj.dadam(0.1, every=0, **ring)
  for name in ('b1', 'b2'):
    with pytest.raises(ValueError, match=f'{name}=1.0; dadam needs it'):
      mj.dadam(0.1, **{name: 1.0}, **ring)
  with pytest.raises(ValueError, match='learning_rate=None; dadam needs'):
    mj.dadam(None, **ring)


# ---------------------------------------------------------------- the program


@pytest.mark.slow
def test_where_data_differ_agreement_decides(tmp_path):
  """Digits by label on a ring: dadam learns what AdamW alone does not."""
  config = trained.small(
    'dpsgd',
    order='adapt_then_combine',
    partition=dict(name='sorted_by_label'),
    batch_size=128,
    momentum=0.0,
    weight_decay=0.0,
    epochs=320.0,  # 320 steps
    checkpoint_every=320.0,
    eval_every=320.0,
  )
  rate = dict(name='constant', peak=3e-3, warmup_epochs=None)
  config.learning_rate.update(rate)
  of = {}
  for name, every in (('adamw', None), ('dadam', 1)):
    config.optimizer.update(name=name, b2=0.95, every=every)
    row = loop.train_and_evaluate(config, tmp_path / name)
    of[name] = row['test/accuracy'], row['test/worst_worker']
  (alone, worst_alone), (agreed, worst_agreed) = of['adamw'], of['dadam']
  assert alone < 0.87 and agreed > 0.95, of
  assert worst_alone < 0.7 and worst_agreed > 0.8, of
