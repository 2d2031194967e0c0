"""Several rounds in a step, local steps, and schedules of both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import bytes_sent, gossip, theory, topologies
from moniqua_jax.algorithms import transformation, turns
from moniqua_jax.quantizers import base
from moniqua_jax.training import loop, monitor, summary, talk
from tests import dense, helpers, oracles, traced, trained
from tests import test_bytes_sent as claims
from tests import test_decentralized as battery

N, D, LR, SLOTS = battery.N, battery.D, battery.LR, battery.SLOTS
RING, W, X0 = battery.RING, battery.W, battery.X0
FULL, COARSE, MONIQUA = battery.FULL, battery.COARSE, battery.MONIQUA
ONE_PEER = mj.one_peer_exponential(N)
TURNS = [topologies.matrix(topology) for topology in ONE_PEER]
gradient, train = battery.gradient, battery.train


# ------------------------------------------------------------------- schedules

PIECES = [
  ((0, 1, 4),),
  ((0, 3, 1),),
  ((0, 1, 1), (4, 1, 2), (10, 3, 1), (15, 1, 5)),
  ((0, 2, 3), (9, 3, 2), (11, 1, 1)),
]


@pytest.mark.parametrize('pieces', PIECES)
def test_rounds_are_counted_on_the_host_and_in_a_program(pieces):
  clock, steps = turns.made(pieces), 60

  def by_hand(step):
    start, rounds, period = [p for p in pieces if p[0] <= step][-1]
    return rounds if (step - start + 1) % period == 0 else 0

  each = [by_hand(step) for step in range(steps)]
  before = [sum(each[:step]) for step in range(steps)]
  assert [clock.at(step) for step in range(steps)] == each
  assert [clock.before(step) for step in range(steps)] == before
  where = [step for step in range(steps) for _ in range(each[step])]
  assert [clock.step(number) for number in range(len(where))] == where
  both = jax.jit(lambda step: (clock.at(step), clock.before(step)))
  found = np.transpose(both(np.arange(steps, dtype=np.int32)))
  np.testing.assert_array_equal(found, np.transpose([each, before]))


# --------------------------------------------------------------------- oracles


def dpsgd(ws, steps, rounds, compress=oracles.identity):
  x = np.asarray(X0, np.float64)
  for k in range(steps):
    u = -LR * gradient(x)
    for r in range(rounds):
      sent = oracles.each(compress, x)
      x = x + (ws[(k * rounds + r) % len(ws)] - np.eye(N)) @ sent
    x = x + u
  return x


def d2(ws, steps, rounds, compress=oracles.identity):
  before, half = None, None
  for _ in range(steps):
    x = X0.astype(np.float64) if before is None else half
    g = gradient(x)
    half = x - LR * g
    if before is not None:
      half = 2 * x - before[0] - LR * (g - before[1])
    before = x, g
    for _ in range(rounds):
      half = half + (ws[0] - np.eye(N)) @ oracles.each(compress, half)
  return half


def pausing(rounds):
  """A gradient in the first of so many calls, none in the others."""
  calls = iter(range(10**6))
  return lambda x: gradient(x) * (next(calls) % rounds == 0)


def composed(model):
  def by_hand(ws, steps, rounds, **how):
    given = X0, pausing(rounds), ws, LR, steps * rounds
    return dense.trained(model, *given, **how)

  return by_hand


# name -> (quantizer -> algorithm, matrices, the dense form)
CASES = {
  'dpsgd': (lambda q: mj.dpsgd(ONE_PEER, q, **SLOTS), TURNS, dpsgd),
  'd2': (battery.DENSE['d2'][0], [W], d2),
  'choco': (battery.DENSE['choco'][0], [W], composed(dense.choco(0.6))),
  'deepsqueeze': (
    battery.DENSE['deepsqueeze'][0],
    [W],
    composed(dense.deepsqueeze(0.7)),
  ),
  'push_sum': (
    lambda q: mj.push_sum(battery.UNEVEN, q, **SLOTS),
    [topologies.push_matrix(battery.UNEVEN)],
    composed(dense.push_sum()),
  ),
}


@functools.cache
def built(name, quantizer, rounds=3):
  return mj.rounds(CASES[name][0](quantizer), rounds)


@pytest.mark.parametrize('name', helpers.tiered(CASES, ('dpsgd', 'd2')))
def test_full_precision_is_the_dense_form(name):
  x, _ = train(built(name, FULL))
  _, ws, by_hand = CASES[name]
  np.testing.assert_allclose(x, by_hand(ws, battery.STEPS, 3), atol=1e-5)
  assert np.abs(by_hand(ws, 5, 3) - by_hand(ws, 5, 1)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in CASES if name != 'push_sum'])
def test_compression_is_the_dense_form(name):
  """A few steps: then a rounding tie may fall differently in float32."""
  x, _ = train(built(name, COARSE), steps=2)
  _, ws, by_hand = CASES[name]
  coarse = by_hand(ws, 2, 3, compress=oracles.min_max(6))
  np.testing.assert_allclose(x, coarse, atol=1e-5)
  assert np.abs(coarse - by_hand(ws, 2, 3)).max() > 1e-3


MEANS = [name for name in CASES if name != 'push_sum']


@pytest.mark.parametrize('name', helpers.tiered(MEANS, ()))
def test_the_mean_moves_by_the_mean_update(name):
  xs, state = battery.trajectory(built(name, MONIQUA), 20)
  for x, y in zip(xs, xs[1:], strict=False):
    moved = y.mean(0) - x.mean(0) + LR * gradient(x).mean(0)
    np.testing.assert_allclose(moved, 0, atol=2e-6)
  heard = built(name, MONIQUA).heard(state)
  assert np.asarray(heard.seen.readable).all()
  assert (np.asarray(heard.turn) == 60).all()


@pytest.mark.parametrize(
  'name,runner',
  helpers.tiered(
    [(name, r) for name in CASES for r in ('sharded', 'pmapped')], []
  ),
)
def test_twenty_steps_agree_under_all_runners(name, runner):
  x, _ = train(built(name, MONIQUA), 20)
  y, _ = train(built(name, MONIQUA), 20, helpers.RUNNERS[runner])
  np.testing.assert_allclose(x, y, atol=1e-5)


def test_each_round_has_a_number_of_its_own():
  """The key follows the step that the algorithm is told."""
  steps, now = [], [0]

  def update(updates, state, params, *, step, counted):
    assert counted == now[0]  # the step of the loop goes with it
    steps.append(int(step))
    return updates, state

  heard = gossip.Heard((), gossip.no_news(1), *(jnp.int32(0),) * 3, ())
  inner = transformation.Gossip(
    lambda params: heard, update, 'dpsgd', heard=lambda state: state
  )
  algorithm = mj.rounds(inner, ((0, 3), (2, 1), (4, 2)))
  x, each = np.zeros(2, np.float32), []
  with jax.disable_jit():
    for k in range(5):
      now[0] = k
      algorithm.update(x, algorithm.init(x), x, step=k)
      each.append(len(steps))
  assert steps == [*range(10)] and each == [3, 6, 7, 8, 10]


@pytest.mark.slow
def test_each_round_has_a_turn_and_a_key_of_its_own():
  """Two rounds without gradients are two steps."""
  one = battery.DENSE['dpsgd'][0](MONIQUA)
  x = np.random.default_rng(3).standard_normal((N, D)).astype(np.float32)
  args = 0 * battery.CURVATURE, battery.CENTRES
  run = lambda algorithm, last: battery.functions(algorithm, mj.simulated)[1](
    x, mj.simulated(algorithm.init, (0,))(x), *args, 0, last, np.float32(0)
  )
  y, _ = run(mj.rounds(one, 2), 2)
  z, _ = run(one, 4)
  np.testing.assert_allclose(y, z, atol=1e-6)
  assert np.abs(y - run(one, 2)[0]).max() > 0.01


# ------------------------------------------------------- what is told, and sent


def test_what_one_round_could_not_read_the_next_does_not_hide():
  """Far from each other across, near beside: the first round is unreadable."""
  pairs = [
    mj.Topology([(0.5, tuple(i ^ bit for i in range(N)))]) for bit in (4, 1, 2)
  ]
  # Without the third the workers would never agree.
  algorithm = mj.rounds(mj.dpsgd(tuple(pairs), mj.moniqua(1.0, 4), **SLOTS), 2)

  def step(x):
    return algorithm.update(0 * x, algorithm.init(x), x, step=jnp.int32(0))[1]

  x = np.where(np.arange(N)[:, None] < 4, 0, 40.3) * np.ones((N, D))
  state = mj.simulated(step, (0,))(np.float32(x))
  seen = jax.tree.map(np.asarray, algorithm.heard(state).seen)
  np.testing.assert_array_equal(seen.readable, [[False, True]] * N)
  watch = monitor.Guard(tuple(pairs), 0, turns.several(2), 'there', range(N))
  with pytest.raises(monitor.Stopped, match='worker 0 .* message of worker 4'):
    watch.check(0, {'loss': np.zeros(N), 'seen': seen})


def test_a_step_that_rests_tells_nothing_again():
  seen = base.Seen(*(np.ones((N, 6)) for _ in base.Seen._fields))
  clock = turns.made(((0, 3, 1), (4, 1, 2)))
  told = [len(talk.told(clock, step, seen)) for step in range(8)]
  assert told == [3, 3, 3, 3, 0, 1, 0, 1]
  assert talk.told(clock, 0, seen)[2].readable.shape == (N, 2)


@pytest.mark.parametrize(
  'rounds,most,fewest',
  helpers.tiered(
    [(3, 3, 3), (((0, 3), (4, 1)), 3, 1), (((0, 1), (4, 3)), 3, 1)],
    [(((0, 3), (4, 1)), 3, 1)],
  ),
)
def test_so_many_rounds_send_so_many_times_the_bytes(rounds, most, fewest):
  algorithm = mj.rounds(claims.gossip(mj.d2)(mj.moniqua(1.0, 3)), rounds)
  x = jax.ShapeDtypeStruct((claims.D,), jnp.float32)
  args = x, jax.eval_shape(algorithm.init, x), x, claims.STEP
  step = lambda u, s, x, k: algorithm.update(u, s, x, step=k)
  tuned = base.tuned(mj.moniqua(1.0, 3))
  message = algorithm.message(tuned, claims.D)
  (claim,) = bytes_sent.of_gossip((claims.RING,), *message).gossip
  found = lambda rank: traced.leaving(
    traced.sent(step, *args, n=N, choose=claims.choosing(0, rank))
  )
  assert found(claims.WHOLE) == pytest.approx(most * claim, rel=1e-12)
  assert found(claims.SHORT) == pytest.approx(fewest * claim, rel=1e-12)


# ------------------------------------------------------------------ theory


def messages(name, ws, rounds, u, noise):
  """What is sent, round by round, of linear algorithms; rows are workers."""
  n, x, kept, before = len(ws[0]), 0 * u[0], 0 * u[0], (0, 0)
  for k, now in enumerate(u):
    if name == 'd2':
      x, before = 2 * x - before[0] + now - before[1], (x, now)
    elif name != 'dpsgd':
      x = x + now
    for r in range(k * rounds, (k + 1) * rounds):
      sent = x + kept
      yield r, sent
      x = x + (ws[r % len(ws)] - np.eye(n)) @ (sent + noise[r])
      kept = -noise[r] if name == 'deepsqueeze' else kept
    if name == 'dpsgd':
      x = x + now


SUMS = {
  'dpsgd': (mj.one_peer_exponential(4), 3),  # 2 in turn: 6 rounds come back
  'dpsgd, one': (mj.ring(5), 2),
  'd2': (mj.lazy(mj.ring(4), 0.5), 2),
  'push_sum': (mj.one_peer_exponential(4), 2),
  'deepsqueeze': (mj.lazy(mj.ring(4), 0.5), 3),
}


@pytest.mark.parametrize('case', SUMS)
def test_sums_are_attained_by_signs(case):
  """All impulses pull one pair apart; the steps end where the sums end."""
  (topology, rounds), name = SUMS[case], case.split(',')[0]
  schedule, steps = topologies.schedule(topology), 40
  ws = [topologies.matrix(each) for each in schedule]
  n, pairs = len(ws[0]), theory.neighbours(schedule)
  found = theory.sums(topology, name, rounds=rounds)
  impulses = lambda many: np.eye(many * n).reshape(many, n, -1)
  quiet = lambda many: np.zeros((many, n, 1))
  for kind, feed in (
    ('gradient', (impulses(steps), quiet(steps * rounds))),
    ('noise', (quiet(steps), impulses(steps * rounds))),
  ):
    worst = [
      np.abs(sent[i] - sent[j]).sum()
      for r, sent in messages(name, ws, rounds, *feed)
      for i, j in pairs[r % len(ws)]
    ]
    np.testing.assert_allclose(max(worst), getattr(found, kind), rtol=1e-5)


def test_the_theory_of_rounds():
  ring = mj.ring(8)
  once, thrice = (theory.sums(ring, 'dpsgd', rounds=r) for r in (1, 3))
  assert thrice.gradient < once.gradient
  assert thrice.noise == pytest.approx(once.noise)
  # Exact agreement in each step: only the last updates hold them apart.
  assert theory.sums(ONE_PEER, 'dpsgd', rounds=3).gradient == 2
  given = dict(bits=4, several=3, local_steps=4)
  report = theory.report(ring, 'dpsgd', **given)
  assert report.sums.gradient == pytest.approx(4 * thrice.gradient)
  theta = theory.theta(ring, 'dpsgd', 4, update=4.0, rounds=3)
  assert report.rows[0].theta == pytest.approx(theta)
  line = '1.5 b bits a parameter and step by a worker, on average; 3 rounds in'
  assert f'{line} one of 4' in theory.table(report)
  parts = theory.report(ring, 'dpsgd', bits=4, local_steps=2, fragments=3)
  assert parts.sums.gradient == pytest.approx(6 * once.gradient)
  assert '1 round of one of 3 fragments in one of 2' in theory.table(parts)
  with pytest.raises(ValueError, match='no law of stale_d2 with several'):
    theory.sums(mj.lazy(ring, 0.5), 'stale_d2', rounds=2)


# --------------------------------------------------------------- the program

CHANGING = dict(
  rounds=3,
  rounds_from=((4, 1),),
  local_steps_from=((8, 3),),
)


def test_a_config_says_how_often_it_talks():
  config = trained.small(**CHANGING)
  assert talk.of(config).pieces == ((0, 3, 1), (4, 1, 1), (8, 1, 3))
  assert talk.rounds(config) == ((0, 3), (4, 1), (8, 1))
  assert talk.described(config) == (
    '3 rounds in each step, from step 4 on 1 in each step, from step 8 on 1 in '
    'one of 3'
  )


@pytest.mark.slow
def test_a_run_says_what_it_sends_on_average():
  of = trained.built(trained.small(**CHANGING))
  text = summary.describe(of)
  rounds = 3 * 4 + 4 + (of.pace.steps - 8) // 3
  sent = of.sent.by_worker.gossip[0] * rounds / of.pace.steps
  assert f'{sent:,.0f} bytes per worker and step' in text
  assert 'before its first message' not in text


def test_a_run_says_that_it_never_talks():
  of = trained.built(trained.small(local_steps=1000))
  assert 'ends before its first message' in summary.describe(of)


@pytest.mark.slow
def test_theta_follows_the_rate_by_rounds():
  """The last round has the theta of the last step, whatever was between."""
  theta = dict(theta=dict(name='follow', shrink=0.9))
  plain, often, seldom = (
    trained.built(trained.small(epochs=20.0, **theta, **entries))
    for entries in ({}, dict(rounds=3), dict(local_steps=4))
  )
  for of, each in ((often, 3), (seldom, 1 / 4)):
    last = of.turns.before(of.pace.steps)
    assert last == int(of.pace.steps * each)
    thetas = [float(of.quantizer.theta(number)) for number in range(last)]
    assert thetas[0] == plain.quantizer.theta(0)
    assert min(np.divide(thetas[1:], thetas[:-1])) >= 0.9 - 1e-6
    rates = of.pace.learning_rate(of.turns.step(last - 1)), 0.1
    assert thetas[-1] >= thetas[0] * rates[0] / rates[1]
  ends = [
    float(of.quantizer.theta(of.turns.before(at * of.pace.steps // 10)))
    for at in (5, 8)
    for of in (plain, often)
  ]
  assert ends[1] <= ends[0] and ends[3] <= ends[2]


@pytest.mark.slow
def test_bytes_of_a_run_that_changes_are_those_of_its_rounds(tmp_path):
  """The state counts the rounds; a run that was killed goes on in them."""
  config = trained.small(log_every=1, checkpoint_every=0.5, **CHANGING)
  loop.train_and_evaluate(config, tmp_path / 'whole')
  of = trained.built(config)
  each = of.sent.by_worker.gossip
  clock, sent = talk.of(config), 0.0
  for row in trained.rows(tmp_path / 'whole'):
    sent += each[0] * clock.at(row['step'] - 1)
    assert row['wire/bytes_sent'] == pytest.approx(sent)
  _, state = trained.last_state(tmp_path / 'whole', config)
  heard = of.optimizer.heard(state.opt_state)
  assert (heard.turn == clock.before(of.pace.steps)).all()
  trained.stop_after(config, 12, tmp_path / 'killed')  # within a period
  loop.train_and_evaluate(config, tmp_path / 'killed', resume=True)
  trained.assert_same_run(tmp_path / 'whole', tmp_path / 'killed')


# ------------------------------------------------------------------- refusals


def test_refusals():
  gossip = lambda factory, *args: factory(RING, FULL, *args, **SLOTS)
  for factory in (mj.adpsgd, mj.dcd, mj.ecd):
    with pytest.raises(ValueError, match=f'rounds: {factory.__name__} has one'):
      mj.rounds(gossip(factory), 2)
  d2 = gossip(mj.d2)
  with pytest.raises(ValueError, match='d2 rests in some steps'):
    mj.rounds(mj.every(d2, 2), 2)
  mj.every(mj.rounds(d2, 2), 2)
  slow = mj.lazy(mj.ring(N), 0.5)
  stale = mj.stale(mj.d2(slow, FULL, **SLOTS), slow)
  with pytest.raises(ValueError, match='rounds: stale_d2 has one'):
    mj.rounds(stale, 2)
  for numbers in (0, 1.5, (), ((1, 2),), ((0, 1), (0, 2)), ((0, 1), (5, 0))):
    with pytest.raises(ValueError, match='needs a whole number >= 1'):
      mj.rounds(d2, numbers)
  with pytest.raises(ValueError, match='step 6 is within .* step 4 or 8'):
    mj.every(d2, ((0, 4), (6, 2)))


REFUSED = {
  'rounds=0; it must': dict(rounds=0),
  'rounds=2: rounds: adpsgd has one': dict(
    rounds=2,
    gossip=dict(name='adpsgd'),
    topology=dict(name='random_matchings', rounds=8, seed=0),
  ),
  'local_steps=4.*step 6 is within': dict(local_steps=4, rounds_from=((6, 2),)),
}


@pytest.mark.parametrize('what', REFUSED)
def test_a_config_is_refused_by_its_entry(what):
  config = digits.get_config('moniqua4')
  config.update(REFUSED[what])
  with pytest.raises(ValueError, match=f'config.{what}'):
    trained.built(config)
