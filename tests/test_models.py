"""Models: parameters counted by hand, shapes, shortcuts, pooled statistics."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moniqua_jax import models
from moniqua_jax.models import norms, resnet

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
KEY = jax.random.key(0)


def shapes(model, images=IMAGES):
  """Of the output and of the variables; nothing is computed."""
  return jax.eval_shape(model.init_with_output, KEY, images)


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def small_by_hand(depth, classes=10):
  """Section 4.2: a 3x3 stem and 2n layers on each of 16, 32, 64 channels."""
  n, total, previous = (depth - 2) // 6, 9 * 3 * 16 + 2 * 16, 16
  for width in (16, 32, 64):
    total += 9 * previous * width + (2 * n - 1) * 9 * width**2
    total += 2 * n * 2 * width
    previous = width
  return total + 64 * classes + classes


SMALL = {
  # The paper's Table 6 rounds them to 0.27 M, 0.85 M and 1.7 M.
  20: (models.resnet20, 269_722),
  56: (models.resnet56, 853_018),
  110: (models.resnet110, 1_727_962),
}
LARGE = {
  18: (models.resnet18, 11_689_512),
  34: (models.resnet34, 21_797_672),
  50: (models.resnet50, 25_557_032),
}


@pytest.mark.parametrize('depth', SMALL)
def test_small_resnets_have_the_papers_parameters(depth):
  factory, expected = SMALL[depth]
  assert small_by_hand(depth) == expected
  logits, variables = shapes(factory())
  assert count(variables['params']) == expected
  assert logits.shape == (2, 10)


def test_vgg16_has_the_parameters_of_13_convolutions():
  widths = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
  pairs = list(zip(widths, widths[1:], strict=False))
  by_hand = sum(9 * a * b + 2 * b for a, b in pairs) + 512 * 10 + 10
  logits, variables = shapes(models.vgg16())
  assert count(variables['params']) == by_hand == 14_724_042
  assert logits.shape == (2, 10)


@pytest.mark.parametrize('norm', ['group', 'batch'])
def test_resnet20_has_as_many_parameters_with_either_norm(norm):
  _, variables = shapes(models.resnet20(norm=norm))
  assert count(variables['params']) == 269_722
  assert count(shapes(models.resnet20(100, norm))[1]['params']) == (
    small_by_hand(20, classes=100)
  )


@pytest.mark.parametrize('depth', LARGE)
def test_large_resnets_have_the_known_parameters(depth):
  factory, expected = LARGE[depth]
  images = jax.ShapeDtypeStruct((3, 224, 224, 3), jnp.float32)
  logits, variables = shapes(factory(), images)
  assert count(variables['params']) == expected
  assert logits.shape == (3, 1000)


MODELS = {
  'mlp': lambda norm: models.mlp(7),
  'cnn': lambda norm: models.cnn(7, norm=norm),
  'resnet20': lambda norm: models.resnet20(7, norm=norm),
  'resnet18': lambda norm: models.resnet18(7, norm=norm),
}


@pytest.mark.parametrize('name', MODELS)
def test_group_norm_keeps_no_statistics_and_batch_norm_two_per_channel(name):
  logits, variables = shapes(MODELS[name]('group'))
  assert set(variables) == {'params'}
  assert logits.shape == (2, 7) and logits.dtype == jnp.float32
  if name != 'mlp':
    _, variables = shapes(MODELS[name]('batch'))
    assert set(variables) == {'params', 'batch_stats'}
    scales = [
      leaf
      for path, leaf in jax.tree.leaves_with_path(variables['params'])
      if jax.tree_util.keystr(path).endswith("['scale']")
    ]
    assert count(variables['batch_stats']) == 2 * count(scales) > 0


def test_mlp_and_cnn_have_the_parameters_of_their_layers():
  images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
  _, variables = shapes(models.mlp(10, hidden=(32, 16)), images)
  expected = (64 + 1) * 32 + (32 + 1) * 16 + (16 + 1) * 10
  assert count(variables) == expected
  _, variables = shapes(models.cnn(10, features=(8, 16)), images)
  assert count(variables) == (9 * 8 + 2 * 8 + 9 * 8 * 16 + 2 * 16 + 17 * 10)


@pytest.mark.parametrize('name', ['cnn', 'resnet20', 'resnet18'])
def test_an_unknown_norm_is_refused_by_name(name):
  with pytest.raises(ValueError, match="norm='layer'; choose from"):
    shapes(MODELS[name]('layer'))


def test_identity_shortcut_is_the_identity_where_nothing_changes():
  x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32)
  np.testing.assert_array_equal(resnet.identity_shortcut(x, 8, 1, None), x)


@pytest.mark.parametrize('filters', [8, 11, 16])
@pytest.mark.parametrize('size', [4, 5])
def test_identity_shortcut_subsamples_and_pads_with_zeros(size, filters):
  x = np.random.default_rng(0).normal(size=(2, size, size, 8))
  x = x.astype(np.float32)
  y = np.asarray(resnet.identity_shortcut(x, filters, 2, None))
  before = (filters - 8) // 2
  np.testing.assert_array_equal(y[..., before : before + 8], x[:, ::2, ::2])
  assert y.shape[-1] == filters
  assert np.count_nonzero(y) == np.count_nonzero(x[:, ::2, ::2])


@pytest.mark.parametrize('filters,stride', [(8, 1), (16, 2)])
def test_a_block_of_zero_weights_is_its_shortcut(filters, stride):
  x = jax.random.normal(KEY, (2, 6, 6, 8))
  block = resnet.BasicBlock(
    filters, stride, norms.make('group', True), resnet.identity_shortcut
  )
  variables = jax.eval_shape(block.init, KEY, x)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
  expected = jax.nn.relu(resnet.identity_shortcut(x, filters, stride, None))
  np.testing.assert_array_equal(jax.jit(block.apply)(zeros, x), expected)


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm_looks_at_the_batch_in_training_only(train):
  x = 3 + jax.random.normal(KEY, (4, 2, 2, 3))
  layer = norms.make('batch', train)()
  variables = layer.init(KEY, x)
  apply = lambda x: layer.apply(variables, x, mutable=['batch_stats'])
  (y, after), (alone, _) = apply(x), apply(x[:1])
  assert np.allclose(y[:1], alone, atol=1e-5) == (not train)
  moved = after['batch_stats']['mean'] != variables['batch_stats']['mean']
  assert (moved == train).all()


@pytest.mark.parametrize('name', ['cnn', 'resnet20', 'resnet18'])
def test_train_reaches_the_batch_norms(name):
  """In training they write statistics, which must be mutable for it."""
  model = MODELS[name]('batch')
  _, variables = shapes(model)
  apply = lambda train: jax.eval_shape(
    lambda variables, x: model.apply(variables, x, train=train),
    variables,
    IMAGES,
  )
  assert apply(train=False).shape == (2, 7)
  with pytest.raises(flax.errors.ModifyScopeVariableError):
    apply(train=True)


def test_combine_gives_the_moments_of_the_pooled_samples():
  """Oracle: n workers with equally many samples each, in one array."""
  rng = np.random.default_rng(0)
  workers, samples = 5, 40

  def layer(channels):
    centers = rng.normal(scale=3, size=(workers, 1, channels))
    scales = rng.uniform(0.1, 2, size=(workers, 1, channels))
    data = centers + scales * rng.normal(size=(workers, samples, channels))
    pooled = data.reshape(-1, channels)
    moments = lambda x, axis: {'mean': x.mean(axis), 'var': x.var(axis)}
    each = jax.tree.map(np.float32, moments(data, 1))
    return jax.tree.map(jnp.asarray, each), moments(pooled, 0)

  (a, pooled_a), (b, pooled_b) = layer(4), layer(7)
  combined = norms.combine({'stem': a, 'block': {'norm': b}})
  expected = {'stem': pooled_a, 'block': {'norm': pooled_b}}
  assert jax.tree.structure(combined) == jax.tree.structure(expected)
  jax.tree.map(
    lambda ours, oracle: np.testing.assert_allclose(ours, oracle, rtol=1e-4),
    combined,
    expected,
  )


def test_combine_of_equal_workers_is_one_of_them_and_of_none_is_nothing():
  one = {'mean': jnp.array([100.0, -3.0]), 'var': jnp.array([0.0, 2.0])}
  eight = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), {'norm': one})
  combined = norms.combine(eight)['norm']
  # The square of the mean is taken off in float32: 1e4 eps is lost of var.
  np.testing.assert_allclose(combined['mean'], one['mean'], rtol=1e-6)
  np.testing.assert_allclose(combined['var'], one['var'], atol=2e-3)
  assert (combined['var'] >= 0).all()
  assert norms.combine({}) == {}


def test_combine_takes_the_statistics_of_a_resnet():
  _, variables = shapes(models.resnet20(norm='batch'))
  stats = variables['batch_stats']
  stacked = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((8, *leaf.shape), leaf.dtype), stats
  )
  combined = jax.eval_shape(norms.combine, stacked)
  assert jax.tree.structure(combined) == jax.tree.structure(stats)
  assert jax.tree.map(jnp.shape, combined) == jax.tree.map(jnp.shape, stats)


def test_pooling_does_not_cancel():
  stats = {'mean': jnp.full((8, 1), 100.0), 'var': jnp.full((8, 1), 1e-4)}
  np.testing.assert_allclose(norms.combine(stats)['var'], 1e-4, rtol=1e-6)
