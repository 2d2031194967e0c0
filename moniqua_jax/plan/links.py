"""Links and times as people write them: 10Mbit, 20ms."""

import math
import re
from typing import NamedTuple

RATES = {'k': 1e3, 'M': 1e6, 'G': 1e9, '': 1.0}
TIMES = {'us': 1e-6, 'ms': 1e-3, 's': 1.0}
# Ethernet, IP and TCP take 66 bytes of each packet of 1448.
HEADERS = 1 + 66 / 1448


class Link(NamedTuple):
  """What a worker sends through, to all others together.

  Attributes:
    rate: bits a second.
    latency: seconds until a message of no length can be read; about what
      `ping` shows, as a receiver first says that it is ready.
  """

  rate: float = math.inf
  latency: float = 0.0

  def seconds(self, nbytes: float, messages: float) -> float:
    """How long so many bytes take, in messages one after another."""
    return HEADERS * 8 * nbytes / self.rate + messages * self.latency


def rate(text: str, name: str = 'link') -> float:
  """Reads bits a second.

  >>> rate('10Mbit'), rate('1.5Gbit/s')
  (10000000.0, 1500000000.0)
  """
  number, unit = _read(r'([\d.]+) *([kMG]?)bit(?:/s)?', text)
  if not number:
    raise ValueError(
      f'{name}={text}: a link is a number above 0 and kbit, Mbit or Gbit (a '
      'second), such as 10Mbit.'
    )
  return number * RATES[unit]


def seconds(text: str, name: str) -> float:
  """Reads a time.

  >>> seconds('20ms', 'latency'), seconds('0s', 'latency')
  (0.02, 0.0)
  """
  number, unit = _read(r'([\d.]+) *(us|ms|s)', text)
  if number is None:
    raise ValueError(
      f'{name}={text}: a time is a number and us, ms or s, such as 20ms.'
    )
  return number * TIMES[unit]


def _read(pattern: str, text: str) -> tuple[float | None, str]:
  found = re.fullmatch(pattern, str(text))
  try:
    return (float(found[1]), found[2]) if found else (None, '')
  except ValueError:  # several points
    return None, ''
