"""How near theta is, what is lost, and how much noise a quantizer adds."""

from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np

from moniqua_jax.plots import kept, look


def margin(runs: Mapping[str, Sequence[dict]]) -> matplotlib.figure.Figure:
  """theta, the distance that it must exceed, and the messages that were lost.

  A column for each run; the rows have what `metrics.summarise` gives of gossip.
  """
  with look.drawing(1 + 2.7 * len(runs), 3.6) as fig:
    grid = fig.subplots(
      2,
      len(runs),
      squeeze=False,
      sharex='col',
      sharey='row',
      height_ratios=[2, 1],
    )
    for (above, below), (label, rows) in zip(grid.T, runs.items(), strict=True):
      rows = [row for row in rows if 'gossip/theta' in row]
      _margin(above, rows)
      _lost(below, rows)
      above.set_title(label)
    grid[0, 0].set(ylabel='units of a parameter', yscale='log')
    grid[1, 0].set(ylabel='lost (%)', ylim=(0, 105))
    look.number_log(grid[0, 0].yaxis)
    fig.legend(
      *grid[0, 0].get_legend_handles_labels(),
      loc='outside lower center',
      ncols=3,
      frameon=False,
    )
  return fig


def _margin(axes, rows) -> None:
  """Draws theta, the distance seen, and the room between them."""
  of = lambda key: kept.values(rows, key)
  steps, theta, seen = map(of, ('step', 'gossip/theta', 'gossip/disagreement'))
  axes.plot(steps, theta, '-', color=look.COLOURS[0], label=r'$\theta$')
  axes.plot(
    steps,
    np.where(seen > 0, seen, np.nan),
    '--',
    color=look.COLOURS[1],
    label='largest distance of neighbours, as seen',
  )
  axes.fill_between(
    steps, seen, theta, where=seen < theta, color='0.9', label='margin'
  )


def _lost(axes, rows) -> None:
  """Draws the share of messages that could not be read."""
  of = lambda key: kept.values(rows, key)
  share = 100 * of('gossip/unreadable') / of('gossip/messages')
  axes.fill_between(of('step'), share, step='mid', color=look.COLOURS[2])
  axes.set_xlabel('steps')


def variance(
  measured: Mapping[str, Mapping[int, float]],
  bounds: Mapping[str, Mapping[int, float]] | None = None,
) -> matplotlib.figure.Figure:
  """The noise E|Q(v) - v|^2 / |v|^2 of quantizers by bits, by name.

  `bounds` are the same of what theory promises, for some of the names.
  """
  with look.drawing(6.2, 3.2) as fig:
    axes = fig.subplots()
    for i, (name, by_bits) in enumerate(measured.items()):
      axes.plot(*_sorted(by_bits), label=name, **look.line_style(i))
      if bounds and name in bounds:
        axes.plot(
          *_sorted(bounds[name]),
          color=look.COLOURS[i % len(look.COLOURS)],
          linewidth=0.7,
          label=f'{name}, bound',
        )
    axes.set(
      xlabel='bits per value',
      ylabel=r'$E|Q(v) - v|^2 \, / \, |v|^2$',
      yscale='log',
    )
    axes.locator_params(axis='x', integer=True)
    look.number_log(axes.yaxis)
    fig.legend(loc='outside right center', frameon=False, handlelength=4)
  return fig


def _sorted(by_bits):
  """Splits a dict into its sorted keys and their values."""
  return zip(*sorted(by_bits.items()), strict=True)
