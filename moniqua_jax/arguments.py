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


def is_traced(value) -> bool:
  """Tells whether nothing is known of a number yet."""
  return isinstance(value, jax.core.Tracer)


def decay(value, subject: str) -> None:
  """Refuses what is no number of at least 0 and below 1; a tracer may be one.

  >>> decay(1.0, 'b1=1.0; dadam')
  Traceback (most recent call last):
  ValueError: b1=1.0; dadam needs it at least 0 and below 1.
  """
  if not (is_traced(value) or (is_number(value) and 0 <= value < 1)):
    raise ValueError(f'{subject} needs it at least 0 and below 1.')


def rate(value, subject: str) -> None:
  """Refuses what is neither a finite number nor a schedule.

  >>> rate(None, 'dadam')
  Traceback (most recent call last):
  ValueError: learning_rate=None; dadam needs a number or a schedule of optax.
  """
  known = not (is_traced(value) or callable(value))
  if known and not (is_number(value) and np.all(np.isfinite(value))):
    raise ValueError(
      f'learning_rate={value!r}; {subject} needs a number or a schedule of '
      'optax.'
    )
