"""Whether the workers come to agree, and how fast.

Rounds are cycled, so what counts is their product over a period.
"""

from collections.abc import Callable, Sequence
import functools

import numpy as np

from moniqua_jax.topologies.base import Topology, matrix, rounds_of
from moniqua_jax.topologies.rounds import lazy

NEVER = 1e-9  # what is nearer to 1 leaves the disagreement as it is
NOTHING = 1e-12  # what rounding leaves of a disagreement that is gone


def rho(weights: Sequence[np.ndarray]) -> float:
  """The part of the disagreement that a round leaves: 1 - `spectral_gap`.

  ||W_{m-1} ... W_0 - 1 1^T / n||_2^(1/m).

  Args:
    weights: of the rounds, float[n, n] each, doubly stochastic.

  Returns:
    A float in [0, 1].

  >>> rho([np.array([[0.75, 0.25], [0.25, 0.75]])] * 3)
  0.5

  Source: Lu and De Sa 2020 (rho, there for a symmetric W).
  """
  left, logarithm = np.eye(len(weights[0])), 0.0
  for w in weights:
    # Without the mean, and at size 1: else many rounds sink into the rounding.
    left = (w - 1 / len(w)) @ left
    size = np.linalg.norm(left)
    if size < NOTHING:
      return 0.0
    left, logarithm = left / size, logarithm + np.log(size)
  logarithm += np.log(np.linalg.norm(left, 2))
  return float(np.exp(logarithm / len(weights)))


def spectral_gap(topology: Topology | Sequence[Topology]) -> float:
  """How much of the disagreement one round takes away, at least.

  1 - rho, rho = ||W - 1 1^T / n||_2, the second largest singular value of W:
  max(|lambda_2|, |lambda_n|) if W is symmetric. Over m rounds it is
  1 - ||W_{m-1} ... W_0 - 1 1^T / n||_2^(1/m).

  Args:
    topology: a Topology, or a tuple of them; doubly stochastic.

  Returns:
    A float in [0, 1], 1 for exact averaging.

  Raises:
    ValueError: if a tuple is empty or its rounds differ in n.

  >>> from moniqua_jax import ring
  >>> round(1 - spectral_gap(ring(8)), 4)
  0.8047

  Source: Lu and De Sa 2020 (rho, there for a symmetric W).
  """
  return max(0.0, 1 - rho([matrix(r) for r in rounds_of(topology)]))


def require_agreement(
  schedule: Topology | Sequence[Topology],
  algorithm: str,
  gamma: float = 1.0,
  weights: Callable = matrix,
) -> None:
  """Refuses weights under which workers take turns and never agree.

  |lambda| < 1 for all eigenvalues of W_{m-1} ... W_0 but the 1 of the mean.

  Args:
    schedule: a Topology, or a tuple of them.
    algorithm: the name that the error blames.
    gamma: of the slack that the algorithm itself leaves, within (0, 1].
    weights: `matrix`, or `push_matrix` where weights are read by sender.

  Raises:
    ValueError: naming lambda, and a gamma for `lazy`.

  >>> from moniqua_jax import ring
  >>> require_agreement(ring(8, weight=0.5), 'choco', gamma=0.9)

  Source: Lian et al. 2017 (max(|lambda_2|, |lambda_n|) < 1).
  """
  rounds = lazy(rounds_of(schedule), gamma)
  value = _second_eigenvalue(rounds, weights)
  if abs(value) < 1 - NEVER:
    return
  whose = 'W' if len(rounds) == 1 else f'the product of {len(rounds)} rounds'
  cure = 'Leave each worker a weight of its own, as lazy(topology, 0.5) does.'
  if abs(_second_eigenvalue(lazy(rounds, 0.5), weights)) >= 1 - NEVER:
    cure = 'Give its edges more weight.'
  value = np.real_if_close(value).item()
  raise ValueError(
    f'{algorithm}: the workers do not agree in the long run: rho = '
    f'{abs(value):.9f}, from lambda = {value:.6g} of {whose}, and it must be '
    f'below 1. {cure}'
  )


@functools.lru_cache(maxsize=32)
def _second_eigenvalue(rounds, weights) -> complex:
  """The largest eigenvalue of a period but for the 1 of the mean."""
  product = np.eye(rounds[0].n)
  for r in rounds:
    product = weights(r) @ product
  symmetric = np.array_equal(product, product.T)  # else only slower
  solve = np.linalg.eigvalsh if symmetric else np.linalg.eigvals
  values = solve(product)
  others = np.delete(values, np.argmin(abs(values - 1)))
  return complex(max(others, key=abs, default=0))
