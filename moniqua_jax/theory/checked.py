"""What the theory of smoothness lets in: each check names what it refuses."""

from collections.abc import Sequence
import math
import operator

import numpy as np


def positive(name: str, value, axes: int = 0) -> np.ndarray:
  """The value in float64, refused unless all of it is positive and finite."""
  array = np.asarray(value, np.float64)
  if array.ndim < axes or not array.size:
    raise ValueError(f'{name} of shape {array.shape}; it must be [..., d].')
  wrong = np.argwhere(~(np.isfinite(array) & (array > 0)))
  if len(wrong):
    at = tuple(int(k) for k in wrong[0])
    where = f'[{", ".join(map(str, at))}]' if at else ''
    raise ValueError(
      f'{name}{where}={float(array[at])}; it must be positive and finite.'
    )
  return array


def count(name: str, value: int) -> int:
  """The value, refused unless it is an integer of at least 1."""
  try:
    number = operator.index(value)
  except TypeError:
    number = 0
  if number < 1:
    raise ValueError(f'{name}={value!r}; it must be an integer of at least 1.')
  return number


def blocks(sizes: Sequence[int] | None, d: int) -> tuple[int, ...]:
  """The sizes of the blocks, refused unless they make up d coordinates."""
  if sizes is None:
    return (d,)
  sizes = tuple(count('sizes', size) for size in sizes)
  if sum(sizes) != d:
    raise ValueError(f'sizes={sizes} sum to {sum(sizes)}; it must be d={d}.')
  return sizes


def pair(
  name: str, value: np.ndarray, diagonal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """A value per coordinate and the diagonal of L_i, of one shape."""
  value = positive(name, value, axes=1)
  diagonal = positive('diagonal', diagonal, axes=1)
  try:
    if value.shape[-1] == diagonal.shape[-1]:
      value, diagonal = np.broadcast_arrays(value, diagonal)
      return value, diagonal
  except ValueError:
    pass  # the message below has the names
  raise ValueError(
    f'{name} of shape {value.shape} with a diagonal of {diagonal.shape}; both '
    'must be [..., d], of one d, with leading axes that broadcast.'
  )


def not_negative(name: str, value: float) -> float:
  """The value, refused unless it is finite and at least 0."""
  if not (value >= 0 and math.isfinite(value)):
    raise ValueError(f'{name}={value}; it must be finite and at least 0.')
  return float(value)
