"""How the norms of a message are written: in 32, 16 or 8 bits.

A norm is rounded up and the values are then rounded relative to what was
written, so that few bits cost variance, by the factor that the norm grew, and
no bias. With a block for every few hundred values 32 bits would be more than
the codes themselves.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moniqua_jax import wire
from moniqua_jax.quantizers import buckets, numerics

Array = jax.Array


class NormFormat(NamedTuple):
  """A way to write norms."""

  write: Callable[[Array], Array]  # f32[B] -> u8[m], rounded up
  read: Callable[[Array, int], Array]  # (u8[m], B) -> f32[B]
  size: Callable[[int], int]  # B -> m
  growth: float  # the most that a norm grows by, as a factor


def chosen(bits: int) -> NormFormat:
  """Returns the format of 32, 16 or 8 bits."""
  if bits not in FORMATS:
    raise ValueError(f'norm_bits={bits!r}; choose from {sorted(FORMATS)}.')
  return FORMATS[bits]


def _read_32(ends, count):
  return wire.from_bytes(ends, jnp.float32, (count,))


def _write_16(norms):
  # Exponent and 8 bits of the mantissa; a norm has no sign.
  return wire.to_planes((wire.words(norms) + 0x7FFF) >> 15, 2)


def _read_16(ends, count):
  del count
  return wire.floats(wire.from_planes(ends, 2) << 15)


# As a share of the largest norm: 5 bits of exponent, 3 of mantissa, 255 is 1.
_ONE = 127 * 8


def _write_8(norms):
  most = numerics.largest(norms)
  share = buckets.ratio(norms[None], most[None, None])[0]
  steps = ((wire.words(share) + 0xFFFFF) >> 20).astype(jnp.int32)
  codes = jnp.where(share > 0, jnp.clip(steps - _ONE + 255, 1, 255), 0)
  return jnp.concatenate([codes.astype(jnp.uint8), wire.to_bytes(most)])


def _read_8(ends, count):
  codes, most = ends[:count], wire.from_bytes(ends[count:], jnp.float32)
  share = wire.floats((codes.astype(jnp.uint32) + (_ONE - 255)) << 20)
  norms = jnp.where(codes > 0, share, 0) * most
  return numerics.rounded(norms, jnp.minimum(most, 0))


FORMATS = {
  32: NormFormat(wire.to_bytes, _read_32, lambda count: 4 * count, 1.0),
  16: NormFormat(_write_16, _read_16, lambda count: 2 * count, 1 + 2.0**-8),
  8: NormFormat(_write_8, _read_8, lambda count: count + 4, 1 + 2.0**-3),
}
