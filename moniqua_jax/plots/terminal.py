"""Markdown tables as a terminal shows them: within 100 columns, else in parts.

A cell of words goes on in the next line; a column of dashes is left out.
"""

import itertools
import re

import tabulate

from moniqua_jax.plots import tables

WIDTH = 100
WORDS = 30  # columns of a cell of words


def shown(text: str, width: int = WIDTH) -> str:
  """Draws the Markdown tables of a text; what is around them stays.

  >>> print(shown('| bits | MB | s |\\n|:--|--:|--:|\\n| 4 | 1.5 | – |'))
  bits      MB
  ------  ----
  4        1.5
  """
  is_table = lambda line: line.startswith('|')
  parts = itertools.groupby(text.splitlines(), is_table)
  drawn = [
    _drawn([*lines], width) if table else '\n'.join(lines)
    for table, lines in parts
  ]
  return '\n'.join(drawn) + text[len(text.rstrip('\n')) :]


def _drawn(lines, width) -> str:
  """Puts as many columns beside each other as there is room for."""
  titles, rule, *rows = map(_cells, lines)
  told = [
    c for c in range(len(titles)) if {row[c] for row in rows} - {tables.DASH}
  ]
  words = [c for c in told if not rule[c].endswith(':')]
  names = words or told[:1]  # the first is in all parts
  draw = lambda columns: _table(titles, rows, columns, len(words))
  parts = [names]
  for column in (c for c in told if c not in names):
    wider = [*parts[-1], column]
    if len(draw(wider).split('\n', 1)[0]) <= width:
      parts[-1] = wider
    else:
      parts.append([names[0], column])
  return '\n\n'.join(map(draw, parts))


def _cells(line) -> list[str]:
  """Splits a line of a table at its bars, but not at those that are escaped."""
  cells = re.split(r'(?<!\\)\|', line)[1:-1]
  return [cell.strip().replace(r'\|', '|') for cell in cells]


def _table(titles, rows, columns, words) -> str:
  """Draws some columns, of which those below `words` may be wrapped."""
  of = lambda cells: [cells[c] for c in columns]
  return tabulate.tabulate(
    [of(row) for row in rows],
    of(titles),
    tablefmt='simple',
    colalign=['left' if c < words else 'right' for c in columns],
    maxcolwidths=[WORDS if c < words else None for c in columns],
    disable_numparse=True,
  )
