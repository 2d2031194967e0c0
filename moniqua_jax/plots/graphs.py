"""Who sends to whom, and with which weight."""

import matplotlib.figure
import matplotlib.lines
import numpy as np

from moniqua_jax import topologies
from moniqua_jax.plots import look

WRITTEN = 12  # workers at most whose weights are written into the matrix


def topology(graph: topologies.Topology) -> matplotlib.figure.Figure:
  """A topology as a graph, and its matrix W with the senders in its columns.

  Arrows lead from sender to receiver; without heads they lead both ways with
  one weight.
  """
  w = topologies.matrix(graph)
  with look.drawing(7, 3.6) as fig:
    left, right = fig.subplots(1, 2)
    handles = _graph(left, w)
    _weights(right, w, topologies.spectral_gap(graph))
    fig.legend(
      handles=handles, loc='outside lower center', ncols=4, frameon=False
    )
  return fig


def _graph(axes, w) -> list:
  """Draws workers on a circle and their messages; the legend's entries."""
  n = len(w)
  angles = np.pi / 2 - 2 * np.pi * np.arange(n) / n
  places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  weights = sorted({round(v, 6) for v in w[~np.eye(n, dtype=bool)] if v})
  width = lambda v: 0.6 + 2.4 * v / max(weights)
  both_ways = np.allclose(w, w.T)
  for i, j in zip(*np.nonzero(w), strict=True):
    if i == j or (both_ways and i < j):
      continue
    axes.annotate(
      '',
      places[i],
      places[j],
      arrowprops={
        'arrowstyle': '-' if both_ways else '-|>',
        'connectionstyle': f'arc3,rad={0 if both_ways else 0.12}',
        'color': look.COLOURS[1],
        'linewidth': width(w[i, j]),
        'shrinkA': 9,
        'shrinkB': 9,
      },
    )
  for worker, place in enumerate(places):
    axes.plot(*place, 'o', color='white', mec='black', markersize=15)
    axes.text(*place, str(worker), ha='center', va='center')
  axes.set(
    xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect='equal', title=f'{n} workers'
  )
  axes.set(xticks=[], yticks=[], xlabel='who sends to whom')
  axes.spines[:].set_visible(False)
  return [
    matplotlib.lines.Line2D(
      [],
      [],
      color=look.COLOURS[1],
      linewidth=width(v),
      label=f'a message, $W_{{ij}}$ = {v:.3g}',
    )
    for v in weights[-4:]
  ]


def _weights(axes, w, gap) -> None:
  """Draws W, with its numbers where there is room."""
  n = len(w)
  axes.imshow(w, cmap='Greys', vmin=0, vmax=2 * w.max())
  for (i, j), value in np.ndenumerate(w):
    if value and n <= WRITTEN:
      axes.text(
        j,
        i,
        f'{value:.2f}'.removeprefix('0'),
        fontsize=7,
        ha='center',
        va='center',
      )
  axes.set(
    title=rf'W,  $1 - \rho$ = {gap:.3g}', xlabel='sender j', ylabel='receiver i'
  )
  axes.locator_params(integer=True)
  axes.grid(False)
