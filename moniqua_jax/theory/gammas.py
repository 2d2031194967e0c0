"""Step sizes of DCGD+, DIANA+ and ADIANA+, from the constants of `smoothness`.

f is the mean of n losses f_i, each L_i-smooth for a matrix L_i. L is
lambda_max of the mean of the L_i, L_max the largest lambda_max(L_i), calL_max
the largest calL of a worker. Without matrices calL is omega L_max, which makes
DCGD, DIANA and ADIANA of the same formulas.

Algorithms 1 and 2 of arXiv:2106.03524, as its authors' code has them. A short
proof, in the reference that this was written from, gives the same constants.
"""

import math
from typing import NamedTuple

from moniqua_jax.theory import checked


def gamma_dcgd(L: float, calL_max: float, n: int) -> float:
  """The step of DCGD+, gamma = 1 / (L + 2 calL_max / n). Algorithm 1."""
  L, n = float(checked.positive('L', L)), checked.count('n', n)
  return 1 / (L + 2 * checked.not_negative('calL_max', calL_max) / n)


def gamma_diana(L: float, calL_max: float, n: int) -> float:
  """The step of DIANA+ that has a proof, gamma = 1 / (L + 6 calL_max / n).

  Source: Algorithm 2 of arXiv:2106.03524.
  """
  L, n = float(checked.positive('L', L)), checked.count('n', n)
  return 1 / (L + 6 * checked.not_negative('calL_max', calL_max) / n)


def gamma_diana_authors(L_max: float, omega: float, n: int) -> float:
  """The step of the authors' DIANA baseline, 1 / (L_max (1 + 2 omega / n)).

  It is larger than `gamma_diana` allows for omega L_max, unless L is far below
  L_max: a generous baseline.

  Source: the code of arXiv:2106.03524.
  """
  L_max, n = float(checked.positive('L_max', L_max)), checked.count('n', n)
  return 1 / (L_max * (1 + 2 * checked.not_negative('omega', omega) / n))


def alpha_diana(omega: float) -> float:
  """How fast DIANA's shifts learn, alpha = 1 / (1 + omega), of C without L_i.

  Source: Algorithm 2 of arXiv:2106.03524.
  """
  return 1 / (1 + checked.not_negative('omega', omega))


class Adiana(NamedTuple):
  """The parameters of ADIANA(+), by the names of its paper.

  x = theta1 z + theta2 w + (1 - theta1 - theta2) y,    y_new = x - eta g
  z = beta z + (1 - beta) x + (gamma / eta) (y_new - x)
  """

  alpha: float  # of the shifts
  eta: float  # of the gradient step
  theta1: float  # weight of z
  theta2: float  # weight of w
  gamma: float  # how far z goes
  beta: float  # what z keeps of itself
  p: float  # how likely w becomes y


def adiana(
  *, L: float, L_max: float, calL_max: float, omega: float, mu: float, n: int
) -> Adiana:
  """Parameters of ADIANA+; they converge in our tests, and nothing is proven.

    p = min(1, max(1, sqrt(n / (32 w)) - 1) / (2 (1 + omega)))
    eta = min(1 / (2 L), n / (64 calL_max (2 p (omega + 1) + 1)^2))
    theta1 = min(1/4, sqrt(eta mu / p)),  theta2 = 1/2
    gamma = eta / (2 (theta1 + eta mu)),  beta = 1 - gamma mu
    alpha = 1 / (1 + omega),  w = min(omega, calL_max / L_max)

  Source: ADIANA, Li et al., ICML 2020, as we recall it; its constants are
  uncertain, and calL_max in place of omega L_max is ours.
  """
  L, mu = float(checked.positive('L', L)), float(checked.positive('mu', mu))
  L_max, n = float(checked.positive('L_max', L_max)), checked.count('n', n)
  calL_max = checked.not_negative('calL_max', calL_max)
  alpha = alpha_diana(omega)
  w = min(omega, calL_max / L_max)
  often = math.sqrt(n / (32 * w)) - 1 if w else math.inf
  p = min(1.0, max(1.0, often) * alpha / 2)
  eta = 1 / max(2 * L, 64 * calL_max * (2 * p / alpha + 1) ** 2 / n)
  theta1 = min(0.25, math.sqrt(eta * mu / p))
  gamma = eta / (2 * (theta1 + eta * mu))
  return Adiana(alpha, eta, theta1, 0.5, gamma, 1 - gamma * mu, p)
