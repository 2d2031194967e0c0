"""What is claimed to be sent is what the program sends, of all methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import bytes_sent, coding, data
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.algorithms.power_sgd import factors
from moniqua_jax.quantizers import base
from moniqua_jax.theory import gammas
from moniqua_jax.training import step as step_lib
from moniqua_jax.workers import AXIS
from tests import helpers, hlo, traced, trained

N, D = helpers.N, 1013
SLOTS = dict(axis_name=AXIS, key=jax.random.key(0))
STEP = jax.ShapeDtypeStruct((), jnp.int32)


def choosing(turn, rank):
  """Takes a round of a schedule; of two branches the lightest or heaviest."""

  def choose(branches):
    if len(branches) > 2:
      return branches[turn]
    return sorted(branches, key=traced.leaving)[rank]

  return choose


WHOLE, SHORT = 1, 0  # ranks, of `carried`
UNEVEN = mj.Topology(
  [
    (0.25, tuple((i + 1) % N for i in range(N))),
    ((0.5, *(0.0,) * (N - 1)), tuple((i + 3) % N for i in range(N))),
  ]
)
RING = mj.lazy(mj.ring(N), 0.5)
# Rounds of 2, 7 and 1 edges, on some of which some workers send nothing.
TURNS = mj.ring(N), mj.star(N), mj.random_matchings(N, 1, seed=0)[0]


def gossip(factory, topology=RING, **numbers):
  return lambda quantizer: factory(topology, quantizer, **numbers, **SLOTS)


# name -> (quantizer -> algorithm, its schedule)
GOSSIP = {
  **{
    f'{where} {name}': (gossip(getattr(mj, name), topology), topology)
    for name in ('dpsgd', 'push_sum')
    for where, topology in helpers.TOPOLOGIES.items()
  },
  **{
    name: (gossip(getattr(mj, name)), RING)
    for name in ('d2', 'choco', 'dcd', 'ecd', 'deepsqueeze', 'adpsgd')
  },
  'qdgd': (gossip(mj.qdgd, epsilon=0.5), RING),
  'one way': (gossip(mj.push_sum, UNEVEN), UNEVEN),
  'turns': (gossip(mj.dpsgd, TURNS), TURNS),
  'answered': (lambda q: mj.answered(gossip(mj.d2)(q)), RING),
  'answered push_sum': (
    lambda q: mj.answered(gossip(mj.push_sum, TURNS)(q)),
    TURNS,
  ),
  'every': (lambda q: mj.every(gossip(mj.dpsgd)(q), 3), RING),
  'streaming': (lambda q: mj.streaming(gossip(mj.dpsgd, TURNS)(q), 3), TURNS),
  'streaming answered every push_sum': (
    lambda q: mj.streaming(
      mj.answered(mj.every(gossip(mj.push_sum, UNEVEN)(q), 2)), 3
    ),
    UNEVEN,
  ),
  'every answered push_sum': (
    lambda q: mj.every(mj.answered(gossip(mj.push_sum, UNEVEN)(q)), 2),
    UNEVEN,
  ),
  'atc': (lambda q: mj.adapt_then_combine(gossip(mj.dpsgd)(q)), RING),
  'stale': (lambda q: mj.stale(gossip(mj.choco)(q), RING), RING),
  'answered stale every': (
    lambda q: mj.answered(mj.stale(mj.every(gossip(mj.d2)(q), 2), RING)),
    RING,
  ),
}
PER_WORKER = mj.per_worker(
  lambda row: mj.within(
    mj.moniqua(1.0, 4), lambda x: x / row, lambda z: z * row
  ),
  jnp.ones((N, D)),
  AXIS,
)
CODED = mj.coded(mj.nuqsgd(4, bucket_size=64), 2.0, coding.dense())
QUANTIZERS = {
  'auto_theta': mj.auto_theta(4, start=1.0),
  'fitted_theta': mj.fitted_theta(4),
  'scheduled': mj.scheduled(lambda t: mj.moniqua(t, 3), lambda step: 1.0),
  'rotated': mj.rotated(mj.auto_theta(4, start=1.0)),
  'scaled': mj.scaled(mj.moniqua(1.0, 8), ((13, 2.0), (D - 13, 1.5))),
  'smooth': mj.smooth(mj.dithering(3), jnp.ones(D)),
  'per_worker': PER_WORKER,
  'coded': CODED,
  **{name: helpers.QUANTIZERS[name][0] for name in helpers.A_KIND_EACH},
}
CASES = [
  *((name, 'moniqua 3 nearest') for name in GOSSIP),
  *((name, 'full_precision') for name in ('star push_sum', 'one way', 'd2')),
  *(('ring dpsgd', quantizer) for quantizer in QUANTIZERS),
  *(('streaming', quantizer) for quantizer in ('auto_theta', 'coded', 'top_k')),
  *(
    (name, quantizer)
    for name in ('turns', 'answered push_sum')
    for quantizer in ('auto_theta', 'coded', 'top_k')
  ),
]


def rounds(topology):
  return (topology,) if isinstance(topology, mj.Topology) else topology


@functools.cache
def program(name, quantizer):
  """The step of an algorithm, and the shapes of its arguments."""
  algorithm = GOSSIP[name][0](QUANTIZERS[quantizer])
  x = jax.ShapeDtypeStruct((D,), jnp.float32)
  init = jax.eval_shape(algorithm.init, x)
  step = lambda u, s, x, k: algorithm.update(u, s, x, step=k)
  return algorithm, step, (x, init, x, STEP)


FAST = [
  ('star push_sum', 'moniqua 3 nearest'),
  ('star push_sum', 'full_precision'),
  ('one way', 'moniqua 3 nearest'),
  ('turns', 'auto_theta'),
  ('turns', 'moniqua 3 nearest'),
  ('answered', 'moniqua 3 nearest'),
  ('answered push_sum', 'coded'),
  ('every answered push_sum', 'moniqua 3 nearest'),
  ('streaming', 'moniqua 3 nearest'),
  ('streaming answered every push_sum', 'moniqua 3 nearest'),
  ('answered stale every', 'moniqua 3 nearest'),
  ('ring dpsgd', 'per_worker'),
  ('ring dpsgd', 'coded'),
  ('one_peer_exponential push_sum', 'moniqua 3 nearest'),
]


@pytest.mark.parametrize(
  'name,quantizer', helpers.tiered(dict.fromkeys(CASES), FAST)
)
def test_gossip_sends_what_it_claims(name, quantizer):
  algorithm, step, args = program(name, quantizer)
  schedule = rounds(GOSSIP[name][1])
  tuned = base.tuned(QUANTIZERS[quantizer])
  claim = bytes_sent.of_gossip(schedule, *algorithm.message(tuned, D))
  for turn in range(len(schedule)):
    for rank, claimed in ((WHOLE, claim.gossip), (SHORT, claim.gossip_short)):
      if rank == SHORT and 'every' in name:
        continue  # the lightest branch is to rest
      found = traced.sent(step, *args, n=N, choose=choosing(turn, rank))
      assert traced.leaving(found) == pytest.approx(claimed[turn], rel=1e-12)
      # In a compressed path nothing but bytes, and who must know what fits.
      floats = [one for one in found if one.dtype.startswith('f')]
      assert not floats or quantizer == 'full_precision'


def test_every_rests_without_a_word():
  _, step, args = program('every answered push_sum', 'moniqua 3 nearest')
  assert not traced.sent(step, *args, n=N, choose=choosing(0, 0))


# ------------------------------------------------------------------ the means

GRADIENT = {
  'bias': jax.ShapeDtypeStruct((5,), jnp.float32),
  'kernel': jax.ShapeDtypeStruct((2, 1013), jnp.float32),  # not divided by 8
  'last': jax.ShapeDtypeStruct((1100, 1), jnp.float32),
}
PARAMETERS = gammas.adiana(
  L=1.0, L_max=1.0, calL_max=2.0, omega=2.0, mu=0.1, n=N
)
STRATEGIES = ('all_gather', 'of_senders', 'scatter_reduce')
# name -> (quantizer -> reduction, strategy, means in a step)
MEANS = {
  **{
    f'{name} {strategy}': (
      lambda q, factory=factory, by=strategy: factory(q, by, **SLOTS),
      strategy,
      1,
    )
    for name, factory in (
      ('allreduce', mj.allreduce),
      ('error_feedback', mj.error_feedback),
    )
    for strategy in STRATEGIES
  },
  'double_squeeze': (
    lambda q: mj.double_squeeze(q, **SLOTS),
    'scatter_reduce',
    1,
  ),
  'dcgd': (lambda q: mj.dcgd(q, **SLOTS), 'all_gather', 1),
  'diana': (lambda q: mj.diana(q, 0.2, **SLOTS), 'all_gather', 1),
  'adiana': (lambda q: mj.adiana(q, PARAMETERS, **SLOTS), 'all_gather', 2),
}
OF_MEANS = {
  'nuqsgd': mj.nuqsgd(3, bucket_size=100),
  'coded': CODED,
  'top_k': mj.top_k(0.1),
  'chunked_top_k': mj.chunked_top_k(),
  'full_precision': mj.full_precision(),
}


def traced_mean(tx, choose):
  row = lambda tree: jax.tree.map(
    lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), tree
  )
  init = jax.vmap(tx.init, None, axis_name=AXIS, axis_size=N)
  state = row(jax.eval_shape(init, GRADIENT))
  grad_fn = lambda params: params
  step = lambda g, s, k: tx.update(g, s, g, step=k, grad_fn=grad_fn)
  return traced.sent(step, GRADIENT, state, STEP, n=N, choose=choose)


@pytest.mark.parametrize(
  'name,quantizer',
  helpers.tiered(
    [(name, quantizer) for name in MEANS for quantizer in OF_MEANS],
    [
      ('allreduce scatter_reduce', 'nuqsgd'),
      ('allreduce scatter_reduce', 'coded'),
      ('error_feedback all_gather', 'coded'),
      ('double_squeeze', 'top_k'),
      ('diana', 'full_precision'),
      ('adiana', 'nuqsgd'),
      ('adiana', 'coded'),
    ],
  ),
)
def test_means_send_what_they_claim(name, quantizer):
  make, strategy, means = MEANS[name]
  q = OF_MEANS[quantizer]
  claim = bytes_sent.of_reduce(
    strategy, base.tuned(q), GRADIENT, N, large_leaves.small, means
  )
  short = np.ones(len(claim.whole))
  for rank, shorts in ((WHOLE, 0 * short), (SHORT, short)):
    # `scatter` and `all_gathered` decode in scans, which send nothing.
    found = traced_mean(make(q), choosing(0, rank))
    claimed = bytes_sent.total(claim, 1, 0, short=shorts)
    assert traced.leaving(found) == pytest.approx(claimed, rel=1e-12)


def test_an_exact_mean_sends_what_it_claims():
  found = traced_mean(mj.allreduce(axis_name=AXIS), choosing(0, WHOLE))
  claimed = bytes_sent.of_exact(GRADIENT, N).exact
  assert traced.leaving(found) == pytest.approx(claimed, rel=1e-12)


def test_power_sgd_sends_the_factors_and_the_rest():
  keep = large_leaves.small
  found = traced_mean(mj.power_sgd(1, **SLOTS), choosing(0, WHOLE))
  sent = factors(GRADIENT, 1, keep)
  assert sum(leaf.size for leaf in sent) == 2 + 1013 + 5 + 1100
  claimed = bytes_sent.of_exact(sent, N).exact
  assert traced.leaving(found) == pytest.approx(claimed, rel=1e-12)


@pytest.mark.parametrize(
  'name', helpers.tiered(('alq', 'alq_n', 'amq', 'amq_n'), ('amq',))
)
def test_adaptive_levels_tell_each_other_what_the_docstring_says(name):
  """In each step one integer; where they fit, statistics and levels."""
  quantizer = getattr(mj, name)(3, bucket_size=64, axis_name=AXIS)
  tx = mj.allreduce(quantizer, 'all_gather', **SLOTS)
  claim = bytes_sent.of_reduce(
    'all_gather', quantizer, GRADIENT, N, large_leaves.small
  )
  extra = [
    traced.leaving(traced_mean(tx, choosing(0, rank)))
    - bytes_sent.total(claim, 1, 0)
    for rank in (SHORT, WHOLE)
  ]
  buckets = min(50, (2 * 1013 + 1100) // 64)
  ring = 2 * (N - 1) / N
  assert extra[0] == pytest.approx(ring * 4)
  fit = (N - 1) * 12 * buckets + ring * 4 * 2**3
  assert extra[1] == pytest.approx(ring * 4 + fit)


# ---------------------------------------------------------------- of a config

# name -> (a method of configs/digits.py, what else)
CONFIGS = {
  'push_sum': (
    'moniqua4',
    dict(gossip=dict(name='push_sum'), topology=dict(name='star'), gamma=0.5),
  ),
  'stale d2': (
    'moniqua4',
    dict(gossip=dict(name='d2'), gamma=0.5, overlap=True),
  ),
  'one peer': (
    'moniqua4',
    dict(topology=dict(name='one_peer_exponential')),
  ),
  **{
    reduce: (
      'allreduce',
      dict(
        reduce=dict(name=reduce),
        quantizer=dict(name='nuqsgd', bits=4, bucket_size=512),
      ),
    )
    for reduce in ('error_feedback', 'double_squeeze', 'dcgd')
  },
  'power_sgd': ('allreduce', dict(reduce=dict(name='power_sgd', rank=2))),
  'qdgd': ('dpsgd', dict(gossip=dict(name='qdgd', epsilon=0.5))),
  'few of each chunk': (
    'allreduce',
    dict(
      reduce=dict(name='error_feedback', strategy='of_senders', decay=0.9),
      quantizer=dict(name='chunked_top_k', chunk=512, keep=8),
    ),
  ),
  'means in fragments': (
    'allreduce',
    dict(
      reduce=dict(name='allreduce', strategy='scatter_reduce'),
      quantizer=dict(name='eden', bits=2),
      fragments=4,
    ),
  ),
  'exact means in fragments': ('allreduce', dict(fragments=4)),
  'means after local steps': (
    'allreduce',
    dict(
      reduce=dict(name='allreduce', strategy='scatter_reduce'),
      quantizer=dict(name='eden', bits=2),
      local_steps=3,
    ),
  ),
}


@pytest.mark.parametrize(
  'name',
  helpers.tiered(CONFIGS, ('push_sum', 'double_squeeze', 'means in fragments')),
)
def test_a_step_of_training_sends_what_the_run_says(name):
  """Loss, accuracy and what was seen leave the step for each worker."""
  method, entries = CONFIGS[name]
  config = digits.get_config(method).copy_and_resolve_references()
  with config.unlocked():
    for entry, value in entries.items():
      if isinstance(value, dict):
        config[entry].update(value)
      else:
        config[entry] = value
  of = trained.built(config)
  init, train_step, _ = step_lib.make_steps(of)
  batch = data.batch(*of.data, seed=0, step=0, batch_size=config.batch_size)
  row = lambda tree: jax.tree.map(
    lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), tree
  )
  state = jax.eval_shape(jax.vmap(init, axis_name=AXIS), jnp.arange(N))
  for turn in range(max(1, len(of.setup.schedule))):
    choose = choosing(turn, WHOLE)
    args = row(state), row(batch), STEP
    found = traced.sent(train_step, *args, n=N, choose=choose)
    claim = of.sent.by_worker
    claimed = claim.exact + claim.whole.sum() + sum(claim.gossip[turn:][:1])
    assert traced.leaving(found) == pytest.approx(claimed, rel=1e-12)


# -------------------------------------------------- as the compiler leaves it


def in_all(found):
  """Bytes of each type, of what a worker gives to or gets from collectives."""
  total = {}
  for dtype, nbytes in found:
    total[dtype] = total.get(dtype, 0) + nbytes
  return total


SHORT_NAMES = {'uint8': 'u8', 'float32': 'f32', 'int32': 's32'}


@pytest.mark.parametrize(
  'name,quantizer',
  helpers.tiered(
    [
      ('answered push_sum', 'moniqua 3 nearest'),
      ('star push_sum', 'full_precision'),
      ('ring dpsgd', 'auto_theta'),
    ],
    [('star push_sum', 'full_precision')],
  ),
)
def test_the_compiled_program_sends_what_was_traced(name, quantizer):
  _, step, args = program(name, quantizer)
  add = lambda tree: jax.tree.map(
    lambda v: jax.ShapeDtypeStruct((N, *v.shape), v.dtype), tree
  )
  run = mj.sharded(step, (0, 0, 0, None))
  text = run.lower(*map(add, args[:3]), STEP).compile().as_text()
  got = [(dtype, nbytes) for _, dtype, nbytes in hlo.collectives(text)]
  every_branch = lambda branches: sum(branches, [])
  found = traced.sent(step, *args, n=N, choose=every_branch)
  gave = [(SHORT_NAMES[one.dtype], one.nbytes) for one in found]
  assert in_all(got) == in_all(gave)
