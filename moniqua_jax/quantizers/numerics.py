"""Arithmetic that gives the same bits in any program, and updates in place."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import wire

Array = jax.Array

_LANES = 128


def largest(x: Array) -> Array:
  """Returns max|x|, or NaN if any value is not finite.

  `jnp.max` alone does not do: XLA on CPUs loses a NaN of a long vector. So it
  sees none, but an infinity in its place.
  """
  size = jnp.abs(x)
  most = jnp.max(jnp.where(size < jnp.inf, size, jnp.inf))
  return jnp.where(most < jnp.inf, most, jnp.nan)


def power_below(size: Array) -> Array:
  """Returns 2^-e for 2^e <= size < 2^(e+1), but at least 2^-126."""
  exponent = (wire.words(size) >> 23).astype(jnp.int32)
  return wire.floats(jnp.maximum(254 - exponent, 1).astype(jnp.uint32) << 23)


def rounded(product: Array, zero: Array) -> Array:
  """Rounds a product to float32, whatever it is added to later.

  A compiler may fuse a multiplication with the addition that follows, and then
  the product is not rounded; whether it does depends on the program around. The
  sender and a receiver, or two runners, would differ in the last bit. A zero
  that only shows at run time, no constant, takes the place of that addition.
  """
  return product + zero


def sum_rows(rows: Array) -> Array:
  """Sums each row in one order, whatever the program around.

  `jnp.sum` adds in another order under `vmap` than without, and then two
  runners differ in the last bit of a norm. Lanes of 128 are added one after the
  other, then in halves. Products must be `rounded`.
  """
  k, size = rows.shape
  lanes = jnp.pad(rows, ((0, 0), (0, -size % _LANES)))
  lanes = jnp.sum(lanes.reshape(k, -1, _LANES), axis=1)
  width = _LANES
  while width > 1:
    width //= 2
    lanes = lanes[:, :width] + lanes[:, width:]
  return lanes[:, 0]


def finite(tree: Any) -> Array:
  """Tells whether all floats of a tree are finite, in one pass over them."""
  is_float = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
  floats = filter(is_float, jax.tree.leaves(tree))  # among counts and keys
  return jnp.isfinite(sum(jnp.sum(0 * leaf) for leaf in floats))


def select(first: Array, tree: Any, other: Any) -> Any:
  """Returns the first of two trees, or where that is false the other.

  Messages stay those of the first: bytes are always finite.
  """

  def one(new, old):
    is_bytes = jnp.result_type(new) == jnp.uint8
    return new if is_bytes else jnp.where(first, new, old)

  return jax.tree.map(one, tree, other)


def index(start: Array | int, size: int) -> Array:
  """A place in a vector of so many values, for `lax.dynamic_slice`.

  Signed where it can be: JAX 0.7 loses what `vmap` writes at unsigned places.
  """
  return jnp.asarray(start, jnp.int32 if size < 2**31 else jnp.uint32)


def update_part(
  vector: Array, start: int, stop: int, change: Callable[[Array], Array]
) -> Array:
  """Applies `change` to vector[start:stop], so that XLA updates in place.

  XLA changes a vector in place if the slice that it reads is the one that it
  writes, which it sees of slices that start where only the run can tell.
  """
  if stop - start == vector.size:
    return change(vector)
  at = (lax.optimization_barrier(index(start, vector.size)),)
  forward = {'allow_negative_indices': False}
  part = change(lax.dynamic_slice(vector, at, (stop - start,), **forward))
  return lax.dynamic_update_slice(vector, part, at, **forward)
