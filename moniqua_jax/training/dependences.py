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


def needs(entry: str, free, other: str, wanted, why: str) -> Dependence:
  """Unless an entry is free, the other must be among the wanted."""
  free, wanted = (v if isinstance(v, Some) else only(v) for v in (free, wanted))
  fits = lambda value, second: free.holds(value) or wanted.holds(second)
  ways = ((other, wanted), (entry, free))
  way = ', or '.join(f'--config.{name}={some.take}' for name, some in ways)
  rule = f'`{other}` {wanted.says} unless `{entry}` {free.says}'
  return Dependence(entry, other, fits, why, way, rule)


GOSSIP = but('none', take='dpsgd')
MEANS = but('none', take='allreduce')
QUANTIZED = but('full_precision', take='qsgd')
NO_BLOCK = but('block', take='qsgd')
SEVERAL = but(1, take=2)
GIVEN = but('adiana', take='diana')

CODED = but(None, take=2.5)

IN_PODS = 'is for means within a pod, of which one device takes none'
TALK = 'takes no means: without gossip the workers would never talk'
LATE = 'does not wait for the gradient, after which adapt_then_combine sends'
WHOLE = 'gives the whole step'
MOVED = 'follows what a worker moves in a step, messages and all'
LESS = 'sends less in a step'
CUTS = 'cuts the model anywhere'
FORM = 'is a form of the momentum'
ALONE = 'is several devices, and only workers of one are known to it'

# An entry; unless it is so, another; must be so; for it ...
NEEDS = (
  ('reduce_quantizer.name', 'full_precision', 'pod.data', SEVERAL, IN_PODS),
  ('reduce.name', MEANS, 'gossip.name', GOSSIP, TALK),
  ('overlap', False, 'gossip.name', GOSSIP, 'needs gossip'),
  ('rounds', 1, 'gossip.name', GOSSIP, 'needs gossip'),
  ('rounds_from', (), 'gossip.name', GOSSIP, 'needs gossip'),
  ('order', 'adapt_with_combine', 'gossip.name', GOSSIP, 'needs gossip'),
  ('answered', False, 'gossip.name', GOSSIP, 'needs gossip'),
  ('overlap', False, 'order', 'adapt_with_combine', LATE),
  ('gradient_probe_every', 0, 'reduce.name', MEANS, 'looks at mean gradients'),
  ('reduce.name', GIVEN, 'learning_rate.name', 'constant', WHOLE),
  ('reduce.name', GIVEN, 'learning_rate.peak', 1.0, WHOLE),
  ('reduce.name', GIVEN, 'learning_rate.warmup_epochs', only(None, 0), WHOLE),
  ('reduce.name', GIVEN, 'optimizer.name', 'sgd', WHOLE),
  ('reduce.name', GIVEN, 'momentum', 0.0, WHOLE),
  ('reduce.name', GIVEN, 'local_momentum', 0.0, WHOLE),
  ('reduce.name', GIVEN, 'weight_decay', 0.0, WHOLE),
  ('reduce.name', GIVEN, 'gradient_probe_every', 0, WHOLE),
  ('momentum_kind.name', 'local', 'overlap', False, MOVED),
  ('momentum_kind.name', 'local', 'local_momentum', 0.0, MOVED),
  ('momentum_kind.name', 'local', 'optimizer.name', 'sgd', MOVED),
  ('fragments', 1, 'rounds', 1, LESS),
  ('fragments', 1, 'rounds_from', (), LESS),
  ('fragments', 1, 'scales_from', '', CUTS),
  ('fragments', 1, 'smoothness.name', 'none', CUTS),
  ('fragments', 1, 'quantizer.name', NO_BLOCK, CUTS),
  ('scales_from', '', 'quantizer.name', QUANTIZED, 'scales what is quantized'),
  ('rotated', False, 'quantizer.name', QUANTIZED, 'turns what is quantized'),
  ('code.name', 'recursive', 'coded', CODED, 'writes what is coded'),
  ('outer.nesterov', False, 'outer.momentum', but(0.0, take=0.9), FORM),
  (
    'smoothness.name',
    'none',
    'quantizer.name',
    QUANTIZED,
    'shapes a quantizer',
  ),
  ('smoothness.name', 'none', 'scales_from', '', 'scales the leaves, too'),
  (
    'smoothness.name',
    but('layer', take='diagonal'),
    'quantizer.name',
    NO_BLOCK,
    'changes nothing in norms of one leaf each',
  ),
)
OF_PODS = (
  ('runner', 'sharded', 'is several devices of a worker'),
  ('gossip.name', GOSSIP, 'makes pods, which talk by gossip'),
  ('smoothness.name', 'none', ALONE),
  ('gradient_probe_every', 0, ALONE),
)
DEPENDENCES = (
  *(
    needs(axis, 1, *row) for axis in ('pod.data', 'pod.fsdp') for row in OF_PODS
  ),
  *(needs(*row) for row in NEEDS),
  Dependence(
    'learning_rate.warmup_epochs',
    'epochs',
    lambda warmup, epochs: not warmup or warmup <= epochs,
    'is longer than the run',
    'more epochs, a shorter warm-up, or '
    '--config.learning_rate.warmup_epochs=None',
    '`learning_rate.warmup_epochs` is at most `epochs`',
  ),
  Dependence(
    'reduce.theta1',
    'reduce.theta2',
    lambda theta1, theta2: None in (theta1, theta2) or theta1 + theta2 <= 1,
    'and theta2 are together at most 1',
    'less of one of them',
    '`reduce.theta1` and `reduce.theta2` are at most 1 together',
  ),
)
