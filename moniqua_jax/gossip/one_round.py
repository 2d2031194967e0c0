"""One round: a payload goes along all edges, and what comes in moves x."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import collectives, quantized_mean, topologies
from moniqua_jax.gossip import edge
from moniqua_jax.quantizers import base, forms

Array = jax.Array


class Round(NamedTuple):
  """Who talks to whom in one round, how, and which messages count."""

  topology: topologies.Topology
  quantizer: base.Quantizer
  axis_name: str
  # (readable bool[E], topology, axis_name) -> (came bool[E], went bool[E])
  agree: Callable = edge.unacknowledged
  share: edge.Share = edge.BY_RECEIVER


def talk(use, each: Round, payload, reference, *args):
  """Sends a payload along all edges, and uses the messages that count."""
  received, short = _send(each, payload, reference.size)
  seen = _inspect(each.quantizer, received, reference)
  came, went = each.agree(seen.readable, each.topology, each.axis_name)
  pull = base.Pull(functools.partial(_pull, each, went), _weights(each))
  payloads = [payload, *received]
  result = use(each.quantizer, payloads, reference, came, pull, *args)
  # Who is not finite has read nothing, though there is nothing to leave out.
  read = each.share.read(came, went)
  seen = seen._replace(readable=read & jnp.isfinite(seen.distance))
  return result, seen, short


def as_vector(row):
  """Fixes the layout of a row as that of a vector.

  A row of a sharded array is laid out as the matrix f32[1, d] that it is, and
  XLA for TPUs would choose that for all that is done with it: up to five times
  the traffic.
  """
  return lax.optimization_barrier(row)


def sealed(quantizer, x, key):
  """Makes the payload that a worker sends, and reads itself."""
  cuts = base.cuts(quantizer, x.size)
  return forms.in_pieces(edge.sealed, quantizer.encode(x, key), cuts)


def _send(each: Round, payload, size):
  """Returns what comes in on each edge, and whether it travelled short."""
  cuts = base.cuts(each.quantizer, size)
  send = lambda perm, piece: collectives.send(piece, perm, each.axis_name)
  send_all = lambda message: [
    forms.in_pieces(functools.partial(send, perm), message, cuts)
    for _, perm in each.topology.edges
  ]
  return quantized_mean.carried(
    each.quantizer, size, payload, send_all, each.axis_name
  )


def _inspect(quantizer, received, reference) -> base.Seen:
  """Inspects all messages; each field of the result is [E]."""
  seen = base.inspect_all(quantizer, received, reference)
  seen = jax.tree.map(lambda *edges: jnp.stack(edges), *seen)
  single = lambda number: number.astype(jnp.float32)  # whatever x was
  return base.Seen(seen.readable, *map(single, seen[1:]))


def _pull(each: Round, went, x_hats, came):
  """Adds up what each edge moves this worker."""
  own, *theirs = x_hats
  total = jnp.zeros_like(own)
  for k, (weight, perm) in enumerate(each.topology.edges):
    counts = came[k], went[k]
    args = own, theirs[k], weight, perm, counts
    total += each.share.moved(*args, each.axis_name)
  return total


def _weights(each: Round):
  """Returns the weights of all edges, f32[E], if they say all of a pull."""
  if each.share.weight is None or not each.topology.edges:
    return None
  weights = [
    each.share.weight(weight, each.axis_name)
    for weight, _ in each.topology.edges
  ]
  return jnp.stack([jnp.asarray(weight, jnp.float32) for weight in weights])


def read(quantizer, payloads, reference, came, pull):
  """Returns what others believe of this worker, and the pull towards them."""
  x_hats = base.read(quantizer, payloads, reference)
  return x_hats[0], pull(x_hats, came)


def towards(quantizer, payloads, x, came, pull):
  """Returns the pull of the neighbours on x itself, which nobody rounds."""
  return pull([x, *base.read(quantizer, payloads[1:], x)], came)


def mix(quantizer, payloads, x, came, pull, onto):
  """Returns the pull added to `onto`, or to x where that is None."""
  return base.mix(quantizer, x, payloads, came, pull, onto)


def max_edges(schedule: tuple[topologies.Topology, ...]) -> int:
  """Returns E, the most edges that a topology of the schedule has."""
  return max(len(topology.edges) for topology in schedule)


def no_news(edges: int) -> base.Seen:
  """`Seen` for E edges before any message: readable, at distance 0."""
  return base.Seen(
    jnp.ones(edges, jnp.bool),
    jnp.zeros(edges, jnp.float32),
    jnp.full(edges, jnp.inf, jnp.float32),
    jnp.zeros(edges, jnp.float32),
  )


def padded(most, use, each: Round, payload, reference, *args):
  """Runs a round of a schedule, whose rounds all see `most` edges."""
  result, seen, short = talk(use, each, payload, reference, *args)
  missing = no_news(most - len(each.topology.edges))
  seen = jax.tree.map(lambda *s: jnp.concatenate(s), seen, missing)
  return result, seen, short
