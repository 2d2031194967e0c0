"""Dithering that is blind to L_i: what DCGD and DIANA send.

The baselines of Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524.
"""

import math

from moniqua_jax import quantizers
from moniqua_jax.laboratory import counting
from moniqua_jax.laboratory.designs import base
from moniqua_jax.laboratory.problems import Problem
from moniqua_jax.theory import smoothness


def levels_of_standard(problem: Problem) -> int:
  """s = floor(sqrt(d) / n), at least 1: omega is about n then."""
  return max(1, int(math.sqrt(problem.d) // problem.n))


def standard(problem: Problem, norm: str = 'l2') -> base.Design:
  """Dithering with s levels, blind to L_i."""
  s = levels_of_standard(problem)
  omega = smoothness.dithering_omega(problem.d, s)
  return base.Design(
    lambda row: quantizers.dithering(s, norm),
    (),
    omega,
    omega * problem.L_max,
    counting.coded_bits_of(problem.d, s, (problem.d,)),
    0.0,
  )


def standard_blocks(problem: Problem, norm: str = 'l2') -> base.Design:
  """The same with a norm for each of n blocks."""
  s, (sizes, _) = levels_of_standard(problem), base.blocks(problem)
  omega = smoothness.dithering_omega(max(sizes), s)
  return base.Design(
    lambda row: quantizers.dithering(s, norm, sizes),
    (),
    omega,
    omega * problem.L_max,
    counting.coded_bits_of(problem.d, s, sizes),
    0.0,
  )
