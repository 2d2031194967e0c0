"""Which method of the laboratory needs the fewest bits, on which data?

  python -m benchmarks.smoothness results/smoothness/* --out=results/smoothness

Collects runs of `train.py --config=configs/smoothness.py`: a table of bits to
1e-6 and to 1e-10, one of iterations, and a figure for each problem. Runs of
other methods on the same problem share a column and a figure; a method that
ran twice is taken from the last folder. Seconds stay with the runs: what else
a machine did differs between them.
"""

import argparse
from collections.abc import Sequence
import functools
import json
import operator
import pathlib

import numpy as np

from moniqua_jax.laboratory import figures, methods
from moniqua_jax.laboratory.report import geometric
from moniqua_jax.training import metrics

TARGETS = ('1e-06', '1e-10')


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('runs', nargs='+', type=pathlib.Path)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  runs = collected(args.runs)
  if not runs:
    parser.error(f'no results.json in {", ".join(map(str, args.runs))}')
  text = '\n'.join(
    f'{title}\n\n{table(runs, of)}'
    for title, of in (
      (
        'Mbit to 1e-6 / to 1e-10, coded, of all workers, with the upload',
        coded,
      ),
      ('The same without the upload', lambda e, t: coded(e, t, upload=False)),
      (
        'Mbit to 1e-6 / to 1e-10, packed, of all workers, with the upload',
        packed,
      ),
      ('Iterations to 1e-6 / to 1e-10', iterations),
    )
  )
  (args.out / 'table.md').write_text(text + NOTE)
  for column, folders in columns(args.runs).items():
    title = (folders[0] / 'table.md').read_text().splitlines()[0]
    path = args.out / column.replace('.', '_').replace(', ', '_n')
    figures.draw(curves(folders), title, path)
  print(text)


NOTE = """
Columns: data set and number of workers. Five seeds, geometric means; '-': not
within 60,000 iterations (or without hope, or a floor: see the table of the
run); empty: not run there. **Bold**: the fewest of a column. Coded and packed:
see the tables of the runs, `results/smoothness/*/table.md`.
"""


def columns(folders: Sequence[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
  """{data set and workers: its finished runs}."""
  found = {}
  for folder in folders:
    if (folder / 'results.json').exists():
      config = json.loads((folder / 'config.json').read_text())
      data = pathlib.Path(config['data']['path'] or config['data']['name']).name
      found.setdefault(f'{data}, {config["workers"]}', []).append(folder)
  return found


def collected(folders: Sequence[pathlib.Path]) -> dict[str, dict]:
  """{data set and workers: {method: what it reached}} of finished runs."""
  entries = lambda run: json.loads((run / 'results.json').read_text())
  return {
    column: functools.reduce(operator.or_, map(entries, runs))
    for column, runs in columns(folders).items()
  }


def curves(folders: Sequence[pathlib.Path]) -> dict[str, list[dict]]:
  """{method: rows of metrics.jsonl} of one problem, without seconds."""
  found = {}
  for folder in folders:
    rows = metrics.read(folder)
    for method in {row['method'] for row in rows}:
      own = [row for row in rows if row['method'] == method]
      found[method] = [row | {'seconds': None} for row in own]
  return {name: found[name] for name in methods.METHODS if name in found}


def coded(entry, target, upload=True):
  pair = entry['reached'][target]
  bits = np.array(pair['coded_bits']) + upload * entry['upload_bits']
  return geometric(bits) / 1e6


def packed(entry, target):
  at = np.array(entry['reached'][target]['iterations'])
  return geometric(entry['packed_bits'] * at + entry['upload_bits']) / 1e6


def iterations(entry, target):
  return geometric(entry['reached'][target]['iterations'])


def table(runs, of) -> str:
  """A row a method, a column a run, '1e-6 / 1e-10' in a cell."""
  names = [
    name
    for name in methods.METHODS
    if any(name in run for run in runs.values())
  ]
  least = {
    (run, target): min(
      (of(e, target) for e in entries.values() if e['reached'][target]),
      default=None,
    )
    for run, entries in runs.items()
    for target in TARGETS
  }

  def cell(run, name, target):
    entry = runs[run].get(name)
    if entry is None:
      return ''
    if entry['reached'][target] is None:
      return '-'
    value = of(entry, target)
    text = f'{value:.3g}' if value < 1000 else f'{value:.0f}'
    return f'**{text}**' if value == least[run, target] else text

  lines = [['method', *runs], ['---', *['---:'] * len(runs)]]
  for name in names:
    cells = [[cell(run, name, t) for t in TARGETS] for run in runs]
    lines.append([name, *(' / '.join(c) if any(c) else '' for c in cells)])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


if __name__ == '__main__':
  main()
