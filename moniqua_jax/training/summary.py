"""What a config would run, in words: for --dry_run and the start of a run.

And, at its end, what came of a plan.
"""

import pathlib

import jax

from moniqua_jax import bytes_sent as traffic_lib
from moniqua_jax import topologies
from moniqua_jax.plan import report
from moniqua_jax.training import bytes_sent, metrics, optimizer, talk
from moniqua_jax.training import experiment as experiment_lib
from moniqua_jax.training import workdir as workdir_lib


def describe(experiment: experiment_lib.Experiment) -> str:
  """Says in a few lines what a run is: data, net, topology, bytes."""
  config, pace = experiment.setup.config, experiment.pace
  planned = experiment.setup.planned
  leaves = jax.tree.leaves(experiment.model.variables['params'])
  size = sum(leaf.size for leaf in leaves)
  statistics = 'none'
  if 'batch_stats' in experiment.model.variables:
    statistics = 'stay with each worker; pooled exactly for the mean model'
  rows = {
    'variant': config.variant or 'none',
    'data': _describe_data(config, experiment.data),
    'model': f'{config.model.name}, {size:,} parameters in {len(leaves)} leaves'
    f', {4 * size / 1e6:.2f} MB in float32',
    'statistics': statistics,
    'run': f'{pace.steps} steps, {config.epochs} epochs, batches of '
    f'{config.batch_size} on each of {config.workers} workers, '
    f'{config.runner}',
    **_describe_pods(config, experiment),
    **_describe_momentum(config),
    'budget': report.planned(planned) if planned else 'none',
    'reduce': _describe_reduce(config),
    **_describe_gossip(config, experiment.setup.schedule),
    'quantizer': _listed(config.quantizer)
    + (', rotated' if config.rotated else ''),
    'smoothness': _describe_smoothness(config, experiment),
    'theta': _describe_theta(config, experiment),
    'wire': _describe_wire(experiment, size),
  }
  told = {name: text for name, text in rows.items() if text != 'none'}
  return '\n'.join(f'{name:10s} {text}' for name, text in told.items())


def came(workdir) -> str:
  """Says what a run made of its plan, and of text; '' of one with neither."""
  folder = pathlib.Path(workdir)
  run, rows = workdir_lib.noted(folder), metrics.read(folder)
  tested = [row for row in rows if 'test/bits_per_character' in row]
  said = [_text(run['text'], row) for row in tested[-1:] if 'text' in run]
  if (sample := folder / 'sample.txt').exists():
    said.append(sample.read_text('utf-8'))
  if planned := run.get('planned'):
    said.append(report.came(planned, rows))
  return '\n'.join(said)


def _text(noted, row) -> str:
  """Compares with compressors what a model needs for what is held out."""
  packed = noted.get('bits_per_character', {})
  others = [f'{name} needs {bits:.3f}' for name, bits in packed.items()]
  bits = f'{row["test/bits_per_character"]:.3f} bits a character held out'
  return ', '.join([bits, *others])


def _describe_data(config, read) -> str:
  shards = sorted(len(shard) for shard in read.shards)
  kind = 'windows' if read.dataset.text else 'images'
  return (
    f'{config.data.name}, {len(read.dataset.train.labels)} training and '
    f'{len(read.dataset.test.labels)} test {kind}; {config.partition.name} '
    f'shards of {shards[0]} to {shards[-1]}'
  )


def _describe_wire(experiment, size) -> str:
  sent = _bytes_per_step(experiment, experiment.sent.by_worker)
  full = _bytes_per_step(experiment, experiment.sent.in_full_precision)
  talks = experiment.turns.before(experiment.pace.steps)
  return (
    f'{sent:,.0f} bytes per worker and step, {8 * sent / size:.3f} bits per '
    f'parameter; full precision sends {full / max(sent, 1):.1f} times as much'
    + ('' if talks else '; but the run ends before its first message')
  )


def _describe_pods(config, experiment) -> dict:
  pod, sent_by = experiment.setup.pod, experiment.sent
  if pod.size == 1:
    return {}
  sent = _bytes_per_step(experiment, sent_by.by_worker) / pod.size
  within = traffic_lib.total(sent_by.within_pod, 1, 0)
  leaves = jax.tree.leaves(experiment.model.held.part)
  held = 4 * pod.data * sum(leaf.size for leaf in leaves)
  quantizer = config.reduce_quantizer
  exact = quantizer.name == 'full_precision'
  return {
    'pod': f'{pod.data} (data) x {pod.fsdp} (fsdp) devices; each holds '
    f'{held / 1e6:.2f} MB of parameters, sends {sent:,.0f} bytes a step to '
    f'other pods and at most {within:,.0f} within its own, whose gradients are '
    f'reduced {"exactly" if exact else "by " + _listed(quantizer)}',
  }


def _describe_momentum(config) -> dict:
  if config.optimizer.name != 'sgd':
    own = ''
    if config.optimizer.name == 'adamw' and config.gossip.name != 'none':
      own = ', its moments stay with each worker'
      if config.partition.name != 'iid':
        own += ', whose data differ: dadam lets neighbours agree on them'
    return {'optimizer': _listed(config.optimizer) + own}
  kind = config.momentum_kind
  if kind.name == 'local':
    return {}
  return {'momentum': f'{config.momentum:g}, {_listed(kind)}'}


def _bytes_per_step(experiment, traffic) -> float:
  """The mean over many steps, or over a run that changes; none is short."""
  clock, steps = experiment.turns, experiment.pace.steps
  if len(clock.pieces) == 1:
    steps = max(1, len(traffic.gossip)) * clock.longest
  config = experiment.setup.config
  steps *= max(1, bytes_sent.moments_every(config) * len(traffic.moments))
  there = steps + clock.late  # when all that was sent in them is
  means = bytes_sent.means(experiment, there)
  moments = bytes_sent.moments(config, steps)
  sent = traffic_lib.total(traffic, means, clock.before(there), moments=moments)
  return sent / steps


def _listed(spec) -> str:
  """A spec in words: its name, and the arguments that are set."""
  set_ = [f'{k} {v}' for k, v in spec.items() if v and k != 'name']
  return ', '.join([spec.name, *set_])


def _describe_reduce(config) -> str:
  words = [_listed(config.reduce)]
  if optimizer.is_outer(config):
    words += ['of what workers moved', talk.described(config)]
    if config.fragments > 1:
      words += [f'one of {config.fragments} fragments at a time']
    words += _outer(config)
  return ', '.join(words)


def _outer(config) -> list[str]:
  return [f'outer {k} {v:g}' for k, v in config.outer.items() if v]


def _describe_gossip(config, schedule) -> dict:
  if not schedule:
    return {}
  fragments, steps = config.fragments, talk.of(config).longest
  updates = fragments * steps
  outer = _outer(config) if optimizer.has_outer_step(config) else []
  return {
    'gossip': f'{_listed(config.gossip)}, {config.order.replace("_", " ")}'
    + (f', one of {fragments} fragments at a time' if fragments > 1 else '')
    + (f', a theta for {updates} updates' if updates > 1 else '')
    + ''.join(f', {word}' for word in outer),
    'rounds': talk.described(config),
    'topology': f'{config.topology.name}, gamma {config.gamma}, spectral gap '
    f'{topologies.spectral_gap(schedule):.4g}',
  }


def _describe_smoothness(config, experiment) -> str:
  if experiment.setup.smoothness is None:
    return 'none'
  each = (
    f'{experiment.sent.by_worker.estimate:,.0f} bytes per worker and estimate'
  )
  return f'{_listed(config.smoothness)}; {each}'


def _describe_theta(config, experiment) -> str:
  theta, limit = experiment.quantizer.theta, experiment.quantizer.limit
  if theta is not None:
    rounds = experiment.turns.before(experiment.pace.steps) // config.fragments
    ends = theta(0), theta(max(1, rounds) - 1)
    return f'{float(ends[0]):.4g} at the start, {float(ends[1]):.4g} at the end'
  if limit is not None:
    start = config.quantizer.get('start') or 'that of the first distance'
    return f'{start} at the start, at most {limit:.4g}'
  return 'none'
