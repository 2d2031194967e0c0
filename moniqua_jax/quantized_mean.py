"""Quantized means over all workers, by packed messages.

n workers, d values; a chunk is ceil(d / n) values, one chunk for each worker to
sum up. `psum_scatter` is not used: over Gloo it gives wrong values. A quantizer
is any `quantizers.Quantizer`; some of them import this file.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import collectives

Array = jax.Array


class Mean(NamedTuple):
  """What comes of a quantized mean.

  Attributes:
    mean: f32[d], the same on all workers.
    own: f32[d], what went into the mean for this worker's x.
    short: bool[P], for each round of messages whether `Quantizer.short`
      travelled instead of the payload.
    sent: this worker's first payload, or payloads.
  """

  mean: Array
  own: Array
  short: Array
  sent: Array


class Strategy(NamedTuple):
  """How a quantized mean is taken.

  Attributes:
    mean: (quantizer, x: f32[d], key, axis_name) -> Mean. The key is private, or
      shared if the quantizer wants it so.
    rounds: P, of messages.
    messages: (n, d) -> (count, size): how many messages of how many values each
      worker sends in a round.
  """

  mean: Callable[..., Mean]
  rounds: int
  messages: Callable[[int, int], tuple[int, int]]


def all_gathered(quantizer, x: Array, key, axis_name: str) -> Mean:
  """Everybody sends everything to everybody: (1/n) sum_i x_hat_i.

  One quantization, n - 1 messages of d values.

  Args:
    quantizer: of x.
    x: f32[d], this worker's own; the reference of what comes in.
    key: private, or shared as the quantizer wants it.
    axis_name: of the workers.

  Returns:
    `Mean`, with one round.

  >>> from moniqua_jax import full_precision
  >>> from moniqua_jax.workers import AXIS, simulated
  >>> mean = lambda x: all_gathered(full_precision(), x, None, AXIS).mean
  >>> simulated(mean, (0,))(jnp.array([[0.0], [2.0]])).ravel()
  Array([1., 1.], dtype=float32)
  """
  payload = lax.optimization_barrier(quantizer.encode(x, key))
  take = lambda message: collectives.gathered(message, axis_name)
  payloads, short = carried(quantizer, x.size, payload, take, axis_name)
  if quantizer.fast and quantizer.fast.decode_all:
    x_hats = quantizer.fast.decode_all(payloads, x)
    total = _added(x_hats)
    own = x_hats[lax.axis_index(axis_name)]
  else:
    total = summed(quantizer, payloads, x)
    own = read(quantizer, payload, x)
  return Mean(total / payloads.shape[0], own, short[None], payload)


def scatter_reduced(quantizer, x: Array, key, axis_name: str) -> Mean:
  """Each worker sums up one chunk, quantizes the mean of it, and sends that.

    c_i = (1/n) (x_i + sum_{j != i} Q(x_j)) in chunk i;  mean = Q(c_1), ...

  Two quantizations whatever n, 2 (n - 1) messages of ceil(d / n) values. All
  workers decode the same bytes, so that their means are equal to the bit.

  Args:
    quantizer: of the chunks of x, and of their means.
    x: f32[d], this worker's own; its chunks are the references.
    key: private, or shared as the quantizer wants it.
    axis_name: of the workers.

  Returns:
    `Mean`, with two rounds. `own` knows nothing of the second quantization.

  >>> from moniqua_jax import full_precision
  >>> from moniqua_jax.workers import AXIS, simulated
  >>> mean = lambda x: scatter_reduced(
  ...   full_precision(), x, jax.random.key(0), AXIS).mean
  >>> simulated(mean, (0,))(jnp.array([[0.0, 4.0], [2.0, 0.0]])).tolist()
  [[1.0, 2.0], [1.0, 2.0]]
  """
  first, second = jax.random.split(key)
  scattered = scatter(quantizer, x, first, axis_name)
  mean, _, short = gather(quantizer, scattered.mean, x, second, axis_name)
  short = jnp.stack([scattered.short, short])
  return scattered._replace(mean=mean, short=short)


def scatter(quantizer, x: Array, key, axis_name: str):
  """The first half of `scatter_reduced`: a mean of chunks, in full precision.

  Args:
    quantizer, x, key, axis_name: as for `scatter_reduced`.

  Returns:
    `Mean`, for one round, whose mean is f32[ceil(d / n)], that of this worker's
    chunk, to which it adds its own part unquantized.

  >>> from moniqua_jax import full_precision
  >>> from moniqua_jax.workers import AXIS, simulated
  >>> chunk = lambda x: scatter(
  ...   full_precision(), x, jax.random.key(0), AXIS).mean
  >>> simulated(chunk, (0,))(jnp.array([[0.0, 4.0], [2.0, 0.0]])).tolist()
  [[1.0], [2.0]]
  """
  n, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
  chunks = _chunks(x, n)
  size = chunks.shape[1]
  payloads = jax.vmap(quantizer.encode)(chunks, jax.random.split(key, n))
  payloads = lax.optimization_barrier(payloads)
  swap = lambda rows: collectives.swap(rows, axis_name)
  received, short = carried(quantizer, size, payloads, swap, axis_name)
  total = summed(quantizer, received, chunks[me], besides=me) + chunks[me]
  own = jax.vmap(functools.partial(read, quantizer))(payloads, chunks)
  own = own.at[me].set(chunks[me])
  return Mean(total / n, own.reshape(-1)[: x.size], short, payloads)


def gather(quantizer, chunk: Array, x: Array, key, axis_name: str):
  """The second half: every worker sends its chunk to all.

  Args:
    quantizer: of the chunk.
    chunk: f32[ceil(d / n)], this worker's.
    x: f32[d], the reference.
    key: private, or shared as the quantizer wants it.
    axis_name: of the workers.

  Returns:
    f32[d], the same on all workers; f32[ceil(d / n)], what all believe of this
    worker's chunk; bool[], whether it went short.

  >>> from moniqua_jax import full_precision
  >>> from moniqua_jax.workers import AXIS, simulated
  >>> mean = lambda chunk: gather(
  ...   full_precision(), chunk, jnp.zeros(2), None, AXIS)[0]
  >>> simulated(mean, (0,))(jnp.array([[1.0], [2.0]])).tolist()
  [[1.0, 2.0], [1.0, 2.0]]
  """
  n, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
  payload = lax.optimization_barrier(quantizer.encode(chunk, key))
  take = lambda message: collectives.gathered(message, axis_name)
  payloads, short = carried(quantizer, chunk.size, payload, take, axis_name)
  # Our own part, too, comes from the bytes.
  chunks = jax.vmap(functools.partial(read, quantizer))(payloads, _chunks(x, n))
  return chunks.reshape(-1)[: x.size], chunks[me], short


def carried(
  quantizer,
  size: int,
  payloads: Array,
  collective: Callable,
  axis_name: str,
) -> tuple[Any, Array]:
  """Sends payloads, in their short form if all those of all workers have one.

  Two collectives are compiled, and in each step one of them runs: a buffer that
  always travels whole would save nothing.

  Args:
    quantizer: whose payloads they are.
    size: values in a message.
    payloads: u8[k, m], or one u8[m].
    collective: of payloads, of any m -> a tree of u8[n, m] or u8[m].
    axis_name: of the workers.

  Returns:
    What the collective gives of the payloads; bool[], whether the short form
    travelled, the same on all workers.

  >>> from moniqua_jax import full_precision
  >>> as_it_is = lambda payloads: payloads
  >>> carried(full_precision(), 2, jnp.ones(2), as_it_is, 'workers')
  (Array([1., 1.], dtype=float32), Array(False, dtype=bool))
  """
  if quantizer.short is None:
    return collective(payloads), jnp.bool(False)
  form = quantizer.short
  each = lambda fn, rows: jax.vmap(fn)(rows) if rows.ndim > 1 else fn(rows)
  short, fits = each(lambda payload: form.shorten(payload, size), payloads)
  fits = collectives.largest((~fits.all()).astype(jnp.int32), axis_name) == 0

  def shortly(payloads, short):
    del payloads
    restore = lambda message: form.restore(message, size)
    return jax.tree.map(lambda got: each(restore, got), collective(short))

  def wholly(payloads, short):
    del short
    return collective(payloads)

  return lax.cond(fits, shortly, wholly, payloads, short), fits


def read(quantizer, payload: Array, reference: Array) -> Array:
  """`decode`, or NaN where the message is not readable.

  Args:
    quantizer: whose payload it is.
    payload: u8[m].
    reference: f32[d].

  Returns:
    f32[d].

  >>> from moniqua_jax import full_precision
  >>> read(full_precision(), jnp.array([1.0, jnp.inf]), jnp.zeros(2))
  Array([nan, nan], dtype=float32)
  """
  readable = quantizer.inspect(payload, reference).readable
  return jnp.where(readable, quantizer.decode(payload, reference), jnp.nan)


def summed(quantizer, payloads: Array, reference: Array, besides=-1) -> Array:
  """The sum of what the payloads say, one after the other: sum_i x_hat_i.

  Args:
    quantizer: whose payloads they are.
    payloads: u8[n, m].
    reference: f32[d], for all of them.
    besides: i32[], the row to leave out.

  Returns:
    f32[d].

  >>> from moniqua_jax import full_precision
  >>> summed(full_precision(), jnp.ones((3, 2)), jnp.zeros(2), besides=0)
  Array([2., 2.], dtype=float32)
  """

  def add(total, row):
    index, payload = row
    x_hat = read(quantizer, payload, reference)
    return total + jnp.where(index == besides, 0, x_hat), None

  rows = jnp.arange(payloads.shape[0]), payloads
  return lax.scan(add, jnp.zeros_like(reference), rows)[0]


def first_sent(quantizer, x: Array) -> Array:
  """An empty message, for the state of an algorithm that keeps its last one.

  Args:
    quantizer: a `Quantizer` or a `Tuned`.
    x: f32[d].

  Returns:
    u8[m], zeros.

  >>> from moniqua_jax import moniqua
  >>> first_sent(moniqua(theta=1.0, bits=4), jnp.zeros(2)).size
  13
  """
  tuned = quantizer
  if hasattr(quantizer, 'init'):
    tuned = quantizer.quantizer(quantizer.init(), jnp.int32(0))
  payload = jax.eval_shape(tuned.encode, x, jax.random.key(0))
  return jnp.zeros(payload.shape, payload.dtype)


def _added(rows):
  """The sum of all rows, in one order whatever the program around."""
  return lax.scan(
    lambda t, row: (t + row, None), jnp.zeros_like(rows[0]), rows
  )[0]


def _chunks(x, n):
  return jnp.pad(x, (0, -x.size % n)).reshape(n, -1)


STRATEGIES = {
  'all_gather': Strategy(all_gathered, 1, lambda n, d: (n - 1, d)),
  'scatter_reduce': Strategy(
    scatter_reduced, 2, lambda n, d: (n - 1, -(-d // n))
  ),
}
