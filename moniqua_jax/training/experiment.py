"""From a config to the objects it names.

Only here, in what this file puts together, and in loop.py is a config.

Every spec in a config is a dict: `name` chooses a factory, the rest are its
keyword arguments.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moniqua_jax import bytes_sent as traffic_lib
from moniqua_jax import data, pods, topologies, workers
from moniqua_jax.curvature import refresh
from moniqua_jax.quantizers import base
from moniqua_jax.training import (
  claims,
  monitor,
  optimizer,
  quantizer_spec,
  registry,
  validation,
)


class Experiment(NamedTuple):
  """What a config describes, built and checked.

  Attributes:
    dataset: images.
    shards: indices of each worker's training images.
    model: a flax module.
    variables: of the model, as initialised; all workers start from them.
    pod: the devices of a worker.
    held: how each of them holds the parameters.
    reduce: of one worker's flat gradient; the second of its chain.
    tx: the chain of one worker: local momentum, reduce, local, gossip.
    alone: the same without gossip.
    gossip: the last of the chain.
    schedule: the topologies, cycled by step; () without gossip.
    quantizer: a `Tuned`, of the gossip, or without gossip of the gradients.
    smoothness: how estimates shape the quantizer; None without.
    traffic: bytes that a worker sends to others.
    inside: bytes that a device sends within its pod.
    learning_rate: by step.
    theta: by step; None for quantizers without, or that find it themselves.
    limit: of a theta that finds itself; None for others.
    patience: how often in a row an edge may be of no use.
    steps: of the whole run.
    steps_per_epoch: steps in which the workers together see as many images as
      there are.
    run: the runner, (fn, in_axes, **jit_options) -> mapped fn.
  """

  dataset: data.Dataset
  shards: tuple[np.ndarray, ...]
  model: Any
  variables: Any
  pod: pods.Pod
  held: pods.Held
  reduce: optax.GradientTransformationExtraArgs
  tx: optax.GradientTransformationExtraArgs
  alone: optax.GradientTransformationExtraArgs
  gossip: optax.GradientTransformationExtraArgs
  schedule: tuple[topologies.Topology, ...]
  quantizer: base.Tuned
  smoothness: refresh.Smoothness | None
  traffic: traffic_lib.Traffic
  inside: traffic_lib.Traffic
  learning_rate: Callable
  theta: Callable | None
  limit: float | None
  patience: int
  steps: int
  steps_per_epoch: int
  run: Callable


def from_config(config) -> Experiment:
  """Builds everything that a config names, and checks that it fits together.

  Args:
    config: a ConfigDict, see configs/digits.py for its entries.

  Returns:
    An `Experiment`.

  Raises:
    ValueError: something that the config names is unknown or does not fit.
  """
  # What is quick to refuse comes before what is long to read.
  pod, schedule = pods.of(config), _schedule(config)
  run, spec = _runner(config, pod), quantizer_spec.with_limit(config, schedule)
  quantizer_spec.build(config, spec, leaf_sizes=(1,))
  validation.pods(config, pod)
  shape = _smoothness(config, schedule)
  dataset = registry.build(registry.DATASETS, 'data', config.data)
  labels = np.asarray(dataset.train.labels)
  shards = registry.build(
    registry.PARTITIONS,
    'partition',
    config.partition,
    labels=labels,
    n=config.workers,
    seed=config.seed,
  )
  _check_batch(config.batch_size, shards)
  steps_per_epoch = max(1, len(labels) // (config.workers * config.batch_size))
  steps = round(config.epochs * steps_per_epoch)
  learning_rate = registry.build(
    registry.LEARNING_RATES,
    'learning_rate',
    config.learning_rate,
    steps=steps,
    steps_per_epoch=steps_per_epoch,
  )
  model = registry.build(
    registry.MODELS, 'model', config.model, num_classes=dataset.num_classes
  )
  variables = _initialise(model, dataset, config.seed)
  held = pods.hold(variables['params'], pod)
  if pod.size > 1:
    # Made on one device, which now lets go of them.
    variables = jax.device_get(variables)
  quantizer, theta = quantizer_spec.make(
    config, spec, shape, schedule, learning_rate, steps, held.part
  )
  given = optimizer.of_gradients(config, schedule, quantizer, held, pod)
  slots = optimizer.make(
    config, learning_rate, schedule, quantizer, given, held, pod
  )
  traffic = claims.of_workers(config, schedule, quantizer, held, pod)
  inside = claims.within_pods(config, given, held, pod)
  if shape is not None:
    leaves = refresh.quantized(held.part, schedule)
    each = refresh.refresh_bytes(shape, leaves, config.workers)
    traffic = traffic._replace(estimate=each)
  return Experiment(
    dataset,
    shards,
    model,
    variables,
    pod,
    held,
    *slots,
    schedule,
    quantizer,
    shape,
    traffic,
    inside,
    learning_rate,
    theta,
    spec['limit'],
    _patience(config, quantizer),
    steps,
    steps_per_epoch,
    run,
  )


def _check_batch(batch_size, shards):
  sizes = [len(shard) for shard in shards]
  worker = int(np.argmin(sizes))
  if batch_size > sizes[worker]:
    raise ValueError(
      f'config.batch_size={batch_size} is larger than the shard of worker '
      f'{worker} ({sizes[worker]} images); use at most {sizes[worker]}, or '
      'fewer workers.'
    )


def _initialise(model, dataset, seed):
  image = jnp.zeros((1, *dataset.shape), jnp.float32)
  init = jax.jit(functools.partial(model.init, train=False))
  return init(jax.random.key(seed), image)


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


def _patience(config, quantizer) -> int:
  answered = quantizer.answered or config.answered
  if config.patience and not answered:
    raise ValueError(
      f'config.patience={config.patience}: a message that only one end leaves '
      'out moves the mean of the workers; set config.answered, or patience 0.'
    )
  if config.patience is None:
    return monitor.PATIENCE if answered else 0
  return config.patience


def _smoothness(config, schedule) -> refresh.Smoothness | None:
  shape = registry.build(registry.SMOOTHNESS, 'smoothness', config.smoothness)
  if shape is not None:
    validation.smoothness(config, shape, schedule)
  return shape


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
