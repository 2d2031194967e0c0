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
  """s = floor(sqrt(d) / n), at least 1: omega is about n then.

  Args:
    problem: of n workers and d coordinates.

  Returns:
    s.

  >>> import numpy as np
  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> levels_of_standard(problem)
  1
  """
  return max(1, int(math.sqrt(problem.d) // problem.n))


def standard(problem: Problem, norm: str = 'l2') -> base.Design:
  """Dithering with s levels, blind to L_i.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> import numpy as np
  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(standard(problem).omega, 3)
  2.828
  """
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
  """The same with a norm for each of n blocks.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> import numpy as np
  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(standard_blocks(problem).omega, 3)
  2.0
  """
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
