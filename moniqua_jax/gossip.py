"""Gossip: each worker tells its neighbours what it holds, and moves to them.

What happens on one edge is in `edge`; here are the rounds. A worker is a pure
function of its own arrays and the name of the axis over which the workers are
laid out.

n workers, d parameters, E edges: messages that a worker sends in one round.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from moniqua_jax import (
  collectives,
  dither,
  edge,
  quantized_mean,
  topologies,
)
from moniqua_jax.quantizers import base, forms, unreadable

Array = jax.Array


class Heard(NamedTuple):
  """Message-exchange state, kept in every gossip algorithm's optax state."""

  tuned: Any  # state of the quantizer, () where it does not move
  seen: base.Seen  # what the last round's messages told, each field [E]
  short: Array  # i32[R], how often `Quantizer.short` travelled, by round
  turn: Array  # i32[], of the next round; -1 before the first, see `turn`
  lost: Array  # i32[], own updates that were not finite, see `remembering`
  account: unreadable.Account  # of all messages so far


class Neighbours(NamedTuple):
  """The workers that one worker talks to: see `neighbours`."""

  init: Callable[[], Heard]
  # (x f32[d], reference f32[d], heard, step i32[], **asked) ->
  # (x_hat_i, pull_i, heard)
  exchange: Callable[..., tuple[Array, Array, Heard]]
  # (onto f32[d], x f32[d], heard, step i32[], **asked) ->
  # (onto + pull_i, heard), with x as reference
  mix: Callable[..., tuple[Array, Heard]]
  # (x f32[d], heard, step i32[], **asked) ->
  # (sum_j W_ij (x_hat_j - x_i), heard)
  towards: Callable[..., tuple[Array, Heard]]


class Round(NamedTuple):
  """Who talks to whom in one round, how, and which messages count."""

  topology: topologies.Topology
  quantizer: base.Quantizer
  axis_name: str
  # (readable bool[E], topology, axis_name) -> (came bool[E], went bool[E])
  agree: Callable = edge.unacknowledged
  share: edge.Share = edge.BY_RECEIVER


def neighbours(
  schedule: tuple[topologies.Topology, ...],
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: Array,
  share: edge.Share = edge.BY_RECEIVER,
  on_unreadable: str = 'warn',
) -> Neighbours:
  """Builds what every gossip algorithm does with its messages in each step.

    own_i = x_hat_i        pull_i = sum_j W_ij (x_hat_j - x_hat_i)

  `exchange` gives both; `mix` adds the pull to something: the same bits, in
  less memory traffic if the quantizer has a way; `towards` pulls at x_i in the
  place of x_hat_i. `turn` chooses the topology, and the key follows `step`:
  both must be the same on all workers. What was `asked` of the algorithm:
  `agree`, whether edges are answered, and `counted`, the step by which a
  training loop counts, if another one; the rest is ignored.
  """
  quantizer = base.tuned(quantizer)
  if quantizer.answered:
    share.check(schedule)
  most = max_edges(schedule)
  senders, tell = _senders(schedule), unreadable.telling(on_unreadable)

  def init():
    short = jnp.zeros(len(schedule), jnp.int32)
    account = unreadable.nothing(len(schedule), most)
    counts = jnp.int32(-1), jnp.int32(0)
    return Heard(quantizer.init(), no_news(most), short, *counts, account)

  def talk(
    use, x, reference, heard, step, /, *args, agree=None, counted=None, **_
  ):
    same, x = reference is x, _as_vector(x)
    reference = x if same else _as_vector(reference)
    current = quantizer.quantizer(heard.tuned, step)
    own_key = worker_key(key, step, axis_name, current.shared)
    payload = _sealed(current, x, own_key)
    answered = agree or quantizer.answered
    rule = share.answered if answered else edge.unacknowledged
    rounds = [
      Round(topology, current, axis_name, rule, share) for topology in schedule
    ]
    branches = [functools.partial(_padded, most, use, each) for each in rounds]
    now = turn(heard, step)
    at = now % len(branches)
    if len(branches) == 1:
      result, seen, short = branches[0](payload, reference, *args)
    else:
      result, seen, short = lax.switch(at, branches, payload, reference, *args)
    me = lax.axis_index(axis_name)
    # What was told is of this worker, though it may be alike on all: a mesh
    # that is checked wants to know, and a program has nothing to do for it.
    seen = jax.tree.map(lambda v: jnp.where(me >= 0, v, v), seen)
    tuned = quantizer.observe(heard.tuned, seen, x)
    short = heard.short.at[at].add(short.astype(jnp.int32))
    account, fails = unreadable.booked(
      heard.account,
      seen,
      unreadable.Place(at, senders, me),
      step if counted is None else counted,
      unreadable.PATIENCE if answered else 0,
      payload.nbytes + bool(answered),
    )
    if payload.dtype == jnp.uint8:  # floats are read as they are
      tell(fails, account, axis_name)
    return result, Heard(tuned, seen, short, now + 1, heard.lost, account)

  def exchange(x, reference, heard, step, /, **asked):
    (own, pull), heard = talk(_read, x, reference, heard, step, **asked)
    return own, pull, heard

  def mix(onto, x, heard, step, /, **asked):
    return talk(_mix, x, x, heard, step, onto, **asked)

  def towards(x, heard, step, /, **asked):
    return talk(_towards, x, x, heard, step, **asked)

  return Neighbours(init, exchange, mix, towards)


def _senders(schedule) -> np.ndarray:
  """Tabulates who sends to whom, i32[R, E, n]: `unreadable.Place.senders`."""
  n, most = schedule[0].n, max_edges(schedule)
  table = np.tile(np.arange(n, dtype=np.int32), (len(schedule), most, 1))
  for r, topology in enumerate(schedule):
    for k, (_, perm) in enumerate(topology.edges):
      table[r, k] = topologies.sources(perm)
  return table


def turn(heard: Heard, step: Array) -> Array:
  """Counts the rounds of a gossip: i32[], the number of the one to come.

  The first has the number of its step, and the next ones follow it, whichever
  steps are left out. Would the steps choose the topology, then `MultiSteps` of
  optax, which takes every k-th, would meet the same few again and again.
  """
  own = collectives.common(heard.turn)
  return jnp.where(own < 0, jnp.asarray(step, jnp.int32), own)


def _as_vector(row):
  """Fixes the layout of a row as that of a vector.

  A row of a sharded array is laid out as the matrix f32[1, d] that it is, and
  XLA for TPUs would choose that for all that is done with it: up to five times
  the traffic.
  """
  return lax.optimization_barrier(row)


def _padded(most, use, each: Round, payload, reference, *args):
  """Runs a round of a schedule, whose rounds all see `most` edges."""
  result, seen, short = _talk(use, each, payload, reference, *args)
  missing = no_news(most - len(each.topology.edges))
  seen = jax.tree.map(lambda *s: jnp.concatenate(s), seen, missing)
  return result, seen, short


def _sealed(quantizer, x, key):
  """Makes the payload that a worker sends, and reads itself."""
  cuts = base.cuts(quantizer, x.size)
  return forms.in_pieces(edge.sealed, quantizer.encode(x, key), cuts)


def _talk(use, each: Round, payload, reference, *args):
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


def _read(quantizer, payloads, reference, came, pull):
  """Returns what others believe of this worker, and the pull towards them."""
  x_hats = base.read(quantizer, payloads, reference)
  return x_hats[0], pull(x_hats, came)


def _towards(quantizer, payloads, x, came, pull):
  """Returns the pull of the neighbours on x itself, which nobody rounds."""
  return pull([x, *base.read(quantizer, payloads[1:], x)], came)


def _mix(quantizer, payloads, x, came, pull, onto):
  return base.mix(quantizer, x, payloads, came, pull, onto)


def correction(
  x: Array,
  key: Array,
  *,
  topology: topologies.Topology,
  quantizer: base.Quantizer,
  axis_name: str,
) -> tuple[Array, base.Seen]:
  """The row (W x_hat - x_hat)_i that worker i adds to its own x_i.

    sum_j W_ij (x_hat_j - x_hat_i)

  Equivalent, all workers stacked, while every message is readable:
  `x_hat = decode(encode(x)); W @ x_hat - x_hat` with `W = matrix(topology)`.
  An unreadable message is left out: its edge contributes nothing.

  Args:
    x: f32[d], this worker's vector.
    key: for `quantizer.encode`; shared or private as `quantizer.shared` says.
    topology: who sends to whom, with which weight.
    quantizer: what is sent.
    axis_name: of the workers.

  Returns:
    f32[d], and what was seen on the edges, each field [E].

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> pull = lambda x: correction(
  ...   x, jax.random.key(0), topology=topologies.ring(2),
  ...   quantizer=base.full_precision(), axis_name=AXIS)[0]
  >>> simulated(pull, (0,))(jnp.array([[0.0], [2.0]])).ravel()
  Array([ 1., -1.], dtype=float32)

  Source: lines 2 to 5 of Algorithm 1 of Moniqua, arXiv:2002.11787.
  """
  each = _alone(topology, quantizer, axis_name)
  (_, pull), seen = _encoded(_read, each, x, key)
  return pull, seen


def mixed(
  x: Array,
  key: Array,
  *,
  topology: topologies.Topology,
  quantizer: base.Quantizer,
  axis_name: str,
) -> tuple[Array, base.Seen]:
  """Adds the `correction` to x: the same bits in less memory traffic."""
  each = _alone(topology, quantizer, axis_name)
  return _encoded(_mix, each, x, key, None)


def _alone(topology, quantizer, axis_name) -> Round:
  """A round by itself: on one graph, and of what learns nothing from it."""
  if not isinstance(quantizer, base.Quantizer):
    raise TypeError(
      f'quantizer={quantizer!r:.60}; correction and mixed take a Quantizer. '
      'What learns, such as auto_theta, is for dpsgd and its like.'
    )
  topology = topologies.base.single(topology, 'correction')
  return Round(topology, quantizer, axis_name)


def _encoded(use, each: Round, x, key, *args):
  """Runs a round by itself, from the vector that is sent."""
  x = _as_vector(x)
  payload = _sealed(each.quantizer, x, key)  # line 2
  result, seen, _ = _talk(use, each, payload, x, *args)  # lines 3 to 5
  return result, seen


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


def worker_key(key: Array, step: Array, axis_name: str, shared: bool) -> Array:
  """Derives the key of a step: the same on all workers if shared, else private.

  Keys are never stored, so a restart at a step repeats that step.
  """
  key = dither.key_of(key, step)
  return key if shared else jax.random.fold_in(key, lax.axis_index(axis_name))


def flatten(params) -> tuple[Array, Callable]:
  """Makes one f32[d] of a pytree of parameters, and the function back.

  f64[d] if all leaves are f64 (the laboratory). What comes back has the
  vector's type: of an update of a bfloat16 leaf only its sum with the leaf is
  rounded.
  """
  dtype = vector_type(params)
  params = jax.tree.map(lambda v: jnp.asarray(v, dtype), params)
  rows = [leaf.reshape(-1) for leaf in jax.tree.leaves(params)]
  return end_to_end(rows), ravel_pytree(params)[1]


@functools.partial(jax.jit, inline=True)
def end_to_end(parts: list[Array]) -> Array:
  """Joins vectors of one type.

  XLA for CPUs would go through all places once for each part, with loads that
  are masked where the part is not. Where there is no memory behind the part,
  each of them takes as long as a hundred others.
  """
  if len(parts) == 1:
    return parts[0]
  *starts, size = np.cumsum([0, *(part.size for part in parts)]).tolist()

  def one_by_one(*parts):
    # Of zeros that it knows XLA would make the first two parts a padded one.
    whole = lax.optimization_barrier(jnp.zeros(size, parts[0].dtype))
    for start, part in zip(starts, parts, strict=True):
      whole = lax.dynamic_update_slice(whole, part, (start,))
    return whole

  at_once = lambda *parts: jnp.concatenate(parts)
  return lax.platform_dependent(*parts, cpu=one_by_one, default=at_once)


def vector_type(params):
  """Returns the type of a vector of all leaves, which must be floats."""
  leaves = jax.tree.leaves(params)
  if not leaves:
    raise ValueError(
      'gossip needs parameters, and was given none, or no leaf: '
      'tx.update(updates, opt_state, params, step=step).'
    )
  collectives.require(jnp.floating, params, 'params')
  double = all(jnp.result_type(leaf) == jnp.float64 for leaf in leaves)
  return jnp.float64 if double else jnp.float32


def consensus(x: Array, axis_name: str) -> tuple[Array, Array]:
  """Measures x_i - mean_j x_j: its root mean square and largest absolute value.

  Costs an exact all-reduce of d floats; for evaluation, not for every step.
  """
  x, _ = flatten(x)
  apart = x - collectives.mean(x, axis_name)
  square = collectives.mean(jnp.mean(apart**2), axis_name)
  return jnp.sqrt(square), collectives.largest(base.largest(apart), axis_name)
