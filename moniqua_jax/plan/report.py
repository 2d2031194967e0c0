"""A choice in words: the table of candidates, and what a run made of it."""

from collections.abc import Sequence

import numpy as np

from moniqua_jax.plan import choice

SHOWN = 12  # of the best, below the two in full precision
# Title, width, and what a row says.
_WAY = ('way to talk', '<62', lambda row: row.way.name)
_BITS = ('bits', '>8', lambda row: f'{row.bits:.3g}')
_KB = ('kB', '>10', lambda row: f'{row.nbytes / 1e3:,.1f}')
_MESSAGES = ('messages', '>10', lambda row: f'{row.way.messages:.3g}')
_SECONDS = ('s a step', '>10', lambda row: _or_not(row.seconds, '.4g'))
LOSS = (
  _WAY,
  _BITS,
  _KB,
  _MESSAGES,
  ('apart', '>8', lambda row: f'{row.way.apart:.3g}'),
  ('noise', '>7', lambda row: f'{row.way.noise:.3f}'),
  ('steps', '>7', lambda row: f'{row.steps:.2f}'),
  _SECONDS,
  ('score', '>9', lambda row: f'{row.score:.4g}'),
)
LOSS_NOTES = """\
bits: that a worker sends for each parameter, and kB, in a step, exactly.
messages: in a step, one after another. apart: the variance of the workers
around their mean, eight on a ring in full precision being 1. noise: of a mean,
over that of a gradient. steps: to a loss, relative to an all-reduce in full
precision, by a rule of thumb (docs/budget.md). score: steps x s a step, the
least is the best, with a star."""
TEXT_NOTES = """\
bits: that a worker sends for each parameter, and kB, in a step, exactly.
messages: in a step, one after another; beside a gradient between processes on
CPUs. computes: the share of a step that is the gradient, 95 % at least. us a
token: of all workers together. How many steps more a loss takes is not known
here: the star is on what talks most often, and then in the most bits."""


def columns(config) -> tuple[tuple, str]:
  """Returns the columns of the table of a config, and what they are."""
  if config.data.name != 'text':
    return LOSS, LOSS_NOTES
  tokens = config.workers * config.batch_size * (config.data.window or 128)
  us = lambda row: _or_not(1e6 * row.seconds / tokens, '.3g')
  computes = lambda row: _or_not(row.computes, '.1%')
  more = ('computes', '>9', computes), ('us a token', '>11', us)
  return (_WAY, _BITS, _KB, _MESSAGES, _SECONDS, *more), TEXT_NOTES


def _or_not(number: float, form: str) -> str:
  return format(number, form) if number else ''


def table(
  rows: Sequence[choice.Row], best: choice.Row, columns: tuple = LOSS
) -> str:
  """Draws those in full precision, and the best of those that fit."""
  full, others = rows[:2], [row for row in rows[2:] if row.fits]
  (_, wide, name), *more = columns
  lines = [' '.join(format(title, form) for title, form, _ in columns)]
  for row in (*full, *others[:SHOWN]):
    cells = [format(f'{"*" if row == best else " "} {name(row)}', wide)]
    cells += [format(cell(row), form) for _, form, cell in more]
    lines.append(' '.join(cells))
  return '\n'.join(lines)


def planned(row: choice.Row) -> str:
  """Says in one line what is expected of a run."""
  step = f', {1e3 * row.seconds:,.0f} ms a step' if row.seconds else ''
  words = f'{row.way.name}: {row.bits:.3g} bits sent per parameter and step'
  if not row.way.order:
    step += f', {row.steps:.2f} times the steps of an all-reduce'
  elif row.seconds:
    step += f', {row.computes:.1%} of it the gradient'
  return words + step


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
