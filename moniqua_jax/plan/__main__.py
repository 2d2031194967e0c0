"""Plans a run, by calculation alone: a way to talk, or a pod of chips.

  python -m moniqua_jax.plan --config=cifar10_cpu:dpsgd --link=10Mbit \\
    --latency=20ms --compute=350ms

chooses the way to talk that is soonest at a loss, with the flags for it (of
text the one that talks most often of those that compute 95 % of the time); of
those that send --budget bits for each parameter and step at most, if that is
given. Without --compute three gradients are taken and timed, on noise in the
form of the data. config.budget has the same entries, and train.py takes the
choice by itself.

  python -m moniqua_jax.plan --config=moniqua_resnet20 --topology=v5e:16x16

says what a run on these chips would send and compute.
"""

import inspect
import shlex

from moniqua_jax import command_line, extras

with command_line.one_line_errors(), extras.needed('train'):
  from absl import flags
  from ml_collections import config_flags

  command_line.read_flagfiles()

from moniqua_jax.plan import chips, choice, compute, report

_CONFIG = config_flags.DEFINE_config_file('config', None, 'What to train.')
_LINK = flags.DEFINE_string('link', None, 'Of a worker, such as 10Mbit.')
_LATENCY = flags.DEFINE_string('latency', None, 'Of a message: 20ms.')
_COMPUTE = flags.DEFINE_string('compute', None, 'Of a gradient: 350ms.')
_BUDGET = flags.DEFINE_float(
  'budget', None, 'Bits sent per parameter and step by a worker, at most.'
)
_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:16x16', 'CHIP or CHIP:AxB.')
_WORKERS = flags.DEFINE_integer(
  'workers', None, 'In all; of chips one each if not given.'
)
_UTILISATION = flags.DEFINE_float(
  'utilisation', chips.UTILISATION, "Of the chip's peak, by the gradient."
)


def main(argv):
  """Prints the choice for a link or a budget, or the plan for some chips."""
  with command_line.one_line_errors(), extras.needed('train'):
    command_line.only_flags(argv)
    spec = _spec(_CONFIG.value)
    if any(value is not None for value in spec.values()):
      print(chosen(_CONFIG.value, spec, _WORKERS.value))
      return
    where = chips.pod(_TOPOLOGY.value, _WORKERS.value)
    print(chips.text(_CONFIG.value, where, _UTILISATION.value))


def _spec(config) -> dict:
  """The budget of the config, in which flags come first."""
  given = dict(
    bits=_BUDGET.value,
    link=_LINK.value,
    latency=_LATENCY.value,
    compute=_COMPUTE.value,
  )
  own = config.get('budget') or {}
  return {
    key: own.get(key) if value is None else value
    for key, value in given.items()
  }


def chosen(config, spec: dict, workers: int | None = None) -> str:
  """Weighs the candidates for a config, and says which is best, and how."""
  if workers is not None:
    config = config.copy_and_resolve_references()
    config.workers = workers
  _, (params, *_) = chips.gradient(config)
  how = 'as given'
  if spec['link'] and not spec['compute']:
    choice.budget(spec | {'compute': '1s'}, '--')  # refused before it is timed
    how = f'{compute.STEPS} of them timed, on noise in the form of '
    how += config.data.name
    spec = spec | {'compute': f'{compute.measured(config):.4f}s'}
  budget = choice.budget(spec, '--')
  assert budget is not None  # the spec has an entry
  rows = choice.of_config(config, params, budget)
  best = choice.best(rows, budget)
  _try(choice.applied(config, best))
  size = round(8 * best.nbytes / best.bits)
  limits = [
    f'{config.workers} workers, {config.model.name}: {size:,} parameters'
  ]
  if budget.bits is not None:
    limits += [
      f'sends per parameter and step, in bits, at most {budget.bits:g}'
    ]
  if budget.link:
    limits += [
      f'{budget.link.rate / 1e6:g} Mbit/s',
      f'{1e3 * budget.link.latency:g} ms a message',
      f'gradient {1e3 * budget.compute:.4g} ms ({how})',
    ]
  flags = shlex.join(choice.flags(config, best))
  columns, notes = report.columns(config)
  table = report.table(rows, best, columns)
  parts = ('; '.join(limits), table, notes, flags)
  return '\n\n'.join(parts)


def _try(config) -> None:
  """Refuses, as training would, a way that the rest of a config rules out."""
  from moniqua_jax.training import registry, resolve

  config.runner = 'simulated'  # its devices may be elsewhere, and its data
  reads = registry.found(registry.DATASETS, 'data', config.data.name)
  takes = inspect.signature(reads).parameters
  for entry in {'data_dir', 'path'} & takes.keys():
    config.data[entry] = config.data.get(entry) or 'elsewhere'
  resolve.resolve(config)


def run():
  """The console script `moniqua-plan`."""
  command_line.run(main, __name__)


if __name__ == '__main__':
  run()
