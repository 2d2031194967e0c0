"""Which steps h, probabilities or widths are best for a budget.

A worker that may send beta values in expectation chooses its quantizer by the
diagonal of its smoothness matrix L_i. DCGD+ pays for calL alone; DIANA+ pays
for omega as well, in the ratio of omega to calL / (n mu): its rules are those
of DCGD+ for other weights A_j in place of L_jj.

  min |A h|_2  with |1 / h|_2 = beta      at h_j = sqrt(sum_t A_t / A_j) / beta

Section 5 of arXiv:2106.03524, as its authors' code has it; their budget is
d / n. `diagonal` is [..., d] and positive throughout; leading axes are workers.
There are n, and f is mu-strongly convex. Steps per block are in `block_steps`.
"""

import math

import numpy as np

from moniqua_jax.theory import checked


def varying_dcgd(diagonal: np.ndarray, beta: float) -> np.ndarray:
  """The steps of least calL bound for |1 / h|_2 = beta.

    h_j = sqrt(sum_t L_tt / L_jj) / beta;  calL = sum_t L_tt / beta

  Steps above 1 are meant: such values are seldom sent.
  """
  return _varying(checked.positive('diagonal', diagonal, axes=1), beta)


def varying_diana(
  diagonal: np.ndarray, beta: float, n: int, mu: float
) -> np.ndarray:
  """The steps of least omega^2 + (calL / (n mu))^2, in bounds, for beta.

    h_j = sqrt(sum_t A_t / A_j) / beta,  A_j = sqrt(1 + (L_jj / (n mu))^2)

  |h| stands for omega, which it bounds. The minimum is (sum_t A_t / beta)^2.
  """
  return _varying(np.hypot(1, relative(diagonal, n, mu)), beta)


def _varying(weights, beta):
  total = weights.sum(-1, keepdims=True)
  return np.sqrt(total / weights) / checked.positive('beta', beta)


def relative(diagonal: np.ndarray, n: int, mu: float) -> np.ndarray:
  """What L_jj costs DIANA+ in units of what omega costs: L_jj / (n mu).

  Source: Algorithm 2 of arXiv:2106.03524.
  """
  diagonal = checked.positive('diagonal', diagonal, axes=1)
  return diagonal / (checked.count('n', n) * checked.positive('mu', mu))


def uniform(d: int, n: int) -> float:
  """One step for all that sends d / n values: h = n / sqrt(d).

  `varying_dcgd` gives it for equal L_jj and beta = d / n.

  Source: the fixed number of levels in Section 5 of arXiv:2106.03524.
  """
  return checked.count('n', n) / math.sqrt(checked.count('d', d))


def probabilities(weights: np.ndarray, tau: float) -> np.ndarray:
  """Which values to send, tau in expectation: least max_j (1 / p_j - 1) w_j.

    p_j = w_j / (w_j + rho), rho the root of sum_j p_j = tau, and that maximum

  Weights L_jj are for DCGD+, then rho is calL; 1 + `relative` for DIANA+, then
  rho bounds omega and calL / (n mu).

  Source: arXiv:2102.07245, as we recall it, and the code of arXiv:2106.03524.
  """
  weights, d = checked.positive('weights', weights, axes=1), np.shape(weights)
  if not 0 < tau < d[-1]:
    raise ValueError(f'tau={tau}; it must be above 0 and below d={d[-1]}.')
  return _probabilities(weights, float(tau))


def _probabilities_of_row(weights, tau):
  from scipy import optimize  # slow

  # rho is at most sum w / tau, and at least (d - tau) / sum (1 / w); in logs,
  # since weights may differ by many powers of 10.
  low = np.log((len(weights) - tau) / np.sum(1 / weights)) - 1
  high = np.log(np.sum(weights) / tau) + 1
  p = lambda log_rho: weights / (weights + np.exp(log_rho))
  excess = lambda log_rho: np.sum(p(log_rho)) - tau
  return p(optimize.brentq(excess, low, high, xtol=1e-14))


_probabilities = np.vectorize(
  _probabilities_of_row, signature='(d),()->(d)', otypes=[np.float64]
)
