"""Any levels: the quantizer that NUQSGD's theory is about, without its grid.

Ramezani-Kebrya et al., "NUQSGD", JMLR 22(114), 2021, arXiv:1908.06077, Section
3; with levels that move during training, Faghri et al., "Adaptive gradient
quantization", NeurIPS 2020, arXiv:2010.12460.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import dither, wire
from moniqua_jax.quantizers import base, buckets

Array = jax.Array


def leveled(
  levels: Sequence[float] | Array, bucket_size: int = 8192, norm: str = 'l2'
) -> base.Quantizer:
  """Stochastic rounding of x / norm to the two levels around it.

    r in [l_j, l_{j+1}]:  h = l_{j+1} with p = (r - l_j) / (l_{j+1} - l_j),
    else l_j;  x_hat = norm h

  Args:
    levels: ascending, at most 256. Either signed, from -1 to 1, or magnitudes
      up to 1, which are mirrored: (0, .5, 1) stands for (-1, -.5, 0, .5, 1) and
      (.5, 1) for (-1, -.5, .5, 1). An array of JAX, perhaps traced, is f32[k]
      of signed levels, not checked, which ride at the end of the payload.
    bucket_size: values that share a norm; the last bucket may be shorter.
    norm: 'l2' or 'linf'.

  Returns:
    A `Quantizer`, unbiased, with a private key; see `buckets.bucketed` for what
    becomes of numbers that are not finite.

  Raises:
    ValueError: levels that are not ascending, or do not end at -1 and 1, or are
      too many.

  >>> q, x = leveled((0, 0.5, 1), norm='linf'), jnp.array([2.0, -1.0, 0.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 2., -1.,  0.], dtype=float32)

  Source: Section 3 of arXiv:1908.06077, for any levels and any norm.
  """
  if isinstance(levels, jax.Array):
    traced = isinstance(levels, jax.core.Tracer)
    if not traced and np.asarray(levels)[0] >= 0:
      raise ValueError(
        f'levels={levels}, an array of JAX: it is of signed levels, from -1 to '
        '1; give magnitudes as a tuple.'
      )
    return _with_levels_in_the_payload(levels, bucket_size, norm)
  return buckets.bucketed(grid(signed(levels), bucket_size), norm)


def signed(levels: Sequence[float]) -> tuple[float, ...]:
  """Checks levels and returns them from -1 to 1: as given, or mirrored."""
  if np.ndim(levels) != 1:
    raise ValueError(f'levels={levels!r}; give them all, as (0, 0.5, 1).')
  values = tuple(float(level) for level in levels)
  if values and values[0] >= 0:
    values = tuple(-v for v in reversed(values) if v > 0) + values
  if not 2 <= len(values) <= 256:
    raise ValueError(f'{len(values)} levels; a code has room for 2 to 256.')
  if not (np.diff(values) > 0).all():
    raise ValueError(f'levels={values}; they must ascend.')
  if values[0] != -1 or values[-1] != 1:
    raise ValueError(
      f'levels from {values[0]} to {values[-1]}; they must reach from -1 to 1 '
      '(magnitudes: up to 1), or values beyond would be cut off.'
    )
  return values


def grid(levels: tuple[float, ...] | Array, bucket_size: int) -> buckets.Grid:
  """Builds the grid of signed levels, a tuple or a traced f32[k]."""
  count = len(levels)
  bits = (count - 1).bit_length()
  zero = None
  if isinstance(levels, tuple) and levels[count // 2] == 0 and count % 2:
    zero = count // 2

  def round_(r, words):
    low, high, cell = levels[0], levels[1], jnp.zeros(r.shape, jnp.int32)
    for j in range(1, count - 1):
      above = r >= levels[j]
      low = jnp.where(above, levels[j], low)
      high = jnp.where(above, levels[j + 1], high)
      cell += above.astype(jnp.int32)
    u = dither.unit(words)
    return cell + (u * (high - low) < r - low).astype(jnp.int32)

  def level(codes):
    value = jnp.full(codes.shape, levels[0], jnp.float32)
    for j in range(1, count):
      value = jnp.where(codes >= j, levels[j], value)
    return value

  return buckets.Grid(base.Codes(bits, count, zero, bucket_size), round_, level)


def _with_levels_in_the_payload(levels, bucket_size, norm):
  """Decodes with the sender's levels, whatever those of the receiver."""
  count, cells = len(levels), grid(levels, bucket_size)
  own = buckets.bucketed(cells, norm)

  def encode(x, key):
    tail = wire.to_bytes(levels.astype(jnp.float32))
    return jnp.concatenate([own.encode(x, key), tail])

  def read(payload, size):
    """Returns the sender's quantizer, its message, and whether it may be so."""
    end = wire.packed_size(size, cells.codes.bits) + 4 * -(-size // bucket_size)
    wire.require(payload, end + 4 * count, size)
    sent = wire.from_bytes(payload[end:], jnp.float32, (count,))
    # A norm times a level is a number then.
    known = (jnp.abs(sent) <= 1).all()
    sent = jnp.where(known, sent, jnp.nan)
    return buckets.bucketed(grid(sent, bucket_size), norm), payload[:end], known

  def decode(payload, reference):
    sender, message, _ = read(payload, reference.size)
    return sender.decode(message, reference)

  def inspect(payload, reference):
    sender, message, known = read(payload, reference.size)
    seen = sender.inspect(message, reference)
    return seen._replace(readable=seen.readable & known)

  return base.Quantizer(encode, decode, inspect, codes=own.codes)
