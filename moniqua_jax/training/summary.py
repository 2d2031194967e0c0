"""What a config would run, in words: for --dry_run and the start of a run."""

import jax

from moniqua_jax import bytes_sent as traffic_lib
from moniqua_jax import topologies
from moniqua_jax.quantizers import base
from moniqua_jax.training import claims
from moniqua_jax.training import experiment as experiment_lib


def describe(config, experiment: experiment_lib.Experiment) -> str:
  """What a run of the config is, in a few lines.

  Args:
    config: a ConfigDict.
    experiment: built from it.

  Returns:
    Some lines: data, model, topology, quantizer, bytes on the wire.
  """
  leaves = jax.tree.leaves(experiment.variables['params'])
  size = sum(leaf.size for leaf in leaves)
  sent = _bytes_per_step(config, experiment.traffic)
  in_full = base.tuned(base.full_precision())
  full = _bytes_per_step(
    config,
    claims.of_workers(
      config, experiment.schedule, in_full, experiment.held, experiment.pod
    ),
  )
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
    **_describe_pods(config, experiment),
    'reduce': _listed(config.reduce),
    'gossip': _listed(config.gossip),
    'topology': f'{config.topology.name}, gamma {config.gamma}, {gap}',
    'quantizer': _listed(config.quantizer),
    'smoothness': _describe_smoothness(config, experiment),
    'theta': _describe_theta(config, experiment),
    'wire': f'{sent:,.0f} bytes per worker and step, '
    f'{8 * sent / size:.3f} bits per parameter; full precision sends '
    f'{full / max(sent, 1):.1f} times as much',
  }
  return '\n'.join(f'{name:10s} {text}' for name, text in rows.items())


def _describe_pods(config, experiment) -> dict:
  pod, inside = experiment.pod, experiment.inside
  if pod.size == 1:
    return {}
  sent = _bytes_per_step(config, experiment.traffic) / pod.size
  within = traffic_lib.total(inside, 1, 0)
  leaves = jax.tree.leaves(experiment.held.part)
  held = 4 * pod.data * sum(leaf.size for leaf in leaves)
  quantizer = config.reduce_quantizer
  exact = quantizer.name == 'full_precision'
  return {
    'pod': f'{pod.data} (data) x {pod.fsdp} (fsdp) devices; each holds '
    f'{held / 1e6:.2f} MB of parameters, sends {sent:,.0f} bytes a step to '
    f'other pods and at most {within:,.0f} within its own, whose gradients are '
    f'reduced {"exactly" if exact else "by " + _listed(quantizer)}',
  }


def _bytes_per_step(config, traffic) -> float:
  """In the long run, were no message short."""
  rounds = max(1, len(traffic.gossip))
  steps = rounds * config.local_steps
  return traffic_lib.total(traffic, steps, rounds) / steps


def _listed(spec) -> str:
  """A spec in words: its name, and the arguments that are set."""
  set_ = [f'{k} {v}' for k, v in spec.items() if v and k != 'name']
  return ', '.join([spec.name, *set_])


def _describe_smoothness(config, experiment) -> str:
  if experiment.smoothness is None:
    return 'none'
  each = f'{experiment.traffic.estimate:,.0f} bytes per worker and estimate'
  return f'{_listed(config.smoothness)}; {each}'


def _describe_theta(config, experiment) -> str:
  if experiment.theta is not None:
    ends = experiment.theta(0), experiment.theta(experiment.steps - 1)
    return f'{float(ends[0]):.4g} at the start, {float(ends[1]):.4g} at the end'
  if experiment.limit is not None:
    start = config.quantizer.start
    return f'{start} at the start, at most {experiment.limit:.4g}'
  return 'none'
