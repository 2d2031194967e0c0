"""Quantizing in rotated coordinates, where all of them are alike.

Suresh, Yu, Kumar and McMahan, "Distributed mean estimation with limited
communication", ICML 2017, arXiv:1611.00429, for `uniform`; Davies, Gurunathan,
Moshrefi, Ashkboos and Alistarh, "New bounds for distributed mean estimation and
variance reduction", ICLR 2021, arXiv:2002.09268, for a code that is resolved
with the receiver's own vector, as `moniqua` is.
"""

import functools

import jax
import jax.numpy as jnp

from moniqua_jax.quantizers import base, hadamard, transformed

Array = jax.Array


def rotated(quantizer: base.Either, seed: int = 0) -> base.Either:
  """Quantizes H D x instead of x, in blocks that stride over the vector.

    x_hat = D H q.decode(q.encode(H D x)),  H H = 1, D D = 1

  Parameter leaves move by different amounts, and each has its outliers: of
  ResNet-20 the largest difference of two workers is 35 times their root mean
  square. One theta, or one range, must cover the largest, and the noise of the
  code follows it. Rotated, each value is a sum of thousands of others, and the
  factor is 5. Lengths and distances of whole vectors stay, so an unbiased
  quantizer stays unbiased.

  Args:
    quantizer: a `Quantizer` or a `Tuned`, of gossip or of gradients. What
      `inspect` reports, and a theta with it, is in rotated coordinates.
    seed: of the signs D, the same on all workers, for the whole run.

  Returns:
    What was given: a `Quantizer` or a `Tuned`. Its payload is that of
    `hadamard.size(d)` values: up to 1/16 more than d, as blocks have 4096
    values, or fewer in vectors that they would fill up further.

  >>> from moniqua_jax import full_precision
  >>> q, x = rotated(full_precision()), jnp.arange(4.0)
  >>> q.decode(q.encode(x, key=None), jnp.zeros(4))
  Array([0., 1., 2., 3.], dtype=float32)

  Source: arXiv:1611.00429 and arXiv:2002.09268; the strides are ours.
  """
  base.require_known(quantizer)
  if isinstance(quantizer, base.Tuned):
    return base.Tuned(
      quantizer.init,
      lambda *now: rotated(quantizer.quantizer(*now), seed),
      lambda state, seen, x: quantizer.observe(state, seen, _to(seed, x)),
      quantizer.answered,
    )
  to = functools.partial(_to, seed)
  back = lambda z, d: hadamard.back(z, jnp.uint32(seed), d)

  def decode(payload, y):
    return back(quantizer.decode(payload, to(y)), y.size).astype(y.dtype)

  def inspect_all(payloads, y):
    return base.inspect_all(quantizer, payloads, to(y))

  def mix(x, payloads, came, pull, onto=None):
    # Turned back once, not each message by itself.
    z = to(x)
    pulls = base.mix(quantizer, z, payloads, came, pull, jnp.zeros_like(z))
    return (x if onto is None else onto) + back(pulls, x.size)

  return base.Quantizer(
    lambda x, key: quantizer.encode(to(x), key),
    decode,
    lambda payload, y: quantizer.inspect(payload, to(y)),
    quantizer.shared,
    short=quantizer.short and transformed.shortened(quantizer.short, to),
    fast=base.Fast(inspect_all=inspect_all, mix=mix),
    near=quantizer.near,
  )


def _to(seed, x):
  return hadamard.to(x, jnp.uint32(seed))
