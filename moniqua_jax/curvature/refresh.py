"""Smoothness-aware training: config.smoothness, and who renews the estimates.

Before the first step, and then every `refresh` steps, each worker estimates the
smoothness of its loss at its parameters, on batches of its own that the
training does not see. Then either all come to know the matrices of all (one
all-gather of their roots), or all take the mean of them (one all-reduce of the
estimates). That is in float32, is counted, and is no part of the train step.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from moniqua_jax import collectives, data, gossip, workers
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.curvature import moments, shaped
from moniqua_jax.launch import multihost
from moniqua_jax.quantizers import base, numerics

_BATCHES = 2  # added to the seed: the draws of the gradient probe take 1


class Smoothness(NamedTuple):
  """What config.smoothness says, checked."""

  kind: str  # a key of `moments.KINDS`
  refresh: int  # steps from an estimate to the next; 0 for one at the start
  draws: int  # backward passes of an estimate, each on a batch of its own
  floor: float  # of eigenvalues, as a share of their mean in a leaf
  power: float  # of D; -1 for its inverse
  per_worker: bool  # whether each worker has a D of its own, known to all


def estimated(
  kind: str,
  refresh: int = 0,
  draws: int = 16,
  floor: float = 0.1,
  power: float = 1.0,
  per_worker: bool = True,
) -> Smoothness:
  """Checks what config.smoothness says: messages are D^{p/2} Q(D^{-p/2} x).

  Dithering with few levels and one l2 norm errs, in coordinates scaled by S, by

    E |x_hat - x|^2 ~ h |S^{-1} x| sum_j S_j |x_j|,  least at S_j ~ |x_j|^{1/3}

  so that D^{1/6} is best where x_j^2 goes with D_j, and D^{1/2} makes more
  noise than D^0: by Cauchy's inequality, and more still when D is old. A
  `power` p of 1 is the paper's, for gradients: L^{-1/2} g has no coordinate
  that is large for being steep. 1/3 makes the least noise. The parameters
  differ by steps along gradients, which go with L^{1/2}, too; but their errors
  cost x^T L x, which speaks for -1.

  Source: power=1 is Section 2 of arXiv:2106.03524; the rest is ours.
  """
  whole = lambda v, least: type(v) is int and v >= least
  for name, value, valid, range_ in (
    ('refresh', refresh, whole(refresh, 0), 'whole, in steps; 0 for once'),
    ('draws', draws, whole(draws, 1), 'whole, 1 or more'),
    ('floor', floor, 0 < floor < math.inf, 'above 0: D is positive definite'),
    ('power', power, 0 < abs(power) < math.inf, 'finite, and not 0'),
  ):
    if not valid:
      raise ValueError(f'{name}={value!r}; it must be {range_}.')
  return Smoothness(kind, refresh, draws, floor, power, per_worker)


def none() -> None:
  """Says that quantizers work in the coordinates of the parameters."""


def quantized(tree, all_leaves: bool) -> list:
  """Lists the leaves that the quantizer sees: all, or the large ones."""
  leaves = jax.tree.leaves(tree)
  return [v for v in leaves if all_leaves or not large_leaves.small(v)]


def wrapped(
  spec: Smoothness, quantizer: base.Tuned, leaves: list, n: int
) -> base.Tuned:
  """Puts the quantizer into the coordinates of estimates yet to be made."""
  start = shaped.blank(spec.kind, leaves)
  sizes = [leaf.size for leaf in leaves]
  count = n if spec.per_worker else None
  return shaped.shaped(quantizer, start, sizes, count)


def refresh_bytes(spec: Smoothness, leaves: list, n: int) -> float:
  """Counts what a worker sends in float32 for every new estimate.

    4 (n - 1) S            with a D for each worker, S numbers in its root
    4 * 2 (n - 1) / n S    with one D

  >>> refresh_bytes(estimated('diagonal'), [jnp.ones((2, 5))], n=3)
  80.0
  """
  start = shaped.blank(spec.kind, leaves)
  size = sum(leaf.size for leaf in jax.tree.leaves(start.half))
  return 4.0 * (n - 1) * size * (1 if spec.per_worker else 2 / n)


def estimates(spec: Smoothness, done: int) -> int:
  """Counts the estimates of the first `done` steps."""
  return -(-done // spec.refresh) if spec.refresh else int(done > 0)


def due(spec: Smoothness, step: int) -> bool:
  """Tells whether an estimate is made before this step."""
  return step == 0 or bool(spec.refresh and step % spec.refresh == 0)


def make_functions(experiment) -> tuple[Callable, Callable]:
  """Builds the two functions of one worker: a sample, and what its mean gives.

  sample(params: f32[d], model_state, batch, draw: i32[]) -> moments, to be
  summed; exchange(opt_state, summed) -> opt_state with the new D.
  """
  setup, module = experiment.setup, experiment.model.module
  spec, params = setup.smoothness, experiment.model.variables['params']
  _, unravel = gossip.flatten(params)
  taken = lambda tree: quantized(tree, setup.all_leaves)
  sizes = [leaf.size for leaf in taken(params)]
  key = jax.random.key(setup.config.seed + _BATCHES)

  def sample(params, model_state, batch, draw):
    def logits_fn(tree):
      return module.apply(
        {'params': tree, **model_state},
        experiment.task.inputs(batch),
        train=True,
        mutable=list(model_state),
      )[0]

    own_key = gossip.worker_key(key, draw, workers.AXIS, shared=False)
    g = moments.sampled(logits_fn, unravel(params), own_key)
    return [moments.KINDS[spec.kind](leaf) for leaf in taken(g)]

  def exchange(opt_state, summed):
    mean = jax.tree.map(lambda v: v / spec.draws, summed)
    if not spec.per_worker:
      flat, back = ravel_pytree(mean)  # one collective
      mean = back(collectives.mean(flat, workers.AXIS))
    D = moments.positive(mean, sizes, spec.floor)
    own = shaped.powers(D, spec.power)
    sound = numerics.finite(own)  # all of it, or none
    own = jax.tree.map(lambda v: jnp.where(sound, v, jnp.nan), own)
    tables = ()
    if spec.per_worker:
      flat, back = ravel_pytree(own.half)
      tables = jax.vmap(back)(collectives.gathered(flat, workers.AXIS))
    return shaped.replaced(opt_state, own, tables)

  return sample, exchange


def make(experiment) -> Callable:
  """Builds (train state, step) -> train state, with new estimates if due."""
  spec = experiment.setup.smoothness
  if spec is None:
    return lambda state, step: state
  renewed = renewal(experiment)
  return lambda state, step: renewed(state, step) if due(spec, step) else state


def renewal(experiment) -> Callable:
  """Builds (train state, step) -> train state with new estimates.

  What they are depends on the arguments and the seed alone.
  """
  sample, exchange = make_functions(experiment)
  sample = experiment.run(sample, (0, 0, 0, None))
  exchange = experiment.run(exchange, (0, 0))
  draws, config = experiment.setup.smoothness.draws, experiment.setup.config

  def refresh(state, step):
    total = None
    # Not in a scan, in which XLA's convolutions are slow on CPUs.
    for draw, batch in data.batches(
      *experiment.data,
      seed=config.seed + _BATCHES,
      start=step * draws,
      stop=(step + 1) * draws,
      batch_size=config.batch_size,
      workers=multihost.own(config.workers),
    ):
      batch = multihost.placed(batch)
      one = sample(state.params, state.model_state, batch, np.int32(draw))
      add = lambda *pair: jax.tree.map(jnp.add, *pair)
      total = one if total is None else add(total, one)
    return state._replace(opt_state=exchange(state.opt_state, total))

  return refresh
