"""Figures of the laboratory, in the look of moniqua_jax.plots."""

from collections.abc import Sequence

from benchmarks.network import curves, report
from moniqua_jax import plots
from moniqua_jax.plots import ends

SHARES = {'compute': 'compute', 'codec': 'codec', 'wire': 'communication'}


def losses(runs: Sequence, target: float, path) -> None:
  """Loss and accuracy against seconds, a column a rate, as SVG and PNG.

  Args:
    runs: of curves.py.
    target: the loss that the table asks for, a thin line.
    path: of the files, without suffix.
  """
  rates = list(dict.fromkeys(run.rate for run in runs))
  methods = list(dict.fromkeys(run.method for run in runs))
  with plots.drawing(3.4 * len(rates) + 2.4, 5.4) as fig:
    grid = fig.subplots(2, len(rates), squeeze=False, sharey='row')
    numbered = lambda axes: {
      int(line.get_label().split()[0]) - 1: line for line in axes.lines
    }
    drawn = []
    for rate, (above, below) in zip(rates, grid.T, strict=True):
      for run in (run for run in runs if run.rate == rate):
        _lines(above, below, run, methods.index(run.method))
      drawn.append((above, numbered(above)))
      drawn.append((below, numbered(below)))
      above.axhline(target, color='grey', linewidth=0.6)
      above.set(title=rate, yscale='log')
      below.set(xlabel='seconds', xlim=above.get_xlim())
      plots.number_log(above.yaxis)
    grid[0, 0].set_ylabel('training loss')
    grid[1, 0].set_ylabel('test accuracy, mean model (%)')
    lines = {line.get_label(): line for axes in grid[0] for line in axes.lines}
    lines = {k: v for k, v in lines.items() if not k.startswith('_')}
    fig.legend(lines.values(), lines, loc='outside right center', frameon=False)
    fig.draw_without_rendering()
    for axes, lines in drawn:
      ends.number(axes, lines)
  plots.save(fig, path)


def bars(cells: Sequence[dict], path) -> None:
  """Time per step, stacked from its parts, a panel a rate, as SVG and PNG.

  Args:
    cells: of one model, in the order of the table.
    path: of the files, without suffix.
  """
  rates = list(dict.fromkeys(cell['rate'] for cell in cells))
  most = max(sum(cell['rate'] == rate for cell in cells) for rate in rates)
  with plots.drawing(2.6 * len(rates) + 3, 0.24 * most + 1.2) as fig:
    panels = fig.subplots(1, len(rates), squeeze=False)[0]
    beside = None  # of the panel to the left
    for rate, axes in zip(rates, panels, strict=True):
      here = [cell for cell in cells if cell['rate'] == rate]
      methods = [cell['method'] for cell in here]
      _stack(axes, here, names=methods != beside)
      beside = methods
      axes.set(title=rate, xlabel='ms per step')
    fig.legend(
      *panels[0].get_legend_handles_labels(),
      loc='outside lower center',
      ncols=len(SHARES),
      frameon=False,
    )
  plots.save(fig, path)


def _lines(above, below, run, i):
  """The i-th method; its accuracies are points, each after an epoch."""
  line, style = curves.curve(run.rows), plots.line_style(i)
  every = 1 + len(line.seconds) // 5
  above.plot(
    *line, label=f'{i + 1}  {run.title}', markevery=(i % every, every), **style
  )
  accuracy = [
    (second, 100 * row['test/accuracy'])
    for second, row in zip(line.seconds, run.rows, strict=True)
    if 'test/accuracy' in row
  ]
  if accuracy:
    style |= {'linestyle': 'none', 'label': f'{i + 1}'}
    below.plot(*zip(*accuracy, strict=True), **style)


def _stack(axes, cells, names):
  """One horizontal bar a method; a negative share (noise) is drawn as none."""
  places, left = range(len(cells)), [0.0] * len(cells)
  for colour, (share, label) in zip(
    plots.COLOURS[1:], SHARES.items(), strict=False
  ):
    width = [max(0, 1e3 * report.split(cell)[share]) for cell in cells]
    axes.barh(places, width, left=left, color=colour, label=label)
    left = [a + b for a, b in zip(left, width, strict=True)]
  labels = [cell['title'] if names else '' for cell in cells]
  axes.set_yticks(places, labels)
  axes.invert_yaxis()
  axes.grid(axis='y', visible=False)
