"""Eigenvalues of W, mixing times, and the W that an algorithm can live with.

n: workers.
"""

from collections.abc import Sequence
from fractions import Fraction
import math

import numpy as np

from moniqua_jax import topologies

Topology = topologies.Topology

MARGIN = 1e-6  # a W from outside has weights to about this
STEPS = 100_000  # before giving up
D2_LEAST = Fraction(-1, 3)  # below all eigenvalues of W


def eigenvalues(topology: Topology) -> tuple[float, float]:
  """The largest eigenvalue of W but for 1, and the smallest.

  1 = lambda_1 >= lambda_2 >= ... >= lambda_n; both are 1 for a lone worker.

  Source: the assumptions on W of arXiv:2002.11787.
  """
  (single,) = topologies.one_symmetric(topology, 'eigenvalues')
  values = np.linalg.eigvalsh(topologies.matrix(single))
  return float(values[-2:][0]), float(values[0])


def t_mix(topology: Topology | Sequence[Topology]) -> int:
  """Rounds until a unit of mass is spread evenly, wherever it was put.

  The least t with max_i ||W_{s+t-1} ... W_s e_i - 1/n||_1 <= 1/2 for all s:
  the norm never grows, and distributions are mixtures of the e_i.

  Source: the mixing time of the theorem on AD-PSGD of arXiv:2002.11787.
  """
  rounds = topologies.schedule(topology)
  topologies.require_doubly_stochastic(rounds, 't_mix')
  topologies.require_agreement(rounds, 't_mix')
  return mixing_time([topologies.matrix(r) for r in rounds])


def mixing_time(weights: Sequence[np.ndarray]) -> int:
  """`t_mix`, of the matrices of rounds under which the workers agree."""
  return max(_mixed(weights, start) for start in range(len(weights)))


def _mixed(weights, start: int) -> int:
  n, t = len(weights[0]), 0
  product = np.eye(n)
  # Where 1/2 is reached exactly, rounding must not ask for one round more.
  while abs(product - 1 / n).sum(0).max() > 0.5 + 1e-9:
    product = weights[(start + t) % len(weights)] @ product
    t += 1
    if t > STEPS:
      raise ValueError(too_slow(n))
  return t


def too_slow(n: int) -> str:
  """Says why a sum over all steps was given up."""
  return (
    f'the {n} workers of this topology agree too slowly for a sum over all '
    'steps; take fewer workers, more edges, or a larger gamma.'
  )


def limit(topology: Topology, least: Fraction) -> float:
  """The gamma below which lazy(topology, gamma) has lambda_n > least.

  1 - gamma (1 - lambda_n) > least  iff  gamma < (1 - least) / (1 - lambda_n).
  """
  gap = 1 - eigenvalues(topology)[1]
  return float(1 - least) / gap if gap else math.inf


def require_above(
  least: Fraction,
  topology: Topology | Sequence[Topology],
  algorithm: str,
  gamma: float = 1.0,
) -> None:
  """Refuses weights unless lambda_n(gamma W + (1 - gamma) I) > least."""
  (one,) = topologies.one_symmetric(topology, algorithm)
  slow = topologies.lazy(one, gamma)
  lowest = eigenvalues(slow)[1]
  if lowest > least + MARGIN:
    return
  most = limit(one, least)
  # 3/4 of the way down; rounded down, so above it.
  example = math.floor(75 * most + MARGIN) / 100
  left = abs(round(1 - example * float(1 - least) / most, 4))
  raise ValueError(
    f'{algorithm} needs lambda_n(W) > {least}; with gamma={gamma:g} it is '
    f'{lowest:.6f}. Use lazy(topology, gamma) with gamma below {most:.4g}, for '
    f'example lazy(topology, {example:g}), which has lambda_n = {left:g}.'
  )


def require_d2_stable(topology: Topology, gamma: float = 1.0) -> None:
  """Refuses the weights with which D^2 diverges.

  lambda_n(gamma W + (1 - gamma) I) > -1/3: else a root v_n = lambda_n -
  sqrt(lambda_n^2 - lambda_n) of z^2 - 2 lambda_n z + lambda_n is at or outside
  the unit circle. Equality is refused too, to within rounding: every even ring
  with weights 1/3 has -1/3 exactly.

  Source: the assumption of arXiv:1803.07068 and of the theorem on D^2 of
  arXiv:2002.11787.
  """
  require_above(D2_LEAST, topology, 'd2', gamma)
