"""The rounds of a gossip algorithm, and what it keeps of its messages."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import collectives, dither, topologies
from moniqua_jax.gossip import edge, one_round
from moniqua_jax.gossip.one_round import Round, max_edges, no_news
from moniqua_jax.quantizers import base, unreadable

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
    same, x = reference is x, one_round.as_vector(x)
    reference = x if same else one_round.as_vector(reference)
    current = quantizer.quantizer(heard.tuned, step)
    own_key = worker_key(key, step, axis_name, current.shared)
    payload = one_round.sealed(current, x, own_key)
    answered = agree or quantizer.answered
    rule = share.answered if answered else edge.unacknowledged
    rounds = [
      Round(topology, current, axis_name, rule, share) for topology in schedule
    ]
    branches = [
      functools.partial(one_round.padded, most, use, each) for each in rounds
    ]
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
    (own, pull), heard = talk(
      one_round.read, x, reference, heard, step, **asked
    )
    return own, pull, heard

  def mix(onto, x, heard, step, /, **asked):
    return talk(one_round.mix, x, x, heard, step, onto, **asked)

  def towards(x, heard, step, /, **asked):
    return talk(one_round.towards, x, x, heard, step, **asked)

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


def worker_key(key: Array, step: Array, axis_name: str, shared: bool) -> Array:
  """Derives the key of a step: the same on all workers if shared, else private.

  Keys are never stored, so a restart at a step repeats that step.
  """
  key = dither.key_of(key, step)
  return key if shared else jax.random.fold_in(key, lax.axis_index(axis_name))
