"""What the workers of a problem compress with, and what theory says of it.

Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524, Sections 3 to 5.
A design is a function of the problem and the norm; one with a plus compresses
within L_i^{1/2}, with a table that has a row for every worker. n workers, d
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
  """A compressor for each worker."""

  make: Callable[[Any], base.Quantizer]  # row -> that of one worker
  rows: Any  # what differs between workers, arrays [n, ...]; () if nothing
  omega: float  # the largest: the noise next to |x|^2
  calL: float  # the largest: the noise in the norm of L_i
  # payload u8[m] -> f32[], its bits when coded: norms in their bits; of each
  # nonzero the distance to the one before and the level in Elias' omega code,
  # and a sign
  coded: Callable[[Array], Array]
  upload: float  # bits that all workers together send before they start


# -------------------------------------- blind to L_i: what DCGD and DIANA send


def levels_of_standard(problem: Problem) -> int:
  """s = floor(sqrt(d) / n), at least 1: omega is about n then."""
  return max(1, int(math.sqrt(problem.d) // problem.n))


def standard(problem: Problem, norm: str = 'l2', sizes=None) -> Design:
  """Dithering with s levels, blind to L_i."""
  s, parts = levels_of_standard(problem), sizes or (problem.d,)
  omega = smoothness.dithering_omega(max(parts), s)
  return Design(
    lambda row: quantizers.dithering(s, norm, sizes),
    (),
    omega,
    omega * problem.L_max,
    counting.coded_bits_of(problem.d, s, parts),
    0.0,
  )


def standard_blocks(problem: Problem, norm: str = 'l2') -> Design:
  """The same with a norm for each of n blocks."""
  return standard(problem, norm, _blocks(problem)[0])


# --------------------------------------- a step for each coordinate: Section 5


def uniform_plus(problem: Problem, norm: str = 'l2') -> Design:
  """One step n / sqrt(d) for all, within L_i^{1/2}."""
  steps = rules.uniform(problem.d, problem.n) * np.ones((problem.n, problem.d))
  return _varying(problem, steps, norm, steps_sent=False)


def varying_dcgd_plus(problem: Problem, norm: str = 'l2') -> Design:
  """The steps that are best for DCGD+."""
  steps = rules.varying_dcgd(problem.diagonals, problem.d / problem.n)
  return _varying(problem, steps, norm)


def varying_diana_plus(problem: Problem, norm: str = 'l2') -> Design:
  """The steps that are best for DIANA+."""
  return _varying(problem, _varying_diana(problem), norm)


def varying_diana_plus_exact(
  problem: Problem, norm: str = 'l2', norm_bits: int = 32
) -> Design:
  """The same steps, with the exact omega and calL instead of their bounds."""
  steps = _varying_diana(problem)
  omega = np.max(smoothness.omega_exact(steps))
  calL = np.max(smoothness.calL_exact(steps, problem.diagonals))
  # A larger norm has larger cells: their variance grows by its square at most.
  growth = norm_formats.chosen(norm_bits).growth ** 2
  return _varying(problem, steps, norm, norm_bits)._replace(
    omega=growth * float(omega), calL=growth * float(calL)
  )


def varying_diana_plus_short_norm(problem: Problem, norm='l2') -> Design:
  """The same with a norm of 16 bits, ours."""
  return varying_diana_plus_exact(problem, norm, norm_bits=16)


def _varying_diana(problem):
  n, d = problem.n, problem.d
  return rules.varying_diana(problem.diagonals, d / n, n, problem.mu)


def _varying(problem, steps, norm, norm_bits=32, steps_sent=True):
  quantizer = lambda steps, bits: quantizers.varying_steps(
    steps, norm, bits, norm_bits
  )
  whole = (problem.d,)
  return _plus(problem, quantizer, steps, steps, whole, norm_bits, steps_sent)


# -------------------------------- a norm and a step for each block: Section 4


def block_dcgd_plus(problem: Problem, norm: str = 'l2') -> Design:
  """Steps for n blocks that are best for DCGD+."""
  sizes, beta = _blocks(problem)
  steps = block_steps.block_dcgd(problem.diagonals, beta, sizes)
  return _block(problem, steps, norm)


def block_diana_plus(
  problem: Problem, norm: str = 'l2', norm_bits: int = 32
) -> Design:
  """Steps for n blocks that are best for DIANA+."""
  sizes, beta = _blocks(problem)
  steps = block_steps.block_diana(
    problem.diagonals, beta, sizes, problem.n, problem.mu
  )
  return _block(problem, steps, norm, norm_bits)


def block_diana_plus_short_norms(problem: Problem, norm: str = 'l2') -> Design:
  """The same with norms of 8 bits, ours."""
  return block_diana_plus(problem, norm, norm_bits=8)


def block_uniform_plus(problem: Problem, norm: str = 'l2') -> Design:
  """One step for all blocks, within L_i^{1/2}."""
  sizes, beta = _blocks(problem)
  step = block_steps.block_uniform(sizes, beta)
  steps = step * np.ones((problem.n, len(sizes)))
  return _block(problem, steps, norm, steps_sent=False)


def _blocks(problem):
  """The n blocks (at most d), and the budget: d / n values and their norms."""
  count = min(problem.n, problem.d)
  budget = problem.d / problem.n + count
  return block_steps.equal_blocks(problem.d, count), budget


def _block(problem, steps, norm, norm_bits=32, steps_sent=True):
  sizes, _ = _blocks(problem)
  quantizer = lambda steps, bits: quantizers.block(
    steps, sizes, norm, bits, norm_bits
  )
  each = np.repeat(steps, sizes, axis=1)
  return _plus(problem, quantizer, steps, each, sizes, norm_bits, steps_sent)


def _plus(problem, quantizer, steps, each, sizes, norm_bits, steps_sent):
  """Steps within L_i^{1/2}, by (steps, bits) -> quantizer; `each` is [n, d]."""
  bits = (2 * dithered.levels_needed(steps)).bit_length()
  growth = norm_formats.chosen(norm_bits).growth
  return Design(
    lambda row: quantizers.smooth(quantizer(row['steps'], bits), row['root']),
    _rows(problem, steps=steps),
    growth * float(np.max(smoothness.omega(each, sizes))),
    growth * float(np.max(smoothness.calL(each, problem.diagonals, sizes))),
    counting.coded_bits_of(problem.d, 2 ** (bits - 1) - 1, sizes, norm_bits),
    _upload(problem, steps.size if steps_sent else 0),
  )


def _rows(problem, **own):
  """Each worker's row: the root of its L_i, and what is its own."""
  own = {name: jnp.asarray(v, jnp.float32) for name, v in own.items()}
  return {'root': roots.root(problem.matrices), **own}


def _upload(problem, steps):
  """All L_i^{1/2} and steps, once, in 32 bits: receivers decode with them."""
  return 32.0 * (problem.n * problem.d**2 + steps)


# ------------------------------------------------------------- sparsification


def sparse_plus(
  problem: Problem, norm: str = 'l2', rescale: bool = True
) -> Design:
  """Random sparsification with the probabilities that are best for DIANA+.

  Safaryan, Hanzely and Richtarik, "Smoothness matrices beat smoothness
  constants", NeurIPS 2021, arXiv:2102.07245: the method that came before.
  """
  n, d, diagonals = problem.n, problem.d, problem.diagonals
  tau = max(1, d // n)
  p = rules.probabilities(1 + diagonals / (n * problem.mu), tau)
  make = lambda row: quantizers.smooth(
    quantizers.random_tau(row['p'], rescale, tau), row['root']
  )
  sent = lambda payload: (payload[: 4 * d].reshape(4, d) > 0).any(axis=0)
  return Design(
    make,
    _rows(problem, p=p),
    float(np.max(smoothness.sparse_omega(p))),
    float(np.max(smoothness.sparse_calL(p, diagonals))),
    # Places are drawn from the seed: values only, as the authors count.
    lambda payload: 32.0 * jnp.sum(sent(payload)),
    _upload(problem, 0),
  )


def sparse_plus_authors(problem: Problem, norm: str = 'l2') -> Design:
  """The same as the authors' code has it: biased, it does not divide by p."""
  return sparse_plus(problem, norm, rescale=False)
