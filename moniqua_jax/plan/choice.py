"""The way to talk that is soonest at a loss, on a link or in a budget of bits.

  score = steps to a loss, relative to all-reduce, times seconds of a step

without a link only the steps. What is sent is exact; the rest is an estimate:
see `candidates`, `links` and `steps_to_loss`. Of text see `seldom`.
"""

from collections.abc import Mapping, Sequence
import math
from typing import NamedTuple

import jax

from moniqua_jax import command_line
from moniqua_jax.plan import candidates, links, seldom

ENTRIES = ('bits', 'link', 'latency', 'compute')  # of config.budget


class Budget(NamedTuple):
  """What a run may send, and through what.

  Attributes:
    bits: that a worker sends for each parameter in a step, at most; or None.
    link: of a worker; None for whatever it takes.
    compute: seconds of a worker's gradient; of use with a link.
  """

  bits: float | None = None
  link: links.Link | None = None
  compute: float = 0.0


class Row(NamedTuple):
  """A candidate and what is expected of it.

  Attributes:
    way: the candidate.
    nbytes: that a worker sends in a step, the mean.
    bits: the same for each parameter.
    seconds: of a step; 0 without a link.
    steps: to a loss, over those of an all-reduce in full precision.
    fits: whether it is within the budget, and lets workers compute.
    computes: the share of a step that is the gradient; 0 without a link.
  """

  way: candidates.Candidate
  nbytes: float
  bits: float
  seconds: float
  steps: float
  fits: bool
  computes: float = 0.0

  @property
  def score(self) -> float:
    """What is least in the best row."""
    return self.steps * (self.seconds or 1.0)

  @property
  def rank(self) -> tuple:
    """What is least in the best row, of the same config."""
    return self.way.order or (self.score, self.bits)


def budget(spec: Mapping, entry: str = 'config.budget.') -> Budget | None:
  """Reads `bits`, `link`, `latency` and `compute`; None if there is no budget.

  >>> budget(dict(bits=None, link='10Mbit', latency='20ms', compute='1s')).link
  Link(rate=10000000.0, latency=0.02)
  """
  given = {key: value for key, value in spec.items() if value is not None}
  if not given:
    return None
  bits, link, latency, compute = map(spec.get, ENTRIES)
  if bits is not None and not bits > 0:
    name = '--budget' if entry == '--' else f'{entry}bits'
    raise ValueError(
      f'{name}={bits}: a budget is a number of bits above 0, that a '
      'worker sends for each parameter in a step.'
    )
  if link is None:
    for name in given.keys() - {'bits'}:
      raise ValueError(
        f'{entry}{name}={spec[name]} is of a link; give {entry}link as well, '
        'such as 10Mbit.'
      )
    return Budget(bits)
  if compute is None:
    raise ValueError(
      f'{entry}link={link} wants {entry}compute as well, the time of a '
      "worker's gradient, such as 350ms; `python -m moniqua_jax.plan` measures "
      'it.'
    )
  latency = links.seconds(latency, f'{entry}latency') if latency else 0.0
  return Budget(
    bits,
    links.Link(links.rate(link, f'{entry}link'), latency),
    links.seconds(compute, f'{entry}compute'),
  )


def steps_to_loss(apart: float = 0.0, noise: float = 0.0) -> float:
  """Predicts steps to a loss, over those of an all-reduce in full precision.

    1 + log(1 + 2 apart) / 2 + .08 noise

  for `apart` and `noise` of a `Candidate`. A rule of thumb from one net at one
  rate, ResNet-20 on CIFAR-10, eight workers: docs/budget.md has its runs.

  >>> round(steps_to_loss(apart=1), 2), round(steps_to_loss(noise=1.14), 2)
  (1.55, 1.09)
  """
  return 1 + math.log(1 + 2 * apart) / 2 + 0.08 * noise


def seconds(
  link: links.Link,
  nbytes: float,
  messages: float,
  compute: float,
  codec: float = 0.0,
  beside: float = 0.0,
) -> float:
  """Predicts the seconds of a step, of which some may go side by side.

  `beside` is the share of steps whose gradient has messages beside it.

  >>> seconds(links.Link(latency=0.1), 1e6, 2, compute=0.5)
  0.7
  """
  sent = link.seconds(nbytes, messages)
  return codec + compute + max(0.0, sent - beside * compute)


def rows(budget: Budget, params, n: int, momentum: float) -> list[Row]:
  """Weighs all candidates: two in full precision, the others from the best on.

  `params` is a tree of the shapes of the parameters.
  """
  return _sorted(budget, params, candidates.every(n, momentum))


def _sorted(budget: Budget, params, ways) -> list[Row]:
  every = [weighed(budget, params, way) for way in ways]
  full, others = ([r for r in part if r] for part in (every[:2], every[2:]))
  return [*full, *sorted(others, key=lambda row: row.rank)]


def weighed(budget: Budget, params, way: candidates.Candidate) -> Row | None:
  """Weighs a candidate; None if the net is too small for it."""
  d = sum(leaf.size for leaf in jax.tree.leaves(params))
  if way.beside and budget.link is None:
    return None  # it is there for the clock
  try:
    nbytes = way.size(params)
  except ValueError:
    return None
  bits, took, computes = 8 * nbytes / d, 0.0, 0.0
  if budget.link:
    codec = d * way.codec
    took = seconds(
      budget.link, nbytes, way.messages, budget.compute, codec, way.beside
    )
    computes = budget.compute / took
  more = steps_to_loss(way.apart, way.noise)
  fits = budget.bits is None or bits <= budget.bits
  if way.order and budget.link:
    fits = fits and computes >= seldom.COMPUTES
  return Row(way, nbytes, bits, took, more, fits, computes)


def best(rows: Sequence[Row], budget: Budget) -> Row:
  """Chooses the first in rank of those that fit."""
  fitting = [row for row in rows if row.fits]
  if fitting:
    return min(fitting, key=lambda row: row.rank)
  least, most = min(r.bits for r in rows), max(r.computes for r in rows)
  if budget.bits is not None and least > budget.bits:
    row = min(rows, key=lambda row: row.bits)
    raise ValueError(
      f'a budget of {budget.bits:g} bits: nothing fits; the least is '
      f'{row.bits:.3g} bits, of {row.way.name}.'
    )
  raise ValueError(
    f'on this link no way to talk leaves {seldom.COMPUTES:.0%} of the time to '
    f'gradients; the most is {most:.0%}: give it more, by larger batches.'
  )


# ------------------------------------------------------------------ configs


def of_config(config, params, budget: Budget) -> list[Row]:
  """Weighs the candidates for a config."""
  if config.pod.data * config.pod.fsdp > 1:
    raise ValueError(
      f'config.pod is {config.pod.data} (data) x {config.pod.fsdp} (fsdp); a '
      'budget chooses for workers of one device.'
    )
  if config.workers < 2:
    raise ValueError('config.workers=1: one worker sends nothing.')
  if config.data.name == 'text':
    return _sorted(budget, params, seldom.every(config.workers))
  # Other optimizers remember about as long as momentum .9 does.
  momentum = config.momentum if config.optimizer.name == 'sgd' else 0.9
  return rows(budget, params, config.workers, momentum)


def applied(config, row: Row):
  """Returns the config with a candidate's way to talk."""
  config = config.copy_and_resolve_references()
  for entry, value in row.way.specs.items():
    if isinstance(value, Mapping):
      config[entry].update({key: None for key in config[entry]} | {**value})
    else:
      config[entry] = value
  return config


def flags(config, row: Row) -> list[str]:
  """Lists the flags that make of a config the one with a candidate's way."""
  leaves = command_line.leaves
  before, after = dict(leaves(config)), dict(leaves(applied(config, row)))
  changed = {key: after[key] for key in after if after[key] != before[key]}
  return [f'--config.{key}={value}' for key, value in changed.items()]
