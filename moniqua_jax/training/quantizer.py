"""The quantizer that a config names, and what is put around it."""

from collections.abc import Callable
import math
import pathlib
from typing import Any, NamedTuple

import jax

from moniqua_jax import coding, quantizers, theory, workers
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.curvature import refresh
from moniqua_jax.quantizers import auto, base, fitted
from moniqua_jax.training import optimizer, registry, talk, whole


class Quantized(NamedTuple):
  """A quantizer with all that is put around it.

  Attributes:
    tuned: of the gossip, or without gossip of the gradients.
    theta: by round of gossip; None for quantizers without, or that find it
      themselves.
    limit: of a theta that finds itself; None for others.
  """

  tuned: base.Tuned
  theta: Callable | None
  limit: float | None


# Of a spec of one's own, which need not have them.
_READ = ('bits', 'limit', 'safety', 'start', 'theta')

# What each theta that finds itself follows, and how far above it is. The net is
# not built yet: a million values are within a tenth for any.
_FOLLOWING: dict[str, Callable[[dict], dict[str, Any]]] = {
  'auto_theta': lambda spec: dict(
    distance='largest', safety=spec['safety'] or auto.SAFETY
  ),
  'fitted_theta': lambda spec: dict(
    distance='rms',
    safety=fitted.spread(10**6, spec.get('chance') or fitted.CHANCE),
  ),
}


def with_limit(config, schedule) -> dict:
  """Returns the spec of the quantizer; a theta that finds itself has all of it.

  Any method can have one: a theta that is there is the first, and what is not
  comes from theory.
  """
  spec: dict[str, Any] = dict.fromkeys(_READ) | dict(config.quantizer)
  following = _FOLLOWING.get(spec['name'])
  if not following:
    return spec
  spec |= {
    'bits': spec['bits'] or 4,
    'start': spec['start'] or spec['theta'] or _first(config),
    'theta': None,
  }
  if spec['limit'] or not schedule:
    return spec
  if ':' in config.gossip.name:
    raise ValueError(
      f'config.gossip.name={config.gossip.name!r} is your own, so theory says '
      f'no limit of theta for config.quantizer.name={spec["name"]!r}: give '
      '--config.quantizer.limit=THETA, beyond which the run stops.'
    )
  schedule = optimizer.mixing(config, schedule)
  try:
    limit = theory.auto_theta_limit(
      schedule,
      optimizer.law(config),
      spec['bits'],
      update=_update(config),
      # Fewer only widen it, and of a stale form there is no law of more.
      rounds=1 if optimizer.waits(config) else talk.of(config).rounds[0],
      **following(spec),
    )
  except ValueError as error:
    raise ValueError(f'config.quantizer: {error}') from error
  # Twice: it is an estimate, and a doubling overshoots.
  return spec | {'limit': 2 * limit}


def _first(config) -> float | None:
  """Bounds the first distance that `auto_theta` sees, with its safety.

  Two workers move by alpha G each in a step, where momentum has not built up.
  `fitted_theta` takes any start, and has one.
  """
  if config.quantizer.name != 'auto_theta':
    return None
  update = config.learning_rate.peak * config.largest_gradient
  return 2 * auto.SAFETY * talk.of(config).longest * config.fragments * update


def _update(config) -> float:
  """Bounds what a coordinate moves by itself from one message to the next.

    steps fragments alpha G / ((1 - momentum) (1 - local momentum))

  Weight decay is left out: it moves all workers alike, but for the part of it
  that pulls them together.
  """
  kept = (1 - config.momentum) * (1 - config.local_momentum)
  steps = talk.of(config).longest * config.fragments
  return steps * config.learning_rate.peak * config.largest_gradient / kept


def build(config, spec, leaf_sizes):
  """Builds the quantizer that a spec names, coded and rotated if wanted."""
  context = {'axis_name': workers.AXIS, 'leaf_sizes': leaf_sizes}
  quantizer = registry.build(registry.QUANTIZERS, 'quantizer', spec, **context)
  if config.coded is not None:
    code = registry.build(registry.CODES, 'code', config.code)
    try:
      quantizer = coding.coded(quantizer, config.coded, code)
    except ValueError as error:
      raise ValueError(
        f'config.coded={config.coded} by config.code.name='
        f'{config.code.name!r}: {error}'
      ) from error
  return quantizers.rotated(quantizer) if config.rotated else quantizer


def make(setup, learning_rate, steps, part, leaves) -> Quantized:
  """Builds the quantizer with its theta by step, its scales and its shape.

  `part` is the tree of what a device gossips, `leaves` those that are
  quantized.
  """
  config, spec = setup.config, setup.spec
  sizes = tuple(leaf.size for leaf in leaves)
  theta = None
  if spec.get('theta') is None:
    quantizer = base.tuned(build(config, spec, sizes))
  else:
    turns, parts = talk.of(config), config.fragments
    relative = setup.make.theta(
      learning_rate=lambda number: learning_rate(turns.step(number * parts)),
      steps=max(1, turns.before(steps) // parts),
    )
    theta = lambda number: spec['theta'] * relative(number)
    quantizer = base.scheduled(
      lambda now: build(config, {**spec, 'theta': now}, sizes), theta
    )
  if config.answered:
    quantizer = quantizer._replace(answered=True)
  if config.scales_from:
    scales = _scales(config.scales_from, part, setup.all_leaves)
    quantizer = quantizers.scaled(quantizer, scales)
  if setup.smoothness is not None:
    try:
      quantizer = refresh.wrapped(
        setup.smoothness, quantizer, leaves, config.workers
      )
    except ValueError as error:
      raise ValueError(f'config.smoothness: {error}') from error
  limit = spec['limit'] if spec['name'] in _FOLLOWING else None
  return Quantized(quantizer, theta, limit)


def _scales(run, part, all_leaves: bool):
  """Reads from a run how far apart neighbours were in each quantized leaf."""
  path = pathlib.Path(run).expanduser() / 'leaf_distance.json'
  if not path.exists():
    raise ValueError(
      f'config.scales_from={run!r}: there is no {path.name}; it must be the '
      'work directory of a finished full-precision run of the same model.'
    )
  measured = whole.read_json(path)
  names = leaf_names(part)
  if list(measured) != names:
    raise ValueError(
      f'config.scales_from={run!r} is of another model: {len(measured)} '
      f'leaves there, {len(names)} here, first difference '
      f'{sorted(set(measured) ^ set(names))[:1]}.'
    )
  for name, apart in measured.items():
    if not 0 < apart < math.inf:
      raise ValueError(
        f'config.scales_from={run!r}: neighbours were {apart} apart in {name}, '
        'of which no theta is made; take a run that went on for longer.'
      )
  leaves = zip(jax.tree.leaves(part), measured.values(), strict=True)
  return tuple(
    (leaf.size, scale)
    for leaf, scale in leaves
    if all_leaves or not large_leaves.small(leaf)
  )


def leaf_names(params) -> list[str]:
  """Lists the path of each parameter leaf, in the order of the flat vector."""
  paths = [path for path, _ in jax.tree.leaves_with_path(params)]
  return [jax.tree_util.keystr(p, simple=True, separator='/') for p in paths]
