"""Panels of lines: one measured quantity against another, a line a run."""

from collections.abc import Mapping, Sequence
import textwrap
from typing import NamedTuple

import matplotlib.figure
import matplotlib.lines
import numpy as np

from moniqua_jax.plots import ends, kept, look

LABEL = 46  # letters in a line of the legend

# Label with the unit, factor and scale of an axis.
QUANTITIES = {
  'step': ('steps', 1.0, 'linear'),
  'epoch': ('epochs', 1.0, 'linear'),
  'seconds': ('seconds', 1.0, 'linear'),
  'wire/bytes_sent': ('MB sent per worker', 1e-6, 'log'),
  'train/loss': ('training loss', 1.0, 'log'),
  'test/accuracy': ('test accuracy,\nmean model (%)', 100.0, 'linear'),
  'test/worst_worker': ('test accuracy, worst worker (%)', 100.0, 'linear'),
  'gossip/consensus_rms': ('consensus distance (rms)', 1.0, 'log'),
  'iteration': ('iterations', 1.0, 'linear'),
  'coded_bits': ('Mbit coded, all workers', 1e-6, 'log'),
  'distance': (r'$|x - x^*|^2 / |x_0 - x^*|^2$', 1.0, 'log'),
}


def compare(
  runs: Mapping[str, Sequence[dict] | Sequence[Sequence[dict]]],
  panels: Sequence[tuple[str, str]],
  columns: int = 3,
  points: int = kept.POINTS,
  quantities: Mapping[str, tuple[str, float, str]] | None = None,
) -> matplotlib.figure.Figure:
  """A panel for each pair of quantities, a line for each run.

  A run is its rows, or the list of its seeds' rows: a line is their mean, in a
  band from the least to the most. Of more rows than `points` a line shows the
  means of as many stretches, since single steps' losses are noise. A row need
  not have all keys; one that `QUANTITIES` and `quantities` do not know is its
  own label, on a linear axis.
  """
  about = {key: quantity(key, quantities) for pair in panels for key in pair}
  lines = -(-len(panels) // columns)
  columns = min(columns, len(panels))
  labels = [textwrap.fill(label, LABEL) for label in numbered(list(runs))]
  words = [line for label in labels for line in label.split('\n')]
  entry = 0.8 + 0.075 * max(map(len, words))  # of the legend, inches
  beside = 2 if len(runs) > 6 else 1  # entries
  width = max(3.1 * columns, 4.2, beside * entry)
  entries = int(width / entry)
  legend = 0.2 + 0.2 * -(-len(words) // entries)
  with look.drawing(width, 2.6 * lines + legend) as fig:
    grid = fig.subplots(lines, columns, squeeze=False).ravel()
    for axes, (x, y) in zip(grid, panels, strict=False):
      for i, rows in enumerate(runs.values()):
        seeds = rows if rows and isinstance(rows[0], list) else [rows]
        draw_line(axes, about[x], about[y], seeds, i, points)
      finish(axes, about[x], about[y])
      look.number_log(axes.xaxis)
      look.number_log(axes.yaxis)
    for axes in grid[len(panels) :]:
      axes.remove()
    fig.align_xlabels()
    fig.legend(
      handles=legend_handles(labels),
      loc='outside lower center',
      ncols=entries,
      frameon=False,
      handlelength=4,
    )
    number_many(fig, grid[: len(panels)], len(runs))
  return fig


def legend_handles(labels) -> list[matplotlib.lines.Line2D]:
  """Makes a line for each label, in its look."""
  return [
    matplotlib.lines.Line2D([], [], label=label, **look.line_style(i))
    for i, label in enumerate(labels)
  ]


class Quantity(NamedTuple):
  """What an axis shows."""

  key: str  # of a row
  label: str  # with the unit
  factor: float  # from the row's unit to that of the label
  scale: str  # 'linear' or 'log'


def quantity(key: str, more: Mapping | None = None) -> Quantity:
  """Looks up what is known of a key: its own label, if nothing."""
  known = {**QUANTITIES, **(more or {})}
  return Quantity(key, *known.get(key, (key, 1.0, 'linear')))


def draw_line(axes, x, y, seeds, i, most) -> None:
  """Draws y of the rows against x, as the i-th line.

  `seeds` has the rows of each; of several it is their mean, in a band from the
  least to the most. Those that stopped early cut the others short.
  """
  seeds = _together([_of_both(x, y, rows) for rows in seeds])
  most = min(most, *map(len, seeds))
  each = [points_of(x, y, rows, most) for rows in seeds]
  length = min(len(xs) for xs, _ in each)
  xs, ys = (np.array([of[k][:length] for of in each]) for k in (0, 1))
  at, style = xs.mean(axis=0), look.line_style(i)
  # At most 8 points have a marker, not the same ones on every line.
  every = 1 + length // 9
  axes.plot(at, ys.mean(axis=0), **style, markevery=(i % every, every))
  if len(each) > 1:
    low, high, colour = ys.min(axis=0), ys.max(axis=0), style['color']
    axes.fill_between(at, low, high, color=colour, alpha=0.15)


def numbered(labels: Sequence[str]) -> list[str]:
  """Puts before the labels of many lines the numbers at their ends."""
  if len(labels) <= ends.CROSSING:
    return list(labels)
  return [f'{number}  {label}' for number, label in enumerate(labels, 1)]


def number_many(fig, grid, lines: int) -> None:
  """Writes a number at the end of each line, if they are many."""
  if lines > ends.CROSSING:
    fig.draw_without_rendering()
    for axes in grid:
      ends.number(axes, dict(enumerate(axes.lines)))


def points_of(x, y, rows, most=kept.POINTS) -> tuple[np.ndarray, np.ndarray]:
  """The rows that have both quantities, thinned to so many points."""
  rows = _of_both(x, y, rows)
  xs, ys = (kept.thin(_scaled(rows, of), most) for of in (x, y))
  return xs, ys


def _of_both(x, y, rows) -> list[dict]:
  """Chooses the rows that have both quantities."""
  return [row for row in rows if x.key in row and y.key in row]


def _together(seeds) -> list[list[dict]]:
  """Cuts the rows of seeds where the first of them ended."""
  last = min(rows[-1].get('step', np.inf) if rows else 0 for rows in seeds)
  return [[row for row in rows if row.get('step', 0) <= last] for rows in seeds]


def finish(axes, x, y) -> None:
  """Sets labels and scales of a panel whose lines are drawn."""
  axes.set(xlabel=x.label, xscale=x.scale, ylabel=y.label, yscale=y.scale)
  points = np.concatenate([line.get_xydata() for line in axes.lines])
  if not np.isfinite(points).all(axis=1).any():
    middle = dict(ha='center', transform=axes.transAxes)
    axes.text(0.5, 0.5, 'nothing to show', **middle)
    axes.tick_params(which='both', left=False, labelleft=False)
    axes.grid(False)


def _scaled(rows, of):
  """Converts values to the units of an axis; a log axis shows no zeros."""
  values = of.factor * kept.values(rows, of.key)
  return np.where((of.scale == 'log') & (values <= 0), np.nan, values)
