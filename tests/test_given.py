"""What a user may hand to the library: it is right, or one line says why not.

Nothing is computed or compiled here; all of it is known when a step is traced.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moniqua_jax as mj
from moniqua_jax import gossip as rounds
from moniqua_jax.algorithms import vectors
from tests.helpers import A_KIND_EACH, QUANTIZERS, tiered

KEY = jax.random.key(0)
OF = {'axis_name': 'workers', 'key': KEY}
GRADIENT = {'w': np.ones((40, 50), np.float32), 'b': np.ones(5, np.float32)}
SLACK = mj.lazy(mj.ring(8), 0.5)
B = np.ones(2, np.float32)
STEP = {'step': jnp.int32(3)}


def gossip(algorithm=mj.dpsgd, topology=SLACK, **entries):
  return algorithm(topology, mj.moniqua(0.5, 4), **OF, **entries)


def reduced(algorithm=mj.allreduce, quantizer=None, **entries):
  return algorithm(quantizer or mj.qsgd(4, 64), **OF, **entries)


def traced(tx, gradient=GRADIENT, params=None, how=STEP):
  """Traces a step of eight workers."""

  def step(i):
    own = lambda leaf: leaf + 0 * i if hasattr(leaf, 'shape') else leaf
    each = jax.tree.map(own, gradient)
    state = tx.init(params or GRADIENT)
    return tx.update(each, state, params or GRADIENT, **how)

  return jax.eval_shape(jax.vmap(step, axis_name='workers'), jnp.arange(8.0))


def spoken(quantizer):
  """Traces a message, from both ends."""

  def talk(x, key):
    payload = quantizer.encode(x, key)
    return payload, quantizer.decode(payload, x), quantizer.inspect(payload, x)

  return jax.eval_shape(talk, np.ones(64, np.float32), KEY)


# ---------------------------------------------------- whole numbers of NumPy

COUNTED = {
  'moniqua': lambda b: mj.moniqua(0.5, b),
  'uniform': lambda b: mj.uniform(b, 16 * b),
  'qsgd': lambda b: mj.qsgd(b, 16 * b),
  'nuqsgd': lambda b: mj.nuqsgd(b, 16 * b),
  'leveled': lambda b: mj.leveled((0, 0.5, 1), b),
  'terngrad': lambda b: mj.terngrad(b),
  'sign': lambda b: mj.sign(b),
  'one_bit': lambda b: mj.one_bit(b),
  'eden': lambda b: mj.eden(b),
  'dithering': lambda b: mj.dithering(b),
  'chunked_top_k': lambda b: mj.chunked_top_k(b, b, b),
  'block': lambda b: mj.block(0.5, (b, 64 - b), bits=b),
  'auto_theta': lambda b: mj.auto_theta(b, 1.0),
  'fitted_theta': lambda b: mj.fitted_theta(b),
  'alq': lambda b: mj.alq(b, 16, sweeps=b),
  'amq': lambda b: mj.amq(b, 16),
}
FEW = ['moniqua', 'qsgd', 'sign', 'dithering', 'fitted_theta', 'alq']


@pytest.mark.parametrize('name', tiered(COUNTED, FEW))
def test_a_whole_number_may_be_numpys(name):
  """No float, no bool, no array of JAX."""
  made = lambda b: mj.quantizers.base.tuned(COUNTED[name](b))
  now = lambda of: of.quantizer(of.init(), jnp.int32(0))
  expected = str(spoken(now(made(4))))
  for kind in (np.int64, np.int32, np.uint8):
    assert str(spoken(now(made(kind(4))))) == expected
  for other in (4.0, True, jnp.int32(4), '4'):
    with pytest.raises((ValueError, TypeError)):
      made(other)


@pytest.mark.slow
def test_counts_of_steps_and_fragments_may_be_numpys():
  two = np.int64(2)
  spoken(mj.moniqua(0.5, np.uint8(8)))
  for tx in (
    mj.every(gossip(), two),
    mj.every(gossip(), ((0, two), (4 * two, 1))),
    mj.streaming(gossip(), two),
    gossip(mj.adpsgd, delays=two),
    gossip(topology=mj.ring(two**3)),
  ):
    traced(tx)


NO_THETA = {
  r"theta='1'; it must": lambda: mj.moniqua('1', 4),
  'theta=None; it must': lambda: mj.auto_theta(4, None),
  r"theta='2'; it must": lambda: mj.fitted_theta(4, '2'),
  r'theta of shape \(5,\); .* scaled': lambda: mj.moniqua(jnp.ones(5), 4),
  r'theta of shape \(2,\); .* scaled': lambda: mj.moniqua([1.0, 2.0], 4),
  r"gamma='.5'; choco": lambda: gossip(mj.choco, gamma='.5'),
  'got gamma=None': lambda: mj.lazy(mj.ring(8), None),
  r'scales=\[1.0, 2.0\]; give': lambda: mj.scaled(mj.sign(), [1.0, 2.0]),
  'scales=0.5; give': lambda: mj.scaled(mj.sign(), 0.5),
  "safety='2'; auto_theta needs": lambda: mj.auto_theta(4, 1.0, safety='2'),
  'shrink=None; auto_theta': lambda: mj.auto_theta(4, 1.0, shrink=None),
  'chance=None; fitted_theta': lambda: mj.fitted_theta(4, chance=None),
  "limit='9'; fitted_theta": lambda: mj.fitted_theta(4, limit='9'),
  'clip=None; it counts': lambda: mj.terngrad(clip=None),
  'capacity=None bits': lambda: mj.coded(mj.nuqsgd(4), None),
  'momentum=None; quasi': lambda: mj.quasi_global(gossip(), 1, None),
  "mu='.9'; quasi": lambda: mj.quasi_global(gossip(), 1, mu='.9'),
}


@pytest.mark.parametrize('said', NO_THETA)
def test_what_is_no_number_is_named(said):
  with pytest.raises(ValueError, match=said):
    NO_THETA[said]()


# ------------------------------------------------------------- no vector

NO_VECTOR = {
  'float32[4, 5]': np.ones((4, 5), np.float32),
  'float32[]': np.float32(1),
  'float32[0]': np.ones(0, np.float32),
  'int64[20]': np.arange(20),
  'complex64[20]': np.ones(20, np.complex64),
  'list': [1.0, 2.0],
  'NoneType': None,
}


@pytest.mark.parametrize('name', A_KIND_EACH)
def test_what_is_no_vector_of_floats_is_not_encoded(name):
  quantizer = QUANTIZERS[name][0]
  for what, x in NO_VECTOR.items():
    with pytest.raises(ValueError) as error:
      jax.eval_shape(lambda key, x=x: quantizer.encode(x, key), KEY)
    assert str(error.value).startswith(f'encode was given {what}; it takes one')
  # An array of NumPy, that no jit has seen, is one.
  jax.eval_shape(lambda k: quantizer.encode(np.ones(20, np.float16), k), KEY)


# ------------------------------------------------------------- no array

NO_ARRAY = {
  "'text', no": 'text',
  '<object': object(),
  'is int32': 3,
  'bool': True,
}


@pytest.mark.parametrize('what', NO_ARRAY)
def test_a_leaf_that_is_no_array_of_floats_is_named(what):
  bad = {'layer': {'w': np.ones((40, 50), np.float32), 'bad': NO_ARRAY[what]}}
  for tx in (
    gossip(),
    mj.streaming(gossip(), 2),
    reduced(strategy='all_gather'),
    reduced(mj.error_feedback, mj.sign(64)),
  ):
    with pytest.raises(ValueError, match=r"\['layer'\]\['bad'\] is ") as error:
      traced(tx, bad, bad)
    said = str(error.value)
    assert what in said and 'means of floats' in said and '\n' not in said


def test_a_number_of_python_is_an_array():
  one = {'w': np.ones((40, 50), np.float32), 'scale': 1.5}
  traced(reduced(mj.error_feedback, mj.sign(64)), one, one)
  traced(gossip(mj.d2), one, one)


# ------------------------------------------------------------- traced numbers

SHARES = {
  'gamma=a traced number; choco': lambda s: gossip(mj.choco, gamma=s),
  'got gamma=a traced number': lambda s: mj.lazy(mj.ring(8), s),
  'eta=a traced number; deeps': lambda s: gossip(mj.deepsqueeze, eta=s),
  'alpha=a traced number; diana': lambda s: reduced(mj.diana, alpha=s),
  'fraction=a traced number; it': lambda s: mj.top_k(s),
  'fraction=a traced number': lambda s: mj.random_k(s),
}


@pytest.mark.parametrize('said', SHARES)
def test_a_number_that_must_be_known_is_not_traced(said):
  make = SHARES[said]
  with pytest.raises(ValueError, match=f'{said}.*must be known when the'):
    jax.eval_shape(lambda share: make(share) and 0, 0.5)
  for share in (np.float64(0.5), jnp.float32(0.5)):
    make(share)
  for share in (0, 1.5, float('nan')):
    with pytest.raises(ValueError, match='0'):
      make(share)


# ---------------------------------------------------- strict promotion

STRICT = {
  'dpsgd': gossip,
  'd2': lambda: gossip(mj.d2),
  'adpsgd': lambda: gossip(mj.adpsgd),
  'choco': lambda: gossip(mj.choco, gamma=0.5),
  'deepsqueeze': lambda: gossip(mj.deepsqueeze, eta=0.5),
  'dcd': lambda: mj.dcd(mj.ring(8), mj.qsgd(4, 64), **OF),
  'ecd': lambda: mj.ecd(mj.ring(8), mj.qsgd(4, 64), **OF),
  'push_sum': lambda: mj.push_sum(mj.exponential(8), mj.qsgd(4, 64), **OF),
  'peers': lambda: gossip(topology=mj.one_peer_exponential(8)),
  'answered': lambda: mj.answered(gossip()),
  'every': lambda: mj.every(gossip(), 2),
  'streaming': lambda: mj.streaming(gossip(), 2),
  'quasi_global': lambda: mj.quasi_global(gossip(), 0.1, momentum=0.9),
  'adapt_then_combine': lambda: mj.adapt_then_combine(gossip()),
  'stale': lambda: mj.stale(gossip(mj.choco, gamma=0.5), SLACK),
  'auto_theta': lambda: mj.dpsgd(mj.ring(8), mj.auto_theta(4, 1.0), **OF),
  'fitted_theta': lambda: mj.dpsgd(
    mj.ring(8), mj.rotated(mj.fitted_theta(4)), **OF
  ),
  'all_gather': lambda: reduced(strategy='all_gather'),
  'scatter_reduce': lambda: reduced(strategy='scatter_reduce'),
  'outer': lambda: mj.outer(reduced(strategy='all_gather'), optax.sgd(0.1), 2),
  'alq': lambda: reduced(quantizer=mj.alq(4, 64), strategy='all_gather'),
  'amq': lambda: reduced(quantizer=mj.amq(4, 64), strategy='scatter_reduce'),
  'error_feedback': lambda: reduced(mj.error_feedback, mj.sign(64)),
  'double_squeeze': lambda: reduced(mj.double_squeeze, mj.sign(64)),
  'dcgd': lambda: reduced(mj.dcgd),
  'diana': lambda: reduced(mj.diana, alpha=0.5),
}
WRAPPED = {
  'random_tau': mj.random_tau(np.full(64, 0.5)),
  'block': mj.block([0.5, 1.0], (32, 32)),
  'varying_steps': mj.varying_steps(np.full(64, 0.25)),
  'scaled': mj.scaled(mj.moniqua(0.5, 4), [(64, 1.0)]),
  'smooth': mj.smooth(mj.qsgd(4, 8), jnp.ones(64)),
  'coded': mj.coded(mj.nuqsgd(4, 64, 'linf'), 2.5),
}


@pytest.mark.parametrize('name', tiered(STRICT, ['dpsgd', 'all_gather']))
def test_no_step_promotes_in_silence(name):
  """As jax_numpy_dtype_promotion='strict' has it."""
  with jax.numpy_dtype_promotion('strict'):
    traced(STRICT[name]())


@pytest.mark.parametrize('name', tiered({**QUANTIZERS, **WRAPPED}, A_KIND_EACH))
def test_no_message_promotes_in_silence(name):
  quantizer = WRAPPED[name] if name in WRAPPED else QUANTIZERS[name][0]
  with jax.numpy_dtype_promotion('strict'):
    spoken(quantizer)


# ------------------------------------------------------------- no step

ASKS = {**STRICT, 'dadam': lambda: mj.dadam(0.1, topology=SLACK, **OF)}
NO_STEP = {'None': {}, '0.5': {'step': 0.5}, 'array': {'step': np.arange(8)}}


@pytest.mark.parametrize(
  'name', tiered(ASKS, ['dpsgd', 'd2', 'stale', 'outer', 'diana', 'dadam'])
)
def test_a_step_that_is_none_is_named(name):
  """Loops of others forget it, or hand on a share of an epoch."""
  for said, how in NO_STEP.items():
    match = rf'\w+: update\(\) was given step={said}.*params, step=step\)'
    with pytest.raises(TypeError, match=match):
      traced(ASKS[name](), how=how)


def test_a_step_may_be_a_number_of_anybody():
  for step in (3, -3, np.int64(3), np.uint32(3), jnp.int32(-3)):
    traced(gossip(), how={'step': step})


# ------------------------------------------------------------- another kind

OTHERS = {
  'topology=8; expected a Topology': lambda: gossip(topology=8),
  'topology=None; expected': lambda: mj.spectral_gap(None),
  'topology=8; matrix takes one': lambda: mj.matrix(8),
  r'topology=\(Topo.*; matrix': lambda: mj.matrix(mj.one_peer_exponential(8)),
  'topology=8; correction': lambda: mj.correction(
    jnp.ones(3), KEY, topology=8, quantizer=mj.sign(), axis_name='workers'
  ),
  r'quantizer=Tuned\(.*; correction and mixed': lambda: rounds.mixed(
    jnp.ones(3),
    KEY,
    topology=mj.ring(8),
    quantizer=mj.auto_theta(4, 1.0),
    axis_name='workers',
  ),
  'levels=8; give them all': lambda: mj.leveled(8),
  'levels=.*, an array of JAX': lambda: mj.leveled(jnp.array([0, 0.5, 1])),
  'block_sizes=5; a block': lambda: mj.block(0.5, 5),
  'block_sizes=64; a block': lambda: mj.dithering(1, block_sizes=64),
  'first=100; the choice is counts': lambda: mj.alq(3, first=100),
  r'L has the shape \(\); it': lambda: mj.smooth(mj.sign(), 2.0),
  r'L has the shape \(3, 4\)': lambda: mj.smooth(mj.sign(), np.ones((3, 4))),
  'from 0.5 to 2.0': lambda: mj.random_tau(jnp.array([2, 0.5]), tau=2.5),
  'codes is int32; the wire': lambda: mj.pack(jnp.arange(4), 4),
  'codes is list; the wire': lambda: mj.pack([0, 1], 4),
  'packed is float32; the wire': lambda: mj.unpack(jnp.ones(2), 4, 4),
  'same leaves in other nodes': lambda: vectors.complete((B,), [B]),
  r'tables: first axes of \[0\]': lambda: mj.per_worker(mj.sign, [1.0], 'w'),
  'rotated': lambda: mj.rotated(mj.moniqua),
  'scaled': lambda: mj.scaled(mj.moniqua, ((64, 1.0),)),
  'coded': lambda: mj.coded(mj.nuqsgd, 2.0),
  'make=.*both are functions': lambda: mj.scheduled(mj.sign(), lambda k: k),
  'schedule=0.5; both': lambda: mj.scheduled(mj.top_k, 0.5),
  'optimizer=0.7; outer takes': lambda: mj.outer(gossip(), 0.7),
}
NO_QUANTIZER = {'rotated', 'scaled', 'coded'}


@pytest.mark.parametrize('said', OTHERS)
def test_what_is_of_another_kind_is_named(said):
  match = 'expected a Quantizer or a' if said in NO_QUANTIZER else said
  with pytest.raises((ValueError, TypeError), match=match):
    OTHERS[said]()


def test_tables_and_delays_may_be_of_numpy_or_a_list():
  """A traced index finds no row of an array of NumPy."""
  own = lambda row: mj.varying_steps(row['h'], bits=4)
  tables = {'h': np.full((8, 2000), 0.5)}
  traced(reduced(mj.dcgd, mj.per_worker(own, tables, 'workers')))
  traced(gossip(mj.adpsgd, delays=[0, 1] * 4))


def test_what_is_replaced_keeps_what_it_says():
  """As `every`, `outer` and `check` ask for it."""
  for tx in (gossip(mj.d2), reduced(strategy='all_gather')):
    again = tx._replace(init=lambda params, tx=tx: tx.init(params))
    assert vars(again) == vars(tx) and again.init is not tx.init
