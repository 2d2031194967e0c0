"""The chain of one worker: local momentum, reduce, local, gossip."""

import functools

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import algorithms, pods, workers
from moniqua_jax.curvature import refresh
from moniqua_jax.quantizers import base
from moniqua_jax.training import registry, validation


def make(config, learning_rate, schedule, quantizer, given, held, pod) -> tuple:
  """Builds the chain of one worker, for flat gradients.

  Args:
    config: a ConfigDict.
    learning_rate: by step.
    schedule: topologies, () without gossip.
    quantizer: a `Tuned`, of the gossip.
    given: to the reduce slot, as `of_gradients` has it.
    held: how a device holds the parameters.
    pod: the devices of a worker.

  Returns:
    Transformations: reduce, the whole chain, all of it but gossip, gossip.

  Raises:
    ValueError: the slots do not go together.
  """
  if config.reduce.name == config.gossip.name == 'none':
    raise ValueError(
      "config.reduce.name and config.gossip.name are both 'none'; the "
      'workers would never talk.'
    )
  validation.reduce(config, quantized='quantizer' in given)
  key = jax.random.key(config.seed)
  gossip = functools.partial(_gossip, config, schedule, quantizer)
  reduce = functools.partial(_reduce, config, given, held)
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


def of_gradients(config, schedule, quantizer, held, pod) -> dict:
  """What the reduce slot is given.

  Args:
    config, schedule, quantizer, held, pod: see `make`.

  Returns:
    `axis_name`, and `quantizer` where means are quantized.
  """
  if pod.size > 1:
    return {'axis_name': pods.DATA} | _inside_quantizer(config, held, pod)
  # One quantizer: of the gossip, or without gossip of the gradients.
  if not schedule and config.quantizer.name != 'full_precision':
    return {'axis_name': workers.AXIS, 'quantizer': quantizer}
  return {'axis_name': workers.AXIS}


def _inside_quantizer(config, held, pod) -> dict:
  if config.reduce_quantizer.name == 'full_precision':
    return {}
  leaves = refresh.quantized(pieces(held, pod), schedule=())
  quantizer = registry.build(
    registry.QUANTIZERS,
    'reduce_quantizer',
    config.reduce_quantizer,
    axis_name=pods.DATA,
    leaf_sizes=tuple(leaf.size for leaf in leaves),
  )
  return {'quantizer': base.tuned(quantizer)}


def pieces(held, pod):
  """What a device holds of each leaf.

  Args:
    held: how a device holds the parameters.
    pod: the devices of a worker.

  Returns:
    A pytree of shapes.
  """
  size = pod.data * sum(leaf.size for leaf in jax.tree.leaves(held.part))
  vector = jax.ShapeDtypeStruct((size,), jnp.float32)
  return jax.eval_shape(held.pieces, vector)


def _gossip(config, schedule, quantizer, key):
  gossip = registry.build(
    {'none': optax.identity} | registry.GOSSIP,
    'gossip',
    config.gossip,
    topology=schedule,
    quantizer=quantizer,
    axis_name=workers.AXIS,
    key=key,
  )
  if config.local_steps != 1:
    gossip = _every(gossip, config.local_steps)
  return _stale(gossip, schedule) if waits(config) else gossip


def _reduce(config, given, held, key):
  spec = dict(config.reduce) | {'name': reduce_name(config)}
  choices = {'none': optax.identity} | registry.REDUCE
  reduce = registry.build(choices, 'reduce', spec, key=key, **given)
  return reduce if spec['name'] == 'none' else _on_leaves(reduce, held)


def reduce_name(config) -> str:
  """Replicas always take the mean of their gradients, by default exactly."""
  replicas = pods.of(config).data > 1
  name = config.reduce.name
  return 'allreduce' if replicas and name == 'none' else name


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


def waits(config) -> bool:
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
