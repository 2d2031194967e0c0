"""Figures of the laboratory in the paper's form: distance on three axes.

A row for each comparison that arXiv:2106.03524 makes, against iterations, bits
and seconds.
"""

import matplotlib.lines
import matplotlib.ticker
import numpy as np

from moniqua_jax import plots
from moniqua_jax.plots import look

COMPARISONS = {
  'smoothness matrices': [
    'GD',
    'DCGD',
    'DIANA',
    'DIANA, authors',
    'ADIANA',
    'DCGD+ varying',
    'DIANA+ varying',
    'ADIANA+ varying',
  ],
  'steps': [
    'DCGD+ uniform',
    'DCGD+ varying',
    'DIANA+ uniform',
    'DIANA+ varying',
    'DIANA+ varying, exact',
    'DIANA+ varying, 16-bit norm',
  ],
  'blocks': [
    'DIANA, authors',
    'DIANA block, authors',
    'DCGD+ block',
    'DIANA+ block, one step',
    'DIANA+ block',
    'DIANA+ block, 8-bit norms',
  ],
  'dithering and sparsification': [
    'DIANA+ varying',
    'DIANA+ block',
    'DIANA+ sparse',
    'DIANA+ sparse, authors',
  ],
}
AXES = {
  'iteration': 'iterations',
  'bits': 'Mbit coded, all workers, with the upload',
  'seconds': 'seconds, all workers on one machine',
}


def draw(curves: dict, title: str, path) -> None:
  """Draws the comparisons of which there are two methods or more."""
  rows = {
    name: [method for method in chosen if method in curves]
    for name, chosen in COMPARISONS.items()
  }
  rows = {name: chosen for name, chosen in rows.items() if len(chosen) > 1}
  rows = rows or {'': list(curves)}
  timed = all(row['seconds'] is not None for c in curves.values() for row in c)
  axes_of = [axis for axis in AXES if timed or axis != 'seconds']
  with plots.drawing(3.1 * len(axes_of) + 2.6, 2.5 * len(rows)) as fig:
    grid = fig.subplots(len(rows), len(axes_of) + 1, squeeze=False)
    for line, (name, chosen) in zip(grid, rows.items(), strict=True):
      *panels, legend = line
      for axes, axis in zip(panels, axes_of, strict=True):
        _panel(axes, axis, curves, chosen)
      panels[0].set_ylabel(r'$|x - x^*|^2 / |x_0 - x^*|^2$')
      styles = [_style(curves, method) for method in chosen]
      lines = [matplotlib.lines.Line2D([], [], **style) for style in styles]
      legend.legend(lines, chosen, loc='center', frameon=False, title=name)
      legend.axis('off')
    for axes, axis in zip(grid[-1], axes_of, strict=False):
      axes.set_xlabel(AXES[axis])
    fig.suptitle(look.words(title), fontsize=10)
  plots.save(fig, path, dpi=130)


def _panel(axes, axis, curves, chosen):
  for method in chosen:
    rows = curves[method]
    at = lambda key, rows=rows: np.array([row[key] for row in rows], float)
    x = at('coded_bits') + at('upload_bits')
    x = x / 1e6 if axis == 'bits' else at(axis)
    y, factor = at('distance'), 10 ** at('spread')
    style = _style(curves, method)
    axes.plot(x, y, markevery=0.15, **style)
    axes.fill_between(
      x, y / factor, y * factor, alpha=0.15, lw=0, color=style['color']
    )
  axes.set_yscale('log')
  axes.set_ylim(bottom=3e-11, top=3)
  if axis == 'iteration':
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
  else:
    axes.set_xscale('log')
    plots.number_log(axes.xaxis)


def _style(curves, method):
  """A method looks the same in all panels."""
  return plots.line_style(list(curves).index(method)) | {'markersize': 4}
