"""A quantizer for every worker, known to all: whoever receives knows by whom.

Workers' losses differ, and so do their smoothness matrices L_i. A message is
made with its sender's own row of a table that all workers hold, and ends with
the sender's index, so that a receiver decodes it with the sender's row.

Payload: that of the sender's quantizer, then its index, in as few bytes as n
needs.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import collectives, wire
from moniqua_jax.quantizers import base

Array = jax.Array


class Senders(NamedTuple):
  """The quantizers that all workers know, one for each sender."""

  make: Callable[[Any], base.Quantizer]  # row -> Quantizer
  tables: Any
  n: int


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
    ValueError: the tables are empty, or differ in their first axis; when it is
      traced, they have not a row for each worker of the axis.

  >>> from moniqua_jax.quantizers import within
  >>> from moniqua_jax import full_precision
  >>> in_units = lambda c: within(
  ...   full_precision(), lambda x: x / c, lambda y: c * y)
  >>> q = per_worker(in_units, jnp.array([1.0, 2.0]), 'workers')
  >>> send = lambda x: q.decode(q.encode(x, None), x)
  >>> jax.vmap(send, axis_name='workers')(jnp.ones((2, 3))).shape
  (2, 3)

  Source: Section 2 of arXiv:2106.03524, where one server knows all L_i.
  """
  # A traced index finds no row of an array of NumPy.
  tables = jax.tree.map(jnp.asarray, tables)
  counts = {sum(leaf.shape[:1]) for leaf in jax.tree.leaves(tables)}
  if len(counts) != 1 or counts == {0}:
    raise ValueError(
      f'tables: first axes of {sorted(counts)}; each array has a row for every '
      'worker.'
    )
  senders = Senders(make, tables, *counts)
  first = make(_row(senders, 0))
  return base.Quantizer(
    functools.partial(_encode, senders, axis_name, own),
    functools.partial(_decode, senders),
    functools.partial(_inspect, senders),
    first.shared,
    first.codes,
    _short(senders, first.short) if first.short else None,
    base.Fast(functools.partial(_decode_all, senders)),
    first.near,
  )


def _row(senders, index):
  return jax.tree.map(lambda table: table[index], senders.tables)


def _open(senders, payload):
  """Returns the message, the sender's index, and its quantizer if known."""
  behind = _index_bytes(senders, 0, payload.dtype).size
  message, end = payload[:-behind], payload[-behind:]
  if end.dtype == jnp.uint8:
    end = wire.from_planes(end, behind)
  # A float may be no number of a worker: then it is that of none.
  whole = (end[0] >= 0) & (end[0] < senders.n) & (end[0] % 1 == 0)
  sender = jnp.where(whole, end[0], senders.n).astype(jnp.int32)
  known = _row(senders, jnp.minimum(sender, senders.n - 1))
  return message, sender, senders.make(known)


def _index_bytes(senders, index, dtype) -> Array:
  """Writes the sender's index for the end of a payload of either kind."""
  if dtype != jnp.uint8:
    return jnp.full(1, index, dtype)
  word = jnp.full(1, index, jnp.uint32)
  return wire.to_planes(word, wire.index_bytes(senders.n))


def _encode(senders, axis_name, own, x, key):
  collectives.require_rows(senders.n, axis_name, 'per_worker: tables')
  me = lax.axis_index(axis_name)
  quantizer = senders.make(_row(senders, me) if own is None else own)
  payload = quantizer.encode(x, key)
  end = _index_bytes(senders, me, payload.dtype)
  return jnp.concatenate([payload, end])


def _decode(senders, payload, reference):
  message, sender, quantizer = _open(senders, payload)
  x_hat = quantizer.decode(message, reference)
  return jnp.where(sender < senders.n, x_hat, jnp.nan)


def _inspect(senders, payload, reference):
  message, sender, quantizer = _open(senders, payload)
  seen = quantizer.inspect(message, reference)
  return seen._replace(readable=seen.readable & (sender < senders.n))


def _decode_all(senders, payloads, reference):
  """Decodes row j by the table's row j, which needs no gather."""

  def one(row, index, payload):
    message, sender, _ = _open(senders, payload)
    own = senders.make(row)
    readable = own.inspect(message, reference).readable & (sender == index)
    return jnp.where(readable, own.decode(message, reference), jnp.nan)

  return jax.vmap(one)(senders.tables, jnp.arange(senders.n), payloads)


def _short(senders, first):
  """Builds the short form: that of the sender's quantizer, and its index."""

  def shorten(payload, size):
    message, _, quantizer = _open(senders, payload)
    short, fits = quantizer.short.shorten(message, size)
    return jnp.concatenate([short, payload[message.size :]]), fits

  def restore(short, size):
    message, _, quantizer = _open(senders, short)
    payload = quantizer.short.restore(message, size)
    return jnp.concatenate([payload, short[message.size :]])

  end = wire.index_bytes(senders.n)
  return base.Short(lambda size: first.capacity(size) + end, shorten, restore)
