"""Bytes that a run sends: what the software claims, and the sum so far."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import algorithms, bytes_sent, pods, quantizers
from moniqua_jax.algorithms import fragments as parts
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.algorithms.power_sgd import factors
from moniqua_jax.bytes_sent import NOTHING
from moniqua_jax.curvature import refresh
from moniqua_jax.launch import multihost
from moniqua_jax.quantizers import base
from moniqua_jax.training import optimizer, registry


class Sent(NamedTuple):
  """Bytes of a step, by links.

  Attributes:
    by_worker: to other workers.
    within_pod: of a device, to others of its pod; nothing if it is alone.
    in_full_precision: what `by_worker` would be in float32.
  """

  by_worker: bytes_sent.Traffic
  within_pod: bytes_sent.Traffic
  in_full_precision: bytes_sent.Traffic


def make(
  setup,
  gossip,
  quantizer: base.Tuned,
  means: base.Tuned | None,
  part,
  gradient,
) -> Sent:
  """Counts the bytes of a step.

  `gossip` is the algorithm that sends by the quantizer. `part` is the tree of
  what a device gossips, `gradient` of what it reduces, and `means` the
  quantizer of that.
  """
  full = base.tuned(quantizers.full_precision())
  pod, within = setup.pod, NOTHING
  if pod.size > 1:
    mean = _of_means(setup.config, means, gradient, pod.data)
    within = pods.of_pod(part, mean, pod)
  moments = base.tuned(quantizers.float8())
  sent = _by_worker(setup, gossip, quantizer, means, part, gradient, moments)
  if setup.smoothness is not None:
    leaves = refresh.quantized(part, setup.all_leaves)
    each = refresh.refresh_bytes(setup.smoothness, leaves, pod.workers)
    sent = sent._replace(estimate=each)
  return Sent(
    sent, within, _by_worker(setup, gossip, full, full, part, gradient, full)
  )


def _by_worker(
  setup, algorithm, quantizer, means, part, gradient, of_moments
) -> bytes_sent.Traffic:
  """Counts what a worker sends to others: in gossip, in means, or in both."""
  sent, pod = NOTHING, setup.pod
  if pod.size == 1:
    sent = _of_means(setup.config, means, gradient, pod.workers)
  if not setup.schedule:
    return sent
  size = sum(leaf.size for leaf in jax.tree.leaves(part))
  message = algorithm.message(quantizer, size)
  gossip = bytes_sent.of_gossip(setup.schedule, *message)
  gossip = pods.of_links(gossip, pod)
  # Each fragment goes through a round before the next one comes.
  each = lambda sizes: np.repeat(sizes, setup.config.fragments)
  return sent._replace(
    gossip=each(gossip.gossip),
    gossip_short=each(gossip.gossip_short),
    moments=_of_moments(setup, of_moments, size),
  )


def _of_moments(setup, quantizer, size: int) -> np.ndarray:
  """Counts the bytes of each round of second moments; none without."""
  if not moments_every(setup.config):
    return NOTHING.moments
  return bytes_sent.of_gossip(setup.schedule, quantizer, size).gossip


def moments_every(config) -> int:
  """Says in one of how many steps second moments are sent; 0 for never."""
  if config.optimizer.name != 'dadam':
    return 0
  default = inspect.signature(algorithms.dadam).parameters['every'].default
  return config.optimizer.every or default


def moments(config, steps: int) -> int:
  """Counts the rounds of second moments in so many steps."""
  every = moments_every(config)
  return steps // every if every else 0


def _of_means(config, quantizer, gradient, n) -> bytes_sent.Traffic:
  """Counts the bytes of each of n in the reduce slot."""
  strategy, means = _strategy(config), 1 + (config.reduce.name == 'adiana')
  if strategy is None:
    return NOTHING
  keep = large_leaves.small
  if config.reduce.name == 'power_sgd':
    sent = factors(gradient, config.reduce.rank, keep)
    return bytes_sent.of_exact(sent, n)
  if optimizer.is_outer(config):
    gradient = _fragment(gradient, config.fragments)
    keep = large_leaves.none_small
  if strategy == 'exact':
    return bytes_sent.of_exact(gradient, n)
  return bytes_sent.of_reduce(strategy, quantizer, gradient, n, keep, means)


def _fragment(gradient, fragments: int) -> jax.ShapeDtypeStruct:
  """Returns what is in one mean of what workers moved, as a vector."""
  size = sum(leaf.size for leaf in jax.tree.leaves(gradient))
  size = parts.windows(size, fragments).size
  return jax.ShapeDtypeStruct((size,), jnp.float32)


def _strategy(config) -> str | None:
  """Names how the mean of the gradients is taken; None if it is not."""
  name = optimizer.reduce_name(config)
  if name == 'none':
    return None
  parameters = inspect.signature(registry.REDUCE[name]).parameters
  if 'strategy' not in parameters:
    return 'scatter_reduce' if name == 'double_squeeze' else 'all_gather'
  return config.reduce.get('strategy') or parameters['strategy'].default


def so_far(experiment, done: int, opt_state) -> dict:
  """Sums up the first `done` steps; the state counts short messages."""
  setup, slots = experiment.setup, optimizer.Optimizer(*opt_state)
  quantizes = experiment.optimizer.reduce.quantizes
  short = _of_one(slots.reduce.short) if quantizes else _short(slots.gossip)
  heard = experiment.optimizer.heard(opt_state)
  row, shape = {}, setup.smoothness
  if setup.pod.size > 1:
    within = bytes_sent.total(experiment.sent.within_pod, done, 0, short)
    row, short = {'wire/bytes_within_pod': within}, 0
  sent = bytes_sent.total(
    experiment.sent.by_worker,
    means(experiment, done),
    experiment.turns.before(done),
    short,
    _of_one(heard.short) if heard else 0,
    refresh.estimates(shape, done) if shape else 0,
    moments(setup.config, done),
  )
  return {'wire/bytes_sent': sent, **row}


def means(experiment, steps: int) -> int:
  """Counts the means in so many steps."""
  outer = optimizer.is_outer(experiment.setup.config)
  return experiment.turns.before(steps) if outer else steps


def _short(gossip) -> np.ndarray | int:
  """Counts the short messages of means of what workers moved; else 0."""
  is_mean = lambda node: isinstance(node, large_leaves.ReduceState)
  nodes = jax.tree.leaves(gossip, is_leaf=is_mean)
  counts = [_of_one(node.short) for node in nodes if is_mean(node)]
  return sum(np.reshape(c, (-1, c.shape[-1])).sum(axis=0) for c in counts)


def _of_one(count) -> np.ndarray:
  """The count of any worker: all choose the short form together."""
  return multihost.to_host(count)[0]
