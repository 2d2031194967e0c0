"""Estimates of the Gauss-Newton matrix against the dense one."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax.curvature import moments, shaped
from moniqua_jax.quantizers import roots
from tests.helpers import tiered

IMAGES = jax.random.normal(jax.random.key(0), (6, 5))


class Net(nn.Module):
  """Two layers; 5 * 4 + 4 * 3 weights and 4 biases."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(4)(x))
    return nn.Dense(3, use_bias=False)(x)


NET, COUNT = Net(), 40_000


@functools.cache
def dense_case(net=NET):
  """(logits of parameters, parameters, L by its definition)."""
  params = net.init(jax.random.key(1), IMAGES)['params']
  logits_fn = lambda params: net.apply({'params': params}, IMAGES)
  flat, unravel = jax.flatten_util.ravel_pytree(params)
  J = np.asarray(jax.jacobian(lambda x: logits_fn(unravel(x)))(flat))
  p = np.asarray(jax.nn.softmax(logits_fn(params)))
  H = np.einsum('bk,kl->bkl', p, np.eye(p.shape[1]))
  H = H - np.einsum('bk,bl->bkl', p, p)
  L = np.einsum('bki,bkl,blj->ij', J, H, J) / len(p)
  return logits_fn, params, L


@functools.cache
def samples(net=NET, count=COUNT):
  """Leaves with a first axis of samples."""
  logits_fn, params, _ = dense_case(net)
  one = lambda key: moments.sampled(logits_fn, params, key)
  keys = jax.random.split(jax.random.key(2), count)
  return jax.tree.leaves(jax.jit(jax.vmap(one))(keys))


def averaged(kind, leaves):
  all_of = [jax.vmap(moments.KINDS[kind])(leaf) for leaf in leaves]
  return jax.tree.map(lambda v: np.mean(v, axis=0), all_of)


def test_samples_have_the_matrix_as_their_covariance():
  logits_fn, params, L = dense_case()
  leaves, count = samples(), COUNT
  g = np.concatenate([leaf.reshape(count, -1) for leaf in leaves], axis=1)
  # Six standard deviations of a mean of products, were they Gaussian.
  apart = 6 * np.sqrt(2 * np.outer(np.diag(L), np.diag(L)) / count)
  assert np.all(np.abs(g.T @ g / count - L) < apart + 1e-7)
  assert np.abs(g.mean(0)).max() < 6 * np.sqrt(np.diag(L).max() / count)


def test_the_factor_of_the_hessian_is_exact():
  """All signs of one example: no randomness is left."""
  p = np.asarray(jax.nn.softmax(jnp.array([1.0, -0.5, 0.3])))
  signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
  half = np.sqrt(p)
  rows = half * signs - np.outer(signs @ half, p)
  expected = np.diag(p) - np.outer(p, p)
  np.testing.assert_allclose(rows.T @ rows / 8, expected, atol=1e-6)


def test_diagonal_and_layers():
  logits_fn, params, L = dense_case()
  leaves = samples()
  found = np.concatenate(averaged('diagonal', leaves))
  np.testing.assert_allclose(found, np.diag(L), rtol=0.1)
  sizes = [leaf.size for leaf in jax.tree.leaves(params)]
  parts = np.split(np.diag(L), np.cumsum(sizes)[:-1])
  means = [part.mean() for part in parts]
  np.testing.assert_allclose(averaged('layer', leaves), means, rtol=0.05)
  peaks = [np.max(leaf.reshape(COUNT, -1) ** 2, axis=1) for leaf in leaves]
  expected = [peak.mean() for peak in map(np.float64, peaks)]
  np.testing.assert_allclose(averaged('peak', leaves), expected, rtol=1e-4)


def test_kronecker_is_exact_where_the_matrix_is_a_product():
  """One dense layer with equal p for all images: L = E[a a^T] (x) H."""
  net = nn.Dense(3, use_bias=False, kernel_init=nn.initializers.zeros)
  logits_fn, params, L = dense_case(net)
  ((left, right),) = averaged('kronecker', samples(net))
  found = np.kron(left, right) / np.trace(left)
  assert np.linalg.norm(found - L) < 0.03 * np.linalg.norm(L)


def test_kronecker_of_a_net_keeps_the_trace_and_beats_the_diagonal():
  logits_fn, params, L = dense_case()
  means = averaged('kronecker', samples())
  sizes = [leaf.size for leaf in jax.tree.leaves(params)]
  ends = np.cumsum(sizes)
  for moment, size, end in zip(means, sizes, ends, strict=True):
    if not isinstance(moment, tuple):
      continue
    block = L[end - size : end, end - size : end]
    found = np.kron(*moment) / np.trace(moment[0])
    assert np.trace(found) == pytest.approx(np.trace(block), rel=0.02)
    error = np.linalg.norm(found - block)
    assert error < 0.5 * np.linalg.norm(block)
    assert error < np.linalg.norm(np.diag(np.diag(block)) - block)


@pytest.mark.parametrize('kind', moments.KINDS)
@pytest.mark.parametrize('floor', tiered([0.01, 1.0], [0.01]))
def test_positive_definite_after_one_draw(kind, floor):
  """Also where a leaf was not felt, and where nothing was."""
  logits_fn, params, _ = dense_case()
  leaves = [leaf[0] for leaf in samples(count=1)]
  sizes = [leaf.size for leaf in leaves]
  for scale in ((1, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0)):
    own = [
      moments.KINDS[kind](s * leaf)
      for s, leaf in zip(scale, leaves, strict=True)
    ]
    D = moments.positive(own, sizes, floor)
    for matrix in D:
      for side in matrix if isinstance(matrix, tuple) else (matrix,):
        values = np.linalg.eigvalsh(side) if side.ndim == 2 else side
        assert np.min(values) > 0
    x = jnp.linspace(-1, 1, sum(sizes))
    for power in (1.0, -1.0):
      root = spread(shaped.powers(D, power), sizes)
      there = roots.times(root.inverse, x)
      np.testing.assert_allclose(roots.times(root.half, there), x, atol=1e-4)


def spread(root, sizes):
  return roots.Root(*(shaped.spread(factors, sizes) for factors in root))


@pytest.mark.parametrize('kind', ['diagonal', 'kronecker'])
def test_the_root_is_that_of_smooth(kind):
  """`powers` under jit, and `roots.root` in float64, but for the scale."""
  logits_fn, params, _ = dense_case()
  D = moments.estimate(kind, logits_fn, params, jax.random.key(3), draws=4)
  sizes = [leaf.size for leaf in jax.tree.leaves(params)]
  x = jax.random.normal(jax.random.key(4), (sum(sizes),))
  ours = roots.times(jax.jit(shaped.powers)(D).half, x)
  theirs = roots.times(roots.root(jax.tree.map(np.asarray, D)).half, x)
  np.testing.assert_allclose(ours / ours[0], theirs / theirs[0], rtol=1e-3)
  q = mj.smooth(mj.full_precision(), jax.tree.map(np.asarray, D))
  np.testing.assert_allclose(q.decode(q.encode(x, None), x), x, atol=1e-5)


def test_the_inverse_is_a_power():
  D = [jnp.array([4.0, 1.0, 0.25])]
  root, inverse = shaped.powers(D), shaped.powers(D, -1.0)
  np.testing.assert_allclose(root.half[0], [1, 0.5, 0.25])
  np.testing.assert_allclose(inverse.half[0], [0.25, 0.5, 1])
  np.testing.assert_allclose(inverse.half[0] * inverse.inverse[0], 1)


def test_noise_of_a_layer_scale_is_that_of_scaled():
  """'layer' is `scaled` by the roots of its numbers."""
  D, sizes, x = [jnp.float32(4), jnp.float32(1)], (8, 8), jnp.linspace(1, 2, 16)
  inner, key = mj.moniqua(theta=3.0, bits=3), jax.random.key(0)
  one = mj.smooth(inner, spread(shaped.powers(D), sizes))
  other = mj.scaled(inner, ((8, 1.0), (8, 0.5)))
  np.testing.assert_array_equal(one.encode(x, key), other.encode(x, key))


def test_mistakes():
  with pytest.raises(
    ValueError, match='kronecker: a leaf is 2000 x 2; .* 1024'
  ):
    moments.kronecker(jnp.ones((2000, 2)))
  logits_fn, params, _ = dense_case()
  with pytest.raises(ValueError, match="kind='full'; choose from"):
    moments.estimate('full', logits_fn, params, jax.random.key(0))
