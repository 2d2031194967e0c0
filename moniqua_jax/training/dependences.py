"""Pairs of entries of which one value rules out another.

  config.ENTRY=VALUE WHY; config.OTHER=VALUE does not go with it: take ...

What also depends on data, on a model or on what was built is in `unfit`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Dependence(NamedTuple):
  """Two entries, and which of their values go together.

  Attributes:
    entry: the name of the one that has its reasons.
    other: the name of the one that must follow.
    fits: (value, value of the other) -> whether they go together.
    why: the reasons, as words that follow the entry and its value.
    way: what to take instead.
    rule: what goes together, for the docs.
  """

  entry: str
  other: str
  fits: Callable[[Any, Any], bool]
  why: str
  way: str
  rule: str

  def refused(self, values: dict) -> str | None:
    """Says what is wrong with the values of a config, by name."""
    if not {self.entry, self.other} <= values.keys():
      return None
    first, second = values[self.entry], values[self.other]
    if self.fits(first, second):
      return None
    return (
      f'config.{self.entry}={first!r} {self.why}; config.{self.other}='
      f'{second!r} does not go with it: take {self.way}.'
    )


class Some(NamedTuple):
  """Some values of an entry, and the one to take."""

  says: str
  take: Any
  holds: Callable[[Any], bool]


def only(*values) -> Some:
  """These, and no others."""
  return Some(f'is {_listed(values)}', values[0], lambda v: v in values)


def but(*values, take) -> Some:
  """All but these."""
  return Some(f'is not {_listed(values)}', take, lambda v: v not in values)


def _listed(values) -> str:
  return ' or '.join(map(repr, values))


def needs(
  entry: str, free: Some, other: str, wanted: Some, why: str
) -> Dependence:
  """Unless an entry is free, the other must be among the wanted."""
  fits = lambda value, second: free.holds(value) or wanted.holds(second)
  ways = ((other, wanted), (entry, free))
  way = ', or '.join(f'--config.{name}={some.take}' for name, some in ways)
  rule = f'`{other}` {wanted.says} unless `{entry}` {free.says}'
  return Dependence(entry, other, fits, why, way, rule)


GOSSIP = but('none', take='dpsgd')
MEANS = but('none', take='allreduce')
QUANTIZED = but('full_precision', take='qsgd')
ONE_DEVICE = 'is several devices, and only workers of one are known to it'

DEPENDENCES = (
  # -------------------------------------------------------------------- pods
  needs(
    'reduce_quantizer.name',
    only('full_precision'),
    'pod.data',
    but(1, take=2),
    'is for means within a pod, of which one device takes none',
  ),
  *(
    needs(axis, only(1), other, some, why)
    for axis in ('pod.data', 'pod.fsdp')
    for other, some, why in (
      ('runner', only('sharded'), 'is several devices of a worker'),
      ('gossip.name', GOSSIP, 'makes pods, which talk by gossip'),
      ('smoothness.name', only('none'), ONE_DEVICE),
      ('gradient_probe_every', only(0), ONE_DEVICE),
    )
  ),
  # -------------------------------------------------------------- who talks
  needs(
    'reduce.name',
    MEANS,
    'gossip.name',
    GOSSIP,
    'takes no means: without gossip the workers would never talk',
  ),
  *(
    needs(entry, only(free), 'gossip.name', GOSSIP, 'needs gossip')
    for entry, free in (
      ('overlap', False),
      ('rounds', 1),
      ('rounds_from', ()),
      ('order', 'adapt_with_combine'),
      ('answered', False),
    )
  ),
  needs(
    'overlap',
    only(False),
    'order',
    only('adapt_with_combine'),
    'does not wait for the gradient, after which adapt_then_combine sends',
  ),
  Dependence(
    'learning_rate.warmup_epochs',
    'epochs',
    lambda warmup, epochs: not warmup or warmup <= epochs,
    'is longer than the run',
    'more epochs, a shorter warm-up, or '
    '--config.learning_rate.warmup_epochs=None',
    '`learning_rate.warmup_epochs` is at most `epochs`',
  ),
  # ------------------------------------------------------------------- means
  needs(
    'gradient_probe_every',
    only(0),
    'reduce.name',
    MEANS,
    'looks at mean gradients',
  ),
  *(
    needs(
      'reduce.name',
      but('adiana', take='diana'),
      other,
      only(*values),
      'gives the whole step',
    )
    for other, *values in (
      ('learning_rate.name', 'constant'),
      ('learning_rate.peak', 1.0),
      ('learning_rate.warmup_epochs', 0, None),
      ('optimizer.name', 'sgd'),
      ('momentum', 0.0),
      ('local_momentum', 0.0),
      ('weight_decay', 0.0),
      ('gradient_probe_every', 0),
    )
  ),
  Dependence(
    'reduce.theta1',
    'reduce.theta2',
    lambda theta1, theta2: None in (theta1, theta2) or theta1 + theta2 <= 1,
    'and theta2 are together at most 1',
    'less of one of them',
    '`reduce.theta1` and `reduce.theta2` are at most 1 together',
  ),
  *(
    needs(
      'momentum_kind.name',
      only('local'),
      other,
      only(value),
      'follows what a worker moves in a step, messages and all',
    )
    for other, value in (
      ('overlap', False),
      ('local_momentum', 0.0),
      ('optimizer.name', 'sgd'),
    )
  ),
  # --------------------------------------------------------------- fragments
  *(
    needs('fragments', only(1), other, only(free), 'sends less in a step')
    for other, free in (('rounds', 1), ('rounds_from', ()))
  ),
  *(
    needs('fragments', only(1), other, some, 'cuts the model anywhere')
    for other, some in (
      ('scales_from', only('')),
      ('smoothness.name', only('none')),
      ('quantizer.name', but('block', take='qsgd')),
    )
  ),
  # -------------------------------------------------------------- quantizers
  *(
    needs(entry, only(free), 'quantizer.name', QUANTIZED, 'is of a quantizer')
    for entry, free in (('scales_from', ''), ('rotated', False))
  ),
  needs(
    'smoothness.name',
    only('none'),
    'quantizer.name',
    QUANTIZED,
    'shapes a quantizer',
  ),
  needs(
    'smoothness.name',
    only('none'),
    'scales_from',
    only(''),
    'scales the leaves, too',
  ),
  needs(
    'smoothness.name',
    but('layer', take='diagonal'),
    'quantizer.name',
    but('block', take='qsgd'),
    'changes nothing in norms of one leaf each',
  ),
)
