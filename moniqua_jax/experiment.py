"""From a config to the objects it names. Only here and in loop.py is a config.

Every spec in a config is a dict: `name` chooses a factory, the rest are its
keyword arguments.
"""

from collections.abc import Callable
import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moniqua_jax import (
  algorithms,
  data,
  guard,
  quantizers,
  specs,
  theory,
  topologies,
  wire,
  workers,
)
from moniqua_jax.quantizers import auto, base


class Experiment(NamedTuple):
  """What a config describes, built and checked.

  Attributes:
    dataset: images.
    shards: indices of each worker's training images.
    model: a flax module.
    variables: of the model, as initialised; all workers start from them.
    tx: the transformation chain of one worker: reduce, local, gossip.
    schedule: the topologies, cycled by step; () without gossip.
    quantizer: a `Tuned`; of no use without gossip.
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
  tx: optax.GradientTransformationExtraArgs
  schedule: tuple[topologies.Topology, ...]
  quantizer: base.Tuned
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
  run, schedule = _runner(config), _schedule(config)
  spec = _with_limit(config, schedule)
  specs.build(specs.QUANTIZERS, 'quantizer', spec)
  dataset = specs.build(specs.DATASETS, 'data', config.data)
  labels = np.asarray(dataset.train.labels)
  shards = specs.build(
    specs.PARTITIONS,
    'partition',
    config.partition,
    labels=labels,
    n=config.workers,
    seed=config.seed,
  )
  _check_batch(config.batch_size, shards)
  steps_per_epoch = max(1, len(labels) // (config.workers * config.batch_size))
  steps = round(config.epochs * steps_per_epoch)
  learning_rate = specs.build(
    specs.LEARNING_RATES,
    'learning_rate',
    config.learning_rate,
    steps=steps,
    steps_per_epoch=steps_per_epoch,
  )
  model = specs.build(
    specs.MODELS, 'model', config.model, num_classes=dataset.num_classes
  )
  variables = _initialise(model, dataset, config.seed)
  quantizer, theta = _quantizer(config, spec, learning_rate, steps, variables)
  return Experiment(
    dataset,
    shards,
    model,
    variables,
    _chain(config, learning_rate, schedule, quantizer),
    schedule,
    quantizer,
    learning_rate,
    theta,
    spec['limit'],
    _patience(config, quantizer),
    steps,
    steps_per_epoch,
    run,
  )


def bytes_sent(experiment: Experiment, size: int) -> np.ndarray:
  """Bytes that each worker puts on the wire, in each round of the schedule.

  Of gossip: the size of the payload (and of the answer, if the edges are
  answered), times the workers that it is sent to. Of an exact all-reduce:
  2 (n - 1) / n * 4 d, what a ring all-reduce sends.

  Args:
    experiment: as `from_config` builds it.
    size: number of parameters, d.

  Returns:
    f64[rounds, n].
  """
  n = len(experiment.shards)
  if not experiment.schedule:
    return np.full((1, n), 2 * (n - 1) / n * 4 * size)
  quantizer = experiment.quantizer.quantizer(
    experiment.quantizer.init(), jnp.int32(0)
  )
  x = jax.ShapeDtypeStruct((size,), jnp.float32)
  payload = jax.eval_shape(quantizer.encode, x, jax.random.key(0))
  receivers = np.array(
    [
      [sum(perm[i] != i for _, perm in topology.edges) for i in range(n)]
      for topology in experiment.schedule
    ]
  )
  answer = experiment.quantizer.answered
  return receivers * float(wire.nbytes(payload) + answer)


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
  topology = specs.build(
    specs.TOPOLOGIES, 'topology', config.topology, n=config.workers
  )
  schedule = topologies.schedule(topologies.lazy(topology, config.gamma))
  if schedule[0].n != config.workers:
    raise ValueError(
      f'config.topology has {schedule[0].n} workers, config.workers='
      f'{config.workers}; they must agree.'
    )
  return schedule


def _with_limit(config, schedule) -> dict:
  """The spec of the quantizer; auto_theta gets a limit from theory."""
  spec = dict(config.quantizer)
  if spec['name'] != 'auto_theta' or spec['limit'] or not schedule:
    return spec
  update = config.learning_rate.peak * config.largest_gradient
  if spec['bits'] is None:
    raise ValueError('config.quantizer: auto_theta needs quantizer.bits.')
  try:
    limit = theory.auto_theta_limit(
      schedule,
      config.gossip.name,
      spec['bits'],
      update=update / (1 - config.momentum),
      safety=spec['safety'] or auto.SAFETY,
    )
  except ValueError as error:
    raise ValueError(f'config.quantizer: {error}') from error
  # Twice: it is an estimate, and a doubling overshoots.
  return spec | {'limit': 2 * limit}


def _patience(config, quantizer) -> int:
  answered = quantizer.answered or config.answered
  if config.patience and not answered:
    raise ValueError(
      f'config.patience={config.patience}: a message that only one end leaves '
      'out moves the mean of the workers; set config.answered, or patience 0.'
    )
  if config.patience is None:
    return guard.PATIENCE if answered else 0
  return config.patience


def _quantizer(config, spec, learning_rate, steps, variables):
  quantizer = base.tuned(specs.build(specs.QUANTIZERS, 'quantizer', spec))
  theta = None
  if spec.get('theta') is not None:
    relative = specs.build(
      specs.THETAS,
      'theta',
      config.theta,
      learning_rate=learning_rate,
      steps=steps,
    )
    theta = lambda step: spec['theta'] * relative(step)
    make = lambda now: specs.build(
      specs.QUANTIZERS, 'quantizer', {**spec, 'theta': now}
    )
    quantizer = base.scheduled(make, theta)
  if config.answered:
    quantizer = quantizer._replace(answered=True)
  if config.scales_from:
    scales = _scales(config.scales_from, variables['params'])
    quantizer = quantizers.scaled(quantizer, scales)
  return quantizer, theta


def _scales(run, params):
  """Each leaf's largest distance between neighbours, as a run measured it."""
  path = pathlib.Path(run) / 'leaf_distance.json'
  if not path.exists():
    raise ValueError(
      f'config.scales_from={run!r}: there is no {path.name}; it must be the '
      'work directory of a finished full-precision run of the same model.'
    )
  measured = json.loads(path.read_text())
  names = leaf_names(params)
  if list(measured) != names:
    raise ValueError(
      f'config.scales_from={run!r} is of another model: {len(measured)} '
      f'leaves there, {len(names)} here, first difference '
      f'{sorted(set(measured) ^ set(names))[:1]}.'
    )
  sizes = [leaf.size for leaf in jax.tree.leaves(params)]
  return tuple(zip(sizes, measured.values(), strict=True))


def leaf_names(params) -> list[str]:
  """The path of each parameter leaf, in the order of the flat vector."""
  paths = [path for path, _ in jax.tree.leaves_with_path(params)]
  return [jax.tree_util.keystr(p, simple=True, separator='/') for p in paths]


def _chain(config, learning_rate, schedule, quantizer):
  """reduce, local, gossip: the three slots of the update."""
  slots = {'axis_name': workers.AXIS, 'key': jax.random.key(config.seed)}
  none = {'none': optax.identity}
  if config.reduce.name == config.gossip.name == 'none':
    raise ValueError(
      "config.reduce.name and config.gossip.name are both 'none'; the "
      'workers would never talk.'
    )
  gossip = specs.build(
    none | specs.GOSSIP,
    'gossip',
    config.gossip,
    topology=schedule,
    quantizer=quantizer,
    **slots,
  )
  if config.local_steps != 1:
    gossip = _every(gossip, config.local_steps)
  reduce = specs.build(none | specs.REDUCE, 'reduce', config.reduce, **slots)
  return optax.chain(reduce, local(config, learning_rate), gossip)


def local(config, learning_rate) -> optax.GradientTransformation:
  """What a worker does by itself: weight decay and SGD with momentum.

  Args:
    config: a ConfigDict.
    learning_rate: f32[] or by step.

  Returns:
    A transformation of gradients to updates.
  """
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay),
    optax.sgd(learning_rate, config.momentum or None, config.nesterov),
  )


def _every(gossip, steps):
  try:
    gossip = algorithms.every(gossip, steps)
    jax.eval_shape(gossip.init, jnp.zeros(1))  # refuses some algorithms
  except ValueError as error:
    raise ValueError(f'config.local_steps={steps}: {error}') from error
  return gossip


def _runner(config):
  if config.runner not in specs.RUNNERS:
    raise ValueError(
      f'config.runner={config.runner!r}; choose from {sorted(specs.RUNNERS)}.'
    )
  if config.runner != 'simulated':
    workers.device_mesh(config.workers)
  return specs.RUNNERS[config.runner]


def describe(config, experiment: Experiment) -> str:
  """What a run of the config is, in a few lines.

  Args:
    config: a ConfigDict.
    experiment: built from it.

  Returns:
    Some lines: data, model, topology, quantizer, bytes on the wire.
  """
  leaves = jax.tree.leaves(experiment.variables['params'])
  size = sum(leaf.size for leaf in leaves)
  sent = bytes_sent(experiment, size).mean() / config.local_steps
  in_full = experiment._replace(quantizer=base.tuned(base.full_precision()))
  full = bytes_sent(in_full, size).mean() / config.local_steps
  dataset, gap = experiment.dataset, 'no gossip'
  if experiment.schedule:
    gap = f'spectral gap {topologies.spectral_gap(experiment.schedule):.4g}'
  shards = sorted(len(shard) for shard in experiment.shards)
  statistics = 'none; normalisation keeps none'
  if 'batch_stats' in experiment.variables:
    statistics = 'stay with each worker; pooled exactly for the mean model'
  rows = {
    'variant': config.variant or 'none',
    'data': f'{config.data.name}, {len(dataset.train.labels)} training and '
    f'{len(dataset.test.labels)} test images; {config.partition.name} shards of'
    f' {shards[0]} to {shards[-1]}',
    'model': f'{config.model.name}, {size:,} parameters in {len(leaves)} leaves'
    f', {4 * size / 1e6:.2f} MB in float32',
    'statistics': statistics,
    'run': f'{experiment.steps} steps, {config.epochs} epochs, batches of '
    f'{config.batch_size} on each of {config.workers} workers, '
    f'{config.runner}',
    'gossip': _listed(config.gossip),
    'topology': f'{config.topology.name}, gamma {config.gamma}, {gap}',
    'quantizer': _listed(config.quantizer),
    'theta': _describe_theta(config, experiment),
    'wire': f'{sent:,.0f} bytes per worker and step, '
    f'{8 * sent / size:.3f} bits per parameter; full precision sends '
    f'{full / sent:.1f} times as much',
  }
  return '\n'.join(f'{name:10s} {text}' for name, text in rows.items())


def _listed(spec) -> str:
  """A spec in words: its name, and the arguments that are set."""
  set_ = [f'{k} {v}' for k, v in spec.items() if v and k != 'name']
  return ', '.join([spec.name, *set_])


def _describe_theta(config, experiment) -> str:
  if experiment.theta is not None:
    ends = experiment.theta(0), experiment.theta(experiment.steps - 1)
    return f'{float(ends[0]):.4g} at the start, {float(ends[1]):.4g} at the end'
  if experiment.limit is not None:
    start = config.quantizer.start
    return f'{start} at the start, at most {experiment.limit:.4g}'
  return 'none'
