"""How the program is put together: resolved configs, slots, slices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits, nuqsgd_imagenet
import moniqua_jax as mj
from moniqua_jax import gossip, pods
from moniqua_jax.algorithms import large_leaves, transformation
from moniqua_jax.training import experiment, optimizer, resolve

N = 8
SLOTS = dict(axis_name='workers', key=jax.random.key(0))
RING = mj.lazy(mj.ring(N), 0.5)


# --------------------------------------------------------------- resolving


def test_a_config_resolves_without_its_data():
  config = nuqsgd_imagenet.get_config('resnet50:nuqsgd4')
  config.runner, config.data.data_dir = 'simulated', 'nowhere'
  setup = resolve.resolve(config)
  assert setup.schedule == () and setup.patience == 0
  pytest.importorskip('tensorflow_datasets')  # an extra of its own
  with pytest.raises(ValueError, match='nowhere'):
    experiment.from_config(config)


REFUSED = {
  'quantizer': dict(quantizer=dict(bits=9)),
  'gossip': dict(gossip=dict(name='d2')),
  'local_steps': dict(local_steps=0),
  'overlap': dict(gossip=dict(name='dcd'), overlap=True),
  'patience': dict(patience=3),
  'partition': dict(partition=dict(name='halves')),
  'model': dict(model=dict(name='mpl')),
  'learning_rate': dict(learning_rate=dict(name='linear')),
  'theta': dict(theta=dict(name='fixed', shrink=0.5)),
  'reduce': dict(reduce=dict(name='diana', alpha=0.5)),
}


@pytest.mark.parametrize('entry', REFUSED)
def test_what_can_be_refused_is_refused_before_data_is_read(entry):
  config = digits.get_config('moniqua4')
  config.update(REFUSED[entry])
  config.data = dict(name='cifar10', data_dir='nowhere')
  with pytest.raises(ValueError, match=f'config.{entry}'):
    experiment.from_config(config)


# ------------------------------------------------------------------- slots


def test_gossip_says_its_name_and_its_messages_through_wrappers():
  d2 = mj.d2(RING, mj.moniqua(1.0, 4), **SLOTS)
  assert mj.stale(mj.every(mj.answered(d2), 3), RING).name == 'stale_d2'
  cut = pods.on_own_part(lambda key: d2, SLOTS['key'], pods.Pod(2, data=2))
  for algorithm in (d2, mj.every(d2, 2), mj.answered(d2), cut):
    assert (algorithm.name, algorithm.may_rest) == ('d2', True)
  for algorithm in (d2, mj.every(d2, 2), mj.stale(d2, RING)):
    state = algorithm.init(jnp.zeros(3))
    assert isinstance(algorithm.heard(state), gossip.Heard)
  before = mj.stale(d2, RING)
  told = before.told(before.init(jnp.zeros(3)), jnp.ones(3))
  np.testing.assert_array_equal(told.before, 1)


def test_what_says_more_is_still_an_optax_transformation():
  d2 = mj.d2(RING, mj.full_precision(), **SLOTS)
  mean = mj.allreduce(axis_name='workers')
  for tx in (d2, mean, transformation.no_gossip()):
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    init, update = tx
    assert (init, update) == (tx.init, tx.update)
  state = optax.chain(mean, optax.sgd(0.1), d2).init(jnp.zeros(3))
  assert len(state) == 3


def test_a_state_has_the_slots_of_its_chain():
  chain = optimizer.only(optax.sgd(0.1, momentum=0.9))
  state = optimizer.Optimizer(*chain.chain.init(jnp.zeros(3)))
  assert jax.tree.leaves(state.local)[0].shape == (3,)
  assert chain.heard(state) is None


# ------------------------------------------------------------------ slices


@pytest.mark.parametrize('rows', [1, 2])
def test_slices_of_the_vector_are_the_large_leaves_of_the_tree(rows):
  """In the order of the tree, and back; also of a device of a pod."""
  params = {
    'a': np.ones((64, 33), 'f4'),
    'b': np.ones(2000, 'f4'),
    'c': np.ones((3, 5), 'f4'),
    'd': np.ones((50, 2, 30), 'f4'),
  }
  held = pods.hold(params, pods.Pod(1, data=rows))
  size = rows * sum(leaf.size for leaf in jax.tree.leaves(held.part))
  x = np.random.default_rng(0).standard_normal(size).astype('f4')
  tree = held.pieces(x)
  slices = large_leaves.slices(tree, rows)
  flat, join = large_leaves.split(x, slices)
  expected, of_tree = large_leaves.split(tree, large_leaves.small)
  np.testing.assert_array_equal(flat, expected)
  assert sum(slices.sizes) == flat.size
  change = lambda join: join.together(2 * flat, [3 * v for v in join.kept])
  np.testing.assert_array_equal(change(join), held.vector(change(of_tree)))


def test_a_vector_of_small_leaves_alone_is_refused():
  slices = large_leaves.slices([jnp.zeros(3)])
  with pytest.raises(ValueError, match='none is large enough'):
    large_leaves.split(jnp.zeros(3), slices)


def test_a_model_of_small_leaves_has_nothing_to_quantize():
  config = digits.get_config('allreduce')
  config.quantizer.name, config.quantizer.bits = 'nuqsgd', 4
  config.reduce.strategy, config.model.hidden = 'all_gather', (4,)
  with pytest.raises(ValueError, match='all 4 leaves stay in full precision'):
    experiment.from_config(config)
