"""What a budget buys: accuracy at the end against the bits that were sent.

  python -m moniqua_jax.plots.budget --parameters=269722 --out=report \\
    --line='all-reduce, 32 bits=results/cifar10_cpu/allreduce' \\
    'one partner, 4 bits=results/cifar10_cpu/{sent4,sent2,sent1}'

writes budget.svg and budget.png: a line for each LABEL=RUN of those in quotes,
with a point a run, and across them the accuracy of --line. {a,b} stands for
both, and what runs differ in by their seed alone is a point, with a bar from
the least to the most.
"""

import argparse
from collections.abc import Mapping, Sequence
import pathlib
import sys

import matplotlib.figure
import matplotlib.ticker
import numpy as np

from moniqua_jax import command_line
from moniqua_jax.plots import kept, look, tables

ACCURACY = 'test/accuracy'


def budget(
  series: Mapping[str, Sequence],
  line: tuple[str, Sequence] | None,
  parameters: int,
) -> matplotlib.figure.Figure:
  """Draws the accuracy at the end against bits sent by a worker.

  Bits per parameter and step, on a log axis; a run is a work directory, a kept
  folder or FOLDER/NAME. `line` is a label and the runs of a horizontal line,
  such as of a method that sends too much to be in view.
  """
  with look.drawing(6.6, 3.6) as fig:
    axes = fig.subplots()
    for i, (label, runs) in enumerate(series.items()):
      x, low, mean, high = _points(runs, parameters)
      style = look.line_style(i)
      axes.plot(x, mean, label=look.words(label), **style)
      axes.vlines(x, low, high, color=style['color'], linewidth=1)
    if line:
      _across(axes, *line, parameters)
    axes.set(
      xscale='log',
      xlabel='bits sent by a worker, per parameter and step',
      ylabel='test accuracy at the end,\nmean model (%)',
    )
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(base=2))
    axes.xaxis.set_major_formatter(
      matplotlib.ticker.StrMethodFormatter('{x:g}')
    )
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    fig.legend(loc='outside lower center', frameon=False, handlelength=4)
  return fig


def _points(runs, parameters: int) -> np.ndarray:
  """Returns bits, and the least, mean and largest accuracy, f64[4, points]."""
  points = []
  for seeds in tables.by_seed(kept.loaded(runs)):
    ends = [run.end for run in seeds]
    for run in seeds:
      if run.end.get(ACCURACY) is None:
        raise ValueError(f'{run.name} has no {ACCURACY}: it has not ended.')
    sent = np.mean([8 * end['wire/bytes_sent'] / end['step'] for end in ends])
    found = np.array([100 * end[ACCURACY] for end in ends])
    points.append((sent / parameters, found.min(), found.mean(), found.max()))
  return np.array(sorted(points)).T


def _across(axes, label, runs, parameters) -> None:
  """Draws the accuracy of runs as a line through all budgets, and names it."""
  _, _, (mean, *_), _ = _points(runs, parameters)
  axes.axhline(mean, color='0.4', linestyle=(0, (6, 3)), linewidth=1)
  axes.annotate(
    look.words(label),
    (1, mean),
    (0, 3),
    xycoords=('axes fraction', 'data'),
    textcoords='offset points',
    horizontalalignment='right',
    color='0.3',
  )


def _read(text: str) -> tuple[str, list[str]]:
  """Reads LABEL=RUN, where {a,b} stands for both.

  >>> _read('ours=runs/{a,b}')
  ('ours', ['runs/a', 'runs/b'])
  """
  label, equals, run = text.partition('=')
  if not (label and equals and run):
    raise ValueError(f'{text!r} is not LABEL=RUN.')
  before, brace, rest = run.partition('{')
  among, _, after = rest.partition('}')
  return label, [before + name + after for name in among.split(',')]


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: writes the figure; the status."""
  parser = argparse.ArgumentParser(
    prog='python -m moniqua_jax.plots.budget',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('series', nargs='+', metavar='LABEL=RUN', help='a line of the figure')
  add('--line', metavar='LABEL=RUN', help='a horizontal line across it')
  add('--parameters', type=int, required=True, help='of the model')
  add('--out', type=pathlib.Path, default=pathlib.Path('report'))
  args = parser.parse_args(command_line.at_home(argv))
  if args.parameters < 1:
    parser.error(f'--parameters={args.parameters}; it must be 1 or more.')
  try:
    series = dict(lines := [_read(each) for each in args.series])
    if len(series) < len(lines):
      raise ValueError('each LABEL=RUN has a label of its own; {a,b} is both.')
    fig = budget(series, args.line and _read(args.line), args.parameters)
    args.out.mkdir(parents=True, exist_ok=True)
    look.save(fig, args.out / 'budget')
  except (OSError, ValueError) as error:
    return command_line.told(error)
  return 0


if __name__ == '__main__':
  with command_line.one_line_errors():
    sys.exit(main())
