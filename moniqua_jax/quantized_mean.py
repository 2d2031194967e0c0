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
from moniqua_jax.quantizers import base, buckets, numerics

Array = jax.Array


class Mean(NamedTuple):
  """What comes of a quantized mean."""

  mean: Array  # f32[d], the same on all workers
  own: Array  # f32[d], what went into the mean for this worker's x
  short: Array  # bool[P], for each round whether `Quantizer.short` travelled
  sent: Array  # this worker's first payload, or payloads


class Strategy(NamedTuple):
  """How a quantized mean is taken."""

  mean: Callable[..., Mean]  # (quantizer, x f32[d], key, axis_name) -> Mean
  rounds: int  # P, of messages
  # (n, d) -> (count, size): how many messages of how many values each worker
  # sends in a round
  messages: Callable[[int, int], tuple[int, int]]


def all_gathered(quantizer, x: Array, key, axis_name: str) -> Mean:
  """Takes a mean of what everybody sends to everybody: (1/n) sum_i x_hat_i.

  One quantization, n - 1 messages of d values. x is the reference of what comes
  in; the key is private, or shared if the quantizer wants it so.
  """
  payload = lax.optimization_barrier(quantizer.encode(x, key))
  take = lambda message: collectives.told(message, axis_name)
  payloads, short = carried(quantizer, x.size, payload, take, axis_name)
  if quantizer.fast and quantizer.fast.decode_all:
    x_hats = quantizer.fast.decode_all(payloads, x).astype(x.dtype)
    total = _added(x_hats)
    own = x_hats[lax.axis_index(axis_name)]
  else:
    total = summed(quantizer, payloads, x)
    own = read(quantizer, payload, x)
  return Mean(total / payloads.shape[0], own, short[None], payload)


def of_senders(quantizer, x: Array, key, axis_name: str) -> Mean:
  """Takes of each value the mean over the workers that sent it: x_hat_i != 0.

    sum_i c_i x_hat_i / |{i: x_hat_i != 0}|
    c_i = min(1, median_j |x_hat_j| / |x_hat_i|)

  0 where nobody sent anything. Messages as of `all_gathered`, for quantizers
  that send a few values of many; none of them is louder than the median. Each
  is decoded twice, so that no more than one is kept.
  """
  payload = lax.optimization_barrier(quantizer.encode(x, key))
  take = lambda message: collectives.told(message, axis_name)
  payloads, short = carried(quantizer, x.size, payload, take, axis_name)
  norm = lambda x_hat: buckets.NORMS['l2'](x_hat[None])[0]
  norms = lax.map(lambda row: norm(read(quantizer, row, x)), payloads)
  median = jnp.median(norms)
  shares = jnp.where(norms > median, median / norms, 1)

  def add(carry, row):
    payload, share = row
    total, count = carry
    x_hat = read(quantizer, payload, x)
    part = numerics.rounded(share * x_hat, jnp.minimum(share, 0))
    return (total + part, count + (x_hat != 0)), None

  start = jnp.zeros_like(x), jnp.zeros_like(x, jnp.int32)
  (total, count), _ = lax.scan(add, start, (payloads, shares))
  mean = total / jnp.maximum(count, 1).astype(x.dtype)
  return Mean(mean, read(quantizer, payload, x), short[None], payload)


def scatter_reduced(quantizer, x: Array, key, axis_name: str) -> Mean:
  """Takes a mean in chunks: each worker sums up one, and sends the mean of it.

    c_i = (1/n) (x_i + sum_{j != i} Q(x_j)) in chunk i;  mean = Q(c_1), ...

  Two quantizations whatever n, 2 (n - 1) messages of ceil(d / n) values. All
  workers decode the same bytes, so that their means are equal to the bit. `own`
  knows nothing of the second quantization.
  """
  first, second = jax.random.split(key)
  scattered = scatter(quantizer, x, first, axis_name)
  mean, _, short = gather(quantizer, scattered.mean, x, second, axis_name)
  short = jnp.stack([scattered.short, short])
  return scattered._replace(mean=mean, short=short)


def scatter(quantizer, x: Array, key, axis_name: str):
  """Sums up this worker's chunk: the first half of `scatter_reduced`.

  The mean is f32[ceil(d / n)], to which its own part is added unquantized.
  """
  n, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
  chunks = _chunks(x, n)
  size = chunks.shape[1]
  payloads = _each(quantizer.encode, chunks, jax.random.split(key, n))
  payloads = lax.optimization_barrier(payloads)
  swap = lambda rows: collectives.swap(rows, axis_name)
  received, short = carried(quantizer, size, payloads, swap, axis_name)
  total = summed(quantizer, received, chunks[me], besides=me) + chunks[me]
  own = _each(functools.partial(read, quantizer), payloads, chunks)
  own = own.at[me].set(chunks[me])
  return Mean(total / n, own.reshape(-1)[: x.size], short, payloads)


def gather(quantizer, chunk: Array, x: Array, key, axis_name: str):
  """Sends this worker's chunk to all: the second half of `scatter_reduced`.

  Returns f32[d], the same on all workers; what all believe of this worker's
  chunk; and whether it went short. x is the reference.
  """
  n, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
  payload = lax.optimization_barrier(quantizer.encode(chunk, key))
  take = lambda message: collectives.told(message, axis_name)
  payloads, short = carried(quantizer, chunk.size, payload, take, axis_name)
  # Our own part, too, comes from the bytes.
  chunks = _each(functools.partial(read, quantizer), payloads, _chunks(x, n))
  return chunks.reshape(-1)[: x.size], chunks[me], short


def carried(
  quantizer,
  size: int,
  payloads: Array,
  collective: Callable,
  axis_name: str,
) -> tuple[Any, Array]:
  """Sends payloads, in their short form if those of all workers have one.

  `collective` takes u8[k, m] or one u8[m], of any m, to a tree of such arrays;
  `size` is the values in a message. Returns the tree, and whether the short
  form travelled. Two collectives are compiled, and in each step one of them
  runs: a buffer that always travels whole would save nothing.
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
  """Decodes a message; NaN if it is not readable."""
  readable = quantizer.inspect(payload, reference).readable
  x_hat = quantizer.decode(payload, reference).astype(reference.dtype)
  return jnp.where(readable, x_hat, jnp.nan)


def summed(quantizer, payloads: Array, reference: Array, besides=-1) -> Array:
  """Adds up what payloads u8[n, m] say, but for one row: sum_i x_hat_i."""

  def add(total, row):
    index, payload = row
    x_hat = read(quantizer, payload, reference)
    return total + jnp.where(index == besides, 0, x_hat), None

  rows = jnp.arange(payloads.shape[0]), payloads
  return lax.scan(add, jnp.zeros_like(reference), rows)[0]


def first_sent(quantizer, x: Array) -> Array:
  """Makes an empty message, for algorithms that keep their last one."""
  tuned = base.tuned(quantizer)
  current = tuned.quantizer(tuned.init(), jnp.int32(0))
  payload = jax.eval_shape(current.encode, x, jax.random.key(0))
  return jnp.zeros(payload.shape, payload.dtype)


def _each(fn, *rows):
  """Applies fn to each row: all at once, on CPUs one by one in the cache."""
  one_by_one = lambda *rows: lax.map(lambda row: fn(*row), rows)
  return lax.platform_dependent(*rows, cpu=one_by_one, default=jax.vmap(fn))


def _added(rows):
  """Adds up all rows in one order, whatever the program around."""
  return lax.scan(
    lambda t, row: (t + row, None), jnp.zeros_like(rows[0]), rows
  )[0]


def _chunks(x, n):
  return jnp.pad(x, (0, -x.size % n)).reshape(n, -1)


STRATEGIES = {
  'all_gather': Strategy(all_gathered, 1, lambda n, d: (n - 1, d)),
  'of_senders': Strategy(of_senders, 1, lambda n, d: (n - 1, d)),
  'scatter_reduce': Strategy(
    scatter_reduced, 2, lambda n, d: (n - 1, -(-d // n))
  ),
}
