"""A norm and a step for each of n blocks, within L_i^{1/2}.

Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524, Section 4.
"""

import numpy as np

from moniqua_jax import quantizers
from moniqua_jax.laboratory import counting
from moniqua_jax.laboratory.designs import base
from moniqua_jax.laboratory.problems import Problem
from moniqua_jax.quantizers import dithered, norm_formats
from moniqua_jax.theory import block_steps, smoothness


def block_dcgd_plus(problem: Problem, norm: str = 'l2') -> base.Design:
  """Steps for n blocks that are best for DCGD+ (Section 4)."""
  sizes, beta = base.blocks(problem)
  steps = block_steps.block_dcgd(problem.diagonals, beta, sizes)
  return _block(problem, steps, sizes, norm)


def block_diana_plus(problem: Problem, norm: str = 'l2') -> base.Design:
  """Steps for n blocks that are best for DIANA+ (Section 4)."""
  return _block(problem, *_block_diana(problem), norm)


def block_diana_plus_short_norms(
  problem: Problem, norm: str = 'l2'
) -> base.Design:
  """The same with norms of 8 bits, ours."""
  return _block(problem, *_block_diana(problem), norm, norm_bits=8)


def block_uniform_plus(problem: Problem, norm: str = 'l2') -> base.Design:
  """One step for all blocks, within L_i^{1/2}."""
  sizes, beta = base.blocks(problem)
  step = block_steps.block_uniform(sizes, beta)
  steps = step * np.ones((problem.n, len(sizes)))
  return _block(problem, steps, sizes, norm, steps_sent=False)


def _block_diana(problem):
  sizes, beta = base.blocks(problem)
  steps = block_steps.block_diana(
    problem.diagonals, beta, sizes, problem.n, problem.mu
  )
  return steps, sizes


def _block(problem, steps, sizes, norm, norm_bits=32, steps_sent=True):
  bits = (2 * dithered.levels_needed(steps)).bit_length()
  make = lambda row: quantizers.smooth(
    quantizers.block(row['steps'], sizes, norm, bits, norm_bits), row['root']
  )
  each = np.repeat(steps, sizes, axis=1)
  growth = norm_formats.chosen(norm_bits).growth
  return base.Design(
    make,
    base.rows(problem, steps),
    growth * float(np.max(smoothness.omega(each, sizes))),
    growth * float(np.max(smoothness.calL(each, problem.diagonals, sizes))),
    counting.coded_bits_of(problem.d, 2 ** (bits - 1) - 1, sizes, norm_bits),
    base.upload(problem, steps if steps_sent else np.zeros(0)),
  )
