"""The quantizer that a config names, and what is put around it."""

import json
import pathlib

import jax

from moniqua_jax import coding, quantizers, theory, workers
from moniqua_jax.curvature import refresh
from moniqua_jax.quantizers import auto, base
from moniqua_jax.training import optimizer, registry


def with_limit(config, schedule) -> dict:
  """The spec of the quantizer; auto_theta gets a limit from theory.

  Args:
    config: a ConfigDict.
    schedule: topologies, () without gossip.

  Returns:
    A dict: `name` and the arguments of its factory.

  Raises:
    ValueError: auto_theta has no bits, or theory no limit for it.
  """
  spec = dict(config.quantizer)
  if spec['name'] != 'auto_theta' or spec['limit'] or not schedule:
    return spec
  update = config.learning_rate.peak * config.largest_gradient
  if spec['bits'] is None:
    raise ValueError('config.quantizer: auto_theta needs quantizer.bits.')
  stale = 'stale_' if optimizer.waits(config) else ''
  try:
    limit = theory.auto_theta_limit(
      schedule,
      stale + config.gossip.name,
      spec['bits'],
      update=update / (1 - config.momentum),
      safety=spec['safety'] or auto.SAFETY,
    )
  except ValueError as error:
    raise ValueError(f'config.quantizer: {error}') from error
  # Twice: it is an estimate, and a doubling overshoots.
  return spec | {'limit': 2 * limit}


def make(config, spec, shape, schedule, learning_rate, steps, params) -> tuple:
  """The quantizer with its theta by step, its scales and its shape.

  Args:
    config: a ConfigDict.
    spec: as `with_limit` gave it.
    shape: how estimates of smoothness shape it; None without.
    schedule: topologies, () without gossip.
    learning_rate: by step; theta may follow it.
    steps: of the whole run.
    params: a pytree, what a device holds.

  Returns:
    A `Tuned`, and theta by step or None.

  Raises:
    ValueError: what the config names does not fit.
  """
  leaves = refresh.quantized(params, schedule)
  sizes = tuple(leaf.size for leaf in leaves)
  quantizer = base.tuned(build(config, spec, sizes))
  theta = None
  if spec.get('theta') is not None:
    relative = registry.build(
      registry.THETAS,
      'theta',
      config.theta,
      learning_rate=learning_rate,
      steps=steps,
    )
    theta = lambda step: spec['theta'] * relative(step)
    make = lambda now: build(config, {**spec, 'theta': now}, sizes)
    quantizer = base.scheduled(make, theta)
  if config.answered:
    quantizer = quantizer._replace(answered=True)
  if config.scales_from:
    scales = _scales(config.scales_from, params)
    quantizer = quantizers.scaled(quantizer, scales)
  if shape is not None:
    try:
      quantizer = refresh.wrapped(shape, quantizer, leaves, config.workers)
    except ValueError as error:
      raise ValueError(f'config.smoothness: {error}') from error
  return quantizer, theta


def build(config, spec, leaf_sizes):
  """The quantizer that a spec names, coded if the config says so.

  Args:
    config: a ConfigDict.
    spec: a dict: `name` and the arguments of its factory.
    leaf_sizes: of the leaves that it sends.

  Returns:
    A `Quantizer` or a `Tuned`.

  Raises:
    ValueError: it is unknown, or refuses its arguments or the capacity.
  """
  context = {'axis_name': workers.AXIS, 'leaf_sizes': leaf_sizes}
  quantizer = registry.build(registry.QUANTIZERS, 'quantizer', spec, **context)
  if config.coded is None:
    return quantizer
  try:
    return coding.coded(quantizer, config.coded)
  except ValueError as error:
    raise ValueError(f'config.coded: {error}') from error


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
