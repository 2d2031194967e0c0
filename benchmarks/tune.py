"""Which numbers does each method like best? The same number of runs for all.

  python -m benchmarks.tune --config=configs/digits_sorted.py --out=DIR

Runs all CHOICES of every method of a config on one seed, writes each result to
DIR/tuning.jsonl as it comes, and then prints the choice for each method: the
best mean of the accuracies of the mean model and of the worst worker, or with
--loss the fewest steps until the training loss, as the mean of five rows, is at
most so much. A choice that was tried with the same --epochs and --loss is not
tried again.
"""

import argparse
import contextlib
import io
import json
import pathlib
import runpy
import tempfile

import numpy as np

from benchmarks.network import curves
from moniqua_jax import command_line
from moniqua_jax.launch import initialize
from moniqua_jax.plots import kept
from moniqua_jax.training import loop, metrics, monitor

SEED = 100  # not among the seeds that are reported
ASKED = ('method', 'choice', 'epochs', 'loss')  # what a row is the answer to


@command_line.one_line_errors()
def main():
  args, config = parsed()
  args.out.mkdir(parents=True, exist_ok=True)
  path = args.out / 'tuning.jsonl'
  done, tried = {asked(row): row for row in kept.read_lines(path)}, {}
  with path.open('a') as file:
    for name in args.methods:
      tried[name] = []
      for choice in config['CHOICES'][name]:
        row = {'method': name, 'choice': choice}
        row |= {k: v for k in ASKED[2:] if (v := getattr(args, k)) is not None}
        if asked(row) not in done:
          row |= trial(configured(config, name, choice, args), args.loss)
          done[asked(row)] = row
          file.write(json.dumps(row) + '\n')
          file.flush()
          print(row, flush=True)
        tried[name].append(done[asked(row)])
  for name, rows in tried.items():
    print(f'  {name!r}: {best(rows)}')


def parsed():
  """The flags, and what the config file defines."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default='configs/digits_sorted.py')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--methods', help='a comma list; all if not given')
  parser.add_argument('--data_dir')
  parser.add_argument('--epochs', type=float, help='instead of the config')
  parser.add_argument('--loss', type=float, help='a training loss to reach')
  args = parser.parse_args()
  config = runpy.run_path(command_line.path(args.config))
  choices = config.get('CHOICES')
  if choices is None:
    parser.error(f'--config={args.config} has no CHOICES.')
  args.methods = args.methods.split(',') if args.methods else list(choices)
  if unknown := set(args.methods) - set(choices):
    there = ', '.join(choices)
    parser.error(f'--methods: {sorted(unknown)} unknown; choose from {there}')
  return args, config


def asked(row) -> str:
  """Which question a row answers: a loss or epochs of one's own are others."""
  return json.dumps([row.get(key) for key in ASKED], sort_keys=True)


def configured(config, name, choice, args):
  built = config['base']()
  built.update(config['METHODS'][name])
  built.update_from_flattened_dict(choice)
  built.seed = SEED
  if args.data_dir:
    built.data.data_dir = args.data_dir
  if args.epochs:
    built.epochs = args.epochs
  if built.runner != 'simulated':
    initialize.show_devices(built.workers)
  return built


def trial(config, loss=None) -> dict:
  """The last accuracies of one run, or why it stopped; steps to a loss."""
  quiet = io.StringIO()
  with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.redirect_stdout(quiet),
    contextlib.redirect_stderr(quiet),
  ):
    try:
      row = loop.train_and_evaluate(config, f'{folder}/run')
    except monitor.Stopped as stopped:
      return {'stopped': str(stopped).split('.')[0], 'score': 0.0}
    rows = metrics.read(pathlib.Path(folder) / 'run')
  accuracies = row['test/accuracy'], row['test/worst_worker']
  found = {
    'test': float(accuracies[0]),
    'worst': float(accuracies[1]),
    'score': float(sum(accuracies) / 2),
  }
  if loss is not None:
    there = np.flatnonzero(curves.curve(rows).loss <= loss)
    steps = rows[there[0]]['step'] if there.size else None
    found |= {'steps': steps, 'score': 1 / steps if steps else 0.0}
  return found


def best(rows) -> str:
  """The choice of the largest score, as an entry of CHOSEN."""
  row = max(rows, key=lambda row: row['score'])
  return f'{row["choice"]},' + ('' if row['score'] else '  # no run got there')


if __name__ == '__main__':
  main()
