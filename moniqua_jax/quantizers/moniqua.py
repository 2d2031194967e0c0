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
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import dither, native, wire
from moniqua_jax.quantizers import base, digest

Array = jax.Array

# Beyond 2^22 steps float32 has no bits left for the fraction of a step.
_REACH = 2.0**22
_CODED_TOGETHER = 8192  # values, if the codes are to be entropy-coded


class Rounding(NamedTuple):
  """How a coordinate finds its grid point."""

  delta: Callable[[int], float]  # bits -> worst error, as a share of B_theta
  # (seed, size, start) -> u of the places from start on, taken off first
  sent: Callable[[Array, int, int], Array]
  received: Callable[[Array, int, int], Array]  # the same, put back afterwards
  shared: bool  # whether all workers must draw the same u


class Header(NamedTuple):
  """What a message says of its codes."""

  bound: Array  # f32[], theta; NaN if the message is unreadable
  step: Array  # f32[], s
  inverse: Array  # f32[], 1 / s
  seed: Array  # u32[], of u


def _dither(seed, size, start):
  return dither.uniform(seed, size, start) - 0.5


def _nothing(seed, size, start):
  del seed, start
  return jnp.zeros(size, jnp.float32)


class Grid(NamedTuple):
  """The circle in 2^b steps, and how a value finds one of them."""

  bits: int  # b, of a code
  delta: float  # worst error of rounding, as a share of B_theta
  sent: Callable[[Array, int, int], Array]  # see `Rounding`
  received: Callable[[Array, int, int], Array]
  digest: bool  # whether messages end with one

  @property
  def levels(self) -> int:
    """Returns 2^b."""
    return 2**self.bits

  @property
  def per_theta(self) -> float:
    """Returns s / theta as one number: both ends compute the same step."""
    return 2 / (1 - 2 * self.delta) / self.levels


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
  eps (3.5 max(|x|, |y|) + 4 theta); nearer to it a wrong turn is possible, and
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
  bits = wire.integer(bits)
  _check(theta, bits, rounding)
  rule = ROUNDINGS[rounding]
  grid = Grid(bits, rule.delta(bits), rule.sent, rule.received, digest)
  return _quantizer(grid, theta, rule.shared, _inspect_all)


def measured(theta: Array, bits: int) -> base.Quantizer:
  """Builds `moniqua` that also reports `Seen.square`; the same bits travel."""
  rule = ROUNDINGS['dithered']
  grid = Grid(bits, rule.delta(bits), rule.sent, rule.received, digest=True)
  return _quantizer(grid, theta, rule.shared, _measure_all)


def _quantizer(grid, theta, shared, inspect_all):
  inspect_all = functools.partial(inspect_all, grid)
  return base.Quantizer(
    functools.partial(_encode, grid, theta),
    functools.partial(_decode, grid),
    lambda payload, reference: inspect_all([payload], reference)[0],
    shared,
    base.Codes(grid.bits, grid.levels, None, _CODED_TOGETHER),
    fast=base.Fast(inspect_all=inspect_all, mix=functools.partial(_mix, grid)),
    near=True,
  )


def _describe(grid, bound, seed):
  """Returns the header of a message with this theta and seed."""
  step = bound * grid.per_theta
  return Header(bound, step, 1 / step, seed)


def _read_header(grid, payload, size):
  """Reads what `_encode` wrote behind the codes."""
  at = wire.packed_size(size, grid.bits)
  wire.require(payload, at + (12 if grid.digest else 8), size)
  bound = wire.from_bytes(payload[at : at + 4], jnp.float32)
  seed = wire.from_bytes(payload[at + 4 : at + 8], jnp.uint32)
  # A theta that no sender has: zero, negative, too small or large for float32.
  usable = _usable(grid, _describe(grid, bound, seed))
  return _describe(grid, jnp.where(usable, bound, jnp.nan), seed)


def _usable(grid, about):
  """Tells whether this theta makes steps that float32 can count with."""
  usable = (about.step > 0) & jnp.isfinite(about.inverse)
  return usable & jnp.isfinite(grid.levels * about.step)


def _place(grid, about, y, start):
  """Returns y / s - u, to the bit the same in whichever fusion XLA computes it.

  So are n and k: what is sent, its digest, and what the sender believes that it
  sent agree without being computed together. (A division would not do: XLA
  makes it a product here and there.)
  """
  quotient = base.rounded(y * about.inverse, jnp.minimum(about.step, 0))
  return quotient - grid.sent(about.seed, y.size, start).reshape(y.shape)


def _value(grid, about, n, start):
  """Returns (n + u) s, the value of a grid point."""
  u = grid.received(about.seed, n.size, start)
  zero = jnp.minimum(about.step, 0)  # a step is positive, or NaN
  return base.rounded((n + u) * about.step, zero)


def _resolve(grid, about, codes, y, start=0):
  """Returns k, the turn that y tells, and x_hat."""
  codes = codes.astype(jnp.float32)
  k = jnp.rint((_place(grid, about, y, start) - codes) / grid.levels)
  return k, _value(grid, about, codes + grid.levels * k, start)


def _write(grid, about, y, start):
  """Returns the codes of a part; its turns and magnitudes for the checks."""
  y = digest.lanes(y)  # filled up with zeros, and n is 0 there
  n = jnp.rint(_place(grid, about, y, start)).astype(jnp.int32)
  codes = (n & (grid.levels - 1)).astype(jnp.uint8)
  return codes, digest.low_byte(n >> grid.bits), _magnitude(y)


def _write_group(grid, about, x, parts, group):
  """Returns the bytes of a group of parts, and in lanes what is checked."""
  each = {part: _write(grid, about, x[slice(*part)], part[0]) for part in group}
  codes = [each[part][0] if part in each else None for part in parts]
  _, turned, sizes = zip(*each.values(), strict=True)
  limit = _magnitude(_REACH * about.step)
  beyond = lambda sizes: (sizes >= limit).astype(jnp.uint8)
  return (
    wire.pack_parts(codes, grid.bits, x.size),
    digest.reduce_rows(lax.bitwise_xor, turned) if grid.digest else None,
    digest.reduce_rows(lax.max, sizes, beyond),
  )


def _encode(grid, theta, x, key):
  """Writes a message: the packed codes, theta, the seed, and the digest."""
  x = base.vector(x)
  # 0, but only a run can tell: `mix` takes theta from a header, and must find
  # the same n.
  zero = jnp.minimum(jnp.abs(x[0]), 0)
  bound = jnp.asarray(theta, jnp.float32) + zero
  about = _describe(grid, bound, dither.seed(key))
  return _form(grid, _encode_native, _encode_parts)(about, x)


def _form(grid, fast, slow):
  """Chooses who computes, by the platform; both give the same bits."""
  fast, slow = functools.partial(fast, grid), functools.partial(slow, grid)
  if grid.received is not _dither or not native.ready():
    return slow
  return functools.partial(lax.platform_dependent, cpu=fast, default=slow)


def _words(grid, about):
  """Returns a header as the native functions read it, u32[4]."""
  bound = jnp.where(_usable(grid, about), about.bound, jnp.nan)
  numbers = jnp.stack([bound, about.step, about.inverse])
  return jnp.append(wire.words(numbers), about.seed)


def _encode_native(grid, about, x):
  nbytes = wire.packed_size(x.size, grid.bits) + (12 if grid.digest else 8)
  how = {'bits': grid.bits, 'digest': grid.digest}
  return native.encode(x, _words(grid, about), nbytes, **how)


def _encode_parts(grid, about, x):
  shares, parts = [], wire.parts(x.size, grid.bits)
  # One pass for all that is made of a part: XLA manages four, not eight.
  for group in (parts[k : k + 4] for k in range(0, len(parts), 4)):
    share = _write_group(grid, about, x, parts, group)
    x, share = lax.optimization_barrier((x, share))
    shares.append(share)
  packed, turned, fars = zip(*shares, strict=True)
  far = functools.reduce(lax.bitwise_or, fars)
  usable = _usable(grid, about) & ~far.any()
  fields = [jnp.where(usable, about.bound, jnp.nan), about.seed]
  if grid.digest:
    fields.append(digest.fold(functools.reduce(lax.bitwise_xor, turned)))
  return jnp.concatenate([*wire.merged(packed), *map(wire.to_bytes, fields)])


def _decode(grid, payload, reference):
  """Reads a message next to the receiver's own vector."""
  y = reference.astype(jnp.float32)
  about = _read_header(grid, payload, y.size)
  decode = _form(grid, _decode_native, _decode_whole)
  return decode(about, payload, y).astype(reference.dtype)


def _decode_native(grid, about, payload, y):
  return native.decode(y, _words(grid, about), payload, bits=grid.bits)


def _decode_whole(grid, about, payload, y):
  codes = wire.unpack(payload, grid.bits, y.size)
  return _resolve(grid, about, codes, y)[1]


def _look(grid, about, codes, y, start):
  """Returns, in lanes, the largest distance over a spare byte, and turns."""
  k, x_hat = _resolve(grid, about, codes, y, start)
  gap = jnp.abs(x_hat - y)
  if not grid.digest:
    return (digest.reduce_rows(lax.max, [digest.lanes(_magnitude(gap))]),)
  part = gap * about.inverse / grid.levels  # of the circle; half of it at most
  words = digest.compute_once(digest.lanes(digest.pack(k, part)))
  return [digest.reduce_rows(op, [words]) for op in (lax.max, lax.bitwise_xor)]


def _join(seen):
  """Joins what was seen of all parts of a message: as u32[], and as lanes."""
  sizes, *turned = zip(*seen, strict=True)
  largest = jnp.max(functools.reduce(lax.max, sizes))
  return largest, *(functools.reduce(lax.bitwise_xor, each) for each in turned)


def _conclude(grid, about, payload, largest, *turned):
  """Says what was learned from a message, from what was seen of it."""
  zero = jnp.minimum(about.step, 0)
  gap = wire.floats(largest)
  if grid.digest:
    part = digest.unpack(largest)[1] * (grid.levels * about.step)
    gap = base.rounded(part, zero)
  # Who is not finite itself reads nothing.
  readable = jnp.isfinite(about.bound) & jnp.isfinite(gap)
  if grid.digest:
    low = digest.unpack(*turned)[0]
    readable &= digest.fold(low) == wire.from_bytes(payload[-4:], jnp.uint32)
  # XLA makes one product of this and the step's, and of both one with the gap.
  error = base.rounded(grid.delta * grid.levels * about.step, zero)
  return base.Seen(readable, jnp.maximum(gap - error, 0), about.bound)


def _inspect_all(grid, payloads, reference):
  """Inspects all messages in one pass over the reference."""
  headers = _headers(grid, payloads, reference)
  look = _form(grid, _look_native, _look_parts)
  seen = look(headers, payloads, reference.astype(jnp.float32))
  messages = zip(headers, payloads, seen, strict=True)
  return [
    _conclude(grid, about, *message, *each)
    for about, *message, each in messages
  ]


def _look_native(grid, headers, payloads, y):
  abouts = jnp.stack([_words(grid, about) for about in headers])
  how = {'bits': grid.bits, 'digest': grid.digest}
  largest, turned = native.look(y, abouts, payloads, **how)
  turned = [turned] if grid.digest else []
  return [*zip(largest, *turned, strict=True)]


def _look_parts(grid, headers, payloads, y):
  seen = _look_at_all(grid, _look, headers, payloads, y)
  return [*map(_join, seen)]


def _measure_all(grid, payloads, reference):
  """Inspects all messages, and measures the squares, in the same pass."""
  size = reference.size
  scale = _square_scale(grid, size)
  look = lambda *args: (_look(*args), _squares(scale, *args))
  headers = _headers(grid, payloads, reference)
  y = reference.astype(jnp.float32)
  each = _look_at_all(grid, look, headers, payloads, y)
  measured = []
  for about, payload, parts in zip(headers, payloads, each, strict=True):
    seen, squares = zip(*parts, strict=True)
    units = functools.reduce(lax.add, squares)
    square = _mean_square(about, units, 1 / (scale * size))
    conclusion = _conclude(grid, about, payload, *_join(seen))
    measured.append(conclusion._replace(square=square))
  return measured


def _mean_square(about, units, share):
  """Returns the mean of what `_squares` summed; XLA would turn products round.

  units u32[128], each `share` of a squared step.
  """
  zero = jnp.minimum(about.step, 0)
  once = lambda product: base.rounded(product, zero)
  total = base.sum_rows(units.astype(jnp.float32)[None])[0]
  step = once(about.step)
  return once(once(total * share) * once(step * step))


def _square_scale(grid, size):
  """Returns the units in a square of a step, with which no lane overflows.

  A power of two: in whichever order XLA multiplies, the product is the same.
  """
  rows = -(-size // 128) + 8
  return 2.0 ** (32 - 2 * grid.bits - rows.bit_length())


def _squares(scale, grid, about, codes, y, start):
  """Sums (x_hat_j - y)^2 - (x_hat - y)^2 in lanes, in units of a step.

  x_hat is y on the sender's grid, m steps away, with an error like that of
  x_hat_j: the difference has the mean (x_j - y)^2 whatever the values are, and
  is 0 where y = x_j. Integers have the same sum in any order.
  """
  place = _place(grid, about, y, start)
  own, codes = jnp.rint(place), codes.astype(jnp.float32)
  turns = jnp.rint((place - codes) / grid.levels)
  m = codes + grid.levels * turns - own
  square = m * (m + 2 * (own - place))
  units = jnp.rint(square * scale).astype(jnp.uint32)
  return digest.reduce_rows(lax.add, [digest.lanes(units)])


def _headers(grid, payloads, reference):
  return [_read_header(grid, payload, reference.size) for payload in payloads]


def _look_at_all(grid, look, headers, payloads, y):
  """Returns of each message a look at each part."""
  each = []
  for start, stop in wire.parts(y.size, grid.bits):
    seen = []
    for about, payload in zip(headers, payloads, strict=True):
      codes = wire.unpack_part(payload, grid.bits, y.size, start, stop)
      seen.append(look(grid, about, codes, y[start:stop], start))
    y, seen = lax.optimization_barrier((y, seen))
    each.append(seen)
  return zip(*each, strict=True)


def _mix(grid, x, payloads, came, pull, onto=None):
  """Adds the pull to a vector; see `base.Fast.mix`."""
  weights = getattr(pull, 'weights', None)
  slow = lambda grid, *args: _mix_parts(grid, pull, *args)
  fast = lambda grid, *args: _mix_native(grid, weights, *args)
  single = all(v is None or v.dtype == jnp.float32 for v in (x, onto))
  chosen = fast if single and weights is not None else slow
  return _form(grid, chosen, slow)(x, payloads, came, onto)


def _mix_native(grid, weights, x, payloads, came, onto):
  headers = _headers(grid, payloads, x)
  abouts = jnp.stack([_words(grid, about) for about in headers])
  weights = jnp.where(came, weights, 0)
  onto = x if onto is None else onto
  return native.mix(x, onto, abouts, weights, payloads[1:], bits=grid.bits)


def _mix_parts(grid, pull, x, payloads, came, onto):
  """Goes part by part, in place."""
  own, *theirs = _headers(grid, payloads, x)

  def change(start, stop, part):
    y = (part if onto is None else x[start:stop]).astype(jnp.float32)
    # n again, and not from the codes: a third of the traffic of 1 bit.
    x_hats = [_value(grid, own, jnp.rint(_place(grid, own, y, start)), start)]
    for about, message in zip(theirs, payloads[1:], strict=True):
      codes = wire.unpack_part(message, grid.bits, x.size, start, stop)
      x_hats.append(_resolve(grid, about, codes, y, start)[1])
    return part + pull([x_hat.astype(x.dtype) for x_hat in x_hats], came)

  mixed = x if onto is None else onto
  parts = wire.parts(x.size, grid.bits) if grid.bits < 8 else ((0, x.size),)
  for start, stop in parts:
    part_of = functools.partial(change, start, stop)
    mixed = base.update_part(mixed, start, stop, part_of)
  return lax.optimization_barrier(mixed)  # as one vector; see gossip.py


def _magnitude(values):
  """Returns |values| as integers in the same order, where a NaN is the largest.

  `jnp.max` of floats may lose it, see `base.largest`.
  """
  return wire.words(jnp.abs(values))


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
