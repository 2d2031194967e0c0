"""What a run shows while it goes on: one line that fits 80 columns.

A terminal shows a bar; a file or a notebook gets a line every few seconds,
without carriage returns.
"""

from collections.abc import Callable
import shutil
import sys
import time
from typing import NamedTuple

from tqdm import tqdm

WIDTH = 80
SECONDS = 5.0  # from one plain line to the next


class Progress(NamedTuple):
  """A way to show how far a run is."""

  show: Callable[[dict], None]  # row -> None
  close: Callable[[], None]


def make(steps: int, start: int, stream=None) -> Progress:
  """Shows a bar in a terminal, plain lines elsewhere."""
  stream = stream or sys.stderr
  return (bar if stream.isatty() else plain)(steps, start, stream)


def silent() -> Progress:
  """Shows nothing: one process speaks for all."""
  return Progress(lambda row: None, lambda: None)


def bar(steps: int, start: int, stream) -> Progress:
  """A bar that is as long as the rest of its line allows."""
  line = tqdm(
    total=steps,
    initial=start,
    file=stream,
    mininterval=1,
    ncols=min(WIDTH, shutil.get_terminal_size().columns) - 1,
    bar_format='{n_fmt}/{total_fmt} |{bar}| {remaining}{postfix}',
  )

  def show(row):
    line.update(row['step'] - line.n)
    line.set_postfix_str(numbers(row))

  return Progress(show, line.close)


def plain(steps: int, start: int, stream, clock=time.monotonic) -> Progress:
  """A line for the first row, the last, and one every few seconds."""
  del start
  last = [-SECONDS]

  def show(row):
    if row['step'] < steps and clock() - last[0] < SECONDS:
      return
    last[0] = clock()
    text = f'{row["step"]}/{steps}, {row["seconds"]:.0f} s, {numbers(row)}'
    print(text, file=stream, flush=True)

  return Progress(show, lambda: None)


def numbers(row: dict) -> str:
  """Says how the loss is, how near theta the workers are, and what they sent.

  What comes last is cut off where a line is full.

  >>> row = {'train/loss': 0.51, 'wire/bytes_sent': 250_000}
  >>> numbers(row | {'gossip/theta': 1.0, 'gossip/distance_over_theta': 0.16})
  'loss 0.51, distance/theta 0.16, sent 0.25 MB'
  """
  text = [f'loss {row["train/loss"]:.3g}']
  if 'gossip/theta' in row:
    text += [f'distance/theta {row["gossip/distance_over_theta"]:.2g}']
  text += [f'sent {row["wire/bytes_sent"] / 1e6:.3g} MB']
  if 'test/bits_per_character' in row:
    text += [f'test {row["test/bits_per_character"]:.3f} bits a character']
  elif 'test/accuracy' in row:
    text += [f'test {100 * row["test/accuracy"]:.1f}%']
  return ', '.join(text)
