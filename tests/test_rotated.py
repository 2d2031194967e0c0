"""Rotation: the transform is Hadamard's matrix, and quantizers work in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import moniqua_jax as mj
from moniqua_jax import gossip
from moniqua_jax.quantizers import hadamard
from moniqua_jax.workers import AXIS
from tests import helpers, traced
from tests.helpers import EPS, f64

N, D, SEED, KEY = helpers.N, 5000, 7, jax.random.key(0)
THETA = 0.3
INNER = {
  'moniqua 4': mj.moniqua(THETA, 4),
  'moniqua 1': mj.moniqua(THETA, 1),
  'uniform 4': mj.uniform(4),
  'full_precision': mj.full_precision(),
}
# d -> B: the largest whose blocks fill d up by a sixteenth at most.
BLOCKS = {
  1: 1, 3: 1, 15: 1, 47: 16, 50: 4, 1013: 1024, 4096: 4096, D: 1024,
  20_000: 4096, 269_722: 4096,
}  # fmt: skip


def matrix(rows):
  """H D / sqrt(B), of float64; D from the two halves of the hash's words."""
  minus = np.asarray(hadamard.dither.bits(jnp.uint32(SEED), rows)) >> 31
  return scipy.linalg.hadamard(rows) * (1 - 2.0 * minus) / np.sqrt(rows)


@functools.cache
def transform(d):
  seed = jnp.uint32(SEED)
  return jax.jit(lambda x: hadamard.to(x, seed)), jax.jit(
    lambda y: hadamard.back(y, seed, d)
  )


@pytest.mark.parametrize('d', helpers.tiered([*BLOCKS], [1, 3, 47, D, 269_722]))
def test_it_is_hadamards_matrix_and_turns_back(d):
  rows, rng = BLOCKS[d], np.random.default_rng(d)
  assert hadamard.block(d) == rows
  assert hadamard.size(d) % rows == 0 and d <= hadamard.size(d) <= d * 17 / 16
  x = np.float32(rng.standard_t(3, size=d))
  to, back = transform(d)
  y = to(x)
  columns = np.pad(f64(x), (0, -d % rows)).reshape(rows, -1)
  dense = (matrix(rows) @ columns).reshape(-1)
  rms = np.sqrt(np.mean(f64(x) ** 2))
  np.testing.assert_allclose(y, dense, atol=16 * EPS * np.abs(x).max())
  apart = f64(back(y)) - f64(x)
  assert np.sqrt(np.mean(apart**2)) <= 2 * EPS * rms
  assert np.abs(apart).max() <= EPS * (2 * np.abs(x).max() + 8 * rms)


def test_leaves_that_differ_become_alike():
  """One theta for all: the largest value over the root mean square."""
  rng = np.random.default_rng(0)
  sizes = (432, 3), (9216, 0.5), (36864, 0.3), (640, 12), (10, 2), (222556, 0.1)
  x = np.concatenate([c * rng.standard_t(4, size=size) for size, c in sizes])
  to, _ = transform(x.size)
  ratio = lambda v: np.abs(v).max() / np.sqrt(np.mean(f64(v) ** 2))
  assert ratio(x) > 80 and ratio(to(np.float32(x))) < 6


def apart(seed=0):
  """n vectors far from 0, so near each other that no turned code wraps."""
  rng = np.random.default_rng(seed)
  noise = rng.standard_t(3, size=(N, D))
  return np.float32(5 * rng.normal(size=D) + 0.02 * noise)


@functools.cache
def one_round(name, runner='simulated'):
  """Messages of all workers, what they say, and what it moves, in two ways."""
  inner, ring = INNER[name], mj.ring(N)
  quantizer = mj.rotated(inner, SEED)
  given = dict(topology=ring, quantizer=quantizer, axis_name=AXIS)

  def worker(x):
    payload = jax.lax.optimization_barrier(quantizer.encode(x, KEY))
    pull, seen = gossip.correction(x, KEY, **given)
    mixed, _ = gossip.mixed(x, KEY, **given)
    return payload, quantizer.decode(payload, x), pull, mixed, seen

  run = jax.jit(helpers.RUNNERS[runner](worker, (0,)))
  return lambda x: jax.tree.map(np.asarray, run(jnp.asarray(x)))


@pytest.mark.parametrize('name', helpers.tiered(INNER, ['moniqua 4']))
def test_a_round_is_that_of_the_inner_quantizer_on_turned_vectors(name):
  x = apart()
  payload, own, pull, mixed, seen = one_round(name)(x)
  turned = np.stack([transform(D)[0](row) for row in x])
  inner = jax.jit(jax.vmap(lambda v: INNER[name].encode(v, KEY)))
  np.testing.assert_array_equal(payload, inner(turned))
  assert seen.readable.all()
  near = dict(rtol=0, atol=40 * EPS * np.abs(x).max())
  w = mj.matrix(mj.ring(N))
  np.testing.assert_allclose(pull, w @ f64(own) - f64(own), **near)
  np.testing.assert_allclose(mixed, f64(x) + f64(pull), **near)
  np.testing.assert_allclose(mixed.mean(0), f64(x).mean(0), atol=2e-6)
  if name.startswith('moniqua'):  # the error is uniform within half a step
    levels = 2 ** int(name[-1])
    step = 2 * THETA / (1 - 1 / levels) / levels
    error = np.sqrt(np.mean((f64(own) - f64(x)) ** 2, axis=1))
    np.testing.assert_allclose(error, step / np.sqrt(12), rtol=0.05)
    # In turned coordinates, less the error of the code.
    distance = np.abs(turned - np.roll(turned, 1, axis=0)).max()
    assert distance - step < seen.distance.max() <= distance


@pytest.mark.parametrize(
  'name,runner',
  helpers.tiered(
    [(name, run) for name in INNER for run in ('sharded', 'pmapped')],
    [('moniqua 4', 'sharded')],
  ),
)
def test_all_runners_agree_to_the_bit(name, runner):
  x = apart(1)
  found, other = one_round(name)(x), one_round(name, runner)(x)
  jax.tree.map(np.testing.assert_array_equal, found, other)


def test_only_bytes_of_the_turned_length_travel():
  algorithm = mj.dpsgd(
    mj.ring(N),
    mj.rotated(mj.auto_theta(4, start=THETA)),
    axis_name=AXIS,
    key=KEY,
  )
  x = jax.ShapeDtypeStruct((D,), jnp.float32)
  step = lambda x, s: algorithm.update(x, s, x, step=jnp.int32(0))
  state = jax.eval_shape(algorithm.init, x)
  found = traced.sent(step, x, state, n=N, choose=None)
  sizes = {(one.dtype, one.nbytes) for one in found}
  assert sizes == {('uint8', hadamard.size(D) // 2 + 12), ('uint8', 1)}


def test_what_is_not_finite_is_not_read():
  x = apart()
  x[3, 17] = np.nan
  *_, pull, mixed, seen = one_round('moniqua 4')(x)
  heard = ~seen.readable
  assert heard[2].any() and heard[4].any() and not heard[[0, 1, 6, 7]].any()
  assert np.isfinite(pull[[0, 1, 2, 4, 5, 6, 7]]).all()
  assert np.isfinite(mixed[[0, 1, 2, 4, 5, 6, 7]]).all()


ROTATED = {
  'eden 2': mj.eden(2),
  'rotated uniform': mj.rotated(mj.uniform(4, rounding='stochastic')),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', ROTATED)
def test_diana_of_it_reaches_the_optimum_and_dcgd_does_not(name):
  """f_i(x) = a_i |x - b_i|^2 / 2, whose gradients at the optimum are not 0."""
  rng, d = np.random.default_rng(0), 256
  a, b = rng.uniform(0.5, 1.5, (N, 1)), rng.standard_normal((N, d))
  best = (a * b).sum(axis=0) / a.sum()
  given = dict(axis_name=AXIS, key=KEY, keep=lambda leaf: False)

  def end(mean):
    tx = optax.chain(mean, optax.sgd(0.2))

    def run(a, b):
      def step(k, carry):
        x, state = carry
        updates, state = tx.update(a * (x - b), state, x, step=k)
        return x + updates, state

      x = jnp.zeros(d)
      return jax.lax.fori_loop(0, 400, step, (x, tx.init(x)))[0]

    x = mj.simulated(run, (0, 0))(np.float32(a), np.float32(b))
    return np.abs(np.asarray(x) - best).max()

  quantizer = ROTATED[name]
  assert end(mj.diana(quantizer, 0.4, **given)) < 1e-4
  assert end(mj.dcgd(quantizer, **given)) > 1e-2
