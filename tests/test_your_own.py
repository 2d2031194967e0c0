"""docs/your_own.md, top to bottom; and what is refused of one's own."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from configs import digits
from moniqua_jax import pods
from moniqua_jax.training import (
  loop,
  optimizer,
  registry,
  resolve,
  same_run,
  saved,
)
from tests import pages, trained

MINE, LOADING, ADAM, NNX, EQUINOX, MESH = pages.fenced(
  pages.ROOT / 'docs/your_own.md', 'python'
)
WITHOUT_EQUINOX = pytest.mark.skipif(
  importlib.util.find_spec('equinox') is None, reason='equinox is not there'
)


WRONG = """
import optax

class Raises(Net):
  @nn.compact
  def __call__(self, x, train=True):
    raise ValueError('in two\\nlines')

class Draws(Net):
  @nn.compact
  def __call__(self, x, train=True):
    x = nn.Dropout(0.5, deterministic=not train)(super().__call__(x))
    return x

class Constant(Net):
  def __call__(self, x, train=True):
    return x.reshape(len(x), -1)[:, :2]

def ends(num_classes):
  raise SystemExit

def untested():
  return stripes()._replace(test=data.in_memory(np.zeros((0, 4, 4, 1)), []))

def unlabelled():
  return stripes()._replace(num_classes=1)

lacks = lambda num_classes: {}['width']
nothing = lambda learning_rate: None
searches = lambda: optax.lbfgs()
shortens = lambda: optax.stateless(lambda u, p: u[:3])

def keyed():
  return {}['images']

def windows(T=4, **more):
  words = np.arange(40 * (T + 1)).reshape(40, T + 1) % 3
  same, source = lambda x: x, data.in_memory(words, np.zeros(40))
  text = dict(field='text', shape=(T,), augment=data.plain(same))
  return data.Dataset(source, source, 3, preprocess=same, **text | more)

beyond = lambda: windows()._replace(num_classes=2)
shorter = lambda: windows(shape=(5,))
sounds = lambda: stripes()._replace(field='sound')
narrow = lambda: stripes()._replace(preprocess=lambda x: np.float32(x[:, :2]))
level = lambda peak, warmup_epochs: peak
twice = lambda peak, warmup_epochs: lambda step: np.full(2, peak)
branches = lambda peak, warmup_epochs: lambda step: peak if step else 0.0
few = lambda labels, n: [np.arange(9)] * (n - 1)
others = lambda labels, n: [np.arange(9) + len(labels)] * n
"""


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
  """The folder with mine.py, which programs find there."""
  folder = tmp_path_factory.mktemp('own')
  more = 'nothing = 3\nscores = lambda num_classes: Net(num_classes + 1)\n'
  (folder / 'mine.py').write_text(f'{MINE}\n{more}')
  (folder / 'program.py').write_text('raise SystemExit')
  (folder / 'wrong.py').write_text(f'{MINE}\n{WRONG}')
  yield folder
  for name in ('mine', 'wrong'):
    sys.modules.pop(name, None)


def config_with(**entries):
  return trained.small(**{'momentum': 0.0, **entries})


OWN = dict(
  model=dict(name='mine:Net'),
  data=dict(name='mine:stripes'),
  optimizer=dict(name='optax:lion'),
  learning_rate=dict(peak=0.003),
)


def test_a_run_of_ones_own_and_its_mean_model(mine, monkeypatch):
  monkeypatch.chdir(mine)
  row = loop.train_and_evaluate(
    config_with(**OWN, epochs=6.0), mine / 'runs/mine'
  )
  assert row['test/accuracy'] > 0.8
  names = {}
  exec(f'{MINE}\n{LOADING}', names)
  _, state = trained.saved(mine / 'runs/mine')
  leaves = [leaf.ravel() for leaf in jax.tree.leaves(names['variables'])]
  np.testing.assert_allclose(
    np.concatenate(leaves), state['params'].mean(axis=0), rtol=0, atol=1e-7
  )
  assert names['logits'].shape == (1, 2)


@pytest.mark.slow
def test_a_run_of_ones_own_resumes_and_is_exported(mine, monkeypatch):
  monkeypatch.chdir(mine)
  config = config_with(**OWN, checkpoint_every=1.0)
  loop.train_and_evaluate(config, mine / 'whole')
  trained.stop_after(config, 4, mine / 'cut')
  loop.train_and_evaluate(config, mine / 'cut', resume=True)
  trained.assert_same_run(mine / 'whole', mine / 'cut')
  run = saved.opened(same_run.config_of('cut'), 'cut')
  text = saved.export(run, 'made')
  assert 'from mine import Net\n' in text and 'Net(num_classes=2)' in text
  monkeypatch.chdir(mine / 'made')
  names = {'inputs': np.zeros((1, 4, 4, 1), np.float32)}
  exec(pages.fenced(mine / 'made/README.md', 'python')[0], names)
  assert names['outputs'].shape == (1, 2)


@pytest.fixture(scope='module')
def problem():
  names = {}
  exec(ADAM, names)
  return names


@pytest.mark.parametrize(
  'code, loss',
  [
    ('', 'loss'),
    pytest.param(NNX, 'nnx_loss', marks=pytest.mark.slow),
    pytest.param(
      EQUINOX, 'eqx_loss', marks=[pytest.mark.slow, WITHOUT_EQUINOX]
    ),
    (MESH, 'mesh_loss'),
  ],
  ids=['optax', 'nnx', 'equinox', 'mesh'],
)
def test_a_loop_of_ones_own_learns(problem, code, loss):
  exec(code, problem)
  assert problem[loss].shape in ((8,), (4,)) and problem[loss].max() < 0.5


# --------------------------------------------------------------- the optimizer


def test_sgd_is_the_chain_that_it_always_was():
  config = digits.get_config('dpsgd')
  config.update(momentum=0.9, weight_decay=0.1)
  was = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5, 0.9, False))
  assert alike(optimizer.local(config, 0.5, None), was)


def test_adamw_takes_the_weight_decay_of_the_config():
  config = config_with(optimizer=dict(name='adamw', b1=0.8), weight_decay=0.1)
  was = optax.adamw(0.5, b1=0.8, weight_decay=0.1)
  assert alike(optimizer.local(config, 0.5, None), was)


def test_muon_goes_by_layers():
  leaves = {'bias': jnp.ones(3), 'kernel': jnp.eye(4, 3)}
  held = pods.hold(leaves, pods.Pod(workers=1))
  config = config_with(optimizer=dict(name='muon', b2=0.9), weight_decay=0.1)
  muon = optax.contrib.muon(
    0.5,
    adam_b2=0.9,
    weight_decay=0.1,
    adam_weight_decay=0.1,
    consistent_rms=0.2,
  )
  x = held.begin(0)
  g = jnp.arange(float(x.size))
  of_vector = optimizer.local(config, 0.5, held)
  u, _ = of_vector.update(g, of_vector.init(x), x)
  expected, _ = muon.update(held.pieces(g), muon.init(leaves), leaves)
  assert (u == held.vector(expected)).all()


def alike(one, other):
  """Tells whether two transformations do the same to two gradients."""

  def moved(tx):
    def both(x, g):
      u, state = tx.update(g, tx.init(x), x)
      return tx.update(g + u, state, x + u)

    return jax.jit(both)(jnp.ones(3), jnp.arange(3.0))

  same = jax.tree.map(lambda a, b: (a == b).all(), moved(one), moved(other))
  return all(jax.tree.leaves(same))


IN_PODS = dict(pod=dict(data=2), runner='sharded', workers=4)
REFUSED = {
  'no module': (
    dict(model=dict(name='nowhere:net')),
    "config.model.name='nowhere:net': No module named 'nowhere'; it is looked",
  ),
  'no function': (
    dict(data=dict(name='mine:none')),
    "config.data.name='mine:none': module 'mine' has no attribute 'none'",
  ),
  'a number': (
    dict(model=dict(name='mine:nothing')),
    "config.model.name='mine:nothing' is 3; it must be a function",
  ),
  'a program': (
    dict(model=dict(name='program:net')),
    "config.model.name='program:net': importing program fails with SystemExit",
  ),
  'no signature': (
    dict(model=dict(name='builtins:min')),
    "config.model.name='builtins:min' is <built-in function min>; it must be a",
  ),
  'an argument': (
    dict(model=dict(name='mine:Net', hidden=(3,))),
    'config.model.hidden is not an argument of mine:Net',
  ),
  'momentum': (
    dict(optimizer=dict(name='adamw'), momentum=0.9),
    "config.optimizer.name='adamw' has no use for config.momentum=0.9: set it "
    'to 0.0',
  ),
  'weight decay': (
    dict(optimizer=dict(name='optax:rmsprop'), weight_decay=0.1),
    'has no use for config.weight_decay=0.1',
  ),
  'a theta without a law': (
    dict(
      gossip=dict(name='moniqua_jax:dpsgd'),
      quantizer=dict(name='auto_theta', bits=4),
    ),
    "config.gossip.name='moniqua_jax:dpsgd' is your own, so theory says no",
  ),
  'layers': (
    dict(optimizer=dict(name='optax:lamb')),
    "config.optimizer.name='optax:lamb' goes by layers",
  ),
  'layers of contrib': (
    dict(optimizer=dict(name='optax.contrib:muon')),
    'take muon, one that goes by numbers',
  ),
  'a norm of all': (
    IN_PODS
    | dict(pod=dict(fsdp=2), optimizer=dict(name='optax.contrib:prodigy')),
    'goes by a norm of all parameters, of which a device has a part',
  ),
  'layers by their gradient': (
    dict(optimizer=dict(name='optax:novograd')),
    "config.optimizer.name='optax:novograd' goes by layers",
  ),
  'a part of a layer': (
    IN_PODS | dict(optimizer=dict(name='muon')),
    "config.optimizer.name='muon' goes by layers, of which a device of a pod",
  ),
  'quasi-global': (
    dict(optimizer=dict(name='adamw'), momentum_kind=dict(name='quasi_global')),
    "config.optimizer.name='adamw' does not go with it",
  ),
}


@pytest.mark.parametrize('wrong', REFUSED)
def test_what_is_wrong_of_ones_own_is_one_line(mine, monkeypatch, wrong):
  monkeypatch.chdir(mine)
  entries, message = REFUSED[wrong]
  config = config_with(**entries)
  with pytest.raises(ValueError, match='^config') as error:
    resolve.resolve(config)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_a_model_must_give_logits_of_the_classes(mine, monkeypatch):
  monkeypatch.chdir(mine)
  own = dict(name='mine:scores'), dict(name='mine:stripes')
  config = config_with(model=own[0], data=own[1])
  with pytest.raises(
    ValueError, match=r'gives \(2, 3\) of a batch of 2.*\(2, 2'
  ):
    trained.built(config)


A_MODEL = 'a model is a flax.linen.Module that is called as module(inputs, '
FAILS = {
  'Raises': ('model', "Raises': in two lines (", 'wrong.py, line ', A_MODEL),
  'Draws': ('model', "Draws': Dropout_0 needs PRNG for", 'wrong.py, line '),
  'Constant': ('model', "Constant': it has no parameters", A_MODEL),
  'ends': ('model', 'config.model: SystemExit()'),
  'lacks': ('model', "lacks': KeyError('width') (", 'wrong.py, line '),
  'untested': ('data', "untested' has nothing in its test part"),
  'unlabelled': ('data', 'labels from 0 to 1; of num_classes=1 they are from'),
  'keyed': ('data', "keyed': KeyError('images') (", 'wrong.py, line '),
  'beyond': ('data', 'symbols from 0 to 2, int64; of num_classes=2 they are'),
  'shorter': ('data', 'text is (16, 5); of shape=(5,) it must be (16, 6)'),
  'sounds': ('data', "field='sound': a data set is of ['image', 'text'], or"),
  'narrow': ('data', 'test examples image is (16, 2, 4, 1); of shape=(4, 4'),
  'level': ('learning_rate', 'a learning rate is a function of the step'),
  'twice': ('learning_rate', 'of a step it makes ', 'shape=(2,)'),
  'branches': ('learning_rate', 'Attempted boolean conversion', 'line '),
  'few': (
    'partition',
    'few',
    'it gives 7, and n=8; a partition gives n',
  ),
  'others': ('partition', 'of 512 labels it gives a worker int64[9], 512 to'),
  'nothing': (
    'optimizer',
    "nothing': 'NoneType' object has no attribute 'init",
  ),
  'searches': (
    'optimizer',
    "missing 3 required keyword-only arguments: 'value",
  ),
  'shortens': ('optimizer', 'of a gradient f32[1024] it makes', 'by_leaf'),
}


@pytest.mark.parametrize('name', FAILS)
def test_what_would_fail_in_training_is_refused_before(mine, monkeypatch, name):
  monkeypatch.chdir(mine)
  what, *words = FAILS[name]
  own = dict(data=dict(name='mine:stripes'), model=dict(name='mine:Net'))
  wrong = {what: dict(name=f'wrong:{name}')}
  config = config_with(clip=1.0, **own | wrong)
  with pytest.raises(ValueError, match=f'^config.{what}') as error:
    trained.built(config)
  said = str(error.value)
  assert all(word in said for word in words) and '\n' not in said, said


def test_a_limit_of_ones_own_quantizer_is_none_of_a_theta():
  own = dict(name='moniqua_jax:fitted_theta', bits=4, limit=9.0, theta=None)
  assert trained.built(config_with(quantizer=own)).quantizer.limit is None


def test_a_data_set_must_be_one(monkeypatch):
  config = config_with()
  monkeypatch.setitem(registry.DATASETS, 'none', lambda: {})
  config.data.name = 'none'
  with pytest.raises(ValueError, match="config.data.name='none' gives a dict"):
    trained.built(config)
