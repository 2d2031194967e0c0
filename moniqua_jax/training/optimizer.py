"""The chain of one worker: momentum, reduce, local, gossip; on flat vectors."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import algorithms, collectives, pods, topologies, workers
from moniqua_jax.algorithms import large_leaves, transformation
from moniqua_jax.algorithms.dadam import DadamState
from moniqua_jax.algorithms.delayed import delayed
from moniqua_jax.quantizers import base
from moniqua_jax.training import ones_own, registry, talk
from moniqua_jax.training.by_leaf import by_leaf

# Of a config, not of its `optimizer`: each optimizer takes those it knows.
ENTRIES = ('momentum', 'nesterov', 'weight_decay')

# Of `config.outer`: the mean is taken as it is.
OUTER = {'learning_rate': 1.0, 'momentum': 0.0, 'nesterov': False, 'delay': 0}


class Optimizer(NamedTuple):
  """The chain of one worker, by slots; a state of it has the same slots.

  Attributes:
    momentum: of each worker's own gradients.
    reduce: of gradients to their mean.
    local: weight decay, momentum and learning rate.
    gossip: of updates to updates and the pull of the neighbours, or the mean of
      what workers moved; with quasi-global momentum from gradients, and
      momentum and rate are here.
  """

  momentum: optax.GradientTransformation
  reduce: transformation.Reduction
  local: optax.GradientTransformation
  gossip: transformation.Gossip

  @property
  def chain(self) -> optax.GradientTransformationExtraArgs:
    """All slots."""
    return optax.chain(*self)

  @property
  def alone(self) -> optax.GradientTransformationExtraArgs:
    """All slots but gossip."""
    return optax.chain(*self[:-1])

  def heard(self, state):
    """Returns what the gossip heard, from the chain's state; None without."""
    heard = self.gossip.heard
    return heard(Optimizer(*state).gossip) if heard else None

  def lost(self, state) -> jax.Array:
    """Returns i32[], the steps so far that were not finite, and were lost."""
    slots = Optimizer(*state)
    lost = jnp.int32(getattr(slots.reduce, 'lost', 0))
    if moments := moments_of(slots.local):
      lost += moments.told.lost
    counts = getattr(slots.gossip, 'heard', None)
    return lost + counts.lost if counts else lost


def make(
  setup,
  quantizer: base.Tuned,
  means: base.Tuned | None,
  slices: large_leaves.Slices,
  learning_rate: Callable | float,
  held: pods.Held,
) -> Optimizer:
  """Builds the chain; `slices` of a gradient are quantized by `means`."""
  config, pod, key = setup.config, setup.pod, jax.random.key(setup.config.seed)
  gossip = functools.partial(_gossip, config, setup.schedule, quantizer)
  reduce = functools.partial(_reduce, config, pod, means, slices)
  if pod.size > 1:
    gossip = pods.on_own_part(gossip, key, pod)
    reduce = pods.of_device(reduce, key, (workers.AXIS, pods.FSDP))
  elif is_outer(config):
    gossip = _seldom(config, _outer(config, reduce(key)))
    reduce = transformation.no_reduction()
  else:
    gossip, reduce = gossip(key), reduce(key)
  gossip = _with_momentum(config, gossip, learning_rate)
  own = local(config, learning_rate, held, setup.schedule)
  return Optimizer(momentum(config), reduce, own, gossip)


def momentum(config) -> optax.GradientTransformation:
  """Builds the momentum of each worker's own gradients, before any mean."""
  if not config.local_momentum:
    return optax.identity()
  return optax.trace(config.local_momentum, config.nesterov)


def only(local: optax.GradientTransformation) -> Optimizer:
  """Returns the chain of a worker that talks to nobody."""
  return Optimizer(
    optax.identity(),
    transformation.no_reduction(),
    local,
    transformation.no_gossip(),
  )


def local(
  config, learning_rate, held: pods.Held, schedule: tuple = ()
) -> optax.GradientTransformation:
  """Builds what a worker does by itself, by default SGD with momentum."""
  if config.momentum_kind.name != 'local':
    return _clipped(config, optax.add_decayed_weights(config.weight_decay))
  entries = {entry: config[entry] for entry in ENTRIES}
  with ones_own.named(config, 'optimizer', ones_own.AN_OPTIMIZER):
    optimizer = registry.build(
      registry.OPTIMIZERS,
      'optimizer',
      config.optimizer,
      learning_rate=learning_rate,
      by_leaf=functools.partial(by_leaf, held),
      topology=schedule,
      axis_name=workers.AXIS,
      # Not that of the gossip, whose dither is of the same places.
      key=jax.random.fold_in(jax.random.key(config.seed), 1),
      **entries,
    )
    return _clipped(config, optimizer)


def moments_of(state) -> DadamState | None:
  """Finds the moments that workers share, if there are such."""
  is_it = lambda node: isinstance(node, DadamState)
  found = filter(is_it, jax.tree.leaves(state, is_leaf=is_it))
  return next(found, None)


def _clipped(config, optimizer) -> optax.GradientTransformation:
  if config.clip is None:
    return optimizer
  return optax.chain(_clip(config.clip, pods.of(config).fsdp), optimizer)


def _clip(largest: float, fsdp: int) -> optax.GradientTransformation:
  """Builds `clip_by_global_norm` of a gradient in parts on so many devices."""
  if fsdp == 1:
    return optax.clip_by_global_norm(largest)

  def update(updates, params=None):
    del params
    square = sum(jnp.sum(u**2) for u in jax.tree.leaves(updates))
    norm = jnp.sqrt(fsdp * collectives.mean(square, pods.FSDP))
    clipped = lambda u: jnp.where(norm < largest, u, u / norm * largest)
    return jax.tree.map(clipped, updates)

  return optax.stateless(update)


# ------------------------------------------------------- the mean of gradients


def reduce_name(config) -> str:
  """Names the reduction; replicas take a mean, by default the exact one."""
  replicas = pods.of(config).data > 1
  name = config.reduce.name
  return 'allreduce' if replicas and name == 'none' else name


def quantizes_gradients(config, pod) -> bool:
  """Tells whether gradients have a quantizer.

  A config has one of its own for means within a pod; else there is one
  quantizer, of the gossip, or without gossip of the gradients.
  """
  if pod.size > 1:
    return config.reduce_quantizer.name != 'full_precision'
  of_gossip = config.gossip.name != 'none'
  return not of_gossip and config.quantizer.name != 'full_precision'


def of_means(setup, quantizer, slices) -> base.Tuned | None:
  """Returns the quantizer of gradients, or None."""
  config, pod = setup.config, setup.pod
  if not quantizes_gradients(config, pod):
    return None
  if pod.size == 1:
    return quantizer
  return base.tuned(
    registry.build(
      registry.QUANTIZERS,
      'reduce_quantizer',
      config.reduce_quantizer,
      axis_name=pods.DATA,
      leaf_sizes=slices.sizes,
    )
  )


def _reduce(config, pod, means, slices, key):
  spec = dict(config.reduce) | {'name': reduce_name(config)}
  axis_name = pods.DATA if pod.size > 1 else workers.AXIS
  given = {'axis_name': axis_name, 'key': key, 'keep': slices}
  if means is not None:
    given['quantizer'] = means
  return registry.build(registry.REDUCE, 'reduce', spec, **given)


def is_outer(config) -> bool:
  """Tells whether means are of what workers moved, not of their gradients.

  So it is where a mean is not taken of everything in each step.
  """
  if config.gossip.name != 'none' or reduce_name(config) == 'none':
    return False
  often = talk.local_steps(config) == ((0, 1),) and config.fragments == 1
  return not often or has_outer_step(config)


def has_outer_step(config) -> bool:
  """Tells whether there is an optimizer of what workers moved."""
  return OUTER | dict(config.outer) != OUTER


def _outer(config, algorithm):
  """Builds the optimizer of what workers moved around a mean, or gossip."""
  rate, momentum, nesterov, _ = (config.outer[entry] for entry in OUTER)
  optimizer = optax.sgd(rate, momentum or None, nesterov)
  return _wrapped('outer', algorithms.outer, algorithm, optimizer)


# ---------------------------------------------------------------------- gossip


def law(config) -> str:
  """Names the law of theory that the gossip follows."""
  form = 'stale_' if waits(config) else ''
  form = 'atc_' if config.order == 'adapt_then_combine' else form
  return form + config.gossip.name


def waits(config) -> bool:
  """Tells whether messages would wait for gradients; dpsgd's do not."""
  return config.overlap and config.gossip.name != 'dpsgd'


def mixing(config, schedule):
  """Returns what a round does to messages: W with the consensus step in it.

  eta, gamma and epsilon stand before W - I, as the gamma of `lazy` does.
  """
  for name in ('eta', 'gamma', 'epsilon'):
    step = config.gossip.get(name)
    if step is not None:
      schedule = topologies.lazy(schedule, step)
  return schedule


def _gossip(config, schedule, quantizer, key):
  gossip = registry.build(
    registry.GOSSIP,
    'gossip',
    config.gossip,
    topology=schedule,
    quantizer=quantizer,
    axis_name=workers.AXIS,
    key=key,
    on_unreadable='ignore',  # the monitor looks at each step
  )
  if config.gossip.name == 'none':
    return gossip
  if has_outer_step(config):
    return _seldom(config, _outer(config, _rounds(config, gossip)))
  gossip = _seldom(config, _rounds(config, gossip))
  order = registry.ORDERS[config.order]
  gossip = _wrapped(f'order={config.order!r}', order, gossip)
  if waits(config):
    mixed = mixing(config, schedule)
    gossip = _wrapped('overlap', algorithms.stale, gossip, mixed)
  return gossip


def _rounds(config, gossip):
  """Wraps what a step does more often."""
  numbers = talk.rounds(config)
  if numbers in (1, ((0, 1),)):
    return gossip
  return _wrapped(f'rounds={config.rounds}', algorithms.rounds, gossip, numbers)


def _seldom(config, gossip):
  """Wraps what a step does less often, or later."""
  fragments, delay = config.fragments, config.outer.delay
  steps = talk.local_steps(config)
  if fragments > 1:
    entry = f'fragments={fragments}'
    gossip = _wrapped(entry, algorithms.streaming, gossip, fragments)
  if delay:
    return _wrapped(f'outer.delay={delay}', delayed, gossip, steps, delay)
  if steps != ((0, 1),):
    entry = f'local_steps={config.local_steps}'
    gossip = _wrapped(entry, algorithms.every, gossip, steps)
  return gossip


def _with_momentum(config, gossip, learning_rate):
  return registry.build(
    registry.MOMENTUM_KINDS,
    'momentum_kind',
    config.momentum_kind,
    algorithm=gossip,
    learning_rate=learning_rate,
    momentum=config.momentum,
    nesterov=config.nesterov,
  )


def _wrapped(entry, wrap, *args):
  try:
    return wrap(*args)
  except ValueError as error:
    raise ValueError(f'config.{entry}: {error}') from error
