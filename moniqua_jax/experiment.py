"""From a config to the objects it names. Only here and in loop.py is a config.

Every spec in a config is a dict: `name` chooses a factory, the rest are its
keyword arguments.
"""

from collections.abc import Callable
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
  checks,
  coding,
  data,
  guard,
  pods,
  quantizers,
  smoothness,
  specs,
  theory,
  topologies,
  workers,
)
from moniqua_jax import traffic as traffic_lib
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.quantizers import auto, base


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
  smoothness: smoothness.Smoothness | None
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
  run, spec = _runner(config, pod), _with_limit(config, schedule)
  _build_quantizer(config, spec, leaf_sizes=(1,))
  checks.pods(config, pod)
  shape = _smoothness(config, schedule)
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
  held = pods.hold(variables['params'], pod)
  if pod.size > 1:
    # Made on one device, which now lets go of them.
    variables = jax.device_get(variables)
  quantizer, theta = _quantizer(
    config, spec, shape, schedule, learning_rate, steps, held.part
  )
  of_gradients = _of_gradients(config, schedule, quantizer, held, pod)
  chain = _chain(
    config, learning_rate, schedule, quantizer, of_gradients, held, pod
  )
  traffic = traffic_of(config, schedule, quantizer, held, pod)
  inside = inside_of(config, of_gradients, held, pod)
  if shape is not None:
    leaves = smoothness.quantized(held.part, schedule)
    each = smoothness.refresh_bytes(shape, leaves, config.workers)
    traffic = traffic._replace(estimate=each)
  return Experiment(
    dataset,
    shards,
    model,
    variables,
    pod,
    held,
    *chain,
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
      f'stale_{config.gossip.name}' if _waits(config) else config.gossip.name,
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


def _smoothness(config, schedule) -> smoothness.Smoothness | None:
  shape = specs.build(specs.SMOOTHNESS, 'smoothness', config.smoothness)
  if shape is not None:
    checks.smoothness(config, shape, schedule)
  return shape


def _quantizer(config, spec, shape, schedule, learning_rate, steps, params):
  leaves = smoothness.quantized(params, schedule)
  sizes = tuple(leaf.size for leaf in leaves)
  quantizer = base.tuned(_build_quantizer(config, spec, sizes))
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
    make = lambda now: _build_quantizer(config, {**spec, 'theta': now}, sizes)
    quantizer = base.scheduled(make, theta)
  if config.answered:
    quantizer = quantizer._replace(answered=True)
  if config.scales_from:
    scales = _scales(config.scales_from, params)
    quantizer = quantizers.scaled(quantizer, scales)
  if shape is not None:
    try:
      quantizer = smoothness.wrapped(shape, quantizer, leaves, config.workers)
    except ValueError as error:
      raise ValueError(f'config.smoothness: {error}') from error
  return quantizer, theta


def _build_quantizer(config, spec, leaf_sizes):
  context = {'axis_name': workers.AXIS, 'leaf_sizes': leaf_sizes}
  quantizer = specs.build(specs.QUANTIZERS, 'quantizer', spec, **context)
  if config.coded is None:
    return quantizer
  try:
    return coding.coded(quantizer, config.coded)
  except ValueError as error:
    raise ValueError(f'config.coded: {error}') from error


def traffic_of(config, schedule, quantizer, held, pod) -> traffic_lib.Traffic:
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
  sent = traffic_lib.NOTHING
  if pod.size == 1:
    sent = _of_means(config, quantizer, held.part, config.workers)
  if schedule:
    size = sum(leaf.size for leaf in jax.tree.leaves(held.part))
    gossip = traffic_lib.of_gossip(schedule, quantizer, size)
    gossip = pods.of_links(gossip, pod)
    sent = sent._replace(gossip=gossip.gossip, gossip_short=gossip.gossip_short)
  return sent


def inside_of(config, of_gradients, held, pod) -> traffic_lib.Traffic:
  """Bytes that a device sends to others of its pod.

  Args:
    config: a ConfigDict.
    of_gradients: what the reduce slot is given, with a quantizer or without.
    held: how a device holds the parameters.
    pod: the devices of a worker.

  Returns:
    `Traffic`; nothing if a worker is one device.
  """
  if pod.size == 1:
    return traffic_lib.NOTHING
  quantizer = of_gradients.get('quantizer')
  mean = _of_means(config, quantizer, _pieces(held, pod), pod.data)
  return pods.of_pod(held.part, mean, pod)


def _pieces(held, pod):
  """The shapes of what a device holds of each leaf."""
  size = pod.data * sum(leaf.size for leaf in jax.tree.leaves(held.part))
  vector = jax.ShapeDtypeStruct((size,), jnp.float32)
  return jax.eval_shape(held.pieces, vector)


def _of_means(config, quantizer, tree, n) -> traffic_lib.Traffic:
  """Bytes of each of n in the reduce slot, whose gradients are this tree."""
  strategy, means = _strategy(config), 1 + (config.reduce.name == 'adiana')
  if strategy is None:
    return traffic_lib.NOTHING
  if strategy == 'exact':
    return traffic_lib.of_exact(tree, n)
  return traffic_lib.of_reduce(
    strategy, quantizer, tree, n, large_leaves.small, means
  )


def _strategy(config) -> str | None:
  """How the mean of the gradients is taken; None if it is not."""
  name = _reduce_name(config)
  if name == 'none':
    return None
  parameters = inspect.signature(specs.REDUCE[name]).parameters
  if 'strategy' not in parameters:
    return 'scatter_reduce' if name == 'double_squeeze' else 'all_gather'
  return config.reduce.strategy or parameters['strategy'].default


def _reduce_name(config) -> str:
  """Replicas always take the mean of their gradients, by default exactly."""
  replicas = pods.of(config).data > 1
  name = config.reduce.name
  return 'allreduce' if replicas and name == 'none' else name


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


def _of_gradients(config, schedule, quantizer, held, pod) -> dict:
  """What the reduce slot is given: an axis, and a quantizer or none."""
  if pod.size > 1:
    return {'axis_name': pods.DATA} | _inside_quantizer(config, held, pod)
  # One quantizer: of the gossip, or without gossip of the gradients.
  if not schedule and config.quantizer.name != 'full_precision':
    return {'axis_name': workers.AXIS, 'quantizer': quantizer}
  return {'axis_name': workers.AXIS}


def _inside_quantizer(config, held, pod) -> dict:
  if config.reduce_quantizer.name == 'full_precision':
    return {}
  leaves = smoothness.quantized(_pieces(held, pod), schedule=())
  quantizer = specs.build(
    specs.QUANTIZERS,
    'reduce_quantizer',
    config.reduce_quantizer,
    axis_name=pods.DATA,
    leaf_sizes=tuple(leaf.size for leaf in leaves),
  )
  return {'quantizer': base.tuned(quantizer)}


def _chain(config, learning_rate, schedule, quantizer, of_gradients, held, pod):
  """reduce; the chain local momentum, reduce, local, gossip; and its parts."""
  if config.reduce.name == config.gossip.name == 'none':
    raise ValueError(
      "config.reduce.name and config.gossip.name are both 'none'; the "
      'workers would never talk.'
    )
  checks.reduce(config, quantized='quantizer' in of_gradients)
  key = jax.random.key(config.seed)
  gossip = functools.partial(_gossip, config, schedule, quantizer)
  reduce = functools.partial(_reduce, config, of_gradients, held)
  if pod.size > 1:
    gossip = pods.on_own_part(gossip, key, pod)
    reduce = pods.of_device(reduce, key, (workers.AXIS, pods.FSDP))
  else:
    gossip, reduce = gossip(key), reduce(key)
  before = optax.identity()
  if config.local_momentum:  # of each worker's own gradients
    before = optax.trace(config.local_momentum, config.nesterov)
  alone = before, reduce, local(config, learning_rate)
  return reduce, optax.chain(*alone, gossip), optax.chain(*alone), gossip


def _gossip(config, schedule, quantizer, key):
  gossip = specs.build(
    {'none': optax.identity} | specs.GOSSIP,
    'gossip',
    config.gossip,
    topology=schedule,
    quantizer=quantizer,
    axis_name=workers.AXIS,
    key=key,
  )
  if config.local_steps != 1:
    gossip = _every(gossip, config.local_steps)
  return _stale(gossip, schedule) if _waits(config) else gossip


def _reduce(config, of_gradients, held, key):
  spec = dict(config.reduce) | {'name': _reduce_name(config)}
  choices = {'none': optax.identity} | specs.REDUCE
  reduce = specs.build(choices, 'reduce', spec, key=key, **of_gradients)
  return reduce if spec['name'] == 'none' else _on_leaves(reduce, held)


def _on_leaves(tx, held):
  """The transformation of a tree, for flat updates: some leaves are small."""

  def update(updates, state, params=None, *, grad_fn=None, **extra_args):
    params = None if params is None else held.pieces(params)
    if grad_fn is not None:
      flat_fn = grad_fn
      grad_fn = lambda tree: held.pieces(flat_fn(held.vector(tree)))
    updates, state = tx.update(
      held.pieces(updates), state, params, grad_fn=grad_fn, **extra_args
    )
    return held.vector(updates), state

  init = lambda params: tx.init(held.pieces(params))
  return optax.GradientTransformationExtraArgs(init, update)


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


def _waits(config) -> bool:
  """Whether messages would wait for gradients and must not; dpsgd's do not."""
  return config.overlap and config.gossip.name != 'dpsgd'


def _stale(gossip, schedule):
  if not schedule:
    raise ValueError(
      "config.overlap=True needs gossip; config.gossip.name='none' has none."
    )
  try:
    return algorithms.stale(gossip, schedule)
  except ValueError as error:
    raise ValueError(f'config.overlap: {error}') from error


def _runner(config, pod):
  if config.runner not in specs.RUNNERS:
    raise ValueError(
      f'config.runner={config.runner!r}; choose from {sorted(specs.RUNNERS)}.'
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
  return specs.RUNNERS[config.runner]
