"""Which numbers does each method like best? The same number of runs for all.

  python -m benchmarks.tune --config=configs/digits_sorted.py --out=DIR

Runs all CHOICES of every method of a config on one seed, writes each result to
DIR/tuning.jsonl as it comes, and then prints the choice for each method: the
best mean of the accuracies of the mean model and of the worst worker, or with
--loss the fewest steps until the training loss, as the mean of five rows, is at
most so much.
"""

import argparse
import contextlib
import io
import json
import pathlib
import runpy
import tempfile

import jax
import numpy as np

from benchmarks.network import curves
from moniqua_jax import command_line
from moniqua_jax.plots import kept
from moniqua_jax.training import loop, metrics, monitor

SEED = 100  # not among the seeds that are reported


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default='configs/digits_sorted.py')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--methods', help='a comma list; all if not given')
  parser.add_argument('--data_dir')
  parser.add_argument('--epochs', type=float, help='instead of the config')
  parser.add_argument('--loss', type=float, help='a training loss to reach')
  args = parser.parse_args()
  config = runpy.run_path(command_line.path(args.config))
  names = args.methods.split(',') if args.methods else list(config['CHOICES'])
  if unknown := set(names) - set(config['CHOICES']):
    there = ', '.join(config['CHOICES'])
    parser.error(f'--methods: {sorted(unknown)} unknown; choose from {there}')
  args.out.mkdir(parents=True, exist_ok=True)
  path = args.out / 'tuning.jsonl'
  done = kept.read_lines(path)
  with path.open('a') as file:
    for name in names:
      for choice in config['CHOICES'][name]:
        if (name, choice) in [(row['method'], row['choice']) for row in done]:
          continue
        row = {'method': name, 'choice': choice}
        row |= trial(configured(config, name, choice, args), args.loss)
        done.append(row)
        file.write(json.dumps(row) + '\n')
        file.flush()
        print(row, flush=True)
  for name in names:
    print(f'  {name!r}: {best(done, name)},')


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
    jax.config.update('jax_num_cpu_devices', built.workers)
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
    found |= {
      'loss': loss,
      'steps': steps,
      'score': 1 / steps if steps else 0.0,
    }
  return found


def best(rows, name) -> dict:
  mine = [row for row in rows if row['method'] == name]
  return max(mine, key=lambda row: row['score'])['choice']


if __name__ == '__main__':
  main()
