"""Figures and reports of runs, from what the runs wrote down.

  python -m moniqua_jax.plots runs/dpsgd runs/moniqua4 --out=report

writes a table and a figure of runs, which are given as work directories or as
folders that hold kept runs. With --keep the folder holds them afterwards: what
tables and figures need, in three small files (see kept.py).

  python -m moniqua_jax.plots runs/dpsgd runs/moniqua4 --out=report \\
    --panels=wire/bytes_sent:test/accuracy,seconds:train/loss

writes panels.svg and panels.png with what is asked for, X:Y by the keys of
metrics.jsonl.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys
import textwrap

from moniqua_jax.plots import kept, look, panels, tables, terminal

FREE_LINES = 14  # of a legend that fits into a panel
PANELS = [
  ('epoch', 'train/loss'),
  ('epoch', 'test/accuracy'),
  ('epoch', 'gossip/consensus_rms'),
  ('wire/bytes_sent', 'train/loss'),
  ('wire/bytes_sent', 'test/accuracy'),
]


def figure(runs: Sequence, path) -> None:
  """Loss, accuracy and consensus against epochs and bytes, as SVG and PNG.

  Runs that differ only in their seed share a line style and a legend entry. A
  line has at most 40 points: of more rows, the means of as many stretches.
  """
  groups = tables.by_seed(kept.loaded(runs))
  labels = list(_labels(groups))
  lines = sum(label.count('\n') + 1 for label in labels)
  below = lines > FREE_LINES
  with look.drawing(9, 5.4 + below * (0.5 + 0.2 * lines / 3)) as fig:
    *grid, free = fig.subplots(2, 3, sharex='row', sharey='col').flat
    for axes, pair in zip(grid, PANELS, strict=True):
      _draw_panel(axes, pair, groups)
    grid[0].set_xlim(left=0)  # epochs; the panels of a row share it
    grid[0].locator_params(axis='x', nbins=5)
    for axis in (axis for axes in grid for axis in (axes.xaxis, axes.yaxis)):
      look.number_log(axis)
    free.axis('off')
    where, how = free, dict(loc='center')
    if below:
      where, how = fig, dict(loc='outside lower center', ncols=3)
    handles = panels.legend_handles(labels)
    where.legend(handles=handles, frameon=False, handlelength=4, **how)
  look.save(fig, path)


def report(runs: Sequence, out) -> str:
  """Writes table.md, figure.svg and figure.png; returns the table.

  Below it stands the one of means, if runs differ only in their seed.
  """
  text, loaded = tables.table(runs), kept.loaded(runs)
  if len(tables.by_seed(loaded)) < len(loaded):
    means = 'Mean ± sample standard deviation over the seeds:'
    text += f'\n{means}\n\n{tables.seed_table(runs)}'
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  sources = '\n'.join(map(tables.source, loaded))
  (out / 'table.md').write_text(f'{text}\n{tables.NOTES}\n\n{sources}\n')
  figure(runs, out / 'figure')
  return text


def keep(runs: Sequence, out) -> str:
  """Writes what is worth keeping of runs, and the report of all that is kept.

  The folder gets config.json (what the configs share), runs.jsonl (a line a
  run) and curves.jsonl (40 points of each curve). What it has already stays; of
  two runs of one name, the new one is kept.
  """
  kept.write(kept.loaded(runs), out)
  return report([out], out)


def chosen(runs: Sequence, pairs: Sequence[tuple[str, str]], out) -> None:
  """Writes panels.svg and panels.png, a panel for each (key of x, key of y).

  Of runs that differ only in their seed, the first is shown.
  """
  groups, out = tables.by_seed(kept.loaded(runs)), pathlib.Path(out)
  firsts = [group[:1] for group in groups]
  rows = {
    label.replace('\n', ' '): run.rows
    for label, (run,) in zip(_labels(firsts), firsts, strict=True)
  }
  there = {key for run in rows.values() for row in run for key in row}
  for key in (key for pair in pairs for key in pair):
    if key not in there:
      raise ValueError(f'no run has {key!r}; they have {sorted(there)}.')
  out.mkdir(parents=True, exist_ok=True)
  look.save(panels.compare(rows, pairs), out / 'panels')


def of_runs(module: str, description: str) -> argparse.ArgumentParser:
  """A command line of runs, and whether to keep them."""
  prog = f'python -m moniqua_jax.{module}'
  parser = argparse.ArgumentParser(prog=prog, description=description)
  text = 'work directory, or folder of kept runs'
  parser.add_argument('runs', nargs='+', metavar='RUN', help=text)
  text = 'keep the runs in --out, too'
  parser.add_argument('--keep', action='store_true', help=text)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: prints the table and writes the report; the status."""
  parser = of_runs('plots', 'Prints a table of runs; writes it and a figure.')
  parser.add_argument(
    '--out', help="folder to write into; the only run's own, or ./report"
  )
  parser.add_argument(
    '--panels', metavar='X:Y,...', help='only a figure, with these panels'
  )
  args = parser.parse_args(argv)
  if args.keep and (args.panels or not args.out):
    parser.error('--keep wants --out=FOLDER, and no --panels.')
  out = args.out or (args.runs[0] if len(args.runs) == 1 else 'report')
  try:
    if args.panels is None:
      text = (keep if args.keep else report)(args.runs, out)
      print(terminal.shown(text))
    else:
      chosen(args.runs, _pairs(args.panels), out)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def _draw_panel(axes, pair, groups) -> None:
  """Draws a line for each run; those of a group look the same."""
  x, y = map(panels.quantity, pair)
  for i, group in enumerate(groups):
    for run in group:
      panels.draw_line(axes, x, y, run.rows, i)
  panels.finish(axes, x, y)


def _pairs(text) -> list[tuple]:
  """Reads 'X:Y,X:Y' into pairs."""
  pairs = [tuple(pair.split(':')) for pair in text.split(',')]
  if any(len(pair) != 2 for pair in pairs):
    raise ValueError(f'--panels={text}; give X:Y or X:Y,X:Y, ...')
  return pairs


def _labels(groups):
  """Yields legend entries: the method, and the name where it is not enough."""
  methods = [tables.method(group[0].config) for group in groups]
  for group, label in zip(groups, methods, strict=True):
    if methods.count(label) > 1:
      label += f' ({tables.group_name(group)})'
    if len(group) > 1:
      label += f', {len(group)}\N{NO-BREAK SPACE}seeds'
    apart = kept.values(
      sum((run.rows for run in group), []), 'gossip/consensus_rms'
    )
    if apart.size and not apart.any():
      label += ' (distance 0)'
    yield textwrap.fill(label, 30)
