"""Whether a config is that of the run which `--resume` goes on with.

All of it says what the run is, and must be as it was, but for what is here.
"""

import json
import pathlib

from moniqua_jax import command_line
from moniqua_jax.configs import digits  # type: ignore
from moniqua_jax.training import validation, whole

# What leaves the state and the bytes of a step as they are: how long it goes
# on, how it is watched, where it runs, and what a run that stopped may try.
MAY_CHANGE = (
  'checkpoint_every',
  'clock',
  'epochs',
  'eval_every',
  'gradient_probe_draws',
  'gradient_probe_every',
  'largest_gradient',
  'learning_rate',
  'log_every',
  'patience',
  'probe_every',
  'quantizer.limit',
  'quantizer.safety',
  'quantizer.shrink',
  'quantizer.start',
  'quantizer.theta',
  'runner',
  'tensorboard',
  'theta',
  'variant',
  'worker_test_images',
)
# Of a run that stopped before its first checkpoint nothing is left.
BEFORE_THE_FIRST = ('answered', 'gamma', 'quantizer')


def check(old: dict, new: dict, workdir: pathlib.Path, saved: bool) -> None:
  """Refuses the config of another run; `saved`: there are checkpoints."""
  free = MAY_CHANGE if saved else MAY_CHANGE + BEFORE_THE_FIRST
  other = _differences(old, new, free)
  if not other:
    return
  ways = ['take another --workdir']
  if any(text.startswith('config.data.') for text in other):
    ways.append('where the same data moved, put a link at their old place')
  if 'laboratory' not in new:
    ways.append(
      f'or begin a new run at this mean model: --start_from={workdir} '
      'with another --workdir'
    )
  raise ValueError(
    f'--resume: {"; ".join(other)}; that would be another run: '
    f'{"; ".join(ways)}.'
  )


def check_data(old: dict, new: dict, flag: str = '--resume') -> None:
  """Refuses data, or a model, that are others under the same name."""
  other = _other(old, new)
  if other:
    entry = 'model' if other == ['parameters'] else 'data'
    raise ValueError(
      f'{flag}: config.{entry} gives other {" and ".join(other)} than when the '
      f'run began; that would be another run: put the {entry} back, or take '
      'another --workdir.'
    )


# What a mean model is nothing without, and what to do where it is another.
OF_A_MEAN_MODEL = {
  'parameters': 'has leaves of other shapes: set config.model as it was there',
  'symbols': 'knows other symbols; one of config.data.symbols=bytes knows all',
}


def check_start(old: dict, new: dict, workdir: str) -> None:
  """Refuses to start at a mean model that would mean something else here."""
  for mark in _other(old, new):
    if mark in OF_A_MEAN_MODEL:
      raise ValueError(
        f'--start_from={workdir}: its model {OF_A_MEAN_MODEL[mark]}.'
      )


def _other(old: dict, new: dict) -> list[str]:
  """Names the marks that differ; one that there was not yet is none."""
  return sorted(k for k in old.keys() & new.keys() if old[k] != new[k])


def config_of(workdir: str, given=None):
  """Returns the config of a run that was saved, or one given that fits it."""
  path = pathlib.Path(workdir) / 'config.json'
  if not path.is_file():
    raise ValueError(
      f'--workdir={workdir} holds no run: it has no {path.name}.'
    )
  held = whole.read_json(path)
  if 'laboratory' in held:
    raise ValueError(f'--workdir={workdir} is a laboratory: it has no model.')
  if given is None:
    try:
      config = _filled(held)
      validation.check_entries(config)
    except (AttributeError, ValueError) as error:
      raise ValueError(
        f'{path}: {error} It was written by another version, which run.json '
        'names, or changed since.'
      ) from error
    return config
  if other := _differences(held, json.loads(given.to_json()), MAY_CHANGE):
    raise ValueError(
      f'--workdir={workdir} holds another run: {"; ".join(other[:3])}. Leave '
      "--config and its entries out, and they are the run's own."
    )
  return given


def _filled(held: dict):
  """Makes a config of what JSON has of it, with entries that came later."""
  config = digits.default()
  with config.ignore_type():
    config.update(_with_tuples(held))
  config.budget.update(dict.fromkeys(config.budget))  # it has been chosen
  return config.lock()


def _with_tuples(value):
  if isinstance(value, dict):
    return {key: _with_tuples(each) for key, each in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _differences(old: dict, new: dict, free) -> list[str]:
  before, now = dict(command_line.leaves(old)), dict(command_line.leaves(new))
  # An entry that older versions did not have is not held against a run.
  return [
    f'config.{name} was {before[name]!r} and is now {now[name]!r}'
    for name in sorted(before.keys() & now.keys())
    if before[name] != now[name] and not _among(name, free)
  ]


def _among(name, names) -> bool:
  return any(name == each or name.startswith(f'{each}.') for each in names)
