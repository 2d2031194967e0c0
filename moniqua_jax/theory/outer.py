"""Local steps and an outer optimizer: how workers stay together, and how far.

With a = rate (1 + momentum) and b = rate momentum^2 for Nesterov's form, a =
rate and b = rate momentum for the other, the distances of `outer` by gossip go
as

  phi <- phi - a (I - W) phi - b m,    m <- momentum m + (I - W) phi

from one message to the next, if workers move alike between them.
"""

from collections.abc import Sequence
import functools

import numpy as np

from moniqua_jax import topologies
from moniqua_jax.theory.checked import not_negative


def outer_radius(
  topology: topologies.Topology | Sequence[topologies.Topology],
  learning_rate: float,
  momentum: float,
  nesterov: bool = True,
) -> float:
  """By what distances shrink from one message of `outer` to the next.

  The spectral radius of the recursion above, without the mean of the workers;
  of a schedule the geometric mean over its rounds. 1 or more: they part.

  >>> from moniqua_jax import ring
  >>> round(outer_radius(ring(8), 1.0, 0.0), 3)
  0.805
  """
  rounds = topologies.schedule(topology)
  topologies.require_doubly_stochastic(rounds, 'outer_radius')
  rate = not_negative('learning_rate', learning_rate)
  mu = not_negative('momentum', momentum)
  a, b = (rate * (1 + mu), rate * mu**2) if nesterov else (rate, rate * mu)
  n = rounds[0].n
  one, apart = np.eye(n), np.eye(n) - 1 / n

  def turn(one_round):
    pull = one - topologies.matrix(one_round)
    return np.block([[apart - a * pull, -b * apart], [pull, mu * apart]])

  product = functools.reduce(
    lambda done, r: turn(r) @ done, rounds, np.eye(2 * n)
  )
  return float(max(abs(np.linalg.eigvals(product))) ** (1 / len(rounds)))


def adam_step(b1: float = 0.9, b2: float = 0.999) -> float:
  """The most that Adam moves a coordinate in a step, in learning rates.

    (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2))

  by Cauchy and Schwarz over the gradients so far; attained by gradients that
  grow as (b1 / b2)^-k. So two workers are at most twice that times H steps
  further apart than they were after their last message.

  Raises:
    ValueError: b1^2 >= b2, where there is no bound.

  >>> round(adam_step(0.9, 0.95), 2), round(adam_step(), 2)
  (1.16, 7.27)
  """
  if not (0 <= b1 < 1 and 0 < b2 < 1 and b1**2 < b2):
    raise ValueError(
      f'b1={b1!r}, b2={b2!r}: a step of Adam is bounded for b1^2 < b2 < 1.'
    )
  return float((1 - b1) / np.sqrt((1 - b2) * (1 - b1**2 / b2)))
