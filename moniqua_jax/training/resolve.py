"""What a config asks for, checked: all that can be refused before data is read.

Nothing is read and no net is built; each refusal is one line, with the entry,
its value and the way out.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import pods, topologies, workers
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.curvature import refresh
from moniqua_jax.plan import choice
from moniqua_jax.quantizers import base
from moniqua_jax.training import (
  metrics,
  ones_own,
  optimizer,
  quantizer,
  registry,
  unfit,
  validation,
)


class Setup(NamedTuple):
  """A config and what it says without data and without a net.

  Attributes:
    config: the ConfigDict.
    pod: the devices of a worker.
    run: the runner, (fn, in_axes, **jit_options) -> mapped fn.
    schedule: the topologies, cycled by step; () without gossip.
    spec: of the quantizer; a theta that finds itself has its limit.
    smoothness: how estimates shape the quantizer; None without.
    patience: consecutive unreadable messages on an edge before the run stops.
    make: the factories that wait for data.
    planned: what is expected of the way to talk that `config.budget` chose;
      None without a budget, and before the net is known.
  """

  config: Any
  pod: pods.Pod
  run: Callable
  schedule: tuple[topologies.Topology, ...]
  spec: dict
  smoothness: refresh.Smoothness | None
  patience: int
  make: 'Factories'
  planned: choice.Row | None = None

  @property
  def all_leaves(self) -> bool:
    """Whether all leaves are quantized; of gradients only the large are."""
    return bool(self.schedule) or optimizer.is_outer(self.config)


class Factories(NamedTuple):
  """What a config names, with its arguments; the rest are keywords.

  Attributes:
    dataset: () -> images.
    partition: (labels, n, seed) -> indices of each worker's images.
    model: (num_classes) -> a flax module.
    learning_rate: (steps, steps_per_epoch) -> rate by step.
    theta: (learning_rate, steps) -> theta by step, relative to the first.
  """

  dataset: Callable
  partition: Callable
  model: Callable
  learning_rate: Callable
  theta: Callable


def resolve(config) -> Setup:
  """Checks a config; a `ValueError` says what is unknown or does not fit."""
  validation.validate(config)
  if config.tensorboard:
    metrics.events()  # before there is a folder
  choice.budget(config.budget)
  pod, schedule = pods.of(config), _schedule(config)
  run, spec = _runner(config, pod), quantizer.with_limit(config, schedule)
  shape = registry.build(registry.SMOOTHNESS, 'smoothness', config.smoothness)
  setup = Setup(config, pod, run, schedule, spec, shape, 0, _factories(config))
  unfit.slots(config, pod)
  if shape is not None:
    unfit.smoothness(config, shape, schedule)
  tried = _tried(setup)
  return setup._replace(patience=unfit.patience(config, tried.answered))


def _factories(config) -> Factories:
  named, later = registry.named, ('axis_name', 'leaf_sizes')
  # Of use within a pod alone, but never said in vain.
  spec = config.reduce_quantizer
  named(registry.QUANTIZERS, 'reduce_quantizer', spec, later)
  return Factories(
    named(registry.DATASETS, 'data', config.data),
    named(
      registry.PARTITIONS,
      'partition',
      config.partition,
      ('labels', 'n', 'seed'),
    ),
    named(registry.MODELS, 'model', config.model, ('num_classes',)),
    named(
      registry.LEARNING_RATES,
      'learning_rate',
      config.learning_rate,
      ('steps', 'steps_per_epoch'),
    ),
    named(registry.THETAS, 'theta', config.theta, ('learning_rate', 'steps')),
  )


def _tried(setup) -> base.Tuned:
  """Builds quantizer and chain for a net of one leaf: they refuse for us."""
  leaves = [jnp.zeros((1, 1024))]
  slices, held = large_leaves.slices(leaves), pods.hold(leaves, setup.pod)
  tried = base.tuned(quantizer.build(setup.config, setup.spec, (1024,)))
  if setup.config.answered:
    tried = tried._replace(answered=True)
  means = optimizer.of_means(setup, tried, slices)
  if means is not None:
    unfit.means(setup.config, setup.pod, means)
  rate = optax.constant_schedule(1.0)
  chain = optimizer.make(setup, tried, means, slices, rate, held)
  if setup.pod.size == 1:
    ones_own.transformation(setup.config, chain.local, leaves[0].size)
  return tried


def _schedule(config):
  if config.gossip.name == 'none':
    return ()
  topology = registry.build(
    registry.TOPOLOGIES, 'topology', config.topology, n=config.workers
  )
  schedule = topologies.schedule(topologies.lazy(topology, config.gamma))
  if schedule[0].n != config.workers:
    raise ValueError(
      f'config.topology has {schedule[0].n} workers, config.workers='
      f'{config.workers}; they must agree.'
    )
  return schedule


def _runner(config, pod):
  if jax.process_count() > 1 and config.runner != 'sharded':
    raise ValueError(
      f'config.runner={config.runner!r} knows one process only, and there are '
      f"{jax.process_count()}; take 'sharded'."
    )
  if pod.size > 1:
    return functools.partial(workers.sharded, mesh=pods.mesh(pod))
  if config.runner != 'simulated':
    workers.device_mesh(config.workers)
  return registry.RUNNERS[config.runner]
