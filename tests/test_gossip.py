"""Gossip: W x exactly, the mean untouched, the same bits under all runners."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import collectives, gossip, topologies
from moniqua_jax.gossip import edge
from moniqua_jax.quantizers import base
from moniqua_jax.workers import AXIS
from tests import helpers

N, D = helpers.N, 1001
LONG = 16_421  # two tiles in each stripe of 1 bit, and a rest
KEY = jax.random.key(0)
# Without, shared and private draws, with ends of buckets.
FOUR = [
  'full_precision',
  'moniqua 1 dithered',
  'moniqua 4 stochastic',
  'uniform 4 stochastic',
]
pytestmark = pytest.mark.optimized


def vectors(d=D, apart=0.2, scale=1.0, seed=0):
  """Workers around a common point, closer than theta to each other."""
  rng = np.random.default_rng(seed)
  common = scale * rng.standard_normal(d)
  return (common + apart * rng.uniform(-1, 1, (N, d))).astype(np.float32)


@functools.cache
def one_round(quantizer, schedule, run):
  """The runner's map of one round, compiled once: (x, step) -> (pull, seen)."""
  neighbours = gossip.neighbours(schedule, quantizer, axis_name=AXIS, key=KEY)

  def worker(x, step):
    _, pull, heard = neighbours.exchange(x, x, neighbours.init(), step)
    return pull, heard.seen

  return run(worker, (0, None))


@pytest.mark.parametrize(
  'name,runner',
  helpers.tiered(
    [(name, run) for name in helpers.TOPOLOGIES for run in helpers.RUNNERS],
    [
      *((name, 'simulated') for name in helpers.TOPOLOGIES),
      ('random_matchings', 'sharded'),
      ('torus', 'pmapped'),
    ],
  ),
)
def test_full_precision_is_w_times_x(name, runner):
  schedule = topologies.schedule(helpers.TOPOLOGIES[name])
  x = vectors(d=64)
  run = one_round(mj.full_precision(), schedule, helpers.RUNNERS[runner])
  for step, topology in enumerate(schedule):
    moved, seen = run(x, np.int32(step))
    w = topologies.matrix(topology)
    np.testing.assert_allclose(x + moved, w @ x.astype(np.float64), atol=1e-6)
    assert seen.readable.all()


def test_an_edge_has_the_weight_of_who_receives():
  to = lambda by: tuple((i + by) % N for i in range(N))
  uneven = mj.Topology([(0.25, to(1)), ((0.5, *(0.0,) * (N - 1)), to(3))])
  x = vectors(d=64)
  moved, _ = one_round(mj.full_precision(), (uneven,), mj.simulated)(x, 0)
  w = topologies.matrix(uneven)
  np.testing.assert_allclose(x + moved, w @ x.astype(np.float64), atol=1e-6)


@pytest.mark.parametrize(
  'name,quantizer',
  helpers.tiered(
    [
      (name, quantizer)
      for name in ('ring', 'exponential', 'random_matchings')
      for quantizer in helpers.A_FEW_QUANTIZERS
    ],
    [
      *(('ring', quantizer) for quantizer in FOUR),
      ('exponential', 'moniqua 4 stochastic'),
      ('random_matchings', 'moniqua 1 dithered'),
    ],
  ),
)
def test_gossip_leaves_the_mean(name, quantizer):
  schedule = topologies.schedule(helpers.TOPOLOGIES[name])
  x = vectors()
  run = one_round(helpers.QUANTIZERS[quantizer][0], schedule, mj.simulated)
  for step in range(len(schedule)):
    moved, seen = run(x, np.int32(step))
    assert seen.readable.all()
    assert np.abs(moved).max() > 0
    np.testing.assert_allclose(np.mean(moved, axis=0), 0, atol=1e-6)


@pytest.mark.parametrize(
  'quantizer', helpers.tiered(helpers.A_FEW_QUANTIZERS, FOUR)
)
def test_gossip_is_the_dense_formula_of_what_was_sent(quantizer):
  """W x_hat - x_hat with x_hat as a bystander decodes the same messages."""
  quantizer = helpers.QUANTIZERS[quantizer][0]
  topology, x = mj.ring(N), vectors()
  moved, _ = one_round(quantizer, (topology,), mj.simulated)(x, np.int32(0))

  def believed(x):
    key = gossip.worker_key(KEY, np.int32(0), AXIS, quantizer.shared)
    return quantizer.decode(quantizer.encode(x, key), x)

  x_hat = np.asarray(mj.simulated(believed, (0,))(x), np.float64)
  expected = topologies.matrix(topology) @ x_hat - x_hat
  np.testing.assert_allclose(moved, expected, atol=2e-6)


@pytest.mark.parametrize(
  'quantizer',
  helpers.tiered(
    helpers.A_FEW_QUANTIZERS,
    ['moniqua 1 dithered', 'moniqua 4 stochastic', 'uniform 4 stochastic'],
  ),
)
def test_one_round_is_bit_identical_under_all_runners(quantizer):
  quantizer, x = helpers.QUANTIZERS[quantizer][0], vectors()
  results = [
    jax.tree.map(np.asarray, one_round(quantizer, (mj.ring(N),), run)(x, 3))
    for run in helpers.RUNNERS.values()
  ]
  for moved, seen in results[1:]:
    np.testing.assert_array_equal(moved, results[0][0])
    np.testing.assert_array_equal(seen.readable, results[0][1].readable)
    # The distance is a metric; its last bit is not worth a pass.
    np.testing.assert_allclose(seen.distance, results[0][1].distance, rtol=1e-6)


@pytest.mark.parametrize(
  'rounding',
  helpers.tiered(
    ['dithered', 'nearest', 'stochastic'], ['dithered', 'stochastic']
  ),
)
def test_all_ends_believe_the_same_bits(rounding):
  """Receivers and sender, a million coordinates, 8 bits, |x| / s near 10^5."""
  d, theta = 1_000_003, 0.01
  quantizer = mj.moniqua(theta, bits=8, rounding=rounding)
  step = 2 * theta / 255
  x = vectors(d, apart=theta / 4, scale=1e5 * step / 3)

  def worker(x):
    key = gossip.worker_key(KEY, jnp.int32(0), AXIS, quantizer.shared)
    payload = edge.sealed(quantizer.encode(x, key))
    own = quantizer.decode(payload, x)
    seen, theirs = [], []
    for _, perm in mj.ring(N).edges:
      received = collectives.send(payload, perm, AXIS)
      theirs.append(quantizer.decode(received, x))
      seen.append(quantizer.inspect(received, x).readable)
    return own, jnp.stack(theirs), jnp.stack(seen)

  own, theirs, readable = mj.sharded(worker, (0,))(x)
  own, theirs = np.asarray(own), np.asarray(theirs)
  assert np.asarray(readable).all()
  for k, (_, perm) in enumerate(mj.ring(N).edges):
    for sender, receiver in enumerate(perm):
      np.testing.assert_array_equal(theirs[receiver, k], own[sender])
  assert np.abs(own - x).max() <= step * 1.001 + 4 * 2**-23 * np.abs(x).max()


def test_nothing_recomputes_what_was_sent():
  """The payload that encode makes goes to the barrier and nowhere else.

  Otherwise XLA may recompute the codes for the sender's own decode in another
  fusion, where a multiply and add are fused, or not, and a rounding tie flips.
  Whether it does depends on its version; so this reads the program.
  """

  def worker(x, key):
    return gossip.correction(
      x,
      key,
      topology=mj.ring(N),
      quantizer=mj.moniqua(0.5, bits=8),
      axis_name=AXIS,
    )[0]

  jaxpr = jax.make_jaxpr(worker, axis_env=[(AXIS, N)])(jnp.zeros(D), KEY)
  eqns = jaxpr.jaxpr.eqns
  made_by = {var: eqn for eqn in eqns for var in eqn.outvars}
  permutes = [eqn for eqn in eqns if eqn.primitive.name == 'ppermute']
  assert len(permutes) == 2
  (sealed,) = {eqn.invars[0] for eqn in permutes}
  barrier = made_by[sealed]
  assert barrier.primitive.name == 'optimization_barrier'
  users = [eqn for eqn in eqns if barrier.invars[0] in eqn.invars]
  assert users == [barrier]
  # The sender decodes the sealed payload too, besides sending it twice.
  assert sum(sealed in eqn.invars for eqn in eqns) > 2


def test_a_row_is_taken_as_a_vector_before_all_else(monkeypatch):
  """A TPU would lay it out as the matrix of one row, for all that follows."""
  monkeypatch.setenv('MONIQUA_NATIVE', '0')
  q, ring = mj.moniqua(0.5, bits=8), mj.ring(N)
  alone = lambda x: gossip.correction(
    x, KEY, topology=ring, quantizer=q, axis_name=AXIS
  )
  edges = gossip.neighbours((ring,), q, axis_name=AXIS, key=KEY)
  heard = edges.init()
  for program in (
    lambda x, y: alone(x),
    lambda x, y: edges.mix(x, x, heard, 0),
    lambda x, y: edges.exchange(x, x, heard, 0),
    lambda x, y: edges.exchange(x, y, heard, 0),
  ):
    jaxpr = jax.make_jaxpr(program, axis_env=[(AXIS, N)])(*jnp.zeros((2, D)))
    users = [
      eqn.primitive.name
      for eqn in jaxpr.jaxpr.eqns
      for var in jaxpr.jaxpr.invars
      if var in eqn.invars
    ]
    assert (
      {'optimization_barrier'} <= {*users} <= {'optimization_barrier', 'add'}
    )


@pytest.mark.parametrize(
  'name,poison',
  [
    *(('moniqua 4 dithered', p) for p in (np.nan, np.inf, -np.inf, 1e30)),
    *(('uniform 4 nearest', p) for p in (np.nan, np.inf)),
  ],
)
def test_an_unreadable_message_is_left_out(name, poison):
  x = vectors()
  x[3, 17] = poison
  quantizer = helpers.QUANTIZERS[name][0]
  for run in (mj.simulated, mj.sharded):
    moved, seen = one_round(quantizer, (mj.ring(N),), run)(x, np.int32(0))
    edges = mj.ring(N).edges
    sources = np.array([topologies.sources(perm) for _, perm in edges]).T
    # Worker 3, without a vector of its own, may read nothing either.
    others = np.arange(N) != 3
    readable = np.asarray(seen.readable)
    np.testing.assert_array_equal(readable[others], sources[others] != 3)
    # Its neighbours move by their other edge only.
    assert np.isfinite(moved).all() and np.abs(moved[2]).max() > 0
    assert np.asarray(moved)[3, 17] == 0


def test_messages_are_read_next_to_the_reference():
  """A whole turn away from x, so x_hat is there too."""
  theta, x = 0.5, vectors(d=64)
  talk = gossip.neighbours(
    (mj.ring(N),), mj.moniqua(theta, bits=4), axis_name=AXIS, key=KEY
  )
  turn = 2 * theta / (1 - 2.0**-4)
  own, _, _ = mj.simulated(
    lambda x: talk.exchange(x, x + turn, talk.init(), jnp.int32(0)), (0,)
  )(x)
  assert np.abs(own - x - turn).max() < theta


def test_who_is_not_finite_has_read_nothing():
  """Though the messages to it were readable: of whatever quantizer."""
  x = vectors()
  x[3, 17] = np.nan
  quantizer = helpers.QUANTIZERS['nuqsgd 4'][0]
  # Not simulated: XLA on CPUs may lose the NaN of a batch (`numerics.largest`).
  _, seen = one_round(quantizer, (mj.ring(N),), mj.sharded)(x, np.int32(0))
  readable = np.asarray(seen.readable)
  assert not readable[3].any() and readable[0].all()


def test_by_sender_too_who_is_unreadable_moves_on_no_edge():
  talk = gossip.neighbours(
    (mj.ring(N),),
    mj.moniqua(0.5, bits=4),
    axis_name=AXIS,
    key=KEY,
    share=edge.BY_SENDER,
  )
  x = vectors(d=64)
  x[3, 17] = np.nan
  pull = lambda x: talk.exchange(x, x, talk.init(), jnp.int32(0))[1]
  moved = np.asarray(mj.simulated(pull, (0,))(x))
  assert np.isfinite(moved).all() and not moved[3].any()


def test_a_theta_that_is_too_small_is_seen():
  x = vectors(apart=0.2)  # up to 0.4 apart
  for theta, expected in ((0.41, True), (0.1, False)):
    run = one_round(mj.moniqua(theta, bits=4), (mj.ring(N),), mj.simulated)
    _, seen = run(x, np.int32(0))
    assert np.asarray(seen.readable).all() == expected
    assert np.allclose(seen.theta, theta)
    assert seen.distance.max() <= 0.4 + 1e-6 if expected else True


def test_rounds_follow_the_step():
  schedule = mj.one_peer_exponential(N)
  run = one_round(mj.full_precision(), schedule, mj.simulated)
  x = vectors(d=16)
  mean = x.mean(axis=0, keepdims=True)
  for step in range(3):
    x = x + np.asarray(run(x, np.int32(step))[0])
  np.testing.assert_allclose(x, np.repeat(mean, N, axis=0), atol=1e-6)


def test_rounds_of_different_numbers_of_edges():
  schedule = (mj.ring(N), *mj.random_matchings(N, rounds=1, seed=0))
  run = one_round(mj.moniqua(0.5, bits=8), schedule, mj.simulated)
  for step in range(2):
    _, seen = run(vectors(), np.int32(step))
    assert seen.readable.shape == (N, 2) and seen.readable.all()
  # Of an edge that is not there: no distance, and no theta that covers it.
  assert not seen.distance[:, 1].any() and np.isinf(seen.theta[:, 1]).all()


@pytest.mark.parametrize('runner', helpers.RUNNERS)
def test_consensus(runner):
  x = vectors()
  run = helpers.RUNNERS[runner](lambda x: gossip.consensus(x, AXIS), (0,))
  rms, largest = run(x)
  apart = x - x.mean(axis=0, keepdims=True)
  np.testing.assert_allclose(rms, np.sqrt((apart**2).mean()), rtol=1e-5)
  np.testing.assert_allclose(largest, np.abs(apart).max(), rtol=1e-5)


@pytest.mark.parametrize(
  'key', [0, 'a', None, np.uint32(3), jax.random.split(KEY), jnp.zeros(2)]
)
def test_what_is_no_key_is_named(key):
  tx = mj.quantize(mj.uniform(8), key)
  given = re.escape(' '.join(repr(key).split())[:60])
  with pytest.raises(ValueError, match=f'key={given}; it takes one key of jax'):
    tx.update(jnp.ones(3), tx.init(None))
  with pytest.raises(ValueError, match=f'key={given}; it takes one key of jax'):
    mj.power_sgd(2, axis_name=AXIS, key=key).init(jnp.ones((64, 64)))


def test_keys_are_shared_or_private():
  def draw(shared):
    def worker(step):
      key = gossip.worker_key(KEY, step, AXIS, shared)
      return jax.random.bits(key)

    return np.asarray(
      mj.simulated(lambda i, step: worker(step), (0, None))(
        np.arange(N), np.int32(5)
      )
    )

  assert len(set(draw(True).tolist())) == 1
  assert len(set(draw(False).tolist())) == N


def test_flatten_refuses_what_is_no_float():
  for dtype in ('int8', 'bool', 'complex64'):
    with pytest.raises(ValueError, match=rf"params\['w'\] is {dtype}"):
      gossip.flatten({'b': jnp.ones(2), 'w': jnp.ones(2, dtype)})
  x, back = gossip.flatten({'b': np.ones(2), 'w': jnp.ones(2, jnp.bfloat16)})
  assert {x.dtype, back(x)['w'].dtype} == {jnp.float32.dtype}
  with pytest.raises(ValueError, match='needs parameters'):
    gossip.flatten(None)


def test_flatten_goes_to_each_leaf_where_it_lies():
  # A concatenation, or a leaf filled up, is a loop of XLA's for CPUs over the
  # whole vector for each leaf, which may take a hundred times as long.
  def worker(w, rows, y):
    return y + 0.1 * gossip.flatten({'bias': rows.sum(0), 'w': w, 'z': w[0]})[0]

  args = np.ones((30, 7)), np.arange(14.0).reshape(2, 7), np.ones(224)
  args = [np.float32(arg) for arg in args]
  for fn in (worker, jax.vmap(worker)):
    given = args if fn is worker else [np.stack([arg, -arg]) for arg in args]
    program = jax.jit(fn).lower(*given).compile()
    found = re.findall(
      r' (concatenate|pad|dynamic-update-slice)\(', program.as_text()
    )
    assert set(found) == {'dynamic-update-slice'}
    w, rows, y = (np.float64(arg) for arg in given)
    flat = np.concatenate(
      [rows.sum(-2), w.reshape(*w.shape[:-2], -1), w[..., 0, :]], axis=-1
    )
    np.testing.assert_allclose(program(*given), y + 0.1 * flat, rtol=1e-6)


def test_tuned_refuses_other_things():
  with pytest.raises(TypeError, match='expected a Quantizer or a Tuned'):
    base.tuned(mj.moniqua)


# ----------------------------------------------------------- mixing in one go


MIXED = [
  *((b, 'dithered', 'simulated', LONG) for b in range(1, 9)),
  *((b, 'nearest', 'simulated', LONG) for b in (1, 2, 5, 8)),
  *((b, 'stochastic', 'simulated', LONG) for b in (2, 3, 4, 8)),
  *((b, 'dithered', r, LONG) for b in (1, 6) for r in ('sharded', 'pmapped')),
  *((b, 'dithered', 'simulated', d) for b in (3, 4) for d in (101, 8192)),
  (7, 'nearest', 'simulated', 8192),
]


@pytest.mark.parametrize(
  'bits,rounding,runner,d',
  helpers.tiered(
    MIXED,
    [
      (1, 'dithered', 'simulated', LONG),
      (6, 'dithered', 'sharded', LONG),
      (3, 'dithered', 'simulated', 8192),
    ],
  ),
)
def test_mixing_is_to_the_bit_what_decoding_gives(bits, rounding, runner, d):
  """All messages readable, and then not that of worker 3, for one value."""
  quantizer = mj.moniqua(0.5, bits, rounding, digest=d != 8192)
  lean, plain = _mixing(quantizer, helpers.RUNNERS[runner])
  x = vectors(d, scale=100.0)
  for poison in (x[3, 17], np.nan, 1e30):
    x[3, 17] = poison
    got, expected = lean(x, np.int32(1)), plain(x, np.int32(1))
    assert (np.asarray(got[0]) != x / 2).sum() > d
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_full_precision_mixes_what_is_finite():
  lean, plain = _mixing(mj.full_precision(), mj.simulated)
  x = vectors(101)
  jax.tree.map(np.testing.assert_array_equal, lean(x, 0), plain(x, 0))
  x[3, 17] = np.nan
  moved, seen = jax.tree.map(np.asarray, lean(x, 0))
  assert np.isfinite(np.delete(moved, 3, axis=0)).all()
  assert not seen.readable[[2, 4]].all(axis=1).any()
  assert (moved[2, 17], moved[2, 18]) != (x[2, 17], x[2, 18])


def _mixing(quantizer, run):
  """The same round by `mix` and without it."""

  def mix(quantizer):
    talk = gossip.neighbours((mj.ring(N),), quantizer, axis_name=AXIS, key=KEY)

    def worker(x, step):
      moved, heard = talk.mix(x / 2, x, talk.init(), step)
      return moved, heard.seen

    return run(worker, (0, None))

  assert quantizer.fast.mix is not None
  slow = quantizer._replace(fast=quantizer.fast._replace(mix=None))
  return mix(quantizer), mix(slow)


def test_the_correction_on_top_of_x_is_mixed():
  x = vectors(9001)

  def worker(x):
    options = dict(topology=mj.ring(N), quantizer=mj.moniqua(0.5, bits=4))
    pull, _ = gossip.correction(x, KEY, axis_name=AXIS, **options)
    moved, _ = gossip.mixed(x, KEY, axis_name=AXIS, **options)
    return x + pull, moved

  expected, moved = mj.simulated(worker, (0,))(x)
  np.testing.assert_array_equal(moved, expected)
