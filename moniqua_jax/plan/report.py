"""A choice in words: the table of candidates, and what a run made of it."""

from collections.abc import Sequence

import numpy as np

from moniqua_jax.plan import choice

SHOWN = 12  # of the best, below the two in full precision
TITLES = (
  ('way to talk', '<62'),
  ('bits', '>8'),
  ('kB', '>10'),
  ('messages', '>10'),
  ('apart', '>8'),
  ('noise', '>7'),
  ('steps', '>7'),
  ('s a step', '>10'),
  ('score', '>9'),
)
NOTES = """\
bits: that a worker sends for each parameter, and kB, in a step, exactly.
messages: in a step, one after another. apart: the variance of the workers
around their mean, eight on a ring in full precision being 1. noise: of a mean,
over that of a gradient. steps: to a loss, relative to an all-reduce in full
precision, by a rule of thumb (docs/budget.md). score: steps x s a step, the
least is the best, with a star."""


def table(rows: Sequence[choice.Row], best: choice.Row) -> str:
  """Draws those in full precision, and the best of those that fit."""
  full, others = rows[:2], [row for row in rows[2:] if row.fits]
  lines = [' '.join(format(title, form) for title, form in TITLES)]
  lines += [_line(row, row == best) for row in (*full, *others[:SHOWN])]
  return '\n'.join(lines)


def _line(row, best) -> str:
  way = row.way
  cells = (
    f'{"*" if best else " "} {way.name}',
    f'{row.bits:.3g}',
    f'{row.nbytes / 1e3:,.1f}',
    f'{way.messages:.3g}',
    f'{way.apart:.3g}',
    f'{way.noise:.3f}',
    f'{row.steps:.2f}',
    f'{row.seconds:.4g}' if row.seconds else '',
    f'{row.score:.4g}',
  )
  pairs = zip(cells, TITLES, strict=True)
  return ' '.join(format(cell, form) for cell, (_, form) in pairs)


def planned(row: choice.Row) -> str:
  """Says in one line what is expected of a run."""
  step = f', {1e3 * row.seconds:,.0f} ms a step' if row.seconds else ''
  return (
    f'{row.way.name}: {row.bits:.3g} bits sent per parameter and step{step}, '
    f'{row.steps:.2f} times the steps of an all-reduce'
  )


def noted(row: choice.Row) -> dict:
  """Returns what a run writes down of its plan."""
  return dict(
    name=row.way.name,
    bytes=row.nbytes,
    bits=row.bits,
    seconds=row.seconds,
    steps=row.steps,
  )


def came(plan: dict, rows: Sequence[dict]) -> str:
  """Says in one line what was planned, as `noted`, and what came of it.

  `rows` are the metrics of the run. A step takes the median over rows, some of
  which have an evaluation in them.
  """
  sent = rows[-1]['wire/bytes_sent'] / rows[-1]['step'] / plan['bytes']
  text = f'budget: {plan["name"]}: {plan["bits"]:.3g} bits sent planned, '
  text += f'{sent * plan["bits"]:.3g} sent'
  if plan['seconds'] and len(rows) > 1:
    apart = np.diff([[each['step'], each['seconds']] for each in rows], axis=0)
    took = np.median(apart[:, 1] / apart[:, 0])
    text += f'; {1e3 * plan["seconds"]:,.0f} ms a step planned, '
    text += f'{1e3 * took:,.0f} taken'
  return text
