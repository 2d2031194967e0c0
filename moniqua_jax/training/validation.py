"""Entries of a config that do not go together, each refused in one line."""


def reduce(config, quantized: bool) -> None:
  """What dcgd, diana and adiana want of the rest of the config.

  Args:
    config: a ConfigDict.
    quantized: whether gradients have a quantizer.

  Raises:
    ValueError: there is none; adiana with momentum, weight decay, a learning
      rate other than 1 or the gradient probe.

  >>> import types
  >>> name = types.SimpleNamespace(name='allreduce')
  >>> reduce(types.SimpleNamespace(reduce=name), quantized=False)
  """
  name, entry = config.reduce.name, 'config.reduce.name'
  if name in ('adiana', 'dcgd', 'diana') and not quantized:
    raise ValueError(
      f'{entry}={name!r} needs a quantizer of gradients: set config.quantizer, '
      "and config.gossip.name='none'."
    )
  if name != 'adiana':
    return
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


def smoothness(config, shape, schedule: tuple) -> None:
  """Whether estimates of this kind can shape this quantizer.

  Args:
    config: a ConfigDict.
    shape: a `smoothness.Smoothness`.
    schedule: topologies, () without gossip.

  Raises:
    ValueError: they cannot, or would change nothing.

  >>> import types
  >>> from moniqua_jax.curvature.refresh import estimated
  >>> config = types.SimpleNamespace(
  ...   quantizer=types.SimpleNamespace(name='qsgd'), scales_from='')
  >>> smoothness(config, estimated('layer'), schedule=())
  """
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


def pods(config, pod) -> None:
  """What goes with pods of several devices, and what needs them.

  Args:
    config: a ConfigDict.
    pod: a `pods.Pod`.

  Raises:
    ValueError: no gossip between them; images or gradients that cannot be
      shared out; what knows one device for each worker.

  >>> import types
  >>> full = types.SimpleNamespace(name='full_precision')
  >>> pods(types.SimpleNamespace(reduce_quantizer=full), types.SimpleNamespace(
  ...   size=1, data=1))
  """
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
