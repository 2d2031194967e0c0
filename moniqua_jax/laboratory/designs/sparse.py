"""Sparsification within L_i^{1/2}: the method that came before.

Safaryan, Hanzely and Richtarik, "Smoothness matrices beat smoothness
constants", NeurIPS 2021, arXiv:2102.07245.
"""

import jax.numpy as jnp
import numpy as np

from moniqua_jax import quantizers
from moniqua_jax.laboratory.designs import base
from moniqua_jax.laboratory.problems import Problem
from moniqua_jax.theory import smoothness
from moniqua_jax.theory import steps as rules


def sparse_plus(problem: Problem, norm: str = 'l2') -> base.Design:
  """Random sparsification with the probabilities that are best for DIANA+."""
  return _sparse(problem, rescale=True)


def sparse_plus_authors(problem: Problem, norm: str = 'l2') -> base.Design:
  """The same as the authors' code has it: biased, it does not divide by p."""
  return _sparse(problem, rescale=False)


def _sparse(problem, rescale):
  n, diagonals = problem.n, problem.diagonals
  tau = max(1, problem.d // n)
  p = rules.probabilities(1 + diagonals / (n * problem.mu), tau)
  make = lambda row: quantizers.smooth(
    quantizers.random_tau(row['p'], rescale, tau), row['root']
  )
  root = base.rows(problem, p)['root']
  return base.Design(
    make,
    {'root': root, 'p': jnp.asarray(p, jnp.float32)},
    float(np.max(smoothness.sparse_omega(p))),
    float(np.max(smoothness.sparse_calL(p, diagonals))),
    # Places are drawn from the seed: values only, as the authors count.
    lambda payload: 32.0 * _values_sent(payload, problem.d),
    base.upload(problem, np.zeros(0)),
  )


def _values_sent(payload, d):
  planes = payload[: 4 * d].reshape(4, d)
  return jnp.sum((planes > 0).any(axis=0))
