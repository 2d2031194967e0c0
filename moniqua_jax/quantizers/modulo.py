"""Moniqua: the modulo quantizer.

Lu and De Sa, "Moniqua: Modulo quantized communication in decentralized SGD",
ICML 2020, arXiv:2002.11787: Section 4, Lemma 2 and Algorithm 1.

Two workers whose vectors differ by less than theta in every coordinate need
only exchange where on a circle of circumference B_theta each coordinate stands;
the receiver finds the turn from its own vector. The codec works in integers: no
float modulo, and codes wrap, they are never clipped.

  s = B_theta / 2^b        n = rint(x / s - u)        code = n mod 2^b
  k = rint((y / s - u - code) / 2^b)        x_hat = (code + 2^b k + u) s

Payload: the packed codes, then theta (f32), the seed of u (u32), and a digest
(u32) if asked for.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import dither, wire
from moniqua_jax.quantizers import base

Array = jax.Array

# Beyond 2^22 steps float32 has no bits left for the fraction of a step.
_REACH = 2.0**22
_CODED_TOGETHER = 8192  # values, if the codes are to be entropy-coded


class Rounding(NamedTuple):
  """How a coordinate finds its grid point.

  Attributes:
    delta: bits -> worst error, as a fraction of B_theta.
    sent: (seed, size) -> u, taken off before rounding.
    received: (seed, size) -> u, put back after it.
    shared: whether all workers must draw the same u.
  """

  delta: Callable[[int], float]
  sent: Callable[[Array, int], Array]
  received: Callable[[Array, int], Array]
  shared: bool


def _dither(seed, size):
  return dither.uniform(seed, size) - 0.5


def _nothing(seed, size):
  del seed, size
  return jnp.float32(0)


ROUNDINGS = {
  # Subtractive: unbiased, and no further from x than the nearest point.
  'dithered': Rounding(lambda b: 2.0 ** -(b + 1), _dither, _dither, True),
  'nearest': Rounding(lambda b: 2.0 ** -(b + 1), _nothing, _nothing, False),
  # floor(x / s + v) with v = 1/2 - u: unbiased, up to one step away.
  'stochastic': Rounding(lambda b: 2.0**-b, _dither, _nothing, False),
}


def moniqua(
  theta: float | Array,
  bits: int,
  rounding: str = 'dithered',
  digest: bool = True,
) -> base.Quantizer:
  """Sends x modulo B_theta; the receiver resolves it with its own vector y.

  |x - y| < theta in every coordinate implies |x_hat - x| <= delta B_theta, with
  B_theta = 2 theta / (1 - 2 delta). In float32 the error may be 2 eps delta
  B_theta + 4 eps max(|x|, |y|) more, and |x - y| must stay below theta by
  eps (2.5 max(|x|, |y|) + 4 theta); nearer to it a wrong turn is possible, and
  the digest sees it.

  Args:
    theta: bound on the distance of neighbours in any coordinate, > 0, in units
      of x; may be traced.
    bits: per coordinate, 1 to 8.
    rounding: 'dithered' (shared subtractive dither, unbiased, delta =
      2^-(b+1); the key is shared by all workers), 'nearest' (biased, same
      delta) or 'stochastic' (unbiased, delta = 2^-b; the key is private).
    digest: also send 4 bytes by which the receiver sees that it took a wrong
      turn, because theta was too small.

  Returns:
    A `Quantizer`. A vector that is not finite, or too large for theta in
    float32, becomes an unreadable message: it decodes to NaN.

  Raises:
    ValueError: theta <= 0, bits outside 1 to 8, unknown rounding, or
      delta >= 1/2 (one bit with stochastic rounding).

  >>> q = moniqua(theta=0.5, bits=8)
  >>> x, y = jnp.array([10.0, -3.0]), jnp.array([10.4, -3.4])
  >>> x_hat = q.decode(q.encode(x, jax.random.key(0)), y)
  >>> bool((jnp.abs(x_hat - x) <= 0.5 / 255 + 1e-5).all())
  True

  Source: Algorithm 1 and Lemma 2; dither, digest and integers are ours.
  """
  _check(theta, bits, rounding)
  rule, levels = ROUNDINGS[rounding], 2**bits
  delta = rule.delta(bits)
  # B_theta / 2^b as one product, so that both ends compute the same step.
  per_theta = 2 / (1 - 2 * delta) / levels

  def split(payload, size):
    stop = wire.packed_size(size, bits)
    bound = wire.from_bytes(payload[stop : stop + 4], jnp.float32)
    seed = wire.from_bytes(payload[stop + 4 : stop + 8], jnp.uint32)
    codes = wire.unpack(payload[:stop], bits, size)
    return codes, bound, seed

  def turns(codes, bound, seed, reference):
    """k, the number of whole turns that bring each code next to reference."""
    u = rule.sent(seed, reference.size)
    y = reference.astype(jnp.float32) / (bound * per_theta)
    return jnp.rint((y - u - codes.astype(jnp.float32)) / levels)

  def encode(x, key):
    x = x.astype(jnp.float32)
    bound, seed = jnp.float32(theta), dither.seed(key)
    n = jnp.rint(x / (bound * per_theta) - rule.sent(seed, x.size))
    codes = (n.astype(jnp.int32) & (levels - 1)).astype(jnp.uint8)
    step = bound * per_theta
    within_reach = (base.largest(x) < _REACH * step) & jnp.isfinite(
      levels * step
    )
    bound_sent = jnp.where(within_reach, bound, jnp.nan)
    fields = [wire.to_bytes(bound_sent), wire.to_bytes(seed)]
    if digest:
      # Of the codes that are packed, through the receiver's function: computed
      # from n in another fusion, a rounding tie would be a false alarm.
      codes = lax.optimization_barrier(codes)
      own = turns(codes, bound, seed, x)
      fields.append(wire.to_bytes(fold_turns(own)))
    return jnp.concatenate([wire.pack(codes, bits), *fields])

  def decode(payload, reference):
    codes, bound, seed = split(payload, reference.size)
    k = turns(codes, bound, seed, reference)
    n = codes.astype(jnp.float32) + levels * k
    x_hat = (n + rule.received(seed, reference.size)) * (bound * per_theta)
    zero = jnp.minimum(bound, 0)  # a bound is positive, or NaN
    return base.rounded(x_hat, zero).astype(reference.dtype)

  def inspect(payload, reference):
    codes, bound, seed = split(payload, reference.size)
    readable = jnp.isfinite(bound)
    if digest:
      own = fold_turns(turns(codes, bound, seed, reference))
      readable &= own == wire.from_bytes(payload[-4:], jnp.uint32)
    gap = jnp.max(jnp.abs(decode(payload, reference) - reference))
    error = delta * levels * per_theta * bound
    # A receiver that is itself not finite reads nothing.
    readable &= jnp.isfinite(gap)
    return base.Seen(readable, jnp.maximum(gap - error, 0), bound)

  codes = base.Codes(bits, levels, None, _CODED_TOGETHER)
  return base.Quantizer(encode, decode, inspect, rule.shared, codes)


def fold_turns(turns: Array) -> Array:
  """Folds all turns into 4 bytes: the XOR of each, rotated by its place mod 32.

  Sees every single wrong turn (but one by a multiple of 256), and several
  unless they cancel: two wrong turns by one cancel only in places that are
  equal mod 32. A hash of the integers would cost three times the encoder.

  Args:
    turns: f32[d], integers.

  Returns:
    u32[].

  >>> fold_turns(jnp.array([0.0, 1.0, 2.0, -1.0]))
  Array(2034, dtype=uint32)
  """
  low = (turns.astype(jnp.int32) & 255).astype(jnp.uint8)
  lanes = jnp.pad(low, (0, -low.size % 128)).reshape(-1, 128)
  lanes = lax.reduce(lanes, jnp.uint8(0), lax.bitwise_xor, (0,))
  words, left = lanes.astype(jnp.uint32), jnp.arange(128, dtype=jnp.uint32) % 32
  words = (words << left) | (words >> (32 - left) % 32)
  return lax.reduce(words, jnp.uint32(0), lax.bitwise_xor, (0,))


def _check(theta, bits, rounding):
  wire.planes(bits)
  if rounding not in ROUNDINGS:
    raise ValueError(f'rounding={rounding!r}; choose from {sorted(ROUNDINGS)}.')
  if not isinstance(theta, jax.Array) and not 0 < theta < math.inf:
    raise ValueError(f'theta={theta!r}; it must be positive and finite.')
  if not ROUNDINGS[rounding].delta(bits) < 0.5:
    raise ValueError(
      f'rounding={rounding!r} with bits={bits} has delta = 1/2 and an '
      "infinite B_theta; use 2 bits or more, or rounding='dithered'."
    )
