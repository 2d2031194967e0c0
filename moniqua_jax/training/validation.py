"""Entries of a config that do not go together, each refused in one line."""

import inspect

import jax
import jax.numpy as jnp

from moniqua_jax import data
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.training import monitor, optimizer, registry

# A worker's parameters are one vector here, in which these would see one layer.
BY_LAYER = 'adafactor fromage lamb lars muon noisy_sgd sm3'.split()


def patience(config, answered: bool) -> int:
  """Returns the patience; refuses one where messages are not acknowledged."""
  if config.patience and not answered:
    raise ValueError(
      f'config.patience={config.patience}: a message that only one end leaves '
      'out moves the mean of the workers; set config.answered, or patience 0.'
    )
  if config.patience is None:
    return monitor.PATIENCE if answered else 0
  return config.patience


def slots(config, pod) -> None:
  """Refuses what does not go with the reduce and gossip slots."""
  name, entry = config.reduce.name, 'config.reduce.name'
  if name == config.gossip.name == 'none':
    raise ValueError(
      "config.reduce.name and config.gossip.name are both 'none'; the "
      'workers would never talk.'
    )
  if config.gossip.name == 'none':
    _without_gossip(config)
  if config.overlap and config.order == 'adapt_then_combine':
    raise ValueError(
      "config.order='adapt_then_combine' sends what the gradient has moved, "
      'and config.overlap=True does not wait for it; take one of them.'
    )
  wants_one = name in ('adiana', 'dcgd', 'diana')
  if wants_one and not optimizer.quantizes_gradients(config, pod):
    raise ValueError(
      f'{entry}={name!r} needs a quantizer of gradients: set config.quantizer, '
      "and config.gossip.name='none'."
    )
  if name == 'adiana':
    _adiana(config, entry)
  if config.momentum_kind.name != 'local':
    _momentum(config)
  outer(config)
  local(config)


def _without_gossip(config) -> None:
  """Refuses entries that say when and how to gossip, where nobody does."""
  for entry, value, wanted in (
    ('overlap', config.overlap, False),
    ('rounds', config.rounds, 1),
    ('rounds_from', tuple(config.rounds_from), ()),
    ('order', config.order, 'adapt_with_combine'),
  ):
    if value != wanted:
      raise ValueError(
        f"config.{entry}={value!r} needs gossip; config.gossip.name='none' has "
        f'none: take {wanted!r}, or a gossip.'
      )


def outer(config) -> None:
  """Refuses what does not go with means of what workers moved."""
  if not optimizer.is_outer(config):
    if dict(config.outer) != optimizer.OUTER:
      raise ValueError(
        f'config.outer={dict(config.outer)} is of the mean of what workers '
        f"moved: set config.gossip.name='none' and config.reduce.name, such as "
        "'allreduce'."
      )
    return
  for entry, value in (
    ('gradient_probe_every', config.gradient_probe_every),
    ('local_momentum', config.local_momentum),
  ):
    if value:
      raise ValueError(
        f'config.{entry}={value} is of means of gradients; with local_steps, '
        'fragments or outer the mean is of what workers moved: take 0.'
      )


def local(config) -> None:
  """Refuses entries that the optimizer has no use for, and some optimizers."""
  name = config.optimizer.name
  entry = f'config.optimizer.name={name!r}'
  takes = inspect.signature(
    registry.found(registry.OPTIMIZERS, 'optimizer', name)
  ).parameters
  for other in optimizer.ENTRIES:
    if config[other] and other not in takes:
      raise ValueError(
        f'{entry} has no use for config.{other}={config[other]!r}: set it '
        f'to {type(config[other])()}; its own arguments are entries of '
        f'config.optimizer: {sorted(set(takes) - {"learning_rate"})}.'
      )
  if name.removeprefix('optax:') in BY_LAYER:
    raise ValueError(
      f'{entry} goes by layers, and the parameters of a worker are one vector '
      'here; take one that goes by numbers (adamw, optax:lion), or a loop of '
      'your own.'
    )


def _momentum(config) -> None:
  for other, value in (
    ('overlap', config.overlap),
    ('local_momentum', config.local_momentum),
    ('optimizer.name', config.optimizer.name.replace('sgd', '')),
  ):
    if value:
      raise ValueError(
        f'config.momentum_kind.name={config.momentum_kind.name!r} follows what '
        f'a worker moves in a step, messages and all; config.{other}={value!r} '
        f"does not go with it: take momentum_kind.name='local'."
      )


def fragments(config) -> None:
  """Refuses what is made for the leaves of the whole model."""
  if config.fragments == 1:
    return
  entry = f'config.fragments={config.fragments}'
  if config.rounds != 1 or config.rounds_from:
    raise ValueError(
      f'{entry} sends less in a step, and config.rounds={config.rounds} more; '
      'take one of them.'
    )
  for other, value, wanted in (
    ('scales_from', config.scales_from, ''),
    ('smoothness.name', config.smoothness.name, 'none'),
  ):
    if value != wanted:
      raise ValueError(
        f'{entry} cuts the model anywhere, and config.{other}={value!r} is of '
        f'its leaves; take {wanted!r}, or fragments 1.'
      )
  if config.quantizer.name == 'block':
    raise ValueError(
      f"{entry} cuts the model anywhere, and config.quantizer.name='block' is "
      "of its leaves; take 'qsgd', or fragments 1."
    )


def means(config, pod, quantizer) -> None:
  """Refuses a quantizer of gradients that does not suit their reduction."""
  entry = 'reduce_quantizer' if pod.size > 1 else 'quantizer'
  try:
    large_leaves.require_suited(optimizer.reduce_name(config), quantizer)
  except ValueError as error:
    raise ValueError(
      f'config.{entry}.name={config[entry].name!r}: {error}'
    ) from error


def _adiana(config, entry) -> None:
  rate = config.learning_rate
  for other, value, wanted in (
    ('learning_rate.name', rate.name, 'constant'),
    ('learning_rate.peak', rate.peak, 1.0),
    ('learning_rate.warmup_epochs', rate.warmup_epochs or 0, 0),
    ('optimizer.name', config.optimizer.name, 'sgd'),
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


def smoothness(config, shape, schedule) -> None:
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
  if shape.per_worker and name in ('auto_theta', 'fitted_theta', 'moniqua'):
    raise ValueError(
      f'{entry}.per_worker=True: {name} reads a message by the values of who '
      'reads it, so all share one D; set it False.'
    )
  if shape.kind == 'layer' and name == 'block':
    raise ValueError(
      f"{entry}.name='layer' changes nothing in config.quantizer.name='block', "
      "whose norms are of one leaf each; take 'diagonal', 'kronecker', or qsgd."
    )


def pods(config, pod) -> None:
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


def dataset(config, read) -> None:
  """Refuses a data set of one's own that is none."""
  if not isinstance(read, data.Dataset):
    raise ValueError(
      f'config.data.name={config.data.name!r} gives a {type(read).__name__}; '
      'it must give a moniqua_jax.data.Dataset, as data.in_memory makes one.'
    )


def model(config, module, variables, read) -> None:
  """Refuses a model of one's own whose outputs are not logits of classes."""
  if ':' not in config.model.name:
    return
  images = jnp.zeros((2, *read.shape), jnp.float32)
  apply = lambda variables: module.apply(variables, images, train=False)
  shape = jax.tree.map(jnp.shape, jax.eval_shape(apply, variables))
  if shape != (2, read.num_classes):
    raise ValueError(
      f'config.model.name={config.model.name!r} gives {shape} of 2 images; '
      f'it must give logits, (2, {read.num_classes}).'
    )


def batch(batch_size: int, shards) -> None:
  """Refuses a batch that is larger than a worker's shard."""
  sizes = [len(shard) for shard in shards]
  least = min(sizes)
  if batch_size > least:
    raise ValueError(
      f'config.batch_size={batch_size} is larger than the shard of worker '
      f'{sizes.index(least)} ({least} images); use at most {least}, or '
      'fewer workers.'
    )
