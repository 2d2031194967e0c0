"""Where the fragments of a vector lie, and how one is read and written."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import wire
from moniqua_jax.quantizers import numerics

Array = jax.Array

_LONG = 64 * wire.TILE  # values of a fragment that may grow by two tiles


class Windows(NamedTuple):
  """Where the fragments of a vector lie: in windows of one size.

  A window holds its fragment, and may reach into its neighbours. Vectors are
  cut as matrices of one row: a row of a sharded array is laid out as one, and a
  TPU would turn all of it into a vector and back for the part that is cut.

  Attributes:
    size: of each window, s.
    starts: u32[K], of the windows, in units.
    begins, ends: u32[K], of the fragments, in values.
    unit: values; a window starts at starts * unit, a multiple that XLA sees.
  """

  size: int
  starts: np.ndarray
  begins: np.ndarray
  ends: np.ndarray
  unit: int

  def _place(self, f) -> tuple[tuple, Array]:
    """Returns where a window starts, and which values are its fragment's."""
    start, begin, end = (
      jnp.asarray(table)[f] for table in (self.starts, self.begins, self.ends)
    )
    start = start * jnp.uint32(self.unit)
    at = start + lax.iota(jnp.uint32, self.size)
    places = (numerics.index(place, int(self.ends[-1])) for place in (0, start))
    return tuple(places), (begin <= at) & (at < end)

  def read(self, vector: Array, f) -> Array:
    """Returns the window of a fragment, with zeros for its neighbours."""
    start, own = self._place(f)
    values = self._slice(vector, start)
    return jnp.where(own, values, 0)

  def _slice(self, vector, start) -> Array:
    row, cut = vector[None], (1, self.size)
    return lax.dynamic_slice(row, start, cut, allow_negative_indices=False)[0]

  def write(self, vector: Array, f, new: Array) -> Array:
    """Puts a fragment back, and leaves its neighbours as they are."""
    start, own = self._place(f)
    old = self._slice(vector, start)
    new = jnp.where(own, new.astype(vector.dtype), old)
    written = lax.dynamic_update_slice(
      vector[None], new[None], start, allow_negative_indices=False
    )
    # Else the place would be sought again for each value of the whole sum.
    return lax.optimization_barrier(written)[0]


def windows(d: int, fragments: int) -> Windows:
  """Cuts d values into fragments of as many units, or one more.

  What is no whole unit at the end belongs to the last fragment.
  """
  if d < fragments:
    raise ValueError(
      f'fragments={fragments}; the vector has {d} values, and a fragment needs '
      'one.'
    )
  unit = wire.TILE if d >= fragments * _LONG else 1
  units, rest = divmod(d, unit)
  cuts = np.arange(fragments + 1, dtype=np.int64) * units // fragments
  most = -(-units // fragments)
  u32 = lambda numbers: np.asarray(numbers, np.uint32)
  return Windows(
    size=most * unit + rest,
    starts=u32(np.minimum(cuts[:-1], units - most)),
    begins=u32(cuts[:-1] * unit),
    ends=u32([*(cuts[1:-1] * unit), d]),
    unit=unit,
  )
