"""What does not go with what was built or read, each refused in one line.

What a config alone tells is in `entries` and `dependences`.
"""

import inspect

import jax

from moniqua_jax.algorithms import large_leaves
from moniqua_jax.training import monitor, optimizer, registry

# These go by layers, and would see one in a vector.
BY_LAYER = (
  *('adafactor', 'fromage', 'galore', 'lamb', 'lars', 'muon', 'noisy_sgd'),
  *('novograd', 'sm3'),
)
# These go by a norm of all parameters.
BY_NORM = ('dog', 'dowg', 'prodigy')
# They read a message by the values of who reads it, so that all share one D.
BY_READER = ('auto_theta', 'fitted_theta', 'moniqua')


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
  name = config.reduce.name
  wants_one = name in ('adiana', 'dcgd', 'diana')
  if wants_one and not optimizer.quantizes_gradients(config, pod):
    raise ValueError(
      f'config.reduce.name={name!r} needs a quantizer of gradients: set '
      "config.quantizer, and config.gossip.name='none'."
    )
  if name == 'power_sgd' and (
    pod.size > 1 or optimizer.quantizes_gradients(config, pod)
  ):
    raise ValueError(
      "config.reduce.name='power_sgd' sends factors of matrices in float32, "
      'between workers of one device: set config.quantizer.name to '
      'full_precision, config.pod.data and config.pod.fsdp to 1.'
    )
  if config.batch_size % pod.size:
    raise ValueError(
      f'config.batch_size={config.batch_size} images of a pod cannot be shared '
      f'equally by its {pod.size} devices.'
    )
  _cut(config, pod)
  outer(config)
  local(config, pod.size)


def _cut(config, pod) -> None:
  """Refuses what is made for leaves where a mean cuts the vector of them."""
  strategy, name = config.reduce.get('strategy'), config.reduce.name
  anywhere = strategy == 'scatter_reduce' or name == 'double_squeeze'
  if not (anywhere and optimizer.quantizes_gradients(config, pod)):
    return
  entry = 'reduce_quantizer' if pod.size > 1 else 'quantizer'
  quantizer, shape = config[entry].name, config.smoothness.name
  rows = [(f'{entry}.name', quantizer, quantizer == 'block', 'qsgd')]
  if pod.size == 1:  # else these are of the gossip, which sends all leaves
    rows += [
      ('smoothness.name', shape, shape != 'none', 'none'),
      ('scales_from', config.scales_from, bool(config.scales_from), ''),
    ]
  for other, value, of_leaves, take in rows:
    if of_leaves:
      raise ValueError(
        f'config.{other}={value!r} is made for leaves, and a mean of equal '
        f'parts of their vector cuts them anywhere: set it to {take!r}, or '
        'config.reduce.name to allreduce with '
        'config.reduce.strategy=all_gather.'
      )


def outer(config) -> None:
  """Refuses what does not go with means of what workers moved."""
  if not optimizer.is_outer(config):
    _outer_gossip(config)
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


def _outer_gossip(config) -> None:
  """Refuses an optimizer of what workers moved where nothing is after it."""
  if not optimizer.has_outer_step(config):
    return
  entry = f'config.outer={dict(config.outer)} is of what workers moved'
  if config.gossip.name != 'dpsgd' or config.reduce.name != 'none':
    raise ValueError(
      f'{entry}: set config.gossip.name to dpsgd without a reduce, or to none '
      'with a config.reduce.name such as allreduce.'
    )
  if config.order != 'adapt_then_combine':
    raise ValueError(
      f'{entry}, messages and all: set config.order to adapt_then_combine.'
    )


def local(config, alone: int) -> None:
  """Refuses entries that the optimizer has no use for, and some optimizers."""
  name = config.optimizer.name
  entry = f'config.optimizer.name={name!r}'
  if name == 'dadam' and (config.gossip.name == 'none' or alone > 1):
    raise ValueError(
      f'{entry} lets neighbours agree on second moments: it needs gossip '
      '(config.gossip.name=dpsgd) of workers of one device; adamw does without.'
    )
  takes = inspect.signature(
    registry.found(registry.OPTIMIZERS, 'optimizer', name)
  ).parameters
  if 'by_leaf' in takes and alone > 1:
    raise ValueError(
      f'{entry} goes by layers, of which a device of a pod has a part: set '
      'config.pod.data and config.pod.fsdp to 1, or take adamw.'
    )
  module, _, function = name.partition(':')
  of_optax = module.startswith('optax')
  if of_optax and function in BY_NORM and config.pod.fsdp > 1:
    raise ValueError(
      f'{entry} goes by a norm of all parameters, of which a device has a '
      'part: set config.pod.fsdp to 1, or take adamw.'
    )
  if config.nesterov and not (config.momentum or config.local_momentum):
    raise ValueError(
      'config.nesterov=True is a form of the momentum, and config.momentum=0: '
      'set that above 0, or config.nesterov to False.'
    )
  for other in optimizer.ENTRIES:
    if config[other] and other not in takes:
      raise ValueError(
        f'{entry} has no use for config.{other}={config[other]!r}: set it '
        f'to {type(config[other])()}; its own arguments are entries of '
        f'config.optimizer: {sorted(set(takes) - {"learning_rate"})}.'
      )
  if of_optax and function in BY_LAYER:
    raise ValueError(
      f'{entry} goes by layers, and the parameters of a worker are one vector '
      'here; take muon, one that goes by numbers (adamw, lion), or a function '
      'of your own that takes by_leaf and returns by_leaf(optax...(...)).'
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


def smoothness(config, shape, schedule) -> None:
  """Refuses a D for each worker where all must share one."""
  if not shape.per_worker:
    return
  name, entry = config.quantizer.name, 'config.smoothness.per_worker=True'
  if schedule:
    raise ValueError(f'{entry}: in gossip all share one D; set it False.')
  if name in BY_READER:
    raise ValueError(
      f'{entry}: {name} reads a message by the values of who reads it, so all '
      'share one D; set it False.'
    )


def fragments(config, part) -> None:
  """Refuses more fragments than a device has parameters."""
  size = sum(leaf.size for leaf in jax.tree.leaves(part))
  if config.fragments > size:
    raise ValueError(
      f'config.fragments={config.fragments} is more than the {size} parameters '
      f'of a device; use at most {size}.'
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
