"""What a config asks for, checked: all that can be refused before data is read.

Only here and in what `resolve` gives is a config read by entries that choose
something; each refusal is one line with the entry, its value and the way out.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moniqua_jax import pods, topologies, workers
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.curvature import refresh
from moniqua_jax.quantizers import base
from moniqua_jax.training import (
  monitor,
  optimizer,
  quantizer,
  registry,
)


class Setup(NamedTuple):
  """A config and what it says without data and without a net.

  Attributes:
    config: the ConfigDict.
    pod: the devices of a worker.
    run: the runner, (fn, in_axes, **jit_options) -> mapped fn.
    schedule: the topologies, cycled by step; () without gossip.
    spec: of the quantizer; auto_theta has its limit.
    smoothness: how estimates shape the quantizer; None without.
    patience: consecutive unreadable messages on an edge before the run stops.
    make: the factories that wait for data.
  """

  config: Any
  pod: pods.Pod
  run: Callable
  schedule: tuple[topologies.Topology, ...]
  spec: dict
  smoothness: refresh.Smoothness | None
  patience: int
  make: 'Factories'


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
  pod, schedule = pods.of(config), _schedule(config)
  run, spec = _runner(config, pod), quantizer.with_limit(config, schedule)
  shape = registry.build(registry.SMOOTHNESS, 'smoothness', config.smoothness)
  setup = Setup(config, pod, run, schedule, spec, shape, 0, _factories(config))
  _check_pods(config, pod)
  _check_slots(config, pod)
  if shape is not None:
    _check_smoothness(config, shape, schedule)
  answered = _tried(setup).answered or config.answered
  return setup._replace(patience=_patience(config, answered))


def _factories(config) -> Factories:
  named = registry.named
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
  slices = large_leaves.slices([jnp.zeros((1, 1024))])
  tried = base.tuned(quantizer.build(setup.config, setup.spec, (1024,)))
  means = optimizer.of_means(setup, tried, slices)
  optimizer.make(setup, tried, means, slices, learning_rate=1.0)
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
  if config.runner not in registry.RUNNERS:
    raise ValueError(
      f'config.runner={config.runner!r}; choose from '
      f'{sorted(registry.RUNNERS)}.'
    )
  if jax.process_count() > 1 and config.runner != 'sharded':
    raise ValueError(
      f'config.runner={config.runner!r} knows one process only, and there are '
      f"{jax.process_count()}; take 'sharded'."
    )
  if pod.size > 1:
    if config.runner != 'sharded':
      raise ValueError(
        f'config.runner={config.runner!r} knows no pods, and config.pod is '
        f"{pod.data} (data) x {pod.fsdp} (fsdp); take 'sharded'."
      )
    return functools.partial(workers.sharded, mesh=pods.mesh(pod))
  if config.runner != 'simulated':
    workers.device_mesh(config.workers)
  return registry.RUNNERS[config.runner]


# ------------------------------------------- entries that do not go together


def _patience(config, answered) -> int:
  if config.patience and not answered:
    raise ValueError(
      f'config.patience={config.patience}: a message that only one end leaves '
      'out moves the mean of the workers; set config.answered, or patience 0.'
    )
  if config.patience is None:
    return monitor.PATIENCE if answered else 0
  return config.patience


def _check_slots(config, pod) -> None:
  """Refuses what does not go with the reduce and gossip slots."""
  name, entry = config.reduce.name, 'config.reduce.name'
  if name == config.gossip.name == 'none':
    raise ValueError(
      "config.reduce.name and config.gossip.name are both 'none'; the "
      'workers would never talk.'
    )
  if config.overlap and config.gossip.name == 'none':
    raise ValueError(
      "config.overlap=True needs gossip; config.gossip.name='none' has none."
    )
  wants_one = name in ('adiana', 'dcgd', 'diana')
  if wants_one and not optimizer.quantizes_gradients(config, pod):
    raise ValueError(
      f'{entry}={name!r} needs a quantizer of gradients: set config.quantizer, '
      "and config.gossip.name='none'."
    )
  if name == 'adiana':
    _check_adiana(config, entry)


def _check_adiana(config, entry) -> None:
  rate = config.learning_rate
  for other, value, wanted in (
    ('learning_rate.name', rate.name, 'constant'),
    ('learning_rate.peak', rate.peak, 1.0),
    ('learning_rate.warmup_epochs', rate.warmup_epochs or 0, 0),
    ('momentum', config.momentum, 0),
    ('local_momentum', config.local_momentum, 0),
    ('weight_decay', config.weight_decay, 0),
    ('gradient_probe_every', config.gradient_probe_every, 0),
  ):
    if value != wanted:
      raise ValueError(
        f"{entry}='adiana' gives the whole step, so config.{other}={value!r} "
        f'must be {wanted!r}.'
      )


def _check_smoothness(config, shape, schedule) -> None:
  """Refuses estimates that cannot shape this quantizer, or change nothing."""
  name, entry = config.quantizer.name, 'config.smoothness'
  if name == 'full_precision':
    raise ValueError(
      f'{entry}.name={shape.kind!r} shapes a quantizer; config.quantizer.name='
      "'full_precision' is none: choose one, or smoothness 'none'."
    )
  if config.scales_from:
    raise ValueError(
      f'{entry}.name={shape.kind!r} and config.scales_from='
      f'{config.scales_from!r} both scale the leaves; take one of them.'
    )
  if schedule and shape.per_worker:
    raise ValueError(
      f'{entry}.per_worker=True: in gossip all share one D; set it False.'
    )
  if shape.per_worker and name in ('auto_theta', 'moniqua'):
    raise ValueError(
      f'{entry}.per_worker=True: {name} reads a message by the values of who '
      'reads it, so all share one D; set it False.'
    )
  if shape.kind == 'layer' and name == 'block':
    raise ValueError(
      f"{entry}.name='layer' changes nothing in config.quantizer.name='block', "
      "whose norms are of one leaf each; take 'diagonal', 'kronecker', or qsgd."
    )


def _check_pods(config, pod) -> None:
  """Refuses what does not go with pods of several devices, or needs them."""
  quantized = config.reduce_quantizer.name
  if quantized != 'full_precision' and pod.data == 1:
    raise ValueError(
      f'config.reduce_quantizer.name={quantized!r} is for means within a pod, '
      'and config.pod.data=1 takes none.'
    )
  if pod.size == 1:
    return
  if config.gossip.name == 'none':
    raise ValueError(
      "config.gossip.name='none': pods talk by gossip; take 'dpsgd', with the "
      "topology 'complete' for the mean of all."
    )
  if config.batch_size % pod.size:
    raise ValueError(
      f'config.batch_size={config.batch_size} images of a pod cannot be shared '
      f'equally by its {pod.size} devices.'
    )
  for entry, value, wanted in (
    ('smoothness.name', config.smoothness.name, 'none'),
    ('gradient_probe_every', config.gradient_probe_every, 0),
  ):
    if value != wanted:
      raise ValueError(
        f'config.{entry}={value!r} knows one device for each worker, and '
        f'config.pod has {pod.size}.'
      )


def check_batch(batch_size: int, shards) -> None:
  """Refuses a batch that is larger than a worker's shard."""
  sizes = [len(shard) for shard in shards]
  least = min(sizes)
  if batch_size > least:
    raise ValueError(
      f'config.batch_size={batch_size} is larger than the shard of worker '
      f'{sizes.index(least)} ({least} images); use at most {least}, or '
      'fewer workers.'
    )
