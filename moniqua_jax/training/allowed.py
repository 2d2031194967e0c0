"""What an entry of a config is: allowed values in words, and as a predicate."""

from collections.abc import Callable
import math
import sys
from typing import Any, NamedTuple

LARGEST = 2**31 - 1  # steps are counted in int32


class Allowed(NamedTuple):
  """Values that an entry may have.

  Attributes:
    says: which, in words that follow 'it must be'.
    holds: whether a value is one of them; of any value, without an exception.
  """

  says: str
  holds: Callable[[Any], bool]


def count(least: int = 1, most: int = LARGEST) -> Allowed:
  """Whole numbers; True is none, nor is a number of NumPy.

  >>> count(1, 8).says, count().holds(True), count(0).holds(0)
  ('a whole number from 1 to 8', False, True)
  """
  to = f'from {least} to {most}'
  if most == LARGEST:
    to = f'>= {least} and below 2^31'
  holds = lambda value: type(value) is int and least <= value <= most
  return Allowed(f'a whole number {to}', holds)


def number(
  least: float = -math.inf,
  most: float = math.inf,
  above: float = -math.inf,
  below: float = math.inf,
) -> Allowed:
  """Finite numbers, of Python.

  >>> number(above=0, most=1).says, number().holds(math.nan)
  ('a number above 0 and at most 1', False)
  """
  bounds = {
    'at least': least,
    'above': above,
    'at most': most,
    'below': below,
  }
  to = [f'{k} {v:g}' for k, v in bounds.items() if abs(v) != math.inf]

  def holds(value):
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = fits and abs(value) <= sys.float_info.max
    return fits and least <= value <= most and above < value < below

  return Allowed(
    ' '.join(['a number', ' and '.join(to) or 'that is finite']), holds
  )


def positive() -> Allowed:
  """Positive numbers that float32 has room for, and for their squares."""
  of = number(least=1e-18, most=1e18)
  return Allowed('a positive number, from 1e-18 to 1e18', of.holds)


def one_of(*names) -> Allowed:
  """These values, and no others.

  >>> one_of('a', 'b').says
  "'a' or 'b'"
  """
  holds = lambda value: any(
    type(value) is type(n) and value == n for n in names
  )
  return Allowed(' or '.join(map(repr, names)), holds)


def flag() -> Allowed:
  """True or False."""
  return one_of(True, False)


def text(says: str = 'text') -> Allowed:
  """Strings."""
  return Allowed(says, lambda value: isinstance(value, str))


def many(
  each: Allowed,
  least: int = 0,
  most: float = math.inf,
  ascending: bool = False,
) -> Allowed:
  """Tuples, of so many values.

  >>> many(count(), ascending=True).holds((3, 1))
  False
  """
  order = ' in ascending order' if ascending else ''

  def holds(values):
    fits = isinstance(values, (list, tuple)) and least <= len(values) <= most
    fits = fits and all(map(each.holds, values))
    return fits and (not ascending or sorted({*values}) == [*values])

  some = 'a tuple'
  if least:
    some += f' of {least}' + (' or more' if most > least else '')
  return Allowed(f'{some}{order}, each {each.says}', holds)


def pairs(most: int = LARGEST) -> Allowed:
  """Changes of a whole number, from a step on each: ((step, number), ...).

  >>> pairs().holds(((200, 4),)), pairs(most=3).holds(((200, 4),))
  (True, False)
  """
  of = count().holds, count(most=most).holds
  pair = Allowed('', lambda v: _is_pair(v) and of[0](v[0]) and of[1](v[1]))

  def holds(values):
    fits = many(pair).holds(values)
    return fits and many(count(), ascending=True).holds([v[0] for v in values])

  to = f', each number at most {most}' if most < LARGEST else ''
  return Allowed(
    'pairs of whole numbers >= 1, ((step, number), ...), steps in ascending '
    f'order{to}',
    holds,
  )


def _is_pair(value) -> bool:
  return isinstance(value, (list, tuple)) and len(value) == 2


def either(one: Allowed, other: Allowed) -> Allowed:
  """What one of two allows."""
  holds = lambda value: one.holds(value) or other.holds(value)
  return Allowed(f'{one.says}, or {other.says}', holds)


def optional(of: Allowed) -> Allowed:
  """And None: the default of what is named beside it."""
  return either(of, Allowed('None', lambda value: value is None))


# ------------------------------------------------------------------ entries


class Entry(NamedTuple):
  """One entry of a config: its dotted name, and what its values may be."""

  name: str
  allowed: Allowed
  purpose: str


def rows(prefix: str, *given, wrap: Callable = lambda of: of) -> list[Entry]:
  """Entries of (name, allowed, purpose) each."""
  return [Entry(f'{prefix}{n}', wrap(a), purpose) for n, a, purpose in given]


def arguments(spec: str, purpose: str, *given) -> list[Entry]:
  """Entries of a spec: a name, and arguments that are None by default."""
  name = Entry(f'{spec}.name', text('a name'), purpose)
  return [name, *rows(f'{spec}.', *given, wrap=optional)]
