"""Which method of the laboratory needs the fewest bits, on which data?

  python -m benchmarks.smoothness runs/smoothness/* --out=results/smoothness

Keeps runs of `train.py --config=configs/smoothness.py` beside those that the
folder has, and collects all of them: a table of bits to 1e-6 and to 1e-10, one
of iterations, and a figure for each problem. Runs of other methods on the same
problem share a column and a figure; a method that ran twice is taken from the
last run. Seconds stay with the runs: what else a machine did differs between
them. Without a run, tables and figures are made again of what is kept.
"""

import argparse
from collections.abc import Sequence
import functools
import json
import operator
import pathlib
import sys
from typing import NamedTuple

import numpy as np

from moniqua_jax import command_line
from moniqua_jax.laboratory import figures, methods, report
from moniqua_jax.laboratory.report import geometric
from moniqua_jax.plots import kept, tables
from moniqua_jax.training import metrics

TARGETS = ('1e-06', '1e-10')
POINTS = 60  # of a curve at most
COLUMNS = ('iteration', 'distance', 'spread', 'coded_bits')


class Run(NamedTuple):
  """What is kept of a run of the laboratory.

  Attributes:
    name: of its folder.
    config: of config.json.
    title: the problem, in numbers.
    results: of results.json, by method.
    curves: of metrics.jsonl, rows by method.
    source: of run.json.
  """

  name: str
  config: dict
  title: str
  results: dict
  curves: dict
  source: dict


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('runs', nargs='*', type=pathlib.Path)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  new = [f for f in args.runs if (f / 'results.json').exists()]
  left = [str(f) for f in args.runs if f not in new]
  if left and not new:
    parser.error(f'no results.json in {", ".join(left)}')
  if left:
    print(f'not yet ended, left out: {", ".join(left)}', file=sys.stderr)
  if not new and not (args.out / 'runs.jsonl').exists():
    parser.error(f'{args.out} keeps no runs; give their work directories.')
  keep([*map(load, new)], args.out)
  runs = loaded(args.out)
  text = '\n'.join(
    f'{title}\n\n{table(collected(runs), of)}' for title, of in TABLES.items()
  )
  (args.out / 'table.md').write_text(text + NOTE)
  (args.out / 'runs.md').write_text('\n'.join(map(run_table, runs)))
  for column, own in columns(runs).items():
    path = args.out / column.replace('.', '_').replace(', ', '_n')
    figures.draw(curves(own), own[0].title, path)
  print(text)


NOTE = """
Columns: data set and number of workers. Five seeds, geometric means; '-': not
within 60,000 iterations (or without hope, or a floor: see `runs.md`); empty:
not run there. **Bold**: the fewest of a column. Coded: in Elias' omega code, as
arXiv:2106.03524 counts it; packed: 8 times the bytes that travel. Steps, calL
and omega of each method, and its time: `runs.md`.
"""


def load(folder) -> Run:
  """A run, from its work directory."""
  read = lambda name: json.loads((folder / name).read_text())
  title = (folder / 'table.md').read_text().splitlines()[0]
  found = {}
  for row in metrics.read(folder):
    found.setdefault(row['method'], []).append(row)
  files = 'config.json', 'results.json', 'run.json'
  config, results, source = map(read, files)
  return Run(folder.name, config, title, results, found, source)


def keep(runs: Sequence[Run], out) -> None:
  """Writes config.json, runs.jsonl and curves.jsonl of these and older runs."""
  runs = {run.name: run for run in (*loaded(out), *runs)}.values()
  out.mkdir(parents=True, exist_ok=True)
  common, others = kept.shared([run.config for run in runs])
  (out / 'config.json').write_text(json.dumps(common, indent=1) + '\n')
  about = lambda run: {'title': run.title, 'results': run.results}
  lines = [
    {'name': run.name, 'config': config} | about(run) | run.source
    for run, config in zip(runs, others, strict=True)
  ]
  kept.write_lines(out / 'runs.jsonl', lines)
  kept.write_lines(
    out / 'curves.jsonl',
    [
      {'run': run.name, 'method': method} | thinned(rows)
      for run in runs
      for method, rows in run.curves.items()
    ],
  )


def thinned(rows) -> dict:
  """Columns of at most 60 rows, which are denser at the start."""
  last = len(rows) - 1
  if last >= POINTS:  # what is kept already stays as it is
    at = np.append(np.linspace(0, last, 40), np.geomspace(1, last, 20))
    rows = [rows[i] for i in np.unique(at.astype(int))]
  columns = {key: kept.short(kept.values(rows, key)) for key in COLUMNS}
  return columns | {'upload_bits': rows[0]['upload_bits']}


def loaded(out) -> list[Run]:
  """The runs that a folder keeps."""
  lines = kept.read_lines(out / 'runs.jsonl')
  common = json.loads((out / 'config.json').read_text()) if lines else {}
  found = {}
  for curve in kept.read_lines(out / 'curves.jsonl'):
    own = found.setdefault(curve.pop('run'), {})
    method, upload = curve.pop('method'), curve.pop('upload_bits')
    more = {'upload_bits': upload, 'seconds': None}
    points = zip(*curve.values(), strict=True)
    own[method] = [dict(zip(curve, p, strict=True)) | more for p in points]
  take = lambda line: [line.pop(k) for k in ('name', 'config', 'title')]
  runs = []
  for line in lines:
    name, config, title = take(line)
    config, results = kept.merged(common, config), line.pop('results')
    runs.append(Run(name, config, title, results, found.get(name, {}), line))
  return runs


def columns(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """{data set and workers: its runs}."""
  found = {}
  for run in runs:
    data = run.config['data']
    name = pathlib.Path(data.get('path') or data['name']).name
    found.setdefault(f'{name}, {run.config["workers"]}', []).append(run)
  return found


def collected(runs: Sequence[Run]) -> dict[str, dict]:
  """{data set and workers: {method: what it reached}}."""
  entries = operator.attrgetter('results')
  return {
    column: functools.reduce(operator.or_, map(entries, own))
    for column, own in columns(runs).items()
  }


def curves(runs: Sequence[Run]) -> dict[str, list[dict]]:
  """{method: its rows} of one problem, in the order of METHODS."""
  found = functools.reduce(operator.or_, (run.curves for run in runs))
  return {name: found[name] for name in methods.METHODS if name in found}


def run_table(run: Run) -> str:
  """What a run reached, and by which command."""
  source = run.source | {'seconds': f'{run.source.get("seconds", 0):.0f}'}
  command = '{date}, {seconds} s on {machine}: `{command}`'.format(**source)
  return f'{run.title}\n\n{report.table(run.results)}\n{command}\n'


def coded(entry, target, upload=True):
  pair = entry['reached'][target]
  bits = np.array(pair['coded_bits']) + upload * entry['upload_bits']
  return geometric(bits) / 1e6


def packed(entry, target):
  at = np.array(entry['reached'][target]['iterations'])
  return geometric(entry['packed_bits'] * at + entry['upload_bits']) / 1e6


def iterations(entry, target):
  return geometric(entry['reached'][target]['iterations'])


TABLES = {
  'Mbit to 1e-6 / to 1e-10, coded, of all workers, with the upload': coded,
  'The same without the upload': functools.partial(coded, upload=False),
  'Mbit to 1e-6 / to 1e-10, packed, of all workers, with the upload': packed,
  'Iterations to 1e-6 / to 1e-10': iterations,
}


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

  lines = []
  for name in names:
    cells = [[cell(run, name, t) for t in TARGETS] for run in runs]
    lines.append([name, *(' / '.join(c) if any(c) else '' for c in cells)])
  return tables.markdown(['method', *runs], lines)


if __name__ == '__main__':
  main()
