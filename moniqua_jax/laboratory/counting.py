"""Bits of a message of dithering, as the paper counts them."""

from collections.abc import Callable
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import coding, wire
from moniqua_jax.quantizers import base

Array = jax.Array


def coded_bits_of(
  d: int, top: int, sizes: tuple[int, ...], norm_bits: int = 32
) -> Callable[[Array], Array]:
  """Bits of a payload of dithering: norms, distances, signs and levels.

    norm_bits B + sum over nonzeros of |omega(distance)| + 1 + |omega(level)|

  A distance starts anew in each block; blocks of one size that stand together
  are counted together.

  Returns payload u8[m] -> f32[].
  """
  bits = (2 * top).bit_length()
  runs = [(size, len([*same])) for size, same in itertools.groupby(sizes)]
  ends = np.cumsum([size * count for size, count in runs])
  abouts = [base.Codes(bits, 2 * top + 1, top, size) for size, _ in runs]
  norms = norm_bits * len(sizes) + 32 * (norm_bits == 8)

  def coded(payload):
    codes = jnp.split(wire.split(payload, bits, d)[0], ends[:-1])
    lengths = [
      jnp.sum(coding.recursive().length(*pair))
      for pair in zip(codes, abouts, strict=True)
    ]
    return jnp.sum(jnp.stack(lengths)).astype(jnp.float32) + norms

  return coded
