"""What a message is made of: its bytes, and which value stands where."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.patches
import numpy as np

from moniqua_jax import wire
from moniqua_jax.plots import look
from moniqua_jax.quantizers import base


def sizes(
  quantizers: Mapping[str, base.Quantizer], d: int
) -> matplotlib.figure.Figure:
  """The bytes of one message of each quantizer: packed codes, and the rest.

  One whose payload does not begin with packed codes shows as values alone.
  """
  with look.drawing(6.6, 0.32 * len(quantizers) + 1.2) as fig:
    axes = fig.subplots()
    parts = np.array([_parts(q, d) for q in quantizers.values()])
    places, left = np.arange(len(parts)), np.zeros(len(parts))
    for k, (label, hatch) in enumerate(
      [('packed codes', ''), ('other values', '//'), ('header', 'xx')]
    ):
      fill: dict = {'color': look.COLOURS[k + 1], 'edgecolor': 'white'}
      axes.barh(
        places, parts[:, k], left=left, hatch=hatch, label=label, **fill
      )
      left += parts[:, k]
    for place, nbytes in zip(places, left, strict=True):
      text = f' {nbytes:,.0f} B, {nbytes / (4 * d):.3g} of float32'
      axes.text(nbytes, float(place), text, va='center')
    axes.set_yticks(places, list(quantizers))
    axes.set(
      xlabel=f'bytes of a message of {d:,} values',
      ylabel='quantizer',
      xlim=(0, 1.4 * left.max()),
    )
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.locator_params(axis='x', nbins=5)
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)
    fig.legend(loc='outside lower center', ncols=3, frameon=False)
  return fig


def _parts(quantizer, d):
  """Counts bytes of codes, of values without codes, and of what follows."""
  x = jax.ShapeDtypeStruct((d,), jnp.float32)
  whole = wire.nbytes(jax.eval_shape(quantizer.encode, x, jax.random.key(0)))
  if quantizer.codes is None:
    return 0, whole, 0
  codes = wire.packed_size(d, quantizer.codes.bits)
  return codes, 0, whole - codes


def message(
  quantizer: base.Quantizer,
  d: int,
  header: Sequence[tuple[str, int]] = (),
) -> matplotlib.figure.Figure:
  """The layout of a small message: which bit of which byte is whose.

  Bytes from left to right, their bits from top to bottom. `header` names what
  follows the codes, (name, bytes) in order. Found by packing: a code of ones
  for one value, zeros for all others.
  """
  if quantizer.codes is None:
    raise ValueError('quantizer.codes is None; its payload has no codes.')
  codes, _, rest = _parts(quantizer, d)
  if sum(size for _, size in header) != rest:
    raise ValueError(
      f'header={header!r} is not the {rest} bytes that follow the codes.'
    )
  with look.drawing(1.6 + 0.36 * (codes + rest), 3.4) as fig:
    axes = fig.subplots()
    _codes(axes, d, quantizer.codes.bits)
    start = codes
    for name, size in header:
      axes.add_patch(_cell(start, 0, size, 8, '0.8'))
      text = f'{name}, {size} bytes'
      axes.text(start + size / 2, 4, text, ha='center', va='center')
      start += size
    axes.set(xlim=(0, start), ylim=(0, 8))
    axes.set_xticks(np.arange(start) + 0.5, np.arange(start))
    axes.set_yticks(np.arange(8) + 0.5, np.arange(8))
    axes.set(xlabel='byte of the message', ylabel='bit of the byte')
    axes.tick_params(length=0)
    axes.grid(False)
    fig.legend(
      handles=[
        _cell(0, 0, 1, 1, 'white', label='a bit of the code of this value'),
        _cell(0, 0, 1, 1, '0.8', label='header'),
      ],
      loc='outside lower center',
      ncols=2,
      frameon=False,
    )
  return fig


def _codes(axes, d, bits) -> None:
  """Writes into each bit of the planes whose code it belongs to."""
  for j in range(d):
    ones = jnp.zeros(d, jnp.uint8).at[j].set(2**bits - 1)
    packed = np.asarray(wire.pack(ones, bits))
    for byte, bit in np.argwhere(packed[:, None] >> np.arange(8) & 1):
      axes.add_patch(_cell(byte, bit, 1, 1, '#b7d7ea' if j % 2 else 'white'))
      axes.text(
        byte + 0.5, bit + 0.5, str(j), fontsize=7, ha='center', va='center'
      )


def _cell(left, bottom, width, height, colour, label=''):
  """Makes a rectangle of the layout."""
  return matplotlib.patches.Rectangle(
    (left, bottom),
    width,
    height,
    facecolor=colour,
    edgecolor='0.3',
    linewidth=0.5,
    label=label,
  )
