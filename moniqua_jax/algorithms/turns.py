"""Which steps talk, and in how many rounds; it may change during training.

A schedule is arithmetic on whole numbers, the same on the host and in a traced
step: the program stays one, and a resumed run goes on where it was.
"""

from typing import NamedTuple

from moniqua_jax import arguments


class Turns(NamedTuple):
  """Counts rounds of gossip by step.

  Attributes:
    pieces: (first step, rounds, steps) each: from that step on so many rounds
      in the last of so many steps. All but the last end with a period.
    late: steps that each round comes later than that.
  """

  pieces: tuple[tuple[int, int, int], ...]
  late: int = 0

  def before(self, step):
    """Counts the rounds in all steps before this one.

    >>> [made(((0, 1, 1), (2, 1, 3))).before(step) for step in (0, 2, 4, 5)]
    [0, 2, 2, 3]
    """
    if self.late:
      step = (step - self.late) * (step >= self.late)
    start, rounds, steps, count = self._piece(0, step)
    return count + (step - start) // steps * rounds

  def at(self, step):
    """Counts the rounds in a step."""
    return self.before(step + 1) - self.before(step)

  def step(self, number):
    """Finds the step of a round, given how many were before it.

    >>> [made(((0, 2, 1), (2, 1, 3))).step(number) for number in range(6)]
    [0, 0, 1, 1, 4, 7]
    """
    start, rounds, steps, count = self._piece(-1, number)
    return start + ((number - count) // rounds + 1) * steps - 1 + self.late

  @property
  def rounds(self) -> tuple[int, int]:
    """The fewest and the most rounds in a step that talks."""
    each = [rounds for _, rounds, _ in self.pieces]
    return min(each), max(each)

  @property
  def period(self) -> int | None:
    """The steps from one that talks to the next; None if it changes."""
    return self.longest if len(self.pieces) == 1 else None

  @property
  def longest(self) -> int:
    """The most steps from one that talks to the next."""
    return max(steps for *_, steps in self.pieces)

  def _piece(self, key: int, place):
    """The piece that holds a step (key 0) or a round (-1), with its counts."""
    rows = [(*self.pieces[0], 0)]
    for piece in self.pieces[1:]:
      start, rounds, steps, count = rows[-1]
      rows.append((*piece, count + (piece[0] - start) // steps * rounds))
    found = [*rows[0]]
    for before, row in zip(rows, rows[1:], strict=False):
      reached = place >= row[key]
      found = [
        value + reached * (new - old)
        for value, old, new in zip(found, before, row, strict=True)
      ]
    return found


def made(pieces) -> Turns:
  """Checks that pieces follow each other, and end with a period."""
  for (start, _, steps), (end, *_) in zip(pieces, pieces[1:], strict=False):
    if (end - start) % steps:
      down = end - (end - start) % steps
      raise ValueError(
        f'from step {start} on messages go in one step of {steps}, and step '
        f'{end} is within such a period; change at step {down} or '
        f'{down + steps}.'
      )
  return Turns(tuple(pieces))


def numbers(given, subject: str) -> tuple[tuple[int, int], ...]:
  """Reads n, or ((0, n), (step, n), ...), each from a step on; refuses others.

  >>> numbers(3, 'rounds'), numbers(((0, 3), (500, 1)), 'rounds')
  (((0, 3),), ((0, 3), (500, 1)))
  """
  given = arguments.integer(given)
  pairs = ((0, given),) if isinstance(given, int) else given
  try:
    pairs = [tuple(map(arguments.integer, pair)) for pair in pairs]
    starts, each = zip(*pairs, strict=True)
    whole = all(type(number) is int for number in (*starts, *each))
    valid = whole and starts[0] == 0 and min(each) > 0
    valid = valid and sorted({*starts}) == [*starts]
  except (TypeError, ValueError):
    valid = False
  if not valid:
    raise ValueError(
      f'{subject} needs a whole number >= 1, or several in order of the steps '
      'from which on they hold, ((0, number), (step, number), ...).'
    )
  return tuple(zip(starts, each, strict=True))


def every(steps, subject: str = '') -> Turns:
  """One round in so many steps; a number, or pairs as for `numbers`."""
  pairs = numbers(steps, subject or f'steps={steps!r}; every')
  return made([(start, 1, each) for start, each in pairs])


def several(rounds) -> Turns:
  """So many rounds in each step; a number, or pairs as for `numbers`."""
  pairs = numbers(rounds, f'rounds={rounds!r}; it')
  return made([(start, each, 1) for start, each in pairs])


def together(steps, rounds) -> Turns:
  """So many rounds in one step of so many: pairs as of `numbers`, by step."""
  starts = sorted({start for start, _ in (*steps, *rounds)})
  value = lambda pairs, step: [n for start, n in pairs if start <= step][-1]
  return made([(at, value(rounds, at), value(steps, at)) for at in starts])
