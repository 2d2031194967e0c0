"""Quantized means: one battery over strategies, quantizers and runners.

The oracle is NumPy: it takes what each message says from the quantizer, and
does the sums, the chunks and the memories itself.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax import bytes_sent, coding, collectives, quantized_mean
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.quantizers import base
from moniqua_jax.workers import AXIS
from tests import helpers, hlo

N = helpers.N
KEY = jax.random.key(3)
SHAPES = {'bias': (5,), 'kernel': (30, 37), 'last': (41, 29)}
D = 30 * 37 + 41 * 29
QUANTIZERS = {
  'full_precision': mj.full_precision(),
  'nuqsgd 4': mj.nuqsgd(4, bucket_size=128),
  'qsgdinf 3': mj.qsgd(3, bucket_size=64, norm='linf'),
  'natural': mj.natural(),
  'eden 2': mj.eden(2),
  'alq': mj.alq(3, bucket_size=64, sweeps=3, axis_name=AXIS),
  'coded': mj.coded(mj.nuqsgd(4, bucket_size=512), 3.0, coding.dense()),
}
BIASED = {
  'sign': mj.sign(bucket_size=64),
  'one_bit': mj.one_bit(bucket_size=64),
  'top_k': mj.top_k(0.1),
  'eden 1': mj.eden(1, 'least_error'),
  'chunked_top_k': mj.chunked_top_k(512, 16),
}
REDUCING = {
  **{
    f'allreduce {strategy} {name}': mj.allreduce(
      quantizer, strategy, axis_name=AXIS, key=KEY
    )
    for name, quantizer in QUANTIZERS.items()
    for strategy in quantized_mean.STRATEGIES
  },
  **{
    f'error_feedback {strategy} {name}': mj.error_feedback(
      quantizer, strategy, axis_name=AXIS, key=KEY
    )
    for name, quantizer in BIASED.items()
    for strategy in quantized_mean.STRATEGIES
  },
  **{
    f'double_squeeze {name}': mj.double_squeeze(
      quantizer, axis_name=AXIS, key=KEY
    )
    for name, quantizer in BIASED.items()
  },
}
REDUCING['error_feedback all_gather rotated uniform'] = mj.error_feedback(
  mj.rotated(mj.uniform(2, 64, 'nearest')),
  'all_gather',
  axis_name=AXIS,
  key=KEY,
)
UNBIASED = [
  name
  for name in REDUCING
  if 'allreduce' in name and 'of_senders' not in name and 'alq' not in name
]
# Each quantizer, each strategy, each memory.
ONE_EACH = [
  'allreduce all_gather nuqsgd 4',
  'allreduce scatter_reduce nuqsgd 4',
  'allreduce scatter_reduce natural',
  'allreduce scatter_reduce alq',
  'allreduce all_gather coded',
  'error_feedback scatter_reduce sign',
  'error_feedback all_gather top_k',
  'double_squeeze one_bit',
]
algorithms = pytest.mark.parametrize('name', helpers.tiered(REDUCING, ONE_EACH))
A_FEW = 'all_gather', 'scatter_reduce'
strategies = pytest.mark.parametrize(
  'strategy', helpers.tiered(quantized_mean.STRATEGIES, A_FEW)
)


def gradients(seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda shape: rng.standard_normal((N, *shape)).astype(np.float32)
  return {name: normal(shape) for name, shape in SHAPES.items()}


def compiled_anew(tx, run):
  """init and update of all workers."""
  update = run(lambda g, s, k: tx.update(g, s, None, step=k), (0, 0, None))
  return run(tx.init, (0,)), update


functions = functools.cache(compiled_anew)


def run_steps(tx, run, grads, steps, functions=functions):
  init, update = functions(tx, run)
  state = init(grads)
  for k in range(steps):
    mean, state = update(grads, state, np.int32(k))
    yield jax.tree.map(np.asarray, mean), state


def one_step(tx, grads, run=mj.simulated):
  return next(run_steps(tx, run, grads, 1))[0]


def flat(tree):
  return np.concatenate(
    [np.asarray(tree[k]).reshape(N, -1) for k in ('kernel', 'last')], axis=1
  )


# ------------------------------------------------------------- the battery


@algorithms
def test_all_workers_hold_the_same_bits(name):
  for mean, _ in run_steps(REDUCING[name], mj.simulated, gradients(), 3):
    for leaf in jax.tree.leaves(mean):
      np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


@pytest.mark.optimized
@pytest.mark.parametrize(
  'name,runner',
  helpers.tiered(
    [(name, runner) for name in REDUCING for runner in ('sharded', 'pmapped')],
    [
      ('allreduce all_gather nuqsgd 4', 'pmapped'),
      ('double_squeeze sign', 'sharded'),
    ],
  ),
)
def test_all_runners_give_the_same_bits(name, runner):
  tx, grads = REDUCING[name], gradients()
  ends = []
  for run in (mj.simulated, helpers.RUNNERS[runner]):
    *_, (mean, _) = run_steps(tx, run, grads, 3, compiled_anew)
    assert (flat(mean) == flat(mean)[:1]).all()
    ends.append(flat(mean)[0])
  if 'alq' in name:  # its fit is full of functions that round as they like
    assert np.linalg.norm(ends[1] - ends[0]) < 0.5 * np.linalg.norm(ends[1])
  else:
    np.testing.assert_array_equal(*ends)


@pytest.mark.optimized
@pytest.mark.parametrize('runner', helpers.tiered(helpers.RUNNERS, ['sharded']))
def test_replicas_stay_equal_to_the_bit_for_100_steps(runner):
  """Of a whole chain with momentum, on gradients that depend on x."""
  tx = optax.chain(
    mj.allreduce(
      mj.nuqsgd(4, bucket_size=128), 'scatter_reduce', axis_name=AXIS, key=KEY
    ),
    optax.sgd(0.1, momentum=0.9),
  )
  x = jax.tree.map(np.zeros_like, gradients())

  def step(x, state, target, k):
    grads = jax.tree.map(jnp.subtract, x, target)
    updates, state = tx.update(grads, state, x, step=k)
    return optax.apply_updates(x, updates), state

  run, target = helpers.RUNNERS[runner], gradients(1)
  step, state = run(step, (0, 0, 0, None)), run(tx.init, (0,))(x)
  for k in range(100):
    x, state = step(x, state, target, np.int32(k))
    jax.block_until_ready(
      x
    )  # 8 CPU devices: one step in flight, or they starve
  for leaf in jax.tree.leaves(x):
    leaf = np.asarray(leaf)
    assert (leaf == leaf[:1]).all()
  mean = flat(gradients(1)).mean(axis=0)
  assert np.linalg.norm(flat(x)[0] - mean) < 0.5 * np.linalg.norm(mean)


@pytest.mark.parametrize('name', helpers.tiered(UNBIASED, ONE_EACH))
def test_the_mean_is_unbiased(name):
  grads, tx, draws = gradients(), REDUCING[name], 120
  means = [
    flat(mean)[0] for mean, _ in run_steps(tx, mj.simulated, grads, draws)
  ]
  error = np.array(means) - flat(grads).astype(np.float64).mean(axis=0)
  if 'full_precision' in name:
    assert np.abs(error).max() < 1e-6
    return
  spread = np.maximum(error.std(axis=0), 0.1 * error.std())
  z = error.mean(axis=0) / spread * np.sqrt(draws)
  assert np.abs(z).max() < 6
  assert np.mean(z**2) < 1.4


@algorithms
def test_the_state_keeps_its_shapes(name):
  shapes = lambda tree: jax.tree.map(lambda v: (v.shape, v.dtype), tree)
  tx, grads = REDUCING[name], gradients()
  init, update = functions(tx, mj.simulated)
  before = jax.eval_shape(init, grads)
  _, after = jax.eval_shape(update, grads, before, np.int32(0))
  assert shapes(before) == shapes(after)


@algorithms
def test_what_is_not_finite_never_becomes_a_finite_mean(name):
  for bad in (np.nan, np.inf):
    grads = gradients()
    grads['kernel'][3, 7, 7] = bad
    ((mean, state),) = run_steps(REDUCING[name], mj.simulated, grads, 1)
    np.testing.assert_array_equal(state.lost, 1)
    if 'allreduce' in name:
      assert not np.isfinite(mean['kernel'][:, 7, 7]).any()
    else:  # what has a memory loses the whole step
      assert not any(leaf.any() for leaf in mean.values())


@algorithms
def test_small_leaves_are_exact(name):
  grads = gradients()
  mean = one_step(REDUCING[name], grads)
  exact = grads['bias'].astype(np.float64).mean(axis=0)
  np.testing.assert_allclose(mean['bias'][0], exact, atol=1e-6)


# -------------------------------------------------------------- the oracle


@functools.cache
def compiled_talk(quantizer):
  return jax.jit(lambda x, key: quantizer.decode(quantizer.encode(x, key), x))


def said(quantizer, x, key):
  """What a message says, by the quantizer; float64."""
  return np.asarray(compiled_talk(quantizer)(np.float32(x), key), np.float64)


def worker_keys(step):
  at = jax.random.fold_in(KEY, step)
  return [jax.random.fold_in(at, worker) for worker in range(N)]


def chunks_of(x):
  return np.pad(x, (0, -x.size % N)).reshape(N, -1)


def scatter_oracle(quantizer, xs, keys):
  """Means of chunks, and what each worker's x became."""
  chunks = [chunks_of(x) for x in xs]
  heard = [
    [
      chunk if chunk_of == worker else said(quantizer, chunk, key)
      for chunk_of, (chunk, key) in enumerate(
        zip(own, jax.random.split(keys[worker], N), strict=True)
      )
    ]
    for worker, own in enumerate(chunks)
  ]
  means = np.mean(np.array(heard, np.float64), axis=0)
  return means, [np.concatenate(own)[: xs[0].size] for own in heard]


def memory_oracle(quantizer, strategy, grads, steps, feedback):
  """Means of several steps; with feedback, p = g + e is sent, e = p - Q(p)."""
  errors = np.zeros((N, D))
  for k in range(steps):
    keys = worker_keys(k)
    xs = [
      (g + e).astype(np.float32) for g, e in zip(grads, errors, strict=True)
    ]
    if strategy == 'all_gather':
      own = [said(quantizer, x, key) for x, key in zip(xs, keys, strict=True)]
      mean = np.mean(own, axis=0)
    elif strategy == 'of_senders':
      own = [said(quantizer, x, key) for x, key in zip(xs, keys, strict=True)]
      norms = np.linalg.norm(own, axis=1, keepdims=True)
      clipped = own * np.minimum(1, np.median(norms) / norms)
      count = (np.array(own) != 0).sum(axis=0)
      mean = clipped.sum(axis=0) / np.maximum(count, 1)
    else:
      halves = [jax.random.split(key) for key in keys]
      means, own = scatter_oracle(quantizer, xs, [half[0] for half in halves])
      mean = np.concatenate(
        [
          said(quantizer, chunk, half[1])
          for chunk, half in zip(means, halves, strict=True)
        ]
      )[:D]
    if feedback:
      errors = np.array(xs, np.float64) - np.array(own)
  return mean, errors


@strategies
@pytest.mark.parametrize(
  'quantizer', [mj.nuqsgd(4, bucket_size=128), mj.sign(64)], ids=['nuq', 'sign']
)
@pytest.mark.parametrize('feedback', [False, True])
def test_it_is_the_dense_oracle(strategy, quantizer, feedback):
  factory = mj.error_feedback if feedback else mj.allreduce
  tx, grads = factory(quantizer, strategy, axis_name=AXIS, key=KEY), gradients()
  *_, (mean, state) = run_steps(tx, mj.simulated, grads, 2)
  expected, errors = memory_oracle(
    quantizer, strategy, flat(grads), 2, feedback
  )
  # A tie of the rounding may flip between the two ways of adding.
  off = np.abs(flat(mean)[0] - expected) > 1e-5
  assert off.mean() < 2e-3
  if feedback:
    assert (np.abs(np.asarray(state.error) - errors) > 1e-4).mean() < 2e-3


@pytest.mark.parametrize('name', helpers.tiered(BIASED, ['one_bit']))
def test_double_squeeze_loses_nothing(name):
  """sum of means + what is left of the workers and of the means = sum of g."""
  tx, grads = REDUCING[f'double_squeeze {name}'], gradients()
  means, states = zip(*run_steps(tx, mj.simulated, grads, 12), strict=True)
  total, state = sum(flat(m)[0].astype(np.float64) for m in means), states[-1]
  of_workers, of_means = (np.asarray(e, np.float64) for e in state.error)
  left = of_workers.mean(axis=0) + of_means.reshape(-1)[:D]
  expected = 12 * flat(grads).astype(np.float64).mean(axis=0)
  np.testing.assert_allclose(total + left, expected, atol=1e-4)


@pytest.mark.parametrize('name', helpers.tiered(BIASED, ['top_k']))
def test_error_feedback_loses_nothing(name):
  tx, grads = REDUCING[f'error_feedback all_gather {name}'], gradients()
  means, states = zip(*run_steps(tx, mj.simulated, grads, 12), strict=True)
  total, state = sum(flat(m)[0].astype(np.float64) for m in means), states[-1]
  left = np.asarray(state.error, np.float64).mean(axis=0)
  expected = 12 * flat(grads).astype(np.float64).mean(axis=0)
  np.testing.assert_allclose(total + left, expected, atol=1e-4)
  without = mj.allreduce(BIASED[name], 'all_gather', axis_name=AXIS, key=KEY)
  alone = 12 * flat(one_step(without, grads))[0]
  # Without a memory the same 12 messages are further off.
  off = np.linalg.norm(total - expected)
  # Of few values in chunks many have not come in 12 messages.
  times = 1.25 if name == 'chunked_top_k' else 2
  assert np.linalg.norm(alone - expected) > times * off


def test_variance_of_scatter_reduce_is_within_its_bound():
  """(eps / N^2) sum' |g|^2 + eps (|mean|^2 + the same), sum' without owners."""
  quantizer, grads = mj.nuqsgd(4, bucket_size=128), gradients()
  tx = mj.allreduce(quantizer, 'scatter_reduce', axis_name=AXIS, key=KEY)
  eps = 1 / 8 + 2 / 9 * 128 * 4.0**-6  # NUQSGD, s = 6, buckets of 128
  exact = flat(grads).astype(np.float64).mean(axis=0)
  errors = [
    np.sum((flat(mean)[0] - exact) ** 2)
    for mean, _ in run_steps(tx, mj.simulated, grads, 20)
  ]
  first = eps / N**2 * (1 - 1 / N) * np.sum(flat(grads).astype(float) ** 2)
  bound = first + eps * (np.sum(exact**2) + first)
  assert 0.1 * bound < np.mean(errors) < bound


def of_all_leaves(quantizer):
  keep = dict(keep=lambda leaf: False)
  return mj.allreduce(
    quantizer, 'scatter_reduce', axis_name=AXIS, key=KEY, **keep
  )


@pytest.mark.parametrize(
  'size,bits',
  helpers.tiered(
    [(size, bits) for size in (1, 2, 8, 128, 1000) for bits in (2, 4, 8)],
    [(1, 2), (8, 8), (1000, 2)],
  ),
)
def test_constant_tensors_have_exact_means(size, bits):
  """A conformance test of torch_cgx, of min-max quantization."""
  quantizer = mj.uniform(bits, rounding='nearest')
  tx = of_all_leaves(quantizer)
  x = np.broadcast_to(
    np.arange(1.0, N + 1, dtype=np.float32)[:, None], (N, size)
  )
  # A chunk whose end is padding is not constant; each worker has its own there.
  mean = one_step(tx, x[:, : size - size % N] if size > N else x)
  if size >= N:
    np.testing.assert_array_equal(mean, 4.5)
  else:
    np.testing.assert_allclose(mean, 4.5, atol=1e-6)


@pytest.mark.parametrize(
  'bucket_size,bits',
  helpers.tiered(
    [(size, bits) for size in (64, 512) for bits in (2, 3, 4, 6, 8)],
    [(64, 3), (512, 6)],
  ),
)
def test_ramps_are_within_their_bound(bucket_size, bits):
  """|err| < 2 min(bucket, size) / (2^b - 1) N (N + 1) of the sum: torch_cgx."""
  size = 1000
  quantizer = mj.uniform(bits, bucket_size, rounding='nearest')
  tx = of_all_leaves(quantizer)
  ramp = np.arange(size, dtype=np.float32)
  x = np.arange(1, N + 1, dtype=np.float32)[:, None] * ramp
  error = N * np.abs(one_step(tx, x)[0] - 4.5 * ramp).max()
  assert error < 2 * min(bucket_size, size) / (2**bits - 1) * N * (N + 1)


# ------------------------------------------------------------- on the wire


def compiled(tx, grads):
  init, run = functions(tx, mj.sharded)
  state = jax.eval_shape(init, grads)
  return run.lower(grads, state, np.int32(0)).compile().as_text()


@pytest.mark.parametrize('bits', helpers.tiered((2, 3, 4, 8), (3,)))
def test_scatter_reduce_sends_packed_bytes_and_no_float(bits):
  quantizer, grads = mj.nuqsgd(bits, bucket_size=128), gradients()
  tx = mj.allreduce(quantizer, 'scatter_reduce', axis_name=AXIS, key=KEY)
  found = list(hlo.collectives(compiled(tx, grads)))
  chunk = -(-D // N)
  packed = sum(-(-chunk * w // 8) for w in (8, 4, 2, 1) if bits & w)
  message = packed + 4 * -(-chunk // 128)
  sent = [c for c in found if c[1] == 'u8']
  # What a worker gets, its own part included: n messages in each of two rounds.
  assert sum(nbytes for *_, nbytes in sent) == 2 * N * message
  # On CPUs both rounds go to all at once, not around a ring.
  assert [kind for kind, *_ in sent] == ['all-to-all'] * 2
  # The bias, and nothing else, goes as it is.
  rest = [c for c in found if c[1] != 'u8']
  assert [c[1:] for c in rest] == [('f32', 4 * 5)]
  # 2 (n - 1) / n of the packed bytes leave each worker.
  told = bytes_sent.of_reduce(
    'scatter_reduce', base.tuned(quantizer), like(grads), N, large_leaves.small
  )
  assert told.whole.sum() == 2 * (N - 1) / N * N * message
  assert told.exact == 2 * (N - 1) / N * 4 * 5


@pytest.mark.parametrize('strategy', quantized_mean.STRATEGIES)
def test_nothing_recomputes_what_was_sent(strategy):
  """What encode makes goes to a barrier and nowhere else, as in gossip."""
  mean, rounds, _ = quantized_mean.STRATEGIES[strategy]
  worker = lambda x, key: mean(mj.nuqsgd(4, 128), x, key, AXIS)
  program = jax.make_jaxpr(worker, axis_env=[(AXIS, N)])(jnp.zeros(D), KEY)
  eqns = program.jaxpr.eqns
  made_by = {var: eqn for eqn in eqns for var in eqn.outvars}
  sends = [e for e in eqns if e.primitive.name in ('all_gather', 'all_to_all')]
  assert len(sends) == rounds
  for send in sends:
    barrier = made_by[send.invars[0]]
    assert barrier.primitive.name == 'optimization_barrier'
    (payload,) = barrier.invars
    assert [eqn for eqn in eqns if payload in eqn.invars] == [barrier]


def like(grads):
  shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
  return jax.tree.map(shape, grads)


def test_all_gather_sends_packed_bytes_and_no_float():
  quantizer, grads = mj.nuqsgd(4, bucket_size=128), gradients()
  tx = mj.allreduce(quantizer, 'all_gather', axis_name=AXIS, key=KEY)
  found = list(hlo.collectives(compiled(tx, grads)))
  message = -(-D * 4 // 8) + 4 * -(-D // 128)
  assert ('all-to-all', 'u8', N * message) in found
  assert sorted(c[1] for c in found) == ['f32', 'u8']


@pytest.mark.slow  # bytes of coded messages: test_bytes_sent
def test_a_coded_message_has_two_collectives_and_counts_the_one_that_ran():
  plain, grads = mj.nuqsgd(4, bucket_size=512), gradients()
  for capacity, fits in ((3.9, 1), (1.0, 0)):
    quantizer = mj.coded(plain, capacity, coding.dense())
    tx = mj.allreduce(quantizer, 'all_gather', axis_name=AXIS, key=KEY)
    whole = -(-D * 4 // 8) + 4 * -(-D // 512)
    short = quantizer.short.capacity(D)
    sizes = [c[2] for c in hlo.collectives(compiled(tx, grads)) if c[1] == 'u8']
    assert sorted(sizes) == sorted([N * whole, N * short])
    ((mean, state),) = run_steps(tx, mj.simulated, sparse(grads), 1)
    np.testing.assert_array_equal(np.asarray(state.short), fits)
    # Nothing is lost on the way.
    same = mj.allreduce(plain, 'all_gather', axis_name=AXIS, key=KEY)
    expected = one_step(same, sparse(grads))
    jax.tree.map(np.testing.assert_array_equal, mean, expected)
    told = bytes_sent.of_reduce(
      'all_gather', base.tuned(quantizer), like(grads), N, large_leaves.small
    )
    sent = bytes_sent.total(told, 1, 0, np.array([fits]))
    assert sent == told.exact + (N - 1) * (short if fits else whole)


def test_one_message_that_does_not_fit_lets_all_travel_whole():
  """Short is a message without its second byte, where that is 0."""
  form = types.SimpleNamespace(
    shorten=lambda payload, size: (payload[:1], payload[1] == 0),
    restore=lambda short, size: jnp.pad(short, (0, 1)),
  )
  quantizer = types.SimpleNamespace(short=form)
  swap = lambda rows: collectives.swap(rows, AXIS)
  run = mj.simulated(
    lambda rows: quantized_mean.carried(quantizer, 1, rows, swap, AXIS), (0,)
  )
  payloads = np.zeros((N, N, 2), np.uint8)
  payloads[..., 0] = np.arange(N * N).reshape(N, N)
  for last in (0, 7):
    payloads[3, 5, 1] = last
    received, short = run(payloads)
    np.testing.assert_array_equal(received, payloads.swapaxes(0, 1))
    np.testing.assert_array_equal(short, last == 0)


def sparse(grads):
  """Heavier tails: codes of fewer bits."""
  return jax.tree.map(lambda leaf: leaf**3, grads)


GOSSIP = {
  'choco': lambda q: mj.choco(mj.ring(N), q, 0.4, axis_name=AXIS, key=KEY),
  'push_sum': lambda q: mj.push_sum(mj.ring(N), q, axis_name=AXIS, key=KEY),
  'scaled': lambda q: mj.dpsgd(
    mj.ring(N), mj.scaled(q, ((D, 2.0),)), axis_name=AXIS, key=KEY
  ),
}


@pytest.mark.parametrize('name', helpers.tiered(GOSSIP, ['push_sum']))
def test_gossip_takes_coded_messages(name):
  plain = mj.nuqsgd(4, bucket_size=512)
  x = flat(sparse(gradients()))
  results = []
  for quantizer in (plain, mj.coded(plain, 3.9, coding.dense())):
    tx = GOSSIP[name](quantizer)
    step = lambda x, s, k, tx=tx: tx.update(0 * x, s, x, step=k)
    state = mj.simulated(tx.init, (0,))(x)
    step = mj.simulated(step, (0, 0, None))
    for k in range(2):
      moved, state = step(x, state, np.int32(k))
      results.append(np.asarray(moved))
  np.testing.assert_array_equal(results[:2], results[2:])
  np.testing.assert_array_equal(np.asarray(state.heard.short), 2)


# ------------------------------------------------------------------ the rest


def test_adaptive_levels_are_equal_on_all_workers():
  tx, grads = REDUCING['allreduce scatter_reduce alq'], gradients()
  *_, (mean, state) = run_steps(tx, mj.sharded, grads, 2)
  levels = np.asarray(state.tuned.levels)
  assert (levels == levels[:1]).all()
  assert not np.allclose(levels[0], mj.alq(3).init().levels)
  assert (flat(mean) == flat(mean)[:1]).all()
  *_, (other, _) = run_steps(tx, mj.simulated, grads, 2)
  apart = np.linalg.norm(flat(mean)[0] - flat(other)[0])
  assert apart < 0.5 * np.linalg.norm(flat(mean)[0])


def test_one_worker_alone():
  grads = jax.tree.map(lambda leaf: leaf[:1], gradients())
  tx = mj.allreduce(axis_name=AXIS)
  jax.tree.map(np.testing.assert_array_equal, one_step(tx, grads), grads)
  for strategy in quantized_mean.STRATEGIES:
    tx = mj.allreduce(mj.nuqsgd(8), strategy, axis_name=AXIS, key=KEY)
    mean = one_step(tx, grads)
    assert np.isfinite(mean['kernel']).all()


def test_moniqua_takes_a_mean_where_gradients_are_close():
  near = jax.tree.map(lambda leaf: leaf[:1] + 0.01 * leaf, gradients())
  tx = mj.allreduce(
    mj.moniqua(0.1, 8), 'scatter_reduce', axis_name=AXIS, key=KEY
  )
  mean = flat(one_step(tx, near))[0]
  np.testing.assert_allclose(mean, flat(near).mean(axis=0), atol=0.002)
  # Where they are not, a wrong turn is seen and does not pass for a number.
  assert np.isnan(flat(one_step(tx, gradients()))).any()


def test_errors():
  nuqsgd = mj.nuqsgd(4)
  with pytest.raises(ValueError, match="strategy='ring'; choose from"):
    mj.allreduce(nuqsgd, 'ring', axis_name=AXIS, key=KEY)
  with pytest.raises(ValueError, match='takes no other quantizer'):
    mj.allreduce(nuqsgd, axis_name=AXIS, key=KEY)
  with pytest.raises(ValueError, match='needs a quantizer'):
    mj.allreduce(strategy='all_gather', axis_name=AXIS, key=KEY)
  with pytest.raises(ValueError, match='needs a key'):
    mj.allreduce(nuqsgd, 'all_gather', axis_name=AXIS)
  with pytest.raises(ValueError, match="strategy='exact'; choose from"):
    mj.error_feedback(nuqsgd, 'exact', axis_name=AXIS, key=KEY)
  tx = mj.allreduce(nuqsgd, 'all_gather', axis_name=AXIS, key=KEY)
  with pytest.raises(ValueError, match='all 1 leaves stay in full precision'):
    tx.init(jnp.zeros(5000))
  with pytest.raises(ValueError, match=r"gradient\['w'\] is int32"):
    tx.init({'w': jnp.zeros((64, 64), jnp.int32)})


@pytest.mark.parametrize(
  'make,words',
  [
    (lambda: mj.nuqsgd(9), 'bits=9'),
    (lambda: mj.nuqsgd(1), 'takes 2 to 8 with zero_level=True'),
    (lambda: mj.qsgd(1), 'one is the sign'),
    (lambda: mj.qsgd(4, norm='l1'), "norm='l1'; choose from"),
    (lambda: mj.qsgd(4, bucket_size=0), 'bucket_size=0'),
    (lambda: mj.leveled((0, 0.5)), 'must reach from -1 to 1'),
    (lambda: mj.leveled((0, 0.7, 0.5, 1)), 'must ascend'),
    (lambda: mj.leveled((1,) * 300), '599|600|300'),
    (lambda: mj.terngrad(clip=0.0), 'clip=0.0'),
    (lambda: mj.top_k(0), 'fraction=0'),
    (lambda: mj.random_k(1.5), 'fraction=1.5'),
    (lambda: mj.coded(mj.natural(), 2.0), 'cannot be coded'),
    (lambda: mj.coded(mj.nuqsgd(4), 4.0), 'capacity=4.0'),
  ],
)
def test_quantizers_name_what_is_wrong(make, words):
  with pytest.raises(ValueError, match=words):
    make()
