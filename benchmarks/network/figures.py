"""Figures of the laboratory, in the look of moniqua_jax.plots."""

from collections.abc import Sequence
import textwrap

from benchmarks.network import curves, report
from moniqua_jax import plots

SHARES = {'compute': 'compute', 'codec': 'codec', 'wire': 'communication'}


def first(runs: Sequence, target: float, path) -> None:
  """Seconds to a loss, a row a method and a panel a link, as SVG and PNG.

  Points are seeds, red those of the first method; an arrow stands where the
  runs of a method ended of which not all came there.

  Args:
    runs: of curves.py.
    target: the loss.
    path: of the files, without suffix.
  """
  links = list(dict.fromkeys(run.link for run in runs))
  titles = list(dict.fromkeys(run.title for run in runs))
  names = [textwrap.fill(title, 72) for title in titles]
  lines = sum(name.count('\n') + 1 for name in names)
  width, height = 1.5 * len(links) + 4.5, 0.2 * lines + 1
  with plots.drawing(width, height) as fig:
    panels = fig.subplots(1, len(links), squeeze=False, sharey=True)[0]
    for link, axes in zip(links, panels, strict=True):
      groups = curves.grouped([run for run in runs if run.link == link])
      _arrivals(axes, groups.values(), titles, target)
      right = 1.08 * axes.dataLim.x1  # no point at the edge
      axes.set(title=link.replace(', ', ',\n'), xlim=(0, right))
      axes.tick_params(axis='y', length=0)
    panels[0].set_yticks(range(len(titles)), names)
    panels[0].invert_yaxis()
    fig.supxlabel(
      f'seconds to a training loss of {target:g}', fontsize='medium'
    )
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


def _arrivals(axes, groups, titles, target):
  """One panel."""
  times = [curves.arrivals(group, target) for group in groups]
  means = [
    sum(own) / len(own) if len(own) == len(group) else float('inf')
    for own, group in zip(times, groups, strict=True)
  ]
  for group, own, mean in zip(groups, times, means, strict=True):
    row = titles.index(group[0].title)
    colour = plots.COLOURS[2 if mean == min(means) else 0]
    axes.plot(own, [row] * len(own), 'o', color=colour, markersize=4)
    if len(own) < len(group):
      last = max(curves.curve(run.rows).seconds[-1] for run in group)
      axes.plot(last, row, '>', color='0.6', markersize=4)


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
