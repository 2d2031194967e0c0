"""Figures in one look, from what runs, quantizers and topologies say.

`python -m moniqua_jax.plots RUN RUN --out=DIR` writes a table and a figure of
runs. The other functions return a `matplotlib.figure.Figure`, which a notebook
shows and `save` writes as SVG and PNG.
"""

from moniqua_jax import extras

with extras.needed('train'):
  from moniqua_jax.plots.graphs import topology
  from moniqua_jax.plots.look import (
    COLOURS,
    DASHES,
    MARKERS,
    STYLE,
    drawing,
    line_style,
    number_log,
    save,
  )
  from moniqua_jax.plots.messages import message, sizes
  from moniqua_jax.plots.noise import margin, variance
  from moniqua_jax.plots.panels import QUANTITIES, compare
  from moniqua_jax.plots.runs import chosen, figure, keep, main, report
  from moniqua_jax.plots.terminal import shown

__all__ = [
  'COLOURS',
  'DASHES',
  'MARKERS',
  'QUANTITIES',
  'STYLE',
  'chosen',
  'compare',
  'drawing',
  'figure',
  'keep',
  'line_style',
  'main',
  'margin',
  'message',
  'number_log',
  'report',
  'save',
  'shown',
  'sizes',
  'topology',
  'variance',
]
