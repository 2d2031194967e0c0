"""A few values as they are, and nothing of the others.

`top_k` as in Aji and Heafield, "Sparse communication for distributed gradient
descent", EMNLP 2017, arXiv:1704.05021; `random_k` as in Wangni et al.,
"Gradient sparsification", NeurIPS 2018, arXiv:1710.09854, with equal
probabilities; `random_tau` with any, as in Safaryan, Hanzely and Richtarik,
"Smoothness matrices beat smoothness constants", NeurIPS 2021, arXiv:2102.07245.
"""

from collections.abc import Callable
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import arguments, dither, wire
from moniqua_jax.quantizers import base, numerics, places

Array = jax.Array


def top_k(fraction: float) -> base.Quantizer:
  """Sends the k values that are largest in size, k = ceil(fraction d).

    x_hat_i = x_i  if |x_i| is among the k largest, else 0

  Payload: k values in planes of bytes, in the order of their places, then the
  places, of log2(1 / fraction) + 2 bits.

  Args:
    fraction: of the values, above 0 and at most 1.

  Returns:
    A `Quantizer`, biased and without randomness: for algorithms with error
    feedback. If any value is not finite, all values that are sent are NaN.

  Raises:
    ValueError: fraction out of its range.

  >>> q, x = top_k(0.5), jnp.array([1.0, -3.0, 2.0, 0.5])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([ 0., -3.,  2.,  0.], dtype=float32)

  Source: arXiv:1704.05021.
  """
  _check(fraction)

  def encode(x, key):
    del key
    x = base.vector(x)
    kept = _kept(fraction, x.size)
    at = jnp.sort(lax.top_k(jnp.abs(x), kept)[1])
    # A comparison loses a NaN; a sum does not.
    values = x[at] + jnp.sum(0 * x)
    return jnp.concatenate([_write(values), places.write(at[None], x.size)])

  def read(payload, reference):
    size, kept = reference.size, _kept(fraction, reference.size)
    wire.require(payload, 4 * kept + places.nbytes(1, kept, size), size)
    at = places.read(payload[4 * kept :], 1, kept, size)[0]
    return placed(_read(payload[: 4 * kept]), at, reference)

  return of_few(encode, read)


def random_k(fraction: float) -> base.Quantizer:
  """Sends k values at places drawn at random, d / k times as large.

    x_hat_i = (d / k) x_i  for k = ceil(fraction d) random i, else 0

  Payload: k values in planes of bytes, then the seed (u32) of the places.

  Args:
    fraction: of the values, above 0 and at most 1.

  Returns:
    A `Quantizer`, unbiased, of variance (d / k - 1) |x|^2, with a private key.
    If any value is not finite, all values that are sent are NaN.

  Raises:
    ValueError: fraction out of its range.

  >>> q, x = random_k(0.5), jnp.ones(4)
  >>> q.decode(q.encode(x, jax.random.key(0)), x).sum()
  Array(4., dtype=float32)

  Source: arXiv:1710.09854, with equal probabilities.
  """
  _check(fraction)

  def drawn(seed, size):
    # The places of the largest random words: distinct, the same on both ends.
    words = (dither.bits(seed, size) >> 1).astype(jnp.int32)
    return lax.top_k(words, _kept(fraction, size))[1]

  def encode(x, key):
    x, seed = base.vector(x), dither.seed(key)
    at = drawn(seed, x.size)
    values = x[at] * (x.size / at.size) + jnp.sum(0 * x)
    return jnp.concatenate([_write(values), wire.to_bytes(seed)])

  def read(payload, reference):
    size = reference.size
    wire.require(payload, 4 * _kept(fraction, size) + 4, size)
    seed = wire.from_bytes(payload[-4:], jnp.uint32)
    return placed(_read(payload[:-4]), drawn(seed, size), reference)

  return of_few(encode, read)


def random_tau(
  probabilities, rescale: bool = True, tau: float | None = None
) -> base.Quantizer:
  """Sends each value with a probability of its own, tau of them on average.

    x_hat_j = x_j / p_j with probability p_j, else 0, independently

  Payload: all values, zeros for those that were not drawn, in planes of bytes,
  and the seed (u32) of the draw. In its short form, ceil(tau + 6 sqrt(tau))
  places for those that were drawn, and the seed: places are not sent.

  Args:
    probabilities: p, f[d], above 0 and at most 1; may be traced. The best for
      a smoothness matrix: `theory.steps.probabilities`.
    rescale: whether to divide by p_j. Without, the message is biased: it is
      what the authors' code of arXiv:2106.03524 does.
    tau: the sum of p; needed if they are traced.

  Returns:
    A `Quantizer`, unbiased if rescaled, of variance sum_j (1/p_j - 1) x_j^2,
    with a private key.

  Raises:
    ValueError: a probability that is not above 0 and at most 1, or traced ones
      without tau.

  >>> q, x = random_tau(jnp.array([1.0, 0.5]), tau=1.5), jnp.array([3.0, 0.0])
  >>> q.decode(q.encode(x, jax.random.key(0)), x)
  Array([3., 0.], dtype=float32)

  Source: Section 3 of arXiv:2102.07245.
  """
  if not isinstance(probabilities, jax.core.Tracer):
    known = np.asarray(probabilities, np.float32)
    if not ((known > 0) & (known <= 1)).all():
      raise ValueError(
        f'probabilities from {known.min()} to {known.max()}; take above 0, at '
        'most 1.'
      )
  if isinstance(probabilities, jax.Array):
    if tau is None:
      raise ValueError('tau=None; for traced probabilities, give their sum.')
    p: Array | np.ndarray = probabilities.astype(jnp.float32)
  else:
    p, tau = known, float(known.sum())
  room = min(p.size, math.ceil(tau + 6 * math.sqrt(tau)))
  # The chance to be drawn: `dither.uniform` gives multiples of 2^-24.
  chance = jnp.ceil(p * 2.0**24) * 2.0**-24

  def drawn(seed):
    return dither.uniform(seed, p.size) < p

  def encode(x, key):
    x, seed = base.vector(x), dither.seed(key)
    if x.shape != p.shape:
      raise ValueError(
        f'the probabilities are for {p.size} values, the vector has {x.size}.'
      )
    # A value that is not finite shows in all that are sent, drawn or not.
    values = (x / chance if rescale else x) + jnp.sum(0 * x)
    values = jnp.where(drawn(seed), values, 0)
    return jnp.concatenate([_write(values), wire.to_bytes(seed)])

  def decode(payload, reference):
    wire.require(payload, 4 * reference.size + 4, reference.size)
    return _read(payload[:-4]).astype(reference.dtype)

  def inspect(payload, reference):
    x_hat = decode(payload, reference)
    seen = base.watched(decode)(payload, reference)
    return seen._replace(readable=jnp.isfinite(jnp.sum(0 * x_hat)))

  def shorten(payload, size):
    mask = drawn(wire.from_bytes(payload[-4:], jnp.uint32))
    values = _read(payload[:-4])
    place = jnp.where(mask, jnp.cumsum(mask) - 1, size)
    slots = jnp.zeros(room, jnp.float32).at[place].set(values, mode='drop')
    short = jnp.concatenate([_write(slots), payload[-4:]])
    return short, jnp.sum(mask) <= room

  def restore(short, size):
    del size
    mask = drawn(wire.from_bytes(short[-4:], jnp.uint32))
    slots = _read(short[:-4])
    values = slots.at[jnp.cumsum(mask) - 1].get(mode='clip')
    values = jnp.where(mask, values, 0)
    return jnp.concatenate([_write(values), short[-4:]])

  short = base.Short(lambda size: 4 * room + 4, shorten, restore)
  return base.Quantizer(encode, decode, inspect, short=short)


def _check(fraction):
  arguments.share(fraction, 'fraction={}; it must be above 0, at most 1.')


def _kept(fraction, size):
  # A product such as 0.1 * 30 may be a little more than the 3 that is meant.
  return min(size, math.ceil(fraction * size * (1 - 1e-12)))


def _write(values):
  """Writes f32 in planes of bytes."""
  return wire.to_planes(wire.words(values), 4)


def _read(packed):
  return wire.floats(wire.from_planes(packed, 4))


def placed(values: Array, at: Array, reference: Array) -> tuple[Array, Array]:
  """Puts values at their places; returns x_hat, and whether all are there.

  They are not if one is not finite, beyond the end, or where another is. Then
  there is a NaN, at least at the first place.
  """
  x_hat = jnp.zeros(reference.size, jnp.float32).at[at].set(values)
  back = x_hat.at[at].get(mode='fill', fill_value=jnp.nan)
  there = (jnp.isfinite(values) & (back == values)).all()
  first = jnp.minimum(at[0], reference.size - 1)
  x_hat = x_hat.at[first].set(jnp.where(there, x_hat[first], jnp.nan))
  return x_hat.astype(reference.dtype), there


def of_few(encode: Callable, read: Callable) -> base.Quantizer:
  """Builds a quantizer from (payload, reference) -> what `placed` returns."""

  def inspect(payload, reference):
    x_hat, there = read(payload, reference)
    distance = numerics.largest(x_hat - reference)
    return base.Seen(there, distance, jnp.float32(jnp.inf))

  decode = lambda payload, reference: read(payload, reference)[0]
  return base.Quantizer(encode, decode, inspect)
