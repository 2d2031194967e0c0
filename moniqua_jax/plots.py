"""Figures and reports of runs, from what the runs wrote down.

  python -m moniqua_jax.plots runs/dpsgd runs/moniqua4 --out=report

Runs are given as work directories. Matplotlib is imported here and in
laboratory/figures.py, without pyplot: a notebook that imports the library keeps
its own backend.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys
import textwrap

import matplotlib.figure
import matplotlib.lines
import matplotlib.style
import matplotlib.ticker
import numpy as np

from moniqua_jax import tables

# Of Okabe and Ito; three lists of different lengths, so lines rarely repeat.
COLOURS = '#000000 #0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9'.split()
DASHES = ['-', '--', '-.', ':']
MARKERS = 'os^Dvx'
STYLE = {
  'axes.grid': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'figure.constrained_layout.w_pad': 0.08,
  'font.size': 9,
  'grid.alpha': 0.3,
  'lines.linewidth': 1.3,
  'lines.markersize': 5,
  'svg.hashsalt': 'moniqua_jax',  # else the ids in the file are random
}

# Label with the unit, factor and scale of an axis.
QUANTITIES = {
  'epoch': ('epochs', 1.0, 'linear'),
  'wire/bytes_sent': ('MB sent per worker', 1e-6, 'log'),
  'train/loss': ('training loss', 1.0, 'log'),
  'test/accuracy': ('test accuracy, mean model (%)', 100.0, 'linear'),
  'gossip/consensus_rms': ('consensus distance (rms)', 1.0, 'log'),
}
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

  Args:
    runs: work directories.
    path: of the files; its suffix is replaced by .svg and .png.

  Raises:
    ValueError: as for `table`.
  """
  groups, path = tables.by_seed(tables.loaded(runs)), pathlib.Path(path)
  with matplotlib.style.context(['default', STYLE]):
    fig = matplotlib.figure.Figure(figsize=(9, 5.4), layout='constrained')
    *panels, free = fig.subplots(2, 3, sharex='row', sharey='col').flat
    for axes, names in zip(panels, PANELS, strict=True):
      _draw(axes, *names, groups)
    panels[0].set_xlim(left=0)  # epochs; the panels of a row share it
    panels[0].locator_params(axis='x', nbins=5)
    for axis in (axis for axes in panels for axis in (axes.xaxis, axes.yaxis)):
      number_log(axis)
    lines = [
      matplotlib.lines.Line2D([], [], label=label, **_style(i))
      for i, label in enumerate(_labels(groups))
    ]
    free.legend(handles=lines, loc='center', frameon=False, handlelength=4)
    free.axis('off')
    fig.savefig(path.with_suffix('.svg'), metadata={'Date': None})
    fig.set_layout_engine('none')  # keep it: to lay out takes half the time
    fig.savefig(path.with_suffix('.png'), dpi=200)


def report(runs: Sequence, out) -> str:
  """Writes table.md, figure.svg and figure.png.

  Args:
    runs: work directories.
    out: the folder to write into; made if it does not exist.

  Returns:
    The table, and below it the one of means if runs differ only in their seed.

  Raises:
    ValueError: as for `table`.
  """
  text, loaded = tables.table(runs), tables.loaded(runs)
  if len(tables.by_seed(loaded)) < len(loaded):
    means = 'Mean ± sample standard deviation over the seeds:'
    text += f'\n{means}\n\n{tables.seed_table(runs)}'
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  sources = '\n'.join(map(tables.source, loaded))
  (out / 'table.md').write_text(f'{text}\n{tables.NOTES}\n\n{sources}\n')
  figure(runs, out / 'figure')
  return text


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: prints the table and writes the report.

  Args:
    argv: arguments; those of the process if None.

  Returns:
    The exit status: 0, or 2 after an error.
  """
  parser = argparse.ArgumentParser(
    prog='python -m moniqua_jax.plots',
    description='Prints a table of runs; writes it and a figure.',
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='work directory')
  parser.add_argument(
    '--out', help="folder to write into; the only run's own, or ./report"
  )
  args = parser.parse_args(argv)
  default = args.runs[0] if len(args.runs) == 1 else 'report'
  try:
    print(report(args.runs, args.out or default), end='')
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def _style(i):
  return {
    'color': COLOURS[i % len(COLOURS)],
    'linestyle': DASHES[i % len(DASHES)],
    'marker': MARKERS[i % len(MARKERS)],
    'fillstyle': 'none',  # lines that coincide are all seen
  }


def _draw(axes, x, y, groups):
  """One panel: rows[y] against rows[x], a line a run."""
  for i, run in ((i, run) for i, group in enumerate(groups) for run in group):
    rows = [row for row in run.rows if y in row]
    xs, ys = (_thin(_scaled(rows, key)) for key in (x, y))
    # At most 8 points have a marker, not the same ones on every line.
    every = 1 + len(xs) // 9
    axes.plot(xs, ys, **_style(i), markevery=(i % every, every))
  for axis, key in zip('xy', (x, y), strict=True):
    label, _, scale = QUANTITIES[key]
    axes.set(**{f'{axis}label': label, f'{axis}scale': scale})
  points = np.concatenate([line.get_xydata() for line in axes.lines])
  if not np.isfinite(points).all(axis=1).any():
    middle = dict(ha='center', transform=axes.transAxes)
    axes.text(0.5, 0.5, 'nothing to show', **middle)
    axes.tick_params(which='both', left=False, labelleft=False)
    axes.grid(False)


def _thin(values):
  """Means of at most 40 stretches, since single steps' losses are noise."""
  parts = np.array_split(values, min(len(values), 40) or 1)
  return np.array([part.mean() for part in parts if part.size])


def _scaled(rows, key):
  """The rows' values in the units of the axis; a log axis shows no zeros."""
  _, factor, scale = QUANTITIES[key]
  values = factor * tables.values(rows, key)
  return np.where((scale == 'log') & (values <= 0), np.nan, values)


def number_log(axis):
  """Plain numbers at a few ticks, whatever share of a decade is in view."""
  if axis.get_scale() != 'log':
    return
  low, high = axis.get_view_interval()
  if high / low < 10:
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
  elif high / low < 1000:
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 3)))
  axis.set_major_formatter(matplotlib.ticker.StrMethodFormatter('{x:g}'))
  axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _labels(groups):
  """Legend entries: the method, and the name where that is not enough."""
  methods = [tables.method(group[0].config) for group in groups]
  for group, label in zip(groups, methods, strict=True):
    if methods.count(label) > 1:
      label += f' ({tables.group_name(group)})'
    if len(group) > 1:
      label += f', {len(group)}\N{NO-BREAK SPACE}seeds'
    apart = tables.values(
      sum((r.rows for r in group), []), 'gossip/consensus_rms'
    )
    if apart.size and not apart.any():
      label += ' (distance 0)'
    yield textwrap.fill(label, 30)


if __name__ == '__main__':
  sys.exit(main())
