"""What does the NUQSGD family reach, and what does each method send for it?

  python -m benchmarks.nuqsgd_training --data_dir=DATA \\
    --out=results/nuqsgd_cifar10_cpu

Runs every method of configs/nuqsgd_cifar10_cpu.py as `train.py` would, with
seeds 0 to --seeds - 1, each in a work directory RUNS/METHOD_seedS, keeps them
in DIR and writes DIR/table.md, as benchmarks.seeds does DIR/methods.md.
DATA is a TFDS directory with cifar10/3.0.2.
"""

import numpy as np

from benchmarks import seeds
from moniqua_jax import command_line
from moniqua_jax.plots import tables

TITLES = (
  'method',
  'training loss',
  'test loss',
  'test accuracy %',
  'bits per value, packed',
  'coded',
  'entropy',
  'E\\|Q(g) - g\\|² / \\|g\\|²',
)
PARAMETERS, KEPT = 24_346, 1_306  # of the net; in full precision
NOTE = """
{count} seeds, mean ± standard deviation. Packed: what each worker sends of a
value, norms included, and leaves in full precision spread over all values.
Coded: in the recursive code of QSGD and NUQSGD (levels with a zero only);
entropy: the least that any code of single values needs. Both, and the
variance, of gradients of fresh batches at steps 195, 390 and 585, the mean.
"""


@command_line.one_line_errors()
def main():
  args = seeds.flags(__doc__, seeds=3).parse_args()
  names, runs = seeds.run_all('nuqsgd_cifar10_cpu', args)
  text = table(runs, names, args.seeds)
  (args.out / 'table.md').write_text(text)
  print(text)


def table(runs, names, count) -> str:
  """A row a method, and how to read it."""
  of = lambda name: [runs[f'{name}_seed{seed}'] for seed in range(count)]
  rows = [cells(name, of(name)) for name in names]
  return tables.markdown(TITLES, rows) + NOTE.format(count=count)


def cells(name, runs) -> list[str]:
  stopped = [run.source['stopped'] for run in runs if 'stopped' in run.source]
  if stopped:
    return [f'`{name}`', f'stops: {stopped[0]}', *[''] * 6]
  last = lambda key: [run.end[key] for run in runs]
  packed = [packed_bits(run) for run in runs]
  return [
    f'`{name}`',
    seeds.both(last('train/loss'), '.3f'),
    seeds.both(last('test/loss'), '.3f'),
    seeds.both([100 * value for value in last('test/accuracy')], '.2f'),
    f'{np.mean(packed):.2f}' if packed[0] else '–',
    probed(runs, 'gradient/coded_bits', '.2f'),
    probed(runs, 'gradient/entropy_bits', '.2f'),
    probed(runs, 'gradient/quantization_variance', '.3g'),
  ]


def packed_bits(run) -> float:
  """Bits that one message spends on a value of the gradient."""
  n, row = run.config['workers'], run.end
  if n == 1:
    return 0.0
  if run.config['reduce'].get('strategy') != 'all_gather':
    return 32.0
  exact = 2 * (n - 1) / n * 4 * KEPT
  message = (row['wire/bytes_sent'] / row['step'] - exact) / (n - 1)
  return 8 * (message + 4 * KEPT) / PARAMETERS


def probed(runs, key, digits) -> str:
  values = [row[key] for run in runs for row in run.rows if key in row]
  return format(np.mean(values), digits) if values else '–'


if __name__ == '__main__':
  main()
