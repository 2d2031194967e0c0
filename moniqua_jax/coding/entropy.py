"""The least bits per value that any code of single values needs."""

import jax
import jax.numpy as jnp
from jax.scipy import special

from moniqua_jax.quantizers import base

Array = jax.Array


def entropy(codes: Array, about: base.Codes) -> Array:
  """Returns the entropy of a message's codes, in bits per value.

  H(level) + P(nonzero) with a zero level: signs take a bit each.
  H(code) without.
  """
  symbols = codes.astype(jnp.int32)
  if about.zero is None:
    return _bits(symbols, about.count)
  levels = jnp.abs(symbols - about.zero)
  return _bits(levels, about.count) + jnp.mean(levels > 0)


def _bits(symbols, count):
  p = jnp.bincount(symbols, length=count) / symbols.size
  return jnp.sum(special.entr(p)) / jnp.log(2.0)
