"""What the workers of a problem compress with, and what theory says of it.

Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524, Sections 3 to 5.
A design is a function of the problem; one with a plus compresses within
L_i^{1/2}, with a table that has a row for every worker. n workers, d
coordinates; the budgets are the authors': d / n values a message, and d / n + n
with n blocks.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import quantizers
from moniqua_jax.laboratory import counting
from moniqua_jax.laboratory.problems import Problem
from moniqua_jax.quantizers import base, dithered, norm_formats, roots
from moniqua_jax.theory import block_steps, smoothness
from moniqua_jax.theory import steps as rules

Array = jax.Array


class Design(NamedTuple):
  """A compressor for each worker.

  Attributes:
    make: row -> `Quantizer`, of one worker.
    rows: what differs between workers, a pytree of arrays [n, ...]; () if none.
    omega: of the compressors, the largest: the noise next to |x|^2.
    calL: of the compressors, the largest: the noise in the norm of L_i.
    coded: payload u8[m] -> f32[], its bits when coded: norms in their bits,
      and of each value that is not zero the distance to the one before and the
      level in Elias' omega code, and a sign.
    upload: bits that all workers together send before they start.
  """

  make: Callable[[Any], base.Quantizer]
  rows: Any
  omega: float
  calL: float
  coded: Callable[[Array], Array]
  upload: float


def levels_of_standard(problem: Problem) -> int:
  """s = floor(sqrt(d) / n), at least 1: omega is about n then.

  Args:
    problem: of n workers and d coordinates.

  Returns:
    s.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> levels_of_standard(problem)
  1
  """
  return max(1, int(math.sqrt(problem.d) // problem.n))


def standard(problem: Problem, norm: str = 'l2') -> Design:
  """Dithering with s levels, blind to L_i.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(standard(problem).omega, 3)
  2.828
  """
  s = levels_of_standard(problem)
  omega = smoothness.dithering_omega(problem.d, s)
  return Design(
    lambda row: quantizers.dithering(s, norm),
    (),
    omega,
    omega * problem.L_max,
    counting.coded_bits_of(problem.d, s, (problem.d,)),
    0.0,
  )


def standard_blocks(problem: Problem, norm: str = 'l2') -> Design:
  """The same with a norm for each of n blocks.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(standard_blocks(problem).omega, 3)
  2.0
  """
  s, (sizes, _) = levels_of_standard(problem), _blocks(problem)
  omega = smoothness.dithering_omega(max(sizes), s)
  return Design(
    lambda row: quantizers.dithering(s, norm, sizes),
    (),
    omega,
    omega * problem.L_max,
    counting.coded_bits_of(problem.d, s, sizes),
    0.0,
  )


def uniform_plus(problem: Problem, norm: str = 'l2') -> Design:
  """One step n / sqrt(d) for all, within L_i^{1/2}.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(uniform_plus(problem).calL, 3)
  0.355
  """
  steps = rules.uniform(problem.d, problem.n) * np.ones((problem.n, problem.d))
  return _varying(problem, steps, norm, steps_sent=False)


def varying_dcgd_plus(problem: Problem, norm: str = 'l2') -> Design:
  """The steps that are best for DCGD+ (Section 5).

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(varying_dcgd_plus(problem).calL, 3)
  0.252
  """
  beta = problem.d / problem.n
  steps = rules.varying_dcgd(problem.diagonals, beta)
  return _varying(problem, steps, norm)


def varying_diana_plus(problem: Problem, norm: str = 'l2') -> Design:
  """The steps that are best for DIANA+ (Section 5).

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(varying_diana_plus(problem).calL, 3)
  0.252
  """
  return _varying(problem, _varying_diana(problem), norm)


def varying_diana_plus_exact(
  problem: Problem, norm: str = 'l2', norm_bits: int = 32
) -> Design:
  """The same steps, with the exact omega and calL instead of their bounds.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.
    norm_bits: of a norm, 32, 16 or 8.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(varying_diana_plus_exact(problem).calL, 3)
  0.072
  """
  steps = _varying_diana(problem)
  omega = np.max(smoothness.omega_exact(steps))
  calL = np.max(smoothness.calL_exact(steps, problem.diagonals))
  # A larger norm has larger cells: their variance grows by its square at most.
  growth = norm_formats.chosen(norm_bits).growth ** 2
  return _varying(problem, steps, norm, norm_bits=norm_bits)._replace(
    omega=growth * float(omega), calL=growth * float(calL)
  )


def varying_diana_plus_short_norm(problem: Problem, norm='l2') -> Design:
  """The same with a norm of 16 bits, ours.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(varying_diana_plus_short_norm(problem).calL, 3)
  0.072
  """
  return varying_diana_plus_exact(problem, norm, norm_bits=16)


def block_dcgd_plus(problem: Problem, norm: str = 'l2') -> Design:
  """Steps for n blocks that are best for DCGD+ (Section 4).

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(block_dcgd_plus(problem).calL, 3)
  0.407
  """
  sizes, beta = _blocks(problem)
  steps = block_steps.block_dcgd(problem.diagonals, beta, sizes)
  return _block(problem, steps, sizes, norm)


def block_diana_plus(problem: Problem, norm: str = 'l2') -> Design:
  """Steps for n blocks that are best for DIANA+ (Section 4).

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(block_diana_plus(problem).calL, 3)
  0.408
  """
  return _block(problem, *_block_diana(problem), norm)


def block_diana_plus_short_norms(problem: Problem, norm: str = 'l2') -> Design:
  """The same with norms of 8 bits, ours.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(block_diana_plus_short_norms(problem).calL, 3)
  0.459
  """
  return _block(problem, *_block_diana(problem), norm, norm_bits=8)


def block_uniform_plus(problem: Problem, norm: str = 'l2') -> Design:
  """One step for all blocks, within L_i^{1/2}.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(block_uniform_plus(problem).omega, 3)
  2.732
  """
  sizes, beta = _blocks(problem)
  step = block_steps.block_uniform(sizes, beta)
  steps = step * np.ones((problem.n, len(sizes)))
  return _block(problem, steps, sizes, norm, steps_sent=False)


def sparse_plus(problem: Problem, norm: str = 'l2') -> Design:
  """Random sparsification with the probabilities that are best for DIANA+.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(sparse_plus(problem).calL, 3)
  0.027
  """
  return _sparse(problem, rescale=True)


def sparse_plus_authors(problem: Problem, norm: str = 'l2') -> Design:
  """The same as the authors' code has it: biased, it does not divide by p.

  Args:
    problem: whose sizes and L_i decide.
    norm: 'l2' or 'linf', of what is sent.

  Returns:
    A `Design`.

  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(sparse_plus_authors(problem).upload, 3)
  4096.0
  """
  return _sparse(problem, rescale=False)


def _varying_diana(problem):
  n, d = problem.n, problem.d
  return rules.varying_diana(problem.diagonals, d / n, n, problem.mu)


def _block_diana(problem):
  sizes, beta = _blocks(problem)
  steps = block_steps.block_diana(
    problem.diagonals, beta, sizes, problem.n, problem.mu
  )
  return steps, sizes


def _blocks(problem):
  """n blocks (at most d), and the budget: d / n values and their norms."""
  count = min(problem.n, problem.d)
  budget = problem.d / problem.n + count
  return block_steps.equal_blocks(problem.d, count), budget


def _varying(problem, steps, norm, steps_sent=True, norm_bits=32):
  levels = dithered.levels_needed(steps)
  bits = (2 * levels).bit_length()
  make = lambda row: quantizers.smooth(
    quantizers.varying_steps(row['steps'], norm, bits, norm_bits), row['root']
  )
  return Design(
    make,
    _rows(problem, steps),
    float(np.max(smoothness.omega(steps))),
    float(np.max(smoothness.calL(steps, problem.diagonals))),
    counting.coded_bits_of(
      problem.d, 2 ** (bits - 1) - 1, (problem.d,), norm_bits
    ),
    _upload(problem, steps if steps_sent else np.zeros(0)),
  )


def _block(problem, steps, sizes, norm, norm_bits=32, steps_sent=True):
  bits = (2 * dithered.levels_needed(steps)).bit_length()
  make = lambda row: quantizers.smooth(
    quantizers.block(row['steps'], sizes, norm, bits, norm_bits), row['root']
  )
  each = np.repeat(steps, sizes, axis=1)
  growth = norm_formats.chosen(norm_bits).growth
  return Design(
    make,
    _rows(problem, steps),
    growth * float(np.max(smoothness.omega(each, sizes))),
    growth * float(np.max(smoothness.calL(each, problem.diagonals, sizes))),
    counting.coded_bits_of(problem.d, 2 ** (bits - 1) - 1, sizes, norm_bits),
    _upload(problem, steps if steps_sent else np.zeros(0)),
  )


def _sparse(problem, rescale):
  n, diagonals = problem.n, problem.diagonals
  tau = max(1, problem.d // n)
  p = rules.probabilities(1 + diagonals / (n * problem.mu), tau)
  make = lambda row: quantizers.smooth(
    quantizers.random_tau(row['p'], rescale, tau), row['root']
  )
  root = _rows(problem, p)['root']
  return Design(
    make,
    {'root': root, 'p': jnp.asarray(p, jnp.float32)},
    float(np.max(smoothness.sparse_omega(p))),
    float(np.max(smoothness.sparse_calL(p, diagonals))),
    # Places are drawn from the seed: values only, as the authors count.
    lambda payload: 32.0 * _values_sent(payload, problem.d),
    _upload(problem, np.zeros(0)),
  )


def _rows(problem, steps):
  steps = jnp.asarray(steps, jnp.float32)
  return {'root': roots.root(problem.matrices), 'steps': steps}


def _upload(problem, steps):
  """All L_i^{1/2} and steps, once, in 32 bits: receivers decode with them."""
  return 32.0 * (problem.n * problem.d**2 + steps.size)


def _values_sent(payload, d):
  planes = payload[: 4 * d].reshape(4, d)
  return jnp.sum((planes > 0).any(axis=0))
