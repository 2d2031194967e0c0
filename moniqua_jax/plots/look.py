"""One look for all figures: for the colour-blind, and in grey.

Lines differ in colour, dashes and marker at once. Without pyplot: a notebook
that imports the library keeps its own backend.
"""

from collections.abc import Iterator
import contextlib
import io
import pathlib

import matplotlib.figure
import matplotlib.style
import matplotlib.ticker
from PIL import Image

from moniqua_jax.training import whole

# Of Okabe and Ito; three lists of different lengths, so lines rarely repeat.
COLOURS = '#000000 #0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9'.split()
DASHES = ['-', '--', '-.', ':']
MARKERS = 'os^Dvx'
COLOUR_COUNT = 128  # of a PNG
STYLE = {
  'axes.axisbelow': True,
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


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[matplotlib.figure.Figure]:
  """An empty figure in this look, of so many inches, laid out at the end.

  Ticks and layout are made within the block, so that the look does not depend
  on where it is shown.

  >>> with drawing(4, 3) as fig:
  ...   _ = fig.subplots().plot([1, 2], [3, 4], **line_style(0))
  >>> fig.get_size_inches().tolist()
  [4.0, 3.0]
  """
  with matplotlib.style.context(['default', STYLE]):
    size = (width, height)
    fig = matplotlib.figure.Figure(figsize=size, layout='constrained')
    yield fig
    fig.draw_without_rendering()
    fig.set_layout_engine('none')  # keep it: each drawing would move it a bit


def save(fig: matplotlib.figure.Figure, path, dpi: int = 150) -> None:
  """Writes path.svg and path.png; one figure always gives the same bytes."""
  path = pathlib.Path(path)
  with matplotlib.style.context(['default', STYLE]):
    with whole.written(path.with_suffix('.svg'), 'wb') as file:
      fig.savefig(file, format='svg', metadata={'Date': None})
    pixels = io.BytesIO()
    fig.savefig(pixels, dpi=dpi)
  # A few lines need few colours: a third of the bytes.
  image = Image.open(pixels).convert('RGB').quantize(COLOUR_COUNT)
  with whole.written(path.with_suffix('.png'), 'wb') as file:
    image.save(file, 'PNG', dpi=(dpi, dpi), optimize=True)


def words(text: str) -> str:
  """Text for a figure, in which a dollar is one: no formula begins with it."""
  return text.replace('$', r'\$')


def line_style(i: int) -> dict:
  """How the i-th line of a figure looks, as arguments of `Axes.plot`."""
  return {
    'color': COLOURS[i % len(COLOURS)],
    'linestyle': DASHES[i % len(DASHES)],
    'marker': MARKERS[i % len(MARKERS)],
    'fillstyle': 'none',  # lines that coincide are all seen
  }


def number_log(axis) -> None:
  """Plain numbers at a few ticks of a log axis, however much is in view.

  >>> with drawing(2, 2) as fig:
  ...   axes = fig.subplots()
  ...   axes.set(xscale='log', xlim=(1, 100))
  ...   number_log(axes.xaxis)
  [...]
  >>> axes.xaxis.get_major_formatter()(30.0)
  '30'
  """
  if axis.get_scale() != 'log':
    return
  low, high = axis.get_view_interval()
  if high / low < 10:
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
  elif high / low < 1000:
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 3)))
  if 1e-4 <= low and high <= 1e6:  # else powers of ten are shorter
    axis.set_major_formatter(matplotlib.ticker.StrMethodFormatter('{x:g}'))
  axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
