"""A step for each coordinate, within L_i^{1/2}.

Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524, Section 5.
"""

import numpy as np

from moniqua_jax import quantizers
from moniqua_jax.laboratory import counting
from moniqua_jax.laboratory.designs import base
from moniqua_jax.laboratory.problems import Problem
from moniqua_jax.quantizers import dithered, norm_formats
from moniqua_jax.theory import smoothness
from moniqua_jax.theory import steps as rules


def uniform_plus(problem: Problem, norm: str = 'l2') -> base.Design:
  """One step n / sqrt(d) for all, within L_i^{1/2}."""
  steps = rules.uniform(problem.d, problem.n) * np.ones((problem.n, problem.d))
  return _varying(problem, steps, norm, steps_sent=False)


def varying_dcgd_plus(problem: Problem, norm: str = 'l2') -> base.Design:
  """The steps that are best for DCGD+ (Section 5)."""
  beta = problem.d / problem.n
  steps = rules.varying_dcgd(problem.diagonals, beta)
  return _varying(problem, steps, norm)


def varying_diana_plus(problem: Problem, norm: str = 'l2') -> base.Design:
  """The steps that are best for DIANA+ (Section 5)."""
  return _varying(problem, _varying_diana(problem), norm)


def varying_diana_plus_exact(
  problem: Problem, norm: str = 'l2', norm_bits: int = 32
) -> base.Design:
  """The same steps, with the exact omega and calL instead of their bounds."""
  steps = _varying_diana(problem)
  omega = np.max(smoothness.omega_exact(steps))
  calL = np.max(smoothness.calL_exact(steps, problem.diagonals))
  # A larger norm has larger cells: their variance grows by its square at most.
  growth = norm_formats.chosen(norm_bits).growth ** 2
  return _varying(problem, steps, norm, norm_bits=norm_bits)._replace(
    omega=growth * float(omega), calL=growth * float(calL)
  )


def varying_diana_plus_short_norm(problem: Problem, norm='l2') -> base.Design:
  """The same with a norm of 16 bits, ours."""
  return varying_diana_plus_exact(problem, norm, norm_bits=16)


def _varying_diana(problem):
  n, d = problem.n, problem.d
  return rules.varying_diana(problem.diagonals, d / n, n, problem.mu)


def _varying(problem, steps, norm, steps_sent=True, norm_bits=32):
  levels = dithered.levels_needed(steps)
  bits = (2 * levels).bit_length()
  make = lambda row: quantizers.smooth(
    quantizers.varying_steps(row['steps'], norm, bits, norm_bits), row['root']
  )
  return base.Design(
    make,
    base.rows(problem, steps),
    float(np.max(smoothness.omega(steps))),
    float(np.max(smoothness.calL(steps, problem.diagonals))),
    counting.coded_bits_of(
      problem.d, 2 ** (bits - 1) - 1, (problem.d,), norm_bits
    ),
    base.upload(problem, steps if steps_sent else np.zeros(0)),
  )
