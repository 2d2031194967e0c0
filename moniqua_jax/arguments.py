"""Numbers that a caller gives, taken while they are no tracers yet."""

import jax
import numpy as np


def integer(value):
  """Makes an int of a whole number of NumPy; leaves all else to be refused."""
  return int(value) if isinstance(value, np.integer) else value


def is_number(value) -> bool:
  """Tells whether this is a real number, of Python, NumPy or JAX."""
  return np.asarray(value).dtype.kind in 'iuf'


def share(value, allowed: str) -> float:
  """Takes a number above 0 and at most 1, which no tracer is yet.

  >>> share(2, 'gamma={}; it must be above 0, at most 1.')
  Traceback (most recent call last):
  ValueError: gamma=2; it must be above 0, at most 1.
  """
  if isinstance(value, jax.core.Tracer):
    raise ValueError(
      f'{allowed.format("a traced number")} It must be known when the program '
      'is built: one program for each value, as by static_argnames of jax.jit.'
    )
  if not (is_number(value) and 0 < value <= 1):
    raise ValueError(allowed.format(repr(value)))
  return float(value)
