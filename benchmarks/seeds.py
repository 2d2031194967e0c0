"""What do all methods of a config reach, over some seeds? Diverging ones, too.

  python -m benchmarks.seeds --config=configs/digits_sorted.py --seeds=5 \\
    --out=results/digits_sorted

Runs every method of the config as `train.py --config=CONFIG:METHOD` would, with
seeds 0 to --seeds - 1, each in a work directory RUNS/METHOD_seedS, keeps them
in DIR and writes DIR/methods.md, of all methods whose seeds are there. A run
that is there already is not repeated; one that was interrupted begins again.
"""

import argparse
import contextlib
import io
import pathlib
import shutil

import numpy as np

from moniqua_jax import command_line
from moniqua_jax.launch import initialize
from moniqua_jax.plots import kept, tables
from moniqua_jax.training import loop, monitor, workdir


@command_line.one_line_errors()
def main():
  parser = flags(__doc__, seeds=5)
  parser.add_argument('--config', default='configs/digits_sorted.py')
  args = parser.parse_args()
  names, runs = run_all(args.config, args)
  text = table(runs, names, args.seeds)
  (args.out / 'methods.md').write_text(text)
  print(text)


def flags(doc: str, seeds: int) -> argparse.ArgumentParser:
  """The flags of what runs methods over seeds."""
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--seeds', type=int, default=seeds)
  add('--methods', help='a comma list; all if not given')
  add('--data_dir', help='a TFDS directory')
  add('--out', type=pathlib.Path, required=True)
  add('--runs', type=pathlib.Path, help='of the work directories; runs/NAME')
  return parser


def run_all(file: str, args) -> tuple[list[str], dict[str, kept.Run]]:
  """Runs what args.out does not have of a config file's methods.

  All configs and devices are made before the first run. Returns the methods
  whose seeds are all there, of this call or of others, and all runs.
  """
  methods = command_line.methods(file)
  asked = args.methods.split(',') if args.methods else methods
  todo = {
    f'{name}_seed{seed}': configured(file, name, seed, args.data_dir)
    for seed in range(args.seeds)
    for name in asked
  }
  args.out.mkdir(parents=True, exist_ok=True)
  each = [c.workers for c in todo.values() if c.runner != 'simulated']
  if each:
    initialize.show_devices(max(each))
  for name, config in todo.items():
    run_once(config, name, args)
  runs = found(args.out)
  there = lambda name: all(f'{name}_seed{s}' in runs for s in range(args.seeds))
  return [*filter(there, methods)], runs


def configured(file, name, seed, data_dir):
  config = command_line.config(f'{file}:{name}')
  config.seed = seed
  if data_dir:
    config.data.data_dir = data_dir
  return config


def run_once(config, name, args) -> None:
  """Trains and keeps a run, unless args.out has it."""
  if name in found(args.out):
    return
  folder = (args.runs or pathlib.Path('runs') / args.out.name) / name
  if not {'seconds', 'stopped'} & workdir.noted(folder).keys():
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    print(folder, run(config, folder), flush=True)
  kept.write([kept.load(folder)], args.out)


def found(out) -> dict[str, kept.Run]:
  """The runs of a folder by name."""
  there = (out / 'runs.jsonl').exists()
  return {run.name: run for run in (kept.loaded([out]) if there else [])}


def run(config, folder) -> str:
  """Trains below the folder, and keeps what is small."""
  quiet, said = io.StringIO(), 'done'
  with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
    try:
      loop.train_and_evaluate(config, folder)
    except monitor.Stopped as stopped:
      said = str(stopped).split('. The last good')[0]
      workdir.note(folder, stopped=said)
  shutil.rmtree(folder / 'checkpoints')
  return said


def table(runs, names, seeds) -> str:
  """A row a method; what it sends, and accuracies over seeds."""
  titles = ['method', 'kB sent per step', 'MB sent per worker']
  titles += ['mean model %', 'worst worker %']
  of = lambda name: [runs[f'{name}_seed{seed}'] for seed in range(seeds)]
  return tables.markdown(titles, [cells(name, of(name)) for name in names])


def cells(name, runs) -> list[str]:
  """The row of a method."""
  stopped = [run.source['stopped'] for run in runs if 'stopped' in run.source]
  ended = [run.end for run in runs if 'stopped' not in run.source]
  title = f'{tables.method(runs[0].config)} (`{name}`)'
  if not ended:
    return [title, '', '', f'stops: {stopped[0]}', '']
  sent = ended[0]['wire/bytes_sent']
  least = f' ({len(stopped)} of {len(runs)} stopped)' if stopped else ''
  return [
    title + least,
    f'{sent / ended[0]["step"] / 1e3:.2f}',
    f'{sent / 1e6:.2f}',
    both([100 * row['test/accuracy'] for row in ended], '.2f'),
    both([100 * row['test/worst_worker'] for row in ended], '.2f'),
  ]


def both(values, digits) -> str:
  """The mean, and the standard deviation of two seeds or more."""
  if len(values) == 1:
    return format(values[0], digits)
  return f'{np.mean(values):{digits}} ± {np.std(values, ddof=1):{digits}}'


if __name__ == '__main__':
  main()
