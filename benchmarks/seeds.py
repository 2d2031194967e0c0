"""What do all methods of a config reach, over some seeds? Diverging ones, too.

  python -m benchmarks.seeds --config=configs/digits_sorted.py --seeds=5 \\
    --out=results/digits_sorted

Runs every method of the config as `train.py --config=CONFIG:METHOD` would, with
seeds 0 to --seeds - 1, each in DIR/METHOD_seedS, and writes DIR/methods.md. A
run that is there already is not repeated.
"""

import argparse
import contextlib
import io
import pathlib
import runpy
import shutil

import jax
import numpy as np

from moniqua_jax.plots import tables
from moniqua_jax.training import loop, monitor, workdir


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default='configs/digits_sorted.py')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--methods', help='a comma list; all if not given')
  parser.add_argument('--data_dir')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  module = runpy.run_path(args.config)
  names = args.methods.split(',') if args.methods else list(module['METHODS'])
  for name in names:
    for seed in range(args.seeds):
      folder = args.out / f'{name}_seed{seed}'
      if not (folder / 'run.json').exists():
        config = module['get_config'](name)
        config.seed = seed
        if args.data_dir:
          config.data.data_dir = args.data_dir
        print(folder, run(config, folder), flush=True)
  text = table(args.out, names, args.seeds)
  (args.out / 'methods.md').write_text(text)
  print(text)


def run(config, folder) -> str:
  """Trains below the folder, and keeps what is small."""
  if config.runner != 'simulated':
    jax.config.update('jax_num_cpu_devices', config.workers)
  quiet, said = io.StringIO(), 'done'
  with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
    try:
      loop.train_and_evaluate(config, folder)
    except monitor.Stopped as stopped:
      said = str(stopped).split('. The last good')[0]
      workdir.note(folder, stopped=said)
  shutil.rmtree(folder / 'checkpoints')
  return said


def table(out, names, seeds) -> str:
  text = (
    '| method | kB sent per step | MB sent per worker | '
    'mean model % | worst worker % |\n|---|---:|---:|---:|---:|\n'
  )
  for name in names:
    runs = [tables.load(out / f'{name}_seed{seed}') for seed in range(seeds)]
    text += f'| {" | ".join(cells(name, runs))} |\n'
  return text


def cells(name, runs) -> list[str]:
  stopped = [run.source['stopped'] for run in runs if 'stopped' in run.source]
  ended = [run.rows[-1] for run in runs if 'stopped' not in run.source]
  title = f'{tables.method(runs[0].config)} (`{name}`)'
  if not ended:
    return [title, '', '', f'stops: {stopped[0]}', '']
  sent = ended[0]['wire/bytes_sent']
  least = f' ({len(stopped)} of {len(runs)} stopped)' if stopped else ''
  return [
    title + least,
    f'{sent / ended[0]["step"] / 1e3:.2f}',
    f'{sent / 1e6:.2f}',
    accuracy([row['test/accuracy'] for row in ended]),
    accuracy([row['test/worst_worker'] for row in ended]),
  ]


def accuracy(values) -> str:
  values = 100 * np.array(values)
  if len(values) == 1:
    return f'{values[0]:.2f}'
  return f'{values.mean():.2f} ± {values.std(ddof=1):.2f}'


if __name__ == '__main__':
  main()
