"""Bytes that a run of a config will send, as the software claims them."""

import inspect

import jax

from moniqua_jax import bytes_sent, pods
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.training import optimizer, registry


def of_workers(config, schedule, quantizer, held, pod) -> bytes_sent.Traffic:
  """Bytes that a worker sends to others: in its gossip, its means, or both.

  Args:
    config: a ConfigDict.
    schedule: topologies, () without gossip.
    quantizer: a `Tuned`.
    held: how a device holds the parameters.
    pod: the devices of a worker.

  Returns:
    `Traffic`.
  """
  sent = bytes_sent.NOTHING
  if pod.size == 1:
    sent = _of_means(config, quantizer, held.part, config.workers)
  if schedule:
    size = sum(leaf.size for leaf in jax.tree.leaves(held.part))
    gossip = bytes_sent.of_gossip(schedule, quantizer, size)
    gossip = pods.of_links(gossip, pod)
    sent = sent._replace(gossip=gossip.gossip, gossip_short=gossip.gossip_short)
  return sent


def within_pods(config, given, held, pod) -> bytes_sent.Traffic:
  """Bytes that a device sends to others of its pod.

  Args:
    config: a ConfigDict.
    given: what the reduce slot is given, with a quantizer or without.
    held: how a device holds the parameters.
    pod: the devices of a worker.

  Returns:
    `Traffic`; nothing if a worker is one device.
  """
  if pod.size == 1:
    return bytes_sent.NOTHING
  quantizer = given.get('quantizer')
  mean = _of_means(config, quantizer, optimizer.pieces(held, pod), pod.data)
  return pods.of_pod(held.part, mean, pod)


def _of_means(config, quantizer, tree, n) -> bytes_sent.Traffic:
  """Bytes of each of n in the reduce slot, whose gradients are this tree."""
  strategy, means = _strategy(config), 1 + (config.reduce.name == 'adiana')
  if strategy is None:
    return bytes_sent.NOTHING
  if strategy == 'exact':
    return bytes_sent.of_exact(tree, n)
  return bytes_sent.of_reduce(
    strategy, quantizer, tree, n, large_leaves.small, means
  )


def _strategy(config) -> str | None:
  """How the mean of the gradients is taken; None if it is not."""
  name = optimizer.reduce_name(config)
  if name == 'none':
    return None
  parameters = inspect.signature(registry.REDUCE[name]).parameters
  if 'strategy' not in parameters:
    return 'scatter_reduce' if name == 'double_squeeze' else 'all_gather'
  return config.reduce.strategy or parameters['strategy'].default
