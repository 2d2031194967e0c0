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

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import arguments, dither, native, wire
from moniqua_jax.quantizers import (
  at_once,
  base,
  circle,
  digest,
  forms,
  numerics,
)

Array = jax.Array

_CODED_TOGETHER = 8192  # values, if the codes are to be entropy-coded
_IN_A_PASS = 4  # parts, of all messages: XLA manages that many, and not eight


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
    ValueError: theta <= 0 or not one number, bits outside 1 to 8, unknown
      rounding, or delta >= 1/2 (one bit with stochastic rounding).

  >>> q = moniqua(theta=0.5, bits=8)
  >>> x, y = jnp.array([10.0, -3.0]), jnp.array([10.4, -3.4])
  >>> x_hat = q.decode(q.encode(x, jax.random.key(0)), y)
  >>> bool((jnp.abs(x_hat - x) <= 0.5 / 255 + 1e-5).all())
  True

  Source: Algorithm 1 and Lemma 2; dither, digest and integers are ours.
  """
  bits = arguments.integer(bits)
  _check(theta, bits, rounding)
  return _quantizer(theta, bits, rounding, digest, _inspect_all)


def measured(theta: Array, bits: int) -> base.Quantizer:
  """Builds `moniqua` that also reports `Seen.square`; the same bits travel."""
  return _quantizer(theta, bits, 'dithered', True, _measure_all)


def _quantizer(theta, bits, rounding, digest, inspect_all):
  rule = circle.ROUNDINGS[rounding]
  grid = circle.Grid(bits, rule.delta(bits), rule.sent, rule.received, digest)
  inspect_all = functools.partial(inspect_all, grid)
  return base.Quantizer(
    functools.partial(_encode, grid, theta),
    functools.partial(_decode, grid),
    lambda payload, reference: inspect_all([payload], reference)[0],
    rule.shared,
    base.Codes(grid.bits, grid.levels, None, _CODED_TOGETHER),
    fast=base.Fast(
      inspect_all=inspect_all,
      mix=functools.partial(_mix, grid),
      cuts=lambda size: wire.cuts(size, grid.bits),
    ),
    near=True,
  )


def _write(grid, about, y, start):
  """Returns the codes of a part; its turns and magnitudes for the checks."""
  y = digest.lanes(y)  # filled up with zeros, and n is 0 there
  n = jnp.rint(circle.place(grid, about, y, start)).astype(jnp.int32)
  codes = (n & (grid.levels - 1)).astype(jnp.uint8)
  return codes, digest.low_byte(n >> grid.bits), circle.magnitude(y)


def _write_group(grid, about, x, parts, group):
  """Returns the bytes of a group of parts, and in lanes what is checked."""
  each = {part: _write(grid, about, x[slice(*part)], part[0]) for part in group}
  codes = [each[part][0] if part in each else None for part in parts]
  _, turned, sizes = zip(*each.values(), strict=True)
  limit = circle.magnitude(about.reach)
  beyond = lambda sizes: (sizes >= limit).astype(jnp.uint8)
  return (
    wire.pack_parts(codes, grid.bits, x.size),
    digest.reduce_rows(lax.bitwise_xor, turned) if grid.digest else None,
    digest.reduce_rows(lax.max, sizes, beyond),
  )


def _form(grid, default, cpu=None, **others):
  """Chooses who computes; C++ knows dithered codes alone."""
  dithered = grid.received is circle.ROUNDINGS['dithered'].received
  return forms.chosen(default, grid, cpu=cpu if dithered else None, **others)


def _words(grid, about):
  """Returns a header as the native functions read it, u32[4]."""
  bound = jnp.where(circle.usable(grid, about), about.bound, jnp.nan)
  numbers = jnp.stack([bound, about.step, about.inverse])
  return jnp.append(wire.words(numbers), about.seed)


def _encode(grid, theta, x, key):
  """Writes a message: the packed codes, theta, the seed, and the digest."""
  x = base.vector(x)
  # 0, but only a run can tell: `mix` takes theta from a header, and must find
  # the same n.
  zero = jnp.minimum(jnp.abs(x[0]), 0)
  bound = jnp.asarray(theta, jnp.float32) + zero
  about = circle.describe(grid, bound, dither.seed(key))
  how = {'cuda': at_once.encode, 'cpu': _encode_native}
  return _form(grid, _encode_in_parts, **how)(about, x)


def _encode_native(grid, about, x):
  nbytes = wire.packed_size(x.size, grid.bits) + (12 if grid.digest else 8)
  how = {'bits': grid.bits, 'digest': grid.digest}
  return native.encode(x, _words(grid, about), nbytes, **how)


def _encode_in_parts(grid, about, x):
  shares, parts = [], wire.parts(x.size, grid.bits)
  # One pass for all that is made of a part.
  for group in _groups(parts, _IN_A_PASS):
    share = _write_group(grid, about, x, parts, group)
    x, share = lax.optimization_barrier((x, share))
    shares.append(share)
  packed, turned, fars = zip(*shares, strict=True)
  far = functools.reduce(lax.bitwise_or, fars)
  fields = [
    jnp.where(circle.usable(grid, about) & ~far.any(), about.bound, jnp.nan),
    about.seed,
  ]
  if grid.digest:
    fields.append(digest.fold(functools.reduce(lax.bitwise_xor, turned)))
  return jnp.concatenate([*wire.merged(packed), *map(wire.to_bytes, fields)])


def _groups(parts, most):
  return [parts[k : k + most] for k in range(0, len(parts), most)]


def _decode(grid, payload, reference):
  """Reads a message next to the receiver's own vector."""
  y = reference.astype(jnp.float32)
  about = circle.read_header(grid, payload, y.size)
  decode = _form(grid, _decode_whole, cpu=_decode_native)
  return decode(about, payload, y).astype(reference.dtype)


def _decode_native(grid, about, payload, y):
  return native.decode(y, _words(grid, about), payload, bits=grid.bits)


def _decode_whole(grid, about, payload, y):
  codes = wire.unpack(payload, grid.bits, y.size)
  return circle.resolve(grid, about, codes, y)[1]


def _look(grid, about, parts):
  """Returns, in lanes, the largest distance over a spare byte, and turns."""
  words = [_words_of(grid, about, *part) for part in parts]
  ops = (lax.max, lax.bitwise_xor) if grid.digest else (lax.max,)
  return [digest.reduce_rows(op, words) for op in ops]


def _words_of(grid, about, codes, y, start):
  """Returns in lanes a word of each value: its distance, above its turn."""
  k, x_hat = circle.resolve(grid, about, codes, y, start)
  gap = jnp.abs(x_hat - y)
  if not grid.digest:
    return digest.lanes(circle.magnitude(gap))
  part = gap * about.inverse / grid.levels  # of the circle; half of it at most
  return digest.compute_once(digest.lanes(digest.pack(k, part)))


def _join(seen):
  """Joins what was seen of all parts of a message: as u32[], and as lanes."""
  sizes, *turned = zip(*seen, strict=True)
  largest = jnp.max(functools.reduce(lax.max, sizes))
  return largest, *(functools.reduce(lax.bitwise_xor, each) for each in turned)


def _conclude(grid, about, payload, largest, *turned):
  """Says what was learned from a message, from what was seen of it."""
  if not grid.digest:
    return circle.conclude(grid, about, wire.floats(largest), True)
  low = digest.unpack(*turned)[0]
  sent = wire.from_bytes(payload[-4:], jnp.uint32)
  gap = circle.gap_of(grid, about, digest.unpack(largest)[1])
  return circle.conclude(grid, about, gap, digest.fold(low) == sent)


def _inspect_all(grid, payloads, reference):
  """Inspects all messages in one pass over the reference."""
  how = {'cuda': at_once.inspect_all, 'cpu': _inspect_native}
  # XLA for TPUs reads the vector once for all of these, for CPUs it need not.
  most = max(_IN_A_PASS // len(payloads), 1)
  how['tpu'] = functools.partial(_inspect_in_parts, together=most)
  return _form(grid, _inspect_in_parts, **how)(payloads, reference)


def _inspect_native(grid, payloads, reference):
  headers = _headers(grid, payloads, reference)
  abouts = jnp.stack([_words(grid, about) for about in headers])
  how = {'bits': grid.bits, 'digest': grid.digest}
  y = reference.astype(jnp.float32)
  seen = zip(*native.look(y, abouts, payloads, **how), strict=True)
  return [
    _conclude(grid, *message, *each)
    for *message, each in zip(headers, payloads, seen, strict=True)
  ]


def _inspect_in_parts(grid, payloads, reference, together=1):
  messages = _look_at_all(grid, _look, payloads, reference, together)
  return [
    _conclude(grid, *message, *_join(seen)) for *message, seen in messages
  ]


def _measure_all(grid, payloads, reference):
  """Inspects all messages, and measures the squares, in the same pass."""
  size = reference.size
  scale = _square_scale(grid, size)
  look = lambda *args: (_look(*args), _squares(scale, *args))
  measured = []
  for about, payload, each in _look_at_all(grid, look, payloads, reference):
    seen, squares = zip(*each, strict=True)
    units = functools.reduce(lax.add, squares)
    square = _mean_square(about, units, 1 / (scale * size))
    conclusion = _conclude(grid, about, payload, *_join(seen))
    measured.append(conclusion._replace(square=square))
  return measured


def _mean_square(about, units, share):
  """Returns the mean of what `_squares` summed; XLA would turn products round.

  units u32[128], each `share` of a squared step.
  """
  once = lambda product: numerics.rounded(product, about.zero)
  total = numerics.sum_rows(units.astype(jnp.float32)[None])[0]
  step = once(about.step)
  return once(once(total * share) * once(step * step))


def _square_scale(grid, size):
  """Returns the units in a square of a step, with which no lane overflows.

  A power of two: in whichever order XLA multiplies, the product is the same.
  """
  rows = -(-size // 128) + 8
  return 2.0 ** (32 - 2 * grid.bits - rows.bit_length())


def _squares(scale, grid, about, parts):
  """Sums `_units` of parts in lanes; integers have one sum in any order."""
  units = [digest.lanes(_units(scale, grid, about, *part)) for part in parts]
  return digest.reduce_rows(lax.add, units)


def _units(scale, grid, about, codes, y, start):
  """Returns (x_hat_j - y)^2 - (x_hat - y)^2 in units of a step.

  x_hat is y on the sender's grid, m steps away, with an error like that of
  x_hat_j: the difference has the mean (x_j - y)^2 whatever the values are, and
  is 0 where y = x_j.
  """
  place = circle.place(grid, about, y, start)
  own, codes = jnp.rint(place), codes.astype(jnp.float32)
  turns = jnp.rint((place - codes) / grid.levels)
  m = codes + grid.levels * turns - own
  square = m * (m + 2 * (own - place))
  return jnp.rint(square * scale).astype(jnp.uint32)


def _headers(grid, payloads, y):
  return [circle.read_header(grid, payload, y.size) for payload in payloads]


def _look_at_all(grid, look, payloads, reference, together=1):
  """Returns of each message its header, itself, and looks at all its parts.

  `look` takes so many parts `together`.
  """
  size, y = reference.size, reference.astype(jnp.float32)
  headers, each = _headers(grid, payloads, reference), []
  for group in _groups(wire.parts(size, grid.bits), together):
    seen = []
    for about, payload in zip(headers, payloads, strict=True):
      codes = functools.partial(wire.unpack_part, payload, grid.bits, size)
      parts = [(codes(*part), y[slice(*part)], part[0]) for part in group]
      seen.append(look(grid, about, parts))
    y, seen = lax.optimization_barrier((y, seen))
    each.append(seen)
  return zip(headers, payloads, zip(*each, strict=True), strict=True)


def _mix(grid, x, payloads, came, pull, onto=None):
  """Adds the pull to a vector; see `base.Fast.mix`."""
  in_parts = functools.partial(_mix_in_parts, pull)
  whole = functools.partial(at_once.mix, pull)
  weights = getattr(pull, 'weights', None)
  single = all(v is None or v.dtype == jnp.float32 for v in (x, onto))
  in_native = single and weights is not None
  cpu = functools.partial(_mix_native, weights) if in_native else None
  others = {
    'cuda': functools.partial(whole, wire.unpack),
    'tpu': functools.partial(whole, wire.unpack_in_place),
  }
  return _form(grid, in_parts, cpu=cpu, **others)(x, payloads, came, onto)


def _mix_native(weights, grid, x, payloads, came, onto):
  headers = _headers(grid, payloads, x)
  abouts = jnp.stack([_words(grid, about) for about in headers])
  weights = jnp.where(came, weights, 0)
  onto = x if onto is None else onto
  return native.mix(x, onto, abouts, weights, payloads[1:], bits=grid.bits)


def _mix_in_parts(pull, grid, x, payloads, came, onto):
  """Goes part by part, in place."""
  own, *theirs = _headers(grid, payloads, x)

  def change(start, stop, part):
    y = (part if onto is None else x[start:stop]).astype(jnp.float32)
    # n again, and not from the codes: a third of the traffic of 1 bit.
    n = jnp.rint(circle.place(grid, own, y, start))
    x_hats = [circle.value(grid, own, n, start)]
    for about, message in zip(theirs, payloads[1:], strict=True):
      codes = wire.unpack_part(message, grid.bits, x.size, start, stop)
      x_hats.append(circle.resolve(grid, about, codes, y, start)[1])
    return part + pull([x_hat.astype(x.dtype) for x_hat in x_hats], came)

  mixed = x if onto is None else onto
  parts = wire.parts(x.size, grid.bits) if grid.bits < 8 else ((0, x.size),)
  for start, stop in parts:
    part_of = functools.partial(change, start, stop)
    mixed = numerics.update_part(mixed, start, stop, part_of)
  return lax.optimization_barrier(mixed)  # as one_round.as_vector


def _check(theta, bits, rounding):
  wire.planes(bits)
  if rounding not in circle.ROUNDINGS:
    raise ValueError(
      f'rounding={rounding!r}; choose from {sorted(circle.ROUNDINGS)}.'
    )
  if np.ndim(theta):
    raise ValueError(
      f'theta of shape {np.shape(theta)}; it is one number. scaled(quantizer, '
      '((size, scale), ...)) gives each leaf its own.'
    )
  if not isinstance(theta, jax.Array) and not (
    arguments.is_number(theta) and 0 < theta < math.inf
  ):
    raise ValueError(f'theta={theta!r}; it must be positive and finite.')
  if not circle.ROUNDINGS[rounding].delta(bits) < 0.5:
    raise ValueError(
      f'rounding={rounding!r} with bits={bits} has delta = 1/2 and an '
      "infinite B_theta; use 2 bits or more, or rounding='dithered'."
    )
