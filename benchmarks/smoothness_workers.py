"""Does the gain of smoothness-aware quantization grow with the workers?

  python -m benchmarks.smoothness_workers results/smoothness_cost \\
    --laboratory=results/smoothness

How many times fewer iterations, and how many times less in messages, than
standard dithering needs to the same accuracy. Nothing is run: both folders keep
what was measured, `benchmarks.smoothness_cost` DCGD and DCGD+ in the regime of
the paper's O(n), the laboratory DIANA and DIANA+ on a data set. Theory has the
steps that the smoothness matrices allow, so as many iterations as 1 / gamma,
and values in a message as its budget says. Writes workers.png and prints a
table.
"""

import argparse
import math
import pathlib
from typing import NamedTuple

import numpy as np

from benchmarks import smoothness, smoothness_cost, smoothness_seconds
from moniqua_jax import command_line, plots
from moniqua_jax.laboratory.report import geometric
from moniqua_jax.plots import kept, tables

WORKERS = (2, 4, 8, 16, 32, 64)  # of theory
DIMENSIONS = (256, 1024, 4096)
METHODS = {'n blocks +': 'n blocks', 'varying +': 'varying steps'}
DATA, TARGET = 'a8a', '1e-06'
OF_LABORATORY = {'DIANA+ block': 'n blocks +', 'DIANA+ varying': 'varying +'}


class Gain(NamedTuple):
  """Standard dithering over a method; theory, then measured if it was."""

  iterations: tuple[float, float]
  messages: tuple[float, float]  # values in theory, coded bits as measured


def promised(n: int, d: int) -> dict[str, tuple[float, float]]:
  """The gains of theory in the regime: in iterations and in values."""
  diagonal = smoothness_cost.diagonals(n, d)
  plans = smoothness_cost.plans(diagonal)
  rounds = {m: 1 / smoothness_cost.gamma_of(diagonal, plans[m]) for m in plans}
  values = {m: rounds[m] * plans[m].budget for m in plans}
  return {
    m: tuple(cost['standard'] / cost[m] for cost in (rounds, values))
    for m in METHODS
  }


def in_the_regime(rows) -> dict[tuple[int, int], dict[str, Gain]]:
  """{(n, d): {method: Gain}}; NaN is not measured."""
  found = {}
  for row in rows:
    own = found.setdefault((row['n'], row['d']), {})
    own[row['method']] = row['iterations'], row['coded_bits']
  sizes = {(n, d) for n in WORKERS for d in DIMENSIONS if n * n <= 4 * d}
  gains = {}
  for size in sorted(sizes):
    own, theory = found.get(size, {}), promised(*size)
    nothing = np.full(2, np.nan)
    ratio = lambda m, own=own, nothing=nothing: np.divide(
      own.get('standard', nothing), own.get(m, nothing)
    )
    gains[size] = {
      m: Gain(*zip(theory[m], ratio(m).tolist(), strict=True)) for m in METHODS
    }
  return gains


def on_data(runs) -> dict[int, dict[str, Gain]]:
  """{workers: {method: Gain}} of the laboratory's runs on DATA."""
  gains = {}
  for column, own in smoothness.columns(runs).items():
    if column.startswith(f'{DATA},'):
      n, d = smoothness_seconds.size_of(own)
      gains[n] = _of_laboratory(smoothness_seconds.results(own), n, d)
  return dict(sorted(gains.items()))


def _of_laboratory(entries, n, d):
  s = max(1, int(math.sqrt(d) // n))
  budgets = {'n blocks +': d / n + n, 'varying +': d / n}
  spent = s * (s + math.sqrt(d))
  plain = entries['DIANA']
  at = lambda entry, key: geometric(entry['reached'][TARGET][key])
  gains = {}
  for name, method in OF_LABORATORY.items():
    own = entries[name]
    rounds = own['gamma'] / plain['gamma']
    ratio = lambda key, own=own: at(plain, key) / at(own, key)
    gains[method] = Gain(
      (rounds, ratio('iterations')),
      (rounds * spent / budgets[method], ratio('coded_bits')),
    )
  return gains


def table(regime, data) -> str:
  """Theory / measured, where both are known."""
  titles = ['problem', 'n']
  for kind in ('iterations', 'messages'):
    titles += [f'{label}, {kind}' for label in METHODS.values()]
  by_size = sorted(regime, key=lambda size: size[::-1])
  rows = [
    *((f'd = {d}', n, regime[n, d]) for n, d in by_size),
    *((DATA, n, gains) for n, gains in data.items()),
  ]
  lines = [
    [problem, n, *(_cell(getattr(g[m], k)) for k in Gain._fields for m in g)]
    for problem, n, g in rows
    if not math.isnan(g['varying +'].iterations[1])
  ]
  return tables.markdown(titles, lines, words=2)


def _cell(pair) -> str:
  return ' / '.join(f'{value:.3g}' for value in pair)


def draw(regime, data, path) -> None:
  """A row for iterations and one for messages; a column a method, then DATA."""
  labels = 'times fewer iterations', 'times less: values, coded bits'
  with plots.drawing(10, 6) as figure:
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for line, kind, label in zip(grid, Gain._fields, labels, strict=True):
      for axes, (method, title) in zip(line, METHODS.items(), strict=False):
        for i, d in enumerate(DIMENSIONS):
          own = {n: g for (n, d_), g in regime.items() if d_ == d}
          _line(axes, own, method, kind, i, f'd = {d}')
        axes.plot(WORKERS, WORKERS, ':', color='0.6', label='n')
        axes.set_title(f'{title}, one worker dominates', fontsize=9)
      for i, (method, title) in enumerate(METHODS.items()):
        _line(line[-1], data, method, kind, i + len(DIMENSIONS), title)
      line[-1].set_title(f'{DATA}, rows sorted by norm', fontsize=9)
      line[0].set_ylabel(label)
    for axes in grid[-1]:
      axes.set_xlabel('workers n')
    for axes in grid.flat:
      axes.axhline(1, color='0.6', lw=0.8, zorder=0)
    for axes in grid[0]:
      axes.legend(fontsize=8, frameon=False, loc='upper left')
    grid[0, 0].set(xscale='log', yscale='log')
    grid[0, 0].set_xticks([2, 5, 10, 20, 50, 100])
    plots.number_log(grid[0, 0].xaxis)
    plots.number_log(grid[0, 0].yaxis)
    figure.suptitle(
      'Gain over standard dithering: lines are theory, in iterations and in '
      'values; marks are measured, in iterations and in coded bits',
      fontsize=10,
    )
  plots.save(figure, path, dpi=110)


def _line(axes, gains, method, kind, i, label):
  """Theory as a line, and marks where it was measured."""
  theory, measured = np.transpose(
    [getattr(own[method], kind) for own in gains.values()]
  )
  style = plots.line_style(i)
  marks = {key: style.pop(key) for key in ('marker', 'fillstyle')}
  axes.plot([*gains], theory, label=label, **style)
  axes.plot([*gains], measured, color=style['color'], ls='', **marks)


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--laboratory', type=pathlib.Path, required=True)
  args = parser.parse_args()
  regime, data = gains_of(args.folder, args.laboratory)
  draw(regime, data, args.folder / 'workers')
  print(table(regime, data))


def gains_of(folder, laboratory) -> tuple[dict, dict]:
  """What both folders keep."""
  rows = kept.read_lines(folder / 'rows.jsonl')
  runs = smoothness.loaded(laboratory)
  if not rows or not runs:
    raise ValueError(
      f'{folder} needs rows.jsonl of benchmarks.smoothness_cost, and '
      f'{laboratory} runs of benchmarks.smoothness.'
    )
  return in_the_regime(rows), on_data(runs)


if __name__ == '__main__':
  main()
