"""One fragment at a time: each is an instance of the algorithm."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import topologies, wire
from moniqua_jax.algorithms import fragments as fragments_lib
from moniqua_jax.training import bytes_sent as so_far
from moniqua_jax.training import checkpoint, experiment, monitor, summary
from moniqua_jax.workers import AXIS
from tests import dense, helpers, hlo, test_composing
from tests import test_decentralized as battery

N, D, K, STEPS = helpers.N, 25, 3, 13
SLOTS = dict(axis_name=AXIS, key=jax.random.key(3))
RING = mj.lazy(mj.ring(N), 0.5)
PEERS = mj.one_peer_exponential(N)
FULL, NEAREST = mj.full_precision(), mj.moniqua(6.0, 8, 'nearest')
MONIQUA, AUTO = mj.moniqua(6.0, 4), mj.auto_theta(6, start=6.0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
U = 0.1 * RNG.normal(size=(STEPS, N, D)).astype(np.float32)
STREAMED = functools.partial(mj.streaming, fragments=K)


def d2():
  """As the sum of all pulls, which local steps in between do not change."""

  def says(w, x, u, drift, t):
    return x + u + drift

  def lands(w, x, u, drift, heard, t):
    drift = drift + dense.mix(w, heard.replicas())
    return x + u + drift, drift

  return dense.Gossip(np.zeros_like, says, lands)


# name -> (quantizer -> the inner algorithm, its dense form, its schedule)
INNER = {
  'dpsgd': (lambda q: mj.dpsgd(PEERS, q, **SLOTS), dense.dpsgd(), PEERS),
  'd2': (lambda q: mj.d2(RING, q, **SLOTS), d2(), RING),
  'choco': (
    lambda q: mj.choco(RING, q, 0.5, **SLOTS),
    dense.choco(0.5),
    RING,
  ),
  'deepsqueeze': (
    lambda q: mj.deepsqueeze(RING, q, 0.5, **SLOTS),
    dense.deepsqueeze(0.5),
    RING,
  ),
  'push_sum': (
    lambda q: mj.push_sum(battery.UNEVEN, q, **SLOTS),
    dense.push_sum(),
    battery.UNEVEN,
  ),
  'every': (
    lambda q: mj.every(mj.d2(RING, q, **SLOTS), 2),
    dense.every(d2(), 2),
    RING,
  ),
  'answered': (
    lambda q: mj.answered(mj.d2(RING, q, **SLOTS)),
    d2(),
    RING,
  ),
}
# Wrapped around it: (wrapper, the same of a dense form, the inner algorithm)
AROUND = {
  'every': (
    lambda tx: mj.every(tx, 2),
    lambda model: dense.every(model, 2),
    'choco',
  ),
  'stale': (lambda tx: mj.stale(tx, RING), dense.stale, 'd2'),
  'answered': (mj.answered, lambda model: model, 'choco'),
}


@functools.cache
def steps_of(tx, run=mj.simulated):
  """init, and one step of all workers."""

  def step(x, state, u, k):
    updates, state = tx.update(u, state, x, step=k)
    return optax.apply_updates(x, updates), state

  return run(tx.init, (0,)), run(step, (0, 0, 0, None))


@functools.cache
def streamed(name, quantizer):
  """The streaming algorithm; the same one for the same quantizer."""
  return STREAMED(INNER[name][0](quantizer))


def train(tx, us, run=mj.simulated, first=0, start=None):
  """The parameters after each step, and the last state."""
  init, step = steps_of(tx, run)
  x, state = start or (X, init(X))
  xs = [np.asarray(x)]
  for k, u in enumerate(us):
    x, state = step(x, state, u, np.int32(first + k))
    xs.append(np.asarray(x))
  return xs, state


def of_dense(model, schedule, us, period=K):
  """The dense form in full precision; so many steps go by in each round."""
  one = isinstance(schedule, mj.Topology)
  rounds = (schedule,) if one else schedule
  by_sender = schedule is battery.UNEVEN
  matrix = topologies.push_matrix if by_sender else topologies.matrix
  x, memory = X.astype(np.float64), model.start(X.astype(np.float64))
  yes = np.ones((N, N), bool)
  for t, u in enumerate(us):
    w = matrix(rounds[t // period % len(rounds)])
    said = model.says(w, x, u, memory, t)
    heard = None if said is None else dense.Heard(said, yes, yes)
    x, memory = model.lands(w, x, u.astype(np.float64), memory, heard, t)
  return x


@pytest.mark.parametrize('name', helpers.tiered(INNER, ['dpsgd']))
def test_each_fragment_is_an_instance_of_the_algorithm(name):
  _, model, schedule = INNER[name]
  xs, state = train(streamed(name, FULL), U)
  expected = of_dense(dense.streaming(model, K), schedule, U)
  np.testing.assert_allclose(xs[-1], expected, atol=1e-5)
  assert (np.asarray(state.heard.turn) == STEPS).all()
  whole = of_dense(model, schedule, U, period=1)
  assert np.abs(whole - expected).max() > 0.01


@pytest.mark.parametrize('name', helpers.tiered(AROUND, []))
def test_what_stands_around_it_sees_one_algorithm(name):
  wrap, model, inner = AROUND[name]
  _, own, schedule = INNER[inner]
  xs, _ = train(wrap(streamed(inner, FULL)), U)
  expected = of_dense(model(dense.streaming(own, K)), schedule, U)
  np.testing.assert_allclose(xs[-1], expected, atol=1e-5)


@pytest.mark.parametrize(
  'name,quantizer',
  helpers.tiered(
    [(name, q) for name in INNER for q in (FULL, NEAREST)], [('dpsgd', FULL)]
  ),
)
def test_without_updates_k_steps_are_one_round(name, quantizer):
  """Of messages that round each value by itself."""
  rounds = 4 if name == 'every' else 2
  still = 0 * U[:1].repeat(rounds * K, axis=0)
  xs, _ = train(streamed(name, quantizer), still)
  ys, _ = train(_inner(name, quantizer), still[:rounds])
  for k in range(rounds + 1):
    np.testing.assert_allclose(xs[K * k], ys[k], atol=1e-6)
  assert np.abs(xs[-1] - X).max() > 0.1


@functools.cache
def _inner(name, quantizer):
  return INNER[name][0](quantizer)


KEEPS = [name for name in INNER if name != 'push_sum']


@pytest.mark.parametrize('name', helpers.tiered(KEEPS, ['d2']))
def test_the_mean_moves_by_the_mean_update(name):
  # Edges one way have no answers.
  quantizer = MONIQUA if name == 'dpsgd' else AUTO
  xs, state = train(streamed(name, quantizer), U)
  means = [x.astype(np.float64).mean(axis=0) for x in xs]
  moved = np.diff(means, axis=0) - U.astype(np.float64).mean(axis=1)
  np.testing.assert_allclose(moved, 0, atol=1e-6)
  assert np.asarray(state.own.heard.seen.readable).all()


@pytest.mark.parametrize(
  'name,quantizer,runner',
  helpers.tiered(
    [
      (name, quantizer, runner)
      for name in INNER
      for quantizer in (FULL, MONIQUA)
      for runner in ('sharded', 'pmapped')
    ],
    [('dpsgd', FULL, 'sharded')],
  ),
)
def test_runners_agree(name, quantizer, runner):
  xs, state = train(streamed(name, quantizer), U)
  ys, other = train(streamed(name, quantizer), U, helpers.RUNNERS[runner])
  np.testing.assert_allclose(xs[-1], ys[-1], atol=1e-5)
  close = functools.partial(np.testing.assert_allclose, atol=1e-4)
  jax.tree.map(close, state, other)


def test_one_fragment_is_the_algorithm_itself():
  inner = _inner('d2', MONIQUA)
  assert mj.streaming(inner, 1) is inner


def test_each_fragment_has_a_theta_and_goes_on_from_a_checkpoint(tmp_path):
  """Stopped in the middle of a cycle; the first fragment is far apart."""
  far = X.copy()
  far[:, : D // K] *= 20
  tx = streamed('d2', AUTO)
  init, _ = steps_of(tx)
  xs, state = train(tx, U, start=(far, init(far)))
  some, half = train(tx, U[:4], start=(far, init(far)))
  with contextlib.closing(checkpoint.manager(tmp_path)) as files:
    checkpoint.save(files, 4, (some[-1], half))
  with contextlib.closing(checkpoint.manager(tmp_path)) as files:
    step, back = checkpoint.restore(files, (far, init(far)))
  ys, again = train(tx, U[4:], first=step, start=back)
  np.testing.assert_array_equal(xs[-1], ys[-1])
  jax.tree.map(np.testing.assert_array_equal, state, again)
  theta = np.asarray(state.own.heard.tuned)
  assert theta.shape == (N, K) and theta[:, 0].min() > 2 * theta[:, 1:].max()
  last = (STEPS - 1) % K
  np.testing.assert_array_equal(state.heard.tuned, theta[:, last])


# ---------------------------------------------------------- where they are cut

windows_of = fragments_lib.windows


@pytest.mark.parametrize('fragments', [2, 3, 8, 16])
@pytest.mark.parametrize(
  'd', [16, 1013, 8192, 20_000, 269_722, 16 * 1024 + 1, 25_557_032]
)
def test_windows_hold_all_fragments(d, fragments):
  windows = windows_of(d, fragments)
  starts = windows.starts.astype(int) * windows.unit
  np.testing.assert_array_equal(windows.begins, [0, *windows.ends[:-1]])
  assert windows.ends[-1] == d and (windows.ends > windows.begins).all()
  assert (starts <= windows.begins).all()
  assert (windows.ends <= starts + windows.size).all()
  assert (starts + windows.size <= d).all()
  tiles = d >= fragments * 64 * wire.TILE
  assert windows.unit == (wire.TILE if tiles else 1)
  assert windows.size < d / fragments + (2 * wire.TILE if tiles else 1)


def test_a_window_leaves_its_neighbours_alone():
  x = np.arange(D, dtype=np.float32) + 1
  windows = windows_of(D, K)

  def there_and_back(x):
    parts = [windows.read(x, f) for f in range(K)]
    return parts, [windows.write(x, f, 0 * p) for f, p in enumerate(parts)]

  parts, left = jax.jit(there_and_back)(x)
  np.testing.assert_array_equal(sum(x - each for each in left), x)
  assert sum(np.count_nonzero(part) for part in parts) == D


@pytest.mark.optimized
def test_a_step_sends_a_fragment_and_copies_no_vector():
  """But for x + u, which XLA on CPUs does not do in place behind a gossip."""
  d, bits, fragments = 330_001, 4, 5
  tx = mj.streaming(mj.d2(RING, mj.moniqua(1.0, bits), **SLOTS), fragments)

  def step(x, state, u, k):
    updates, state = tx.update(u, state, x, step=k)
    return x + updates, state

  run = mj.sharded(step, (0, 0, 0, None), donate_argnums=(0, 1, 2))
  x = jax.ShapeDtypeStruct((N, d), jnp.float32)
  state = jax.eval_shape(jax.vmap(tx.init, axis_name=AXIS), x)
  k = jax.ShapeDtypeStruct((), jnp.int32)
  compiled = run.lower(x, state, x, k).compile()
  size = windows_of(d, fragments).size
  nbytes = wire.packed_size(size, bits) + 12
  assert nbytes < d * bits / 8 / fragments + 1024 + 12
  found = list(hlo.collectives(compiled.as_text()))
  assert found == [('collective-permute', 'u8', nbytes)] * 2
  copies = re.findall(r'f32\[[\d,]*\b330001\]\S* copy\(', compiled.as_text())
  drifts = re.findall(r'f32\[[\d,]*5,\d{3,}\]\S* copy\(', compiled.as_text())
  assert len(copies) <= 1 and not drifts
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * d * 1.6


# ------------------------------------------------------------------ what counts


@pytest.mark.slow
def test_fragments_follow_the_calls():
  """Of every third step each third would be the same fragment."""
  tx = optax.MultiSteps(STREAMED(mj.dpsgd(PEERS, FULL, **SLOTS)), 3)
  assert test_composing.agreed(tx, 3 * 3 * K) < 1e-6


@pytest.mark.slow
def test_fragments_of_every_follow_the_calls():
  """By the steps each second fragment would never be sent."""
  seldom = mj.every(mj.dpsgd(PEERS, FULL, **SLOTS), 2)
  tx = optax.MultiSteps(mj.streaming(seldom, 2), 2)
  assert test_composing.agreed(tx, 2 * 2 * 2 * 3 * K) < 1e-6


def config_of(**entries):
  config = digits.get_config('moniqua4')
  config.update(entries)
  return config


def test_the_program_counts_fragments():
  """Bytes, rounds, the theta of a step, and what it says of itself."""
  turns = dict(name='random_matchings', rounds=3, seed=0)
  config = config_of(fragments=4, local_steps=2, topology=turns)
  built = experiment.from_config(config)
  d = 9610
  each = wire.packed_size(windows_of(d, 4).size, 4) + 12
  assert built.sent.by_worker.gossip.tolist() == [each] * 12
  said = summary.describe(built)
  assert 'one of 4 fragments at a time, a theta for 8 updates' in said
  assert '1 round in one of 2' in said
  init = jax.vmap(built.optimizer.chain.init, axis_name=AXIS)
  state = jax.eval_shape(init, jax.ShapeDtypeStruct((N, d), jnp.float32))
  state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
  sent = so_far.so_far(built, 15, state)['wire/bytes_sent']
  assert sent == 7 * each
  guard = monitor.of(built.setup, '', range(N), lambda: None)
  rounds = [built.setup.schedule[turn // 4] for turn in range(12)]
  assert list(guard._schedule) == rounds


def test_refusals():
  for fragments in (0, 1.5):
    with pytest.raises(ValueError, match='fragments=.*; streaming needs'):
      mj.streaming(_inner('d2', FULL), fragments)
  with pytest.raises(ValueError, match='fragments=3; the vector.* 2 values'):
    jax.eval_shape(streamed('d2', FULL).init, jnp.zeros(2))
  twice = mj.streaming(mj.every(streamed('dpsgd', FULL), 2), fragments=2)
  with pytest.raises(ValueError, match='fragments=2 .* streams already; leave'):
    jax.eval_shape(twice.init, jnp.zeros(D))
  for name in ('dcd', 'ecd', 'adpsgd'):
    algorithm = getattr(mj, name)(RING, FULL, **SLOTS)
    with pytest.raises(ValueError, match=f'streaming: {name} must see each'):
      STREAMED(algorithm)
  late = mj.stale(_inner('d2', FULL), RING)
  for wrap, name in ((mj.every, 'every'), (mj.streaming, 'streaming')):
    words = f'{name}: stale_d2 must see each step.*stale around it'
    with pytest.raises(ValueError, match=words):
      wrap(late, 2)
  leaves = mj.scaled(MONIQUA, ((D, 1.0),))
  x = jax.ShapeDtypeStruct((N, D), jnp.float32)
  init, step = steps_of(streamed('d2', leaves))
  with pytest.raises(ValueError, match='scales are given for 25 values'):
    jax.eval_shape(step, x, jax.eval_shape(init, x), x, np.int32(0))
