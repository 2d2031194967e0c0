"""What a terminal shows: a line of progress, tables of 100 columns."""

import io
import re

import numpy as np
import pytest

from moniqua_jax.plots import tables, terminal
from moniqua_jax.training import progress

ROW = {
  'train/loss': np.float32(2.3456789),
  'train/accuracy': 0.5,
  'gossip/distance_over_theta': 0.123456,
  'gossip/theta': 1.0,
  'wire/bytes_sent': 123_456_789,
  'seconds': 3600.0,
}


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize('stream', [Terminal, io.StringIO])
def test_a_line_of_progress_fits_and_says_three_numbers(stream):
  stream = stream()
  of = progress.make(200_000, 100, stream)
  for step in (100_100, 200_000):
    of.show(ROW | {'step': step, 'test/accuracy': 0.98765})
  of.close()
  text = stream.getvalue()
  assert ('\r' in text) == stream.isatty()
  lines = text.replace('\r', '\n').split('\n')
  assert max(map(len, lines)) <= 80
  shown = 'loss 2.35, distance/theta 0.12, sent 123 MB'
  assert any(shown in line for line in lines)


def test_plain_lines_come_every_few_seconds_and_at_the_end():
  stream, now = io.StringIO(), iter(np.arange(0.0, 100.0))
  of = progress.plain(40, 0, stream, clock=lambda: next(now))
  for step in range(1, 41):
    of.show(ROW | {'step': step})
  steps = [line.split(',')[0] for line in stream.getvalue().splitlines()]
  assert steps[0] == '1/40' and steps[-1] == '40/40'
  assert 2 < len(steps) < 20


def test_without_theta_there_is_no_share_of_it():
  row = {k: v for k, v in ROW.items() if k != 'gossip/theta'}
  assert 'theta' not in progress.numbers(row)


NAMES = ('run', 'method', *tables.COLUMNS)


@pytest.mark.parametrize('words', [0, 2])  # the columns that are not numbers
@pytest.mark.parametrize('wide', [False, True])
def test_a_table_that_is_too_wide_becomes_several(wide, words):
  long = 'Moniqua fitted theta 4 bits, one-peer hypercube, adapt then combine'
  names = NAMES if wide else NAMES[:5]
  rows = [
    [f'a|run{i}', long, *[f'{i}.{k}' for k in range(len(names) - 2)]]
    for i in range(3)
  ]
  for row in rows:
    row[3] = tables.DASH
  text = f'before\n\n{tables.markdown(names, rows, words)}\nafter\n'
  shown = terminal.shown(text)
  assert shown.startswith('before\n\n') and shown.endswith('\nafter\n')
  assert max(map(len, shown.splitlines())) <= 100
  headings = [line for line in shown.splitlines() if re.match(' *run', line)]
  assert (len(headings) > 1) == wide
  told = [name for name in names if name != names[3]]
  assert ''.join(headings).replace('run', '').split() == (
    ' '.join(told).replace('run', '').split()
  )
  for i in range(3):
    assert shown.count(f'a|run{i}') == len(headings)
  assert all(number in shown for row in rows for number in row[4:])


def test_a_table_of_dashes_alone_has_no_columns():
  dashes = [[tables.DASH] * 2]
  text = tables.markdown(['a', 'b'], dashes, words=0)
  assert 'a' not in terminal.shown(text)
