"""What a design says, and what those with a plus share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moniqua_jax.quantizers import base, roots
from moniqua_jax.theory import block_steps

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

  >>> from moniqua_jax import dithering
  >>> blind = Design(lambda row: dithering(1), (), 1.0, 1.0, len, 0.0)
  >>> blind.make(()).codes.bits
  2
  """

  make: Callable[[Any], base.Quantizer]
  rows: Any
  omega: float
  calL: float
  coded: Callable[[Array], Array]
  upload: float


def blocks(problem):
  """n blocks (at most d), and the budget: d / n values and their norms."""
  count = min(problem.n, problem.d)
  budget = problem.d / problem.n + count
  return block_steps.equal_blocks(problem.d, count), budget


def rows(problem, steps):
  """Each worker's row: the root of its L_i, and its steps."""
  steps = jnp.asarray(steps, jnp.float32)
  return {'root': roots.root(problem.matrices), 'steps': steps}


def upload(problem, steps):
  """All L_i^{1/2} and steps, once, in 32 bits: receivers decode with them."""
  return 32.0 * (problem.n * problem.d**2 + steps.size)
