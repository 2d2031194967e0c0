"""Coded messages: a quantizer's payload in fewer bytes, where it fits.

An array has one size, whatever is in it. So the sender has a capacity, the
stream is padded to it, and `fits` says whether the message was short enough.
"""

import math

import jax
import jax.numpy as jnp

from moniqua_jax import arguments, wire
from moniqua_jax.coding import message
from moniqua_jax.quantizers import base

Array = jax.Array


def coded(
  quantizer: base.Either,
  capacity: float,
  code: message.Code | None = None,
) -> base.Either:
  """The same quantizer with a shorter form of its payload.

    short = [bits of every bucket, u32 | stream | what follows the codes]

  Args:
    quantizer: one whose payload begins with packed codes.
    capacity: of the stream, in bits per value; below the bits of a packed code.
      A bucket takes 4 bytes more.
    code: how the codes are written, `recursive()` if None.

  Returns:
    A `Quantizer` with the field `short`: `restore` gives back the payload bit
    for bit whenever `shorten` says that it fits. Or a `Tuned` that makes those.

  Raises:
    ValueError: the quantizer has no packed codes, the capacity is not above 0
      and below their bits, or the code does not suit the codes; for a `Tuned`,
      when its quantizer is made.

  >>> from moniqua_jax.quantizers import leveled
  >>> q = coded(leveled((0, 0.5, 1)), capacity=2)
  >>> payload = q.encode(jnp.arange(9.0), jax.random.key(0))
  >>> short, fits = q.short.shorten(payload, 9)
  >>> bool(fits), bool((q.short.restore(short, 9) == payload).all())
  (True, True)

  Source: ours; the codes are those of arXiv:1610.02132 and arXiv:1908.06077.
  """
  code = message.recursive() if code is None else code
  base.require_known(quantizer)
  if isinstance(quantizer, base.Tuned):
    make = quantizer.quantizer
    return quantizer._replace(
      quantizer=lambda state, step: coded(make(state, step), capacity, code)
    )
  about = _about(quantizer)
  if not (arguments.is_number(capacity) and 0 < capacity < about.bits):
    raise ValueError(
      f'capacity={capacity!r} bits per value; it must be above 0 and below the '
      f'{about.bits} bits of a packed code, or nothing is gained.'
    )
  # A code that does not suit says so at once.
  jax.eval_shape(lambda codes: code.length(codes, about), _vector(1, jnp.uint8))
  return quantizer._replace(short=_short(quantizer, about, capacity, code))


def coded_bits(
  quantizer: base.Quantizer,
  payload: Array,
  size: int,
  code: message.Code | None = None,
) -> Array:
  """Counts the bits of a message in a code, `recursive()` if None; no framing.

    sum over buckets of code.length + 8 bytes(what follows the codes)

  As arXiv:1610.02132 and arXiv:1908.06077 count: 32 bits for each norm.
  """
  code = message.recursive() if code is None else code
  about = _about(quantizer)
  codes, tail = wire.split(payload, about.bits, size)
  lengths = code.length(codes, about).astype(jnp.float32)
  return jnp.sum(lengths) + 8 * tail.size


def _short(quantizer, about, capacity, code):
  buckets = lambda size: -(-size // about.bucket_size)

  def stream_bytes(size):
    if size * capacity >= 2**31 - 64:
      raise ValueError(
        f'{size} values of {capacity} bits; a stream ends before 2^31 bits.'
      )
    return math.ceil(size * capacity / 8)

  def total(size):
    payload = jax.eval_shape(
      quantizer.encode, _vector(size, jnp.float32), jax.random.key(0)
    )
    tail = payload.size - wire.packed_size(size, about.bits)
    return 4 * buckets(size) + stream_bytes(size) + tail

  def shorten(payload, size):
    codes, tail = wire.split(payload, about.bits, size)
    stream, lengths = code.encode(codes, about, stream_bytes(size))
    # An i32 sum of a far too long message may come out small; the f32 does not.
    bound = 8 * stream.size
    fits = (jnp.sum(lengths) <= bound) & (
      jnp.sum(lengths.astype(jnp.float32)) < 2.0**31
    )
    # A code beyond the count has no codeword.
    fits &= jnp.all(codes < about.count) if about.count < 256 else True
    head = wire.to_bytes(lengths.astype(jnp.uint32))
    return jnp.concatenate([head, stream, tail]), fits

  def restore(short, size):
    start, stop = 4 * buckets(size), 4 * buckets(size) + stream_bytes(size)
    lengths = wire.from_bytes(short[:start], jnp.int32, (buckets(size),))
    codes = code.decode(short[start:stop], lengths, about, size)
    return wire.join(codes, about.bits, short[stop:])

  return base.Short(total, shorten, restore)


def _about(quantizer):
  if quantizer.codes is None:
    raise ValueError(
      'This quantizer cannot be coded: its payload does not begin with packed '
      'codes (its field `codes` is None).'
    )
  return quantizer.codes


def _vector(size, dtype):
  return jax.ShapeDtypeStruct((size,), dtype)
