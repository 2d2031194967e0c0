"""A quantizer for every worker, known to all: whoever receives knows by whom.

Workers' losses differ, and so do their smoothness matrices L_i. A message is
made with its sender's own row of a table that all workers hold, and ends with
the sender's index, so that a receiver decodes it with the sender's row.

Payload: that of the sender's quantizer, then its index, in as few bytes as n
needs.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax.quantizers import base

Array = jax.Array


def per_worker(
  make: Callable[[Any], base.Quantizer],
  tables: Any,
  axis_name: str,
  own: Any = None,
) -> base.Quantizer:
  """The quantizer make(tables[i]) for what worker i sends, on all workers.

    payload = [make(tables[i]).encode(x) | i]
    x_hat = make(tables[i]).decode(payload)

  The one-off upload, by which all come to hold the tables, is
  `nbytes(tables)` (half of it where the inverse roots stay with their owners).

  Args:
    make: row -> `Quantizer`, of the same size for all rows; the row may be
      traced.
    tables: a pytree of arrays whose first axis is n; the same on all workers.
    axis_name: of the workers.
    own: this worker's row of the tables, where the caller has it at hand; it
      is looked up otherwise.

  Returns:
    A `Quantizer`. A message from a sender that is not in the tables decodes to
    NaN and is not readable.

  Raises:
    ValueError: the tables are empty, or differ in their first axis.

  >>> from moniqua_jax.quantizers import within
  >>> in_units = lambda c: within(
  ...   base.full_precision(), lambda x: x / c, lambda y: c * y)
  >>> q = per_worker(in_units, jnp.array([1.0, 2.0]), 'workers')
  >>> send = lambda x: q.decode(q.encode(x, None), x)
  >>> jax.vmap(send, axis_name='workers')(jnp.ones((2, 3))).shape
  (2, 3)

  Source: Section 2 of arXiv:2106.03524, where one server knows all L_i.
  """
  counts = {leaf.shape[0] for leaf in jax.tree.leaves(tables)}
  if len(counts) != 1:
    raise ValueError(
      f'tables: first axes of {sorted(counts)}; each array has a row for every '
      'worker.'
    )
  (n,) = counts
  row = lambda index: jax.tree.map(lambda table: table[index], tables)
  first = make(row(0))

  def cut(payload):
    end = _index_bytes(0, n, payload.dtype).size
    return payload[:-end], _index_of(payload[-end:])

  def encode(x, key):
    me = lax.axis_index(axis_name)
    payload = make(row(me) if own is None else own).encode(x, key)
    return jnp.concatenate([payload, _index_bytes(me, n, payload.dtype)])

  def decode(payload, reference):
    message, sender = cut(payload)
    known = row(jnp.minimum(sender, n - 1))
    x_hat = make(known).decode(message, reference)
    return jnp.where(sender < n, x_hat, jnp.nan)

  def inspect(payload, reference):
    message, sender = cut(payload)
    seen = make(row(jnp.minimum(sender, n - 1))).inspect(message, reference)
    return seen._replace(readable=seen.readable & (sender < n))

  def decode_all(payloads, reference):
    def one(row, index, payload):
      message, sender = cut(payload)
      own = make(row)
      readable = own.inspect(message, reference).readable & (sender == index)
      return jnp.where(readable, own.decode(message, reference), jnp.nan)

    return jax.vmap(one)(tables, jnp.arange(n), payloads)

  return base.Quantizer(
    encode,
    decode,
    inspect,
    first.shared,
    first.codes,
    _short(first.short, make, row, cut, n) if first.short else None,
    base.Fast(decode_all),
  )


def _short(first, make, row, cut, n):
  """Builds the short form: that of the sender's quantizer, and its index."""

  def shorten(payload, size):
    message, sender = cut(payload)
    form = make(row(jnp.minimum(sender, n - 1))).short
    short, fits = form.shorten(message, size)
    return jnp.concatenate([short, payload[message.size :]]), fits

  def restore(short, size):
    message, sender = cut(short)
    form = make(row(jnp.minimum(sender, n - 1))).short
    payload = form.restore(message, size)
    return jnp.concatenate([payload, short[message.size :]])

  end = _index_bytes(0, n, jnp.uint8).size
  return base.Short(lambda size: first.capacity(size) + end, shorten, restore)


def _index_bytes(index, n, dtype) -> Array:
  """Writes the sender's index for the end of a payload of either kind."""
  if dtype != jnp.uint8:
    return jnp.full(1, index, dtype)
  width = max(1, -(-(n - 1).bit_length() // 8))
  word = jnp.asarray(index, jnp.uint32)
  return jnp.stack([(word >> 8 * j).astype(jnp.uint8) for j in range(width)])


def _index_of(end) -> Array:
  if end.dtype != jnp.uint8:
    return end[0].astype(jnp.int32)
  return sum(end[j].astype(jnp.int32) << 8 * j for j in range(end.size))
