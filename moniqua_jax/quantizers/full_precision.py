"""Full precision as a quantizer: the baseline of every paper here."""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import wire
from moniqua_jax.quantizers import base, numerics

Array = jax.Array


def full_precision() -> base.Quantizer:
  """Sends x as it is, 32 bits per value: x_hat = x.

  The baseline. The only payload that is not `u8`.

  Returns:
    A `Quantizer` whose payload is f32[d].

  >>> q = full_precision()
  >>> q.decode(q.encode(jnp.ones(2), key=None), jnp.zeros(2))
  Array([1., 1.], dtype=float32)

  Source: the baseline of every paper here.
  """
  return base.Quantizer(
    _send_as_it_is,
    _take_as_it_is,
    _see_as_it_is,
    fast=base.Fast(mix=_mix_as_it_is),
  )


def _send_as_it_is(x: Array, key: Array) -> Array:
  del key
  base.require_vector(x)
  return x


def _take_as_it_is(payload: Array, reference: Array) -> Array:
  each = max(payload.dtype.itemsize, 2)  # no float has one byte
  wire.require(payload, each * reference.size, reference.size)
  return payload


def _mix_as_it_is(x, payloads, came, pull, onto=None) -> Array:
  # Value by value: to leave out a whole message for a value that is not finite
  # would take a pass over all of them before this one.
  onto = x if onto is None else onto
  return onto + pull(payloads, jnp.ones_like(came))


def _see_as_it_is(payload: Array, reference: Array) -> base.Seen:
  apart = jnp.abs(_take_as_it_is(payload, reference) - reference)
  distance = lax.platform_dependent(
    apart, cpu=_largest_in_eighths, default=numerics.largest
  )
  return base.Seen(jnp.isfinite(distance), distance, jnp.float32(jnp.inf))


def _largest_in_eighths(x):
  # XLA on CPUs would write x down before `largest`; this it fuses with it.
  size = x.size // 8
  eighths = [x[k * size : (k + 1) * size] for k in range(8)]
  parts = [functools.reduce(jnp.maximum, eighths), x[8 * size :]]
  return functools.reduce(
    jnp.maximum, [numerics.largest(part) for part in parts if part.size]
  )
