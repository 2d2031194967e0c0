"""Which of many lines is which: a number at the end of each.

And what is in view: a run that diverges leaves it to the others.
"""

from collections.abc import Sequence

import numpy as np

from moniqua_jax.plots import kept, look

CROSSING = 5  # lines at most that are told apart without numbers
POINTS = 16  # of each of more lines: they are noise next to each other
APART = 8.5  # points between the numbers of two lines
DIVERGED = 10.0  # times its first loss


def diverged(group) -> bool:
  """Tells whether the loss of some seed ended far above where it began."""
  losses = [kept.values(run.rows, 'train/loss') for run in group]
  return any(loss.size and loss[-1] > DIVERGED * loss[0] for loss in losses)


def keep_in_view(axes, lost: Sequence[bool]) -> None:
  """Limits a panel to the lines that did not diverge."""
  lines = zip(axes.lines, lost, strict=True)
  there = [line.get_ydata() for line, gone in lines if not gone]
  ys = np.concatenate([*there, []])
  if not any(lost) or not np.isfinite(ys).any():
    return
  low, high = np.nanmin(ys), np.nanmax(ys)
  if axes.get_yscale() == 'log':
    axes.set_ylim(low / 1.15, high * 1.15)
  else:
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def number(axes, lines) -> None:
  """Writes i + 1 at the end of the i-th of some lines, none over another."""
  pixels = axes.figure.dpi / 72
  lines = {i: line.get_xydata() for i, line in lines.items()}
  inside = lambda xy: np.isfinite(xy).all() and axes.viewLim.contains(*xy)
  places = {
    i: axes.transData.transform(line[-1])
    for i, line in lines.items()
    if len(line) and inside(line[-1])
  }
  for column in _columns(places, 2 * APART * pixels):
    heights = [places[i][1] for i in column]
    free = _spread(heights, axes.bbox.y0, axes.bbox.y1, APART * pixels)
    for i, height, moved in zip(column, heights, free, strict=True):
      axes.annotate(
        str(i + 1),
        lines[i][-1],
        (7, (moved - height) / pixels),
        textcoords='offset points',
        color=look.line_style(i)['color'],
        fontsize=6.5,
        va='center',
        annotation_clip=False,
        arrowprops={'arrowstyle': '-', 'color': '0.6', 'linewidth': 0.4},
      )


def _columns(ends, width) -> list[list[int]]:
  """Groups ends that are near each other from left to right; by height."""
  columns = []
  for i in sorted(ends, key=lambda i: ends[i][0]):
    if columns and ends[i][0] - ends[columns[-1][-1]][0] < width:
      columns[-1].append(i)
    else:
      columns.append([i])
  return [sorted(column, key=lambda i: ends[i][1]) for column in columns]


def _spread(heights, bottom, top, gap) -> list[float]:
  """Moves sorted heights apart, and not out of the panel.

  >>> _spread([0.0, 1.0, 9.5, 10.0], 0.0, 10.0, 2.0)
  [0.0, 2.0, 8.0, 10.0]
  """
  gap = min(gap, (top - bottom) / len(heights))
  places = []
  for height in heights:
    places.append(max([height, bottom, *(p + gap for p in places[-1:])]))
  ceiling = top
  for k in reversed(range(len(places))):
    places[k] = min(places[k], ceiling)
    ceiling = places[k] - gap
  return places
