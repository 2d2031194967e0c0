"""When a run talks: what a config says of rounds and of local steps."""

import jax

from moniqua_jax.algorithms import turns
from moniqua_jax.quantizers import base


def of(config) -> turns.Turns:
  """Counts the rounds of a run by step; a `ValueError` names the entry."""
  steps, rounds = local_steps(config), _pairs(config, 'rounds')
  try:
    clock = turns.together(steps, rounds)
  except ValueError as error:
    raise ValueError(
      f'config.local_steps={config["local_steps"]}, with all that comes from '
      f'some step on: {error}'
    ) from error
  return clock._replace(late=config.get('outer', {}).get('delay', 0))


def local_steps(config) -> tuple[tuple[int, int], ...]:
  """The period of `every`, from a step on each."""
  return _pairs(config, 'local_steps')


def rounds(config) -> tuple[tuple[int, int], ...]:
  """The rounds of a step that talks, from as many such steps on each."""
  pieces = of(config).pieces  # which names the entry of what does not fit
  before = turns.every(local_steps(config)).before
  return tuple((before(start), each) for start, each, _ in pieces)


def _pairs(config, entry):
  first, later = config[entry], tuple(map(tuple, config[f'{entry}_from']))
  said = f', config.{entry}_from={later}' if later else ''
  return turns.numbers(
    ((0, first), *later), f'config.{entry}={first!r}{said}: it'
  )


def described(config) -> str:
  """Says it in words.

  >>> described(dict(local_steps=1, local_steps_from=((200, 4),),
  ...                rounds=3, rounds_from=((200, 1),)))
  '3 rounds in each step, from step 200 on 1 in one of 4'
  """
  pieces = of(config).pieces
  several = 's' if pieces[0][1] > 1 else ''
  words = ', '.join(_words(*piece) for piece in pieces)
  return words.replace(' in', f' round{several} in', 1)


def _words(start, count, steps) -> str:
  where = f'one of {steps}' if steps > 1 else 'each step'
  return f'{f"from step {start} on " if start else ""}{count} in {where}'


def told(clock: turns.Turns, step: int, seen: base.Seen) -> list[base.Seen]:
  """Splits what a step told by its rounds: `Seen` of [n, E] each.

  An empty list for a step without a round, whose `seen` is that of the last.
  """
  edges = seen.readable.shape[1] // clock.rounds[1]
  part = lambda v, r: v[:, r * edges : (r + 1) * edges]
  return [
    jax.tree.map(lambda v, r=r: part(v, r), seen) for r in range(clock.at(step))
  ]
