"""From a config to the objects it names. Only here and in loop.py is a config.

Every spec in a config is a dict: `name` chooses a factory, the rest are its
keyword arguments.
"""

from collections.abc import Callable, Mapping
import functools
import inspect
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
  models,
  quantizers,
  schedules,
  topologies,
  wire,
  workers,
)
from moniqua_jax.quantizers import base


def _named(namespace, names):
  return {name: getattr(namespace, name) for name in names}


MODELS = _named(models, models.__all__)
DATASETS = _named(data, ['cifar10', 'digits', 'imagenet2012', 'synthetic'])
PARTITIONS = _named(data, ['dirichlet', 'iid', 'sorted_by_label'])
TOPOLOGIES = _named(
  topologies,
  [
    'complete',
    'exponential',
    'hypercube',
    'one_peer_exponential',
    'random_matchings',
    'ring',
    'star',
    'torus',
  ],
)
QUANTIZERS = _named(quantizers, ['full_precision', 'moniqua', 'uniform'])
LEARNING_RATES = _named(schedules, ['constant', 'cosine', 'step'])
THETAS = _named(schedules, ['fixed', 'follow'])
REDUCE = _named(algorithms, ['allreduce'])
GOSSIP = _named(algorithms, ['dpsgd'])
RUNNERS = _named(workers, ['pmapped', 'sharded', 'simulated'])


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
    theta: by step; None for quantizers without.
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
  steps: int
  steps_per_epoch: int
  run: Callable


def build(choices: Mapping[str, Callable], what: str, spec, **context):
  """Calls choices[spec['name']] with the rest of the spec.

  Args:
    choices: factories by name.
    what: the name of the config entry, for messages.
    spec: a mapping with `name` and keyword arguments.
    **context: further arguments, given to factories that take them, unless the
      spec gives them itself.

  Returns:
    What the factory returns.

  Raises:
    ValueError: unknown name or argument, a missing argument, or what the
      factory raises, with the config entry in front.

  >>> build({'f': lambda a, b: a + b}, 'f', {'name': 'f', 'a': 1}, b=2, c=3)
  3
  """
  kwargs = dict(spec)
  name = kwargs.pop('name', None)
  if name not in choices:
    raise ValueError(
      f'config.{what}.name={name!r}; choose from {sorted(choices)}.'
    )
  accepted = inspect.signature(choices[name]).parameters
  for argument in kwargs:
    if argument not in accepted:
      raise ValueError(
        f'config.{what}.{argument} is not an argument of {name}; it takes '
        f'{sorted(set(accepted) - set(context))}.'
      )
  context = {k: v for k, v in context.items() if k in accepted}
  kwargs = {**context, **kwargs}
  for argument, parameter in accepted.items():
    if argument not in kwargs and parameter.default is parameter.empty:
      raise ValueError(f'config.{what}: {name} needs {what}.{argument}.')
  try:
    return choices[name](**kwargs)
  except (TypeError, ValueError) as error:
    raise ValueError(f'config.{what}: {error}') from error


def from_config(config) -> Experiment:
  """Builds everything that a config names, and checks that it fits together.

  Args:
    config: a ConfigDict, see configs/digits.py for its entries.

  Returns:
    An `Experiment`.

  Raises:
    ValueError: something that the config names is unknown or does not fit.
  """
  dataset = build(DATASETS, 'data', config.data)
  labels = np.asarray(dataset.train.labels)
  shards = build(
    PARTITIONS,
    'partition',
    config.partition,
    labels=labels,
    n=config.workers,
    seed=config.seed,
  )
  _check_batch(config.batch_size, shards)
  steps_per_epoch = max(1, len(labels) // (config.workers * config.batch_size))
  steps = round(config.epochs * steps_per_epoch)
  learning_rate = build(
    LEARNING_RATES,
    'learning_rate',
    config.learning_rate,
    steps=steps,
    steps_per_epoch=steps_per_epoch,
  )
  model = build(MODELS, 'model', config.model, num_classes=dataset.num_classes)
  variables = _initialise(model, dataset, config.seed)
  schedule = _schedule(config)
  quantizer, theta = _quantizer(config, learning_rate, steps, variables)
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
    steps,
    steps_per_epoch,
    _runner(config),
  )


def bytes_sent(experiment: Experiment, size: int) -> np.ndarray:
  """Bytes that each worker puts on the wire, in each round of the schedule.

  Of gossip: the size of the payload, times the workers that it is sent to. Of
  an exact all-reduce: 2 (n - 1) / n * 4 d, what a ring all-reduce sends.

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
  return receivers * float(wire.nbytes(payload))


def _check_batch(batch_size, shards):
  for worker, shard in enumerate(shards):
    if batch_size > len(shard):
      raise ValueError(
        f'config.batch_size={batch_size} is larger than the shard of worker '
        f'{worker} ({len(shard)} images); use at most {len(shard)} or fewer '
        'workers.'
      )


def _initialise(model, dataset, seed):
  image = jnp.zeros((1, *dataset.shape), jnp.float32)
  init = jax.jit(functools.partial(model.init, train=False))
  return init(jax.random.key(seed), image)


def _schedule(config):
  if config.gossip.name == 'none':
    return ()
  topology = build(TOPOLOGIES, 'topology', config.topology, n=config.workers)
  schedule = topologies.schedule(topologies.lazy(topology, config.gamma))
  if schedule[0].n != config.workers:
    raise ValueError(
      f'config.topology has {schedule[0].n} workers, config.workers='
      f'{config.workers}; they must agree.'
    )
  return schedule


def _quantizer(config, learning_rate, steps, variables):
  spec = dict(config.quantizer)
  quantizer = base.tuned(build(QUANTIZERS, 'quantizer', spec))
  theta = None
  if 'theta' in spec:
    relative = build(
      THETAS,
      'theta',
      config.theta,
      learning_rate=learning_rate,
      steps=steps,
    )
    theta = lambda step: spec['theta'] * relative(step)
    make = lambda now: build(QUANTIZERS, 'quantizer', {**spec, 'theta': now})
    quantizer = base.scheduled(make, theta)
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
  local = optax.chain(
    optax.add_decayed_weights(config.weight_decay),
    optax.sgd(learning_rate, config.momentum or None, config.nesterov),
  )
  return optax.chain(
    build(none | REDUCE, 'reduce', config.reduce, **slots),
    local,
    build(
      none | GOSSIP,
      'gossip',
      config.gossip,
      topology=schedule,
      quantizer=quantizer,
      **slots,
    ),
  )


def _runner(config):
  if config.runner not in RUNNERS:
    raise ValueError(
      f'config.runner={config.runner!r}; choose from {sorted(RUNNERS)}.'
    )
  if config.runner != 'simulated':
    workers.device_mesh(config.workers)
  return RUNNERS[config.runner]
