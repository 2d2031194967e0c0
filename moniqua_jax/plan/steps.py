"""How many more steps a way to talk needs to a training loss: a rule of thumb.

  1 + log(1 + 2 apart) / 2 + .08 noise

Empirical, from one net: ResNet-20 on CIFAR-10, eight workers, four epochs, one
rate for all (results/cifar10_cpu; docs/budget.md has rule and runs side by
side). Steps are those to a loss, over those of an all-reduce in full precision.
"""

import math


def relative(apart: float = 0.0, noise: float = 0.0) -> float:
  """Predicts steps to a loss, over those of an all-reduce in full precision.

  `apart` and `noise` are those of a `Candidate`.

  >>> round(relative(apart=1), 2), round(relative(noise=1.14), 2)
  (1.55, 1.09)
  """
  return 1 + math.log(1 + 2 * apart) / 2 + 0.08 * noise
