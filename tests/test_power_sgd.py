"""PowerSGD: the dense form, what is never lost, and where it is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.workers import AXIS
from tests import helpers, hlo, oracles

N, STEPS, KEY = helpers.N, 3, jax.random.key(6)
SHAPES = {'bias': (9,), 'conv': (3, 3, 10, 16), 'dense': (40, 30)}
LARGE = {'conv': (90, 16), 'dense': (40, 30)}
TX = mj.power_sgd(2, axis_name=AXIS, key=KEY)


def gradients(seed):
  rng = np.random.default_rng(seed)
  draw = lambda shape: np.float32(rng.standard_normal((N, *shape)))
  return {name: draw(shape) for name, shape in SHAPES.items()}


@functools.cache
def functions(runner='simulated'):
  run = helpers.RUNNERS[runner]
  return run(TX.init, (0,)), run(lambda g, s: TX.update(g, s), (0, 0))


@functools.cache
def run(runner='simulated'):
  """Gradients, means and states, step by step; and the first state."""
  init, update = functions(runner)
  grads = [gradients(seed) for seed in range(STEPS)]
  first = state = init(grads[0])
  means, states = [], []
  for g in grads:
    mean, state = jax.block_until_ready(update(g, state))
    means.append(jax.tree.map(np.asarray, mean))
    states.append(jax.tree.map(np.asarray, state))
  return grads, means, states, first


def test_it_is_the_dense_form():
  grads, means, states, first = run()
  for i, (name, shape) in enumerate(LARGE.items()):
    each = [g[name].reshape(N, *shape).astype(float) for g in grads]
    right = np.asarray(first.right[i], float)
    assert (right == right[:1]).all() and right.shape == (N, shape[1], 2)
    dense = oracles.power_sgd(each, right[0])
    for mean, state, (expected, error) in zip(
      means, states, dense, strict=True
    ):
      got = mean[name]
      assert (got == got[:1]).all()  # on all workers
      np.testing.assert_allclose(got[0].reshape(shape), expected, atol=2e-4)
      np.testing.assert_allclose(state.error[i], error, atol=2e-4)
  for g, mean in zip(grads, means, strict=True):
    exact = g['bias'].astype(float).mean(axis=0)
    np.testing.assert_allclose(mean['bias'][0], exact, atol=1e-6)


def test_nothing_is_lost():
  """The sum of the means and what is left are the sum of the gradients."""
  grads, means, states, _ = run()
  for i, (name, shape) in enumerate(LARGE.items()):
    given = sum(g[name].astype(float).mean(axis=0) for g in grads)
    came = sum(mean[name][0].astype(float) for mean in means)
    left = states[-1].error[i].astype(float).mean(axis=0)
    total = came.reshape(shape) + left
    np.testing.assert_allclose(total, given.reshape(shape), atol=2e-5)


def test_a_first_gradient_of_zero_is_no_end():
  """Though the first rows of a matrix, as of pixels, are always zero."""
  init, update = functions()
  grads = gradients(0)
  nothing = jax.tree.map(np.zeros_like, grads)
  grads['dense'][:, :2] = 0
  _, state = update(nothing, init(grads))
  for _ in range(2):
    mean, state = update(grads, state)
  assert np.abs(mean['dense']).max() > 0.01


@pytest.mark.slow
def test_a_mean_of_that_rank_is_exact_at_once():
  """Though no worker's own gradient is."""
  grads, rng = gradients(0), np.random.default_rng(1)
  low = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))
  full = grads['dense'] - grads['dense'].mean(axis=0, keepdims=True) + low
  grads['dense'] = np.float32(full)
  init, update = functions()
  mean, state = update(grads, init(grads))
  np.testing.assert_allclose(mean['dense'][0], low, atol=1e-3)
  assert np.abs(state.error[1]).max() > 0.5


@pytest.mark.slow
def test_a_flat_gradient_has_the_same_mean():
  grads, means, *_ = run()
  row = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  flat = lambda g: np.concatenate([g[k].reshape(N, -1) for k in SHAPES], axis=1)
  keep = large_leaves.slices(row)
  tx = mj.power_sgd(2, axis_name=AXIS, key=KEY, keep=keep)
  state = mj.simulated(tx.init, (0,))(flat(grads[0]))
  mean, _ = mj.simulated(lambda g, s: tx.update(g, s), (0, 0))(
    flat(grads[0]), state
  )
  np.testing.assert_allclose(mean, flat(means[0]), atol=1e-5)


@pytest.mark.slow
def test_the_compiled_program_sends_factors_alone():
  init, update = functions('sharded')
  g = gradients(0)
  text = update.lower(g, jax.eval_shape(init, g)).compile().as_text()
  found = [c for c in hlo.collectives(text) if c[2] > 4]
  assert {c[:2] for c in found} == {('all-reduce', 'f32')}
  values = 2 * sum(m + k for m, k in LARGE.values()) + 9
  assert sum(c[2] for c in found) == 4 * values


def test_what_cannot_be_is_named():
  for rank in (0, 1.5, True):
    with pytest.raises(ValueError, match=f'rank={rank}; it must be at least 1'):
      mj.power_sgd(rank, axis_name=AXIS, key=KEY)
  too_high = mj.power_sgd(24, axis_name=AXIS, key=KEY)
  with pytest.raises(
    ValueError, match='no leaf has a matrix that rank=24 makes'
  ):
    too_high.init({'w': jnp.zeros((40, 30)), 's': jnp.zeros(())})
