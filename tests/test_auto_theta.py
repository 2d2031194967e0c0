"""A theta that finds itself: it follows, recovers, stops, keeps the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import collectives, gossip, theory, topologies
from moniqua_jax.algorithms import turns
from moniqua_jax.gossip import edge
from moniqua_jax.quantizers import base
from moniqua_jax.training import monitor, resolve
from moniqua_jax.training import quantizer as quantizer_lib
from moniqua_jax.workers import AXIS
from tests import helpers

N, D = helpers.N, 400
KEY = jax.random.key(4)
SLOTS = dict(axis_name=AXIS, key=KEY)
RNG = np.random.default_rng(3)
CENTRES = RNG.standard_normal((N, D)).astype(np.float32)


def trained(algorithm, steps, rate, noise=0.5, see=None):
  """SGD on |x - b_i|^2 / 2 with noise; rate(k). Returns x and all that is seen.

  The mean of the workers must move by the mean update in every step.
  """

  def step(x, state, noise, k, lr):
    u = -lr * (x - jnp.asarray(CENTRES)[jax.lax.axis_index(AXIS)] + noise)
    updates, state = algorithm.update(u, state, x, step=k)
    return x + updates, state, u

  x = jnp.zeros((N, D))
  state = mj.simulated(algorithm.init, (0,))(x)
  step, seen = mj.simulated(step, (0, 0, 0, None, None)), []
  rng = np.random.default_rng(0)
  for k in range(steps):
    before = np.mean(x, axis=0)
    kicks = noise * rng.standard_normal((N, D)).astype(np.float32)
    x, state, u = step(x, state, kicks, np.int32(k), np.float32(rate(k)))
    moved = np.mean(x, axis=0) - before - np.mean(u, axis=0)
    scale = max(1.0, float(jnp.abs(x).max()))
    assert np.abs(moved).max() < 1e-6 * scale, k
    seen.append(jax.device_get((state.heard.tuned, state.heard.seen)))
  return np.asarray(x), seen


# (bits, gamma) of the configs.
@pytest.mark.parametrize(
  'bits,gamma',
  helpers.tiered([(8, 1), (4, 1), (2, 0.5), (1, 0.2)], [(4, 1), (1, 0.2)]),
)
def test_it_recovers_from_a_learning_rate_ten_times_larger(bits, gamma):
  topology = mj.lazy(mj.ring(N), gamma)
  algorithm = mj.dpsgd(topology, mj.auto_theta(bits, start=1.0), **SLOTS)
  rate = lambda k: 0.2 if 150 <= k < 200 else 0.02
  x, seen = trained(algorithm, 350, rate)
  largest = [theta.max() for theta, _ in seen]
  # Up, and down again; never far above what it must bound.
  assert max(largest[150:210]) > 2 * largest[149]
  assert largest[-1] < 2 * largest[149]
  # Edges were lost only when the rate jumped.
  lost = [int((~s.readable).sum()) for _, s in seen]
  assert sum(lost[200:]) == 0
  assert sum(lost) < 0.02 * N * 2 * len(lost)
  apart = np.abs(x - np.roll(x, 1, axis=0)).max()
  assert apart < largest[-1] < 8 * apart


def test_thetas_agree_after_a_rise():
  algorithm = mj.dpsgd(mj.ring(N), mj.auto_theta(4, start=1.0), **SLOTS)
  _, seen = trained(algorithm, 120, lambda k: 0.05)
  spread = [theta.max() / theta.min() for theta, _ in seen]
  assert np.median(spread[20:]) < 1.05


def test_no_wrap_goes_unseen():
  """What is called readable is within the error bound of what was sent."""
  quantizer = mj.auto_theta(2, start=0.02)  # far too small at first
  topology = mj.lazy(mj.ring(N), 0.5)
  neighbours = gossip.neighbours((topology,), quantizer, **SLOTS)

  def worker(x, heard, k):
    current = quantizer.quantizer(heard.tuned, k)
    key = gossip.worker_key(KEY, k, AXIS, current.shared)
    payload = edge.sealed(current.encode(x, key))
    errors = []
    for _, perm in mj.ring(N).edges:
      sent = collectives.send(x, perm, AXIS)
      got = current.decode(collectives.send(payload, perm, AXIS), x)
      errors.append(jnp.abs(got - sent).max())
    _, pull, heard = neighbours.exchange(x, x, heard, k)
    return x + pull, heard, jnp.stack(errors)

  x = RNG.uniform(-1, 1, (N, D)).astype(np.float32)
  heard = mj.simulated(lambda i: neighbours.init(), (0,))(np.arange(N))
  step, lost = mj.simulated(worker, (0, 0, None)), 0
  for k in range(40):
    x, heard, errors = step(x, heard, np.int32(k))
    readable = np.asarray(heard.seen.readable)
    bound = np.asarray(heard.seen.theta) / 3 + 1e-5
    assert (np.asarray(errors) <= bound)[readable].all()
    lost += (~readable).sum()
  assert lost > 0 and readable.all()


def test_both_ends_leave_out_the_same_edges():
  """One-sided wraps move the mean; answered, they do not."""
  x = RNG.uniform(-0.7, 0.7, (N, D)).astype(np.float32)
  moved = {}
  for name, wrap in (('alone', lambda a: a), ('answered', mj.answered)):
    quantizer = mj.moniqua(1.3, 4)  # some pairs are further apart
    algorithm = wrap(mj.dpsgd(mj.ring(N), quantizer, **SLOTS))

    def step(x, algorithm=algorithm):
      updates, state = algorithm.update(
        jnp.zeros(D), algorithm.init(x), x, step=jnp.int32(0)
      )
      return updates, state.heard.seen.readable

    updates, readable = mj.simulated(step, (0,))(x)
    moved[name] = np.abs(np.mean(updates, axis=0)).max()
    readable = np.asarray(readable)
    assert 0 < readable.sum() < readable.size
    if name == 'answered':
      # Edge 0 goes up, edge 1 goes down: i and i + 1 agree.
      perms = [perm for _, perm in mj.ring(N).edges]
      for i in range(N):
        np.testing.assert_equal(readable[perms[0][i], 0], readable[i, 1])
  assert moved['answered'] < 1e-6 < 1e-3 < moved['alone']


def crossed():
  """A complete graph whose edges are not the inverses of one another."""
  perms = [[(i + by) % N for i in range(N)] for by in range(1, N)]
  for i in (0, 4):
    perms[0][i], perms[4][i] = perms[4][i], perms[0][i]
  return mj.Topology([(1 / N, tuple(perm)) for perm in perms])


SYMMETRIC = {
  **{
    name: helpers.TOPOLOGIES[name]
    for name in ('ring', 'torus', 'star', 'random_matchings')
  },
  'crossed': crossed(),
}


@pytest.mark.parametrize('name', SYMMETRIC)
def test_answers_reach_the_sender_on_any_symmetric_graph(name):
  topology = SYMMETRIC[name]
  topology = topologies.schedule(topology)[0]
  edges = len(topology.edges)
  read = RNG.random((N, edges)) < 0.6
  # All messages of one pair are read or not, in each direction.
  pairs = np.ones((N, N), bool)
  for k, (_, perm) in enumerate(topology.edges):
    for i in range(N):
      pairs[i, perm[i]] &= read[perm[i], k]
  sources = [topologies.sources(perm) for _, perm in topology.edges]
  read = np.array([[pairs[s[i], i] for s in sources] for i in range(N)])
  run = mj.simulated(lambda r: edge.acknowledged(r, topology, AXIS), (0,))
  came, went = (np.asarray(counts) for counts in run(read))
  for i in range(N):
    for k, (_, perm) in enumerate(topology.edges):
      for counts, other in ((came, sources[k][i]), (went, perm[i])):
        assert counts[i, k] == (pairs[i, other] and pairs[other, i])


@pytest.mark.parametrize(
  'n,k,far', helpers.tiered([(3, 1, [2]), (7, 2, [2, 6])], [(3, 1, [2])])
)
def test_answers_keep_the_mean_of_any_number_of_workers(n, k, far):
  """Not all meet in each round, and some are too far away to be read."""
  quantizer = mj.moniqua(theta=4.0, bits=8)
  algorithm = mj.answered(mj.dpsgd(mj.base_graph(n, k), quantizer, **SLOTS))

  def worker(x):
    def step(carry, k):
      x, state = carry
      updates, state = algorithm.update(jnp.zeros(D), state, x, step=k)
      return (x + updates, state), (x + updates, state.heard.seen.readable)

    return jax.lax.scan(step, (x, algorithm.init(x)), jnp.arange(8))[1]

  x = np.random.default_rng(0).uniform(size=(n, D)).astype(np.float32)
  x[far] += 6
  xs, readable = map(np.asarray, mj.simulated(worker, (0,))(x))
  np.testing.assert_allclose(xs.mean(0), x.mean(0) + 0 * xs[0], atol=2e-6)
  assert not readable[far].all(axis=(1, 2)).any() and readable[0].any()
  assert np.ptp(np.delete(xs[:, -1], far, axis=0), axis=0).max() < 0.5
  np.testing.assert_array_equal(xs[n - 1, -1], x[n - 1])


def test_a_directed_graph_is_refused_with_one_that_is_not():
  words = r'For answers.*one_peer_hypercube\(n\), or base_graph\(n\)'
  with pytest.raises(ValueError, match=words):
    mj.dpsgd(mj.one_peer_exponential(N), mj.auto_theta(4, 1.0), **SLOTS)
  config = configured(quantizer=dict(limit=9.0))
  config.topology.name = 'one_peer_exponential'
  with pytest.raises(ValueError, match=f'config.gossip: answered.*{words}'):
    resolve.resolve(config)
  config.topology.name, config.gamma = 'base_graph', 1.0
  assert resolve.resolve(config).schedule == mj.one_peer_hypercube(N)


def test_a_theta_above_its_limit_says_nothing():
  quantizer = mj.auto_theta(4, start=1.0, limit=3.0)
  state = quantizer.init()
  for _ in range(2):
    lost = base.Seen(
      *(jnp.zeros(2, d) for d in (bool, jnp.float32)), jnp.full(2, state)
    )
    state = quantizer.observe(state, lost, None)
  assert state == 4.0

  @jax.jit
  def readable(state, x):
    current = quantizer.quantizer(state, 0)
    return current.inspect(current.encode(x, KEY), x).readable

  ones = np.ones(3, np.float32)
  assert readable(np.float32(2.0), ones) and not readable(state, ones)


def test_the_limit_of_theory_holds_in_training():
  """Updates that pull two halves apart: theta ends near the estimate."""
  topology = mj.lazy(mj.ring(N), 0.2)
  limit = theory.auto_theta_limit(topology, 'dpsgd', 2, update=0.1, safety=1.5)
  quantizer = mj.auto_theta(2, start=0.5)
  algorithm = mj.dpsgd(topology, quantizer, **SLOTS)
  sides = np.where(np.arange(N) < N // 2, 1.0, -1.0).astype(np.float32)

  def step(x, state, side, k):
    updates, state = algorithm.update(
      0.1 * side * jnp.ones(D), state, x, step=k
    )
    return x + updates, state

  x = jnp.zeros((N, D))
  state = mj.simulated(algorithm.init, (0,))(x)
  step = mj.simulated(step, (0, 0, 0, None))
  for k in range(200):
    x, state = step(x, state, sides, np.int32(k))
  assert limit / 4 < np.max(state.heard.tuned) < 2 * limit


def configured(**entries):
  config = digits.get_config('moniqua4')
  spec = dict(name='auto_theta', bits=4, start=0.5, theta=None)
  config.update(dict(quantizer=spec, gamma=0.5))
  config.update(entries)
  return config


def limit_of(**entries):
  config = configured(**entries)
  schedule = topologies.schedule(mj.lazy(mj.ring(N), config.gamma))
  return quantizer_lib.with_limit(config, schedule)['limit']


SAME = {  # entries, others, and how many times larger the limit is
  'eta': (
    dict(gossip=dict(name='deepsqueeze', eta=0.4)),
    dict(gossip=dict(name='deepsqueeze'), gamma=0.2),
    1,
  ),
  'late eta': (
    dict(gossip=dict(name='deepsqueeze', eta=0.8), overlap=True),
    dict(gossip=dict(name='deepsqueeze'), overlap=True, gamma=0.4),
    1,
  ),
  'local steps': (dict(local_steps=4), {}, 4),
  'fragments': (dict(fragments=8), {}, 8),
  'fragments, local steps': (dict(fragments=8, local_steps=2), {}, 16),
  'local momentum': (dict(local_momentum=0.8), {}, 5),
  'both momenta': (
    dict(local_momentum=0.5, momentum=0.5),
    dict(momentum=0.75),
    1,
  ),
  'largest gradient': (dict(largest_gradient=3.0), {}, 3),
}


@pytest.mark.parametrize('these, others, times', SAME.values(), ids=SAME)
def test_the_limit_knows_what_moves_workers_apart(these, others, times):
  np.testing.assert_allclose(limit_of(**these), times * limit_of(**others))


@pytest.mark.slow
def test_the_loop_gain_that_is_refused_is_that_of_eta():
  spec = dict(name='auto_theta', bits=2, start=1.0, theta=None)
  for eta, gain in ((1.0, '3.42'), (0.2, '1.28')):
    gossip = dict(name='deepsqueeze', eta=eta)
    with pytest.raises(ValueError, match=f'gain of deepsqueeze is {gain}'):
      limit_of(quantizer=spec, gossip=gossip, gamma=1.0)
  for name in ('eta', 'gamma'):
    config = configured(gossip={'name': 'deepsqueeze', name: 1.5})
    with pytest.raises(ValueError, match=f'config.gossip.{name}=1.5; it must'):
      resolve.resolve(config)


@pytest.mark.parametrize('name', ['choco', 'dcd', 'ecd'])
def test_differences_have_no_limit(name):
  with pytest.raises(ValueError, match=f'{name} sends differences'):
    limit_of(gossip=dict(name=name))


@pytest.mark.parametrize(
  'gossip', [dict(name='deepsqueeze', eta=0.5), dict(name='choco', gamma=0.5)]
)
def test_late_messages_ask_for_the_w_that_is_mixed(gossip):
  # lambda_n of a ring of 8 is -1/3, with half of each weight it is 1/3.
  spec = dict(name='moniqua', bits=8, theta=1.0, start=None)
  entries = dict(gamma=1.0, overlap=True, quantizer=spec)
  resolve.resolve(configured(**entries, gossip=gossip))
  with pytest.raises(ValueError, match='config.overlap: .*lambda_n'):
    resolve.resolve(configured(**entries, gossip=dict(name=gossip['name'])))


@pytest.mark.parametrize(
  'name,value',
  [('safety', 1.0), ('shrink', 1.0), ('limit', 0.5), ('start', -1)],
)
def test_numbers_out_of_range_are_named(name, value):
  numbers = {'bits': 4, 'start': 1.0, name: value}
  with pytest.raises(ValueError, match=f'{value}'):
    mj.auto_theta(**numbers)


def test_the_guard_waits_for_patience_and_names_the_edge():
  report = lambda ok: {
    'loss': np.zeros(N),
    'seen': base.Seen(
      np.array([[ok, True]] * N),
      np.ones((N, 2)),
      np.full((N, 2), 0.5),
      np.zeros((N, 2)),
    ),
  }
  watch = monitor.Guard(
    (mj.ring(N),), 2, turns.every(1), workdir='there', own=range(N)
  )
  for step, ok in enumerate([False, False, True, False, False]):
    watch.check(step, report(ok))
  with pytest.raises(monitor.Stopped) as stopped:
    watch.check(5, report(False))
  text = str(stopped.value)
  assert 'step 5: worker 0 could not read the message of worker' in text
  assert '3 times in a row' in text and 'try theta=2' in text


@pytest.mark.parametrize('make', [mj.auto_theta, mj.fitted_theta])
def test_an_edge_that_failed_is_raised_from_its_smaller_theta(make):
  """Would both ends double, the larger theta would run off with the next."""
  tuned = make(bits=4, start=1.0, limit=100.0)
  theta = np.float32([0.1, 0.4, 0.1, 3.0, 0.1])
  theirs = np.float32([0.4, 0.1, 0.1, 90.0, np.nan])
  begun = tuned.init()
  state = theta
  if make is mj.fitted_theta:
    state = begun._replace(theta=theta, begun=np.ones(5, bool))
  seen = base.Seen(
    np.zeros((5, 1), bool),
    np.ones((5, 1), np.float32),
    theirs[:, None],
    np.zeros((5, 1), np.float32),
  )
  x = np.zeros((5, 7), np.float32)
  after = jax.jit(jax.vmap(tuned.observe))(state, seen, x)
  found = after if make is mj.auto_theta else after.theta
  np.testing.assert_allclose(found, [0.4, 0.4, 0.2, 90.0, 0.2], rtol=1e-6)


def test_optax_chains_take_it():
  algorithm = mj.dpsgd(mj.ring(N), mj.auto_theta(4, start=1.0), **SLOTS)
  tx = optax.chain(optax.sgd(0.1), algorithm)
  state = mj.simulated(tx.init, (0,))(jnp.zeros((N, 3)))
  assert state[-1].heard.tuned.shape == (N,)
