"""What a run on a pod would send and compute, by calculation alone.

  moniqua-plan --config=moniqua_resnet20 --topology=v5e:16x16 --workers=4096

Bytes are exact: the sizes of the payloads of `moniqua` (`push_sum` adds 4, and
`auto_theta` is answered by 1). Times are estimates, from floating-point
operations and bytes of memory over what the chip can do. Nothing is compiled,
and no such chip need be there.
"""

import functools
import math
import re
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import bytes_sent, data, quantizers, topologies, wire
from moniqua_jax.quantizers import base

BITS = (32, 8, 4, 2, 1)
UTILISATION = 0.4


class Chip(NamedTuple):
  """What the maker of a chip says that it can do.

  Attributes:
    flops: a second, at the precision in which JAX multiplies float32 there:
      bf16 on a TPU, TF32 on a GPU.
    memory: bytes a second.
  """

  flops: float
  memory: float


CHIPS = {
  'v4': Chip(275e12, 1228e9),
  'v5e': Chip(197e12, 819e9),
  'v5p': Chip(459e12, 2765e9),
  'v6e': Chip(918e12, 1640e9),
  'A100': Chip(156e12, 2039e9),
  'H100': Chip(495e12, 3350e9),
  'cpu': Chip(0.05e12, 10e9),  # one core
}

# (height, width, channels), classes: what else would be read from the data.
IMAGES = {
  'cifar10': ((32, 32, 3), 10),
  'digits': ((8, 8, 1), 10),
  'imagenet2012': ((224, 224, 3), 1000),
}


class Pod(NamedTuple):
  """The chips that a run would have.

  Attributes:
    chip: its name.
    chips: in one pod.
    pods: how many, each with one worker a chip if there are several.
    workers: in all.
  """

  chip: str
  chips: int
  pods: int
  workers: int


class Row(NamedTuple):
  """One number of bits.

  Attributes:
    bits: per value; 32 is full precision.
    per_link: bytes of a message.
    per_worker: bytes that a worker sends in a step, the mean over workers and
      over the rounds of the schedule.
    codec: seconds a step, beyond the mixing that full precision has as well.
    pays_below: bits a second of a worker's link below which the bytes saved
      take longer than the codec; 0 for full precision.
    exceeds_below: bits a second below which the messages take longer than the
      gradient.
  """

  bits: int
  per_link: int
  per_worker: float
  codec: float
  pays_below: float
  exceeds_below: float


def pod(topology: str, workers: int | None = None) -> Pod:
  """Reads `CHIP` or `CHIP:AxB`; says how many pods so many workers need.

  >>> pod('v5e:16x16', workers=4096)
  Pod(chip='v5e', chips=256, pods=16, workers=4096)
  """
  chip, _, shape = topology.partition(':')
  if chip not in CHIPS:
    raise ValueError(
      f'--topology={topology}: unknown chip {chip!r}; choose from '
      f'{sorted(CHIPS)}.'
    )
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', shape or '1'):
    raise ValueError(
      f'--topology={topology}: {shape!r} is no shape; it is CHIP:A, CHIP:AxB '
      'or CHIP:AxBxC, such as v5e:16x16.'
    )
  chips = math.prod(map(int, (shape or '1').split('x')))
  workers = chips if workers is None else workers
  if workers < 2 or (workers % chips and chips % workers):
    raise ValueError(
      f'--workers={workers}: {topology} has {chips} chips; it takes 2 workers '
      'or more that divide them (several chips each), or a multiple of them '
      '(several pods).'
    )
  return Pod(chip, chips, max(1, workers // chips), workers)


def schedule(config, workers: int) -> tuple[topologies.Topology, ...]:
  """Builds the topologies of a config for so many workers."""
  if config.gossip.name == 'none':
    raise ValueError(
      "config.gossip.name='none': a plan compares the messages of gossip."
    )
  from moniqua_jax.training import registry

  topology = registry.build(
    registry.TOPOLOGIES, 'topology', config.topology, n=workers
  )
  rounds = topologies.schedule(topology)
  if rounds[0].n != workers:
    raise ValueError(
      f'config.topology has {rounds[0].n} workers, the plan {workers}; set '
      'config.topology.rows and cols.'
    )
  return rounds


def dataset(config) -> data.Dataset:
  """The form of the data set of a config: shapes and classes, nothing in it."""
  name, given, none = config.data.name, config.data, cast(Any, None)
  nothing = dict(train=none, test=none, augment=none, preprocess=none)
  if name == 'synthetic':
    shape, classes = tuple(given.shape), given.num_classes
  elif name in IMAGES:
    shape, classes = IMAGES[name]
  elif name == 'text' and given.symbols != 'characters':
    shape = (given.window or 128,)
    return data.Dataset(**nothing, num_classes=256, shape=shape, field='text')
  else:
    raise ValueError(
      f'config.data.name={name!r}: a plan knows the images of '
      f'{sorted([*IMAGES, "synthetic"])}, and text in bytes.'
    )
  return data.Dataset(**nothing, num_classes=classes, shape=shape)


def require_net(config) -> None:
  """Refuses a config of a laboratory."""
  if 'laboratory' in config:
    raise ValueError('this config is of a laboratory; a plan is for a net.')


def gradient(config):
  """Builds a worker's gradient, and the shapes of what it takes.

  Returns a function of (params, state, batch), and these.
  """
  from moniqua_jax.training import ones_own, registry, tasks, validation

  validation.validate(config)
  require_net(config)
  of = dataset(config)
  task = tasks.of(of)
  model = registry.build(
    registry.MODELS, 'model', config.model, num_classes=of.num_classes
  )
  batch = jax.eval_shape(lambda: task.example(config.batch_size))
  batch['label'] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
  inputs = jax.eval_shape(task.inputs, batch)
  with ones_own.named(config, 'model', ones_own.A_MODEL):
    init = functools.partial(model.init, train=False)
    variables = dict(jax.eval_shape(init, jax.random.key(0), inputs))
  params = variables.pop('params')

  def loss(params, state, batch):
    outputs, _ = model.apply(
      {'params': params, **state},
      task.inputs(batch),
      train=True,
      mutable=list(state),
    )
    return task.losses(outputs, batch)[0].mean()

  return jax.grad(loss), (params, variables, batch)


def work(config) -> tuple[int, float]:
  """Counts the model's parameters, and the operations of a worker's gradient.

  Operations of a step are counted by XLA, before the program is compiled.
  """
  fn, shapes = gradient(config)
  size = sum(leaf.size for leaf in jax.tree.leaves(shapes[0]))
  costs: Any = jax.jit(fn).lower(*shapes).cost_analysis()
  return size, float(costs['flops'])


def rows(
  rounds: tuple[topologies.Topology, ...],
  d: int,
  compute: float,
  chip: Chip,
  often: float = 1.0,
) -> list[Row]:
  """Computes a `Row` for each of `BITS`.

  The codec of b bits writes a payload from x, and checks what came in on E
  edges next to x: 4 d (2 + (1 + E) b / 32) bytes of memory, as `often` as a
  step has a round. `compute` is the seconds of a gradient.
  """
  edges = np.mean([len(topology.edges) for topology in rounds])
  x, sent = jax.ShapeDtypeStruct((d,), jnp.float32), {}
  for bits in BITS:
    full = bits == max(BITS)
    q = quantizers.full_precision() if full else quantizers.moniqua(1.0, bits)
    per_worker = bytes_sent.of_gossip(rounds, base.tuned(q), d).gossip.mean()
    per_worker *= often
    codec = 0.0 if full else 4 * d * (2 + (1 + edges) * bits / 32) / chip.memory
    message = jax.eval_shape(q.encode, x, jax.random.key(0))
    sent[bits] = wire.nbytes(message), float(per_worker), float(often * codec)
  most = sent[max(BITS)][1]
  return [
    Row(
      bits,
      sent[bits][0],
      sent[bits][1],
      sent[bits][2],
      8 * (most - sent[bits][1]) / sent[bits][2] if sent[bits][2] else 0.0,
      8 * sent[bits][1] / compute,
    )
    for bits in BITS
  ]


def text(config, where: Pod, utilisation: float = UTILISATION) -> str:
  """Writes the plan in words and one table."""
  from moniqua_jax.training import talk

  if not 0 < utilisation <= 1:
    raise ValueError(
      f'--utilisation={utilisation}; it must be above 0 and at most 1.'
    )
  require_net(config)
  rounds, (d, flops) = schedule(config, where.workers), work(config)
  chip, each = CHIPS[where.chip], max(1, where.chips // where.workers)
  compute = flops / each / (utilisation * chip.flops)
  # A link must carry the steps that talk most.
  pieces = talk.of(config).pieces
  often = max(count / steps for _, count, steps in pieces)
  messages = bytes_sent.receivers(rounds).mean() * often
  memory = chip._replace(memory=each * chip.memory)
  lines = [
    f'{where.workers} workers of {each} {where.chip}, in pods of {where.chips}:'
    f' {where.pods}',
    f'{config.model.name}: {d:,} parameters, {4 * d / 1e6:,.1f} MB; '
    f'{config.batch_size} images a worker and step',
    f'{config.topology.name}: {messages:g} messages a worker and step',
    f'gradient, estimated: {1e3 * compute:.3g} ms a step, {flops / 1e9:,.3g} '
    f'GFLOP at {utilisation:.0%} of {each * chip.flops / 1e12:g} TFLOP/s',
    '',
    f'{"bits":>4}{"MB a link":>12}{"MB a worker":>13}{"codec, ms":>12}'
    f'{"pays below, Gbit/s":>20}{"longer than the gradient below":>32}',
  ]
  sent = -(-d // config.fragments)
  for row in rows(rounds, sent, compute, memory, often):
    pays = f'{row.pays_below / 1e9:,.1f}' if row.codec else '-'
    lines.append(
      f'{row.bits:>4}{row.per_link / 1e6:>12,.3f}{row.per_worker / 1e6:>13,.3f}'
      f'{1e3 * row.codec:>12.3g}{pays:>20}{row.exceeds_below / 1e9:>32,.3f}'
    )
  return '\n'.join(lines)
