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

from moniqua_jax import collectives, edge, quantized_mean, topologies
from moniqua_jax.quantizers import base

Array = jax.Array


class Heard(NamedTuple):
  """What an algorithm keeps of its messages.

  Attributes:
    tuned: state of the quantizer, () where it does not move.
    seen: what came in with the last round, each field [E].
    short: i32[R], how often `Quantizer.short` travelled in each round of the
      schedule.
  """

  tuned: Any
  seen: base.Seen
  short: Array


class Neighbours(NamedTuple):
  """The workers that one worker talks to, and how.

  Attributes:
    init: () -> Heard.
    exchange: (x: f32[d], reference: f32[d], heard, step: i32[], agree=None) ->
      (own, pull, heard), see `neighbours`.
    mix: (onto: f32[d], x: f32[d], heard, step: i32[], agree=None) ->
      (onto + pull, heard), with x as reference.
  """

  init: Callable[[], Heard]
  exchange: Callable[..., tuple[Array, Array, Heard]]
  mix: Callable[..., tuple[Array, Heard]]


def neighbours(
  schedule: tuple[topologies.Topology, ...],
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: Array,
  share: Callable | None = None,
) -> Neighbours:
  """What every gossip algorithm does with its messages, in each of its steps.

    own_i = x_hat_i        pull_i = sum_j W_ij (x_hat_j - x_hat_i)

  Args:
    schedule: topologies, cycled by step.
    quantizer: a `Quantizer` or a `Tuned`.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    share: how the weights are read, `by_receiver` if not given.

  Returns:
    `Neighbours`. `exchange` sends x, reads what came in with `reference` next
    to it, and gives what others believe of x, the pull towards them, and what
    was heard. `mix` is for those who only add the pull to something: the same
    bits, in less memory traffic if the quantizer has a way. `step` must be the
    same on all workers: it chooses who talks to whom. `agree` says which
    messages count, by default `answers` if the quantizer wants them, else
    `alone`.

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> talk = neighbours((topologies.ring(2),), base.full_precision(),
  ...                   axis_name=AXIS, key=jax.random.key(0))
  >>> pull = lambda x: talk.exchange(x, x, talk.init(), jnp.int32(0))[1]
  >>> simulated(pull, (0,))(jnp.array([[0.0], [2.0]])).ravel()
  Array([ 1., -1.], dtype=float32)
  """
  quantizer = base.tuned(quantizer)
  default = edge.acknowledged if quantizer.answered else edge.alone
  most, share = max_edges(schedule), share or edge.by_receiver

  def init():
    return Heard(
      quantizer.init(), no_news(most), jnp.zeros(len(schedule), jnp.int32)
    )

  def talk(use, x, reference, heard, step, agree, *args):
    same, x = reference is x, _as_vector(x)
    reference = x if same else _as_vector(reference)
    current = quantizer.quantizer(heard.tuned, step)
    step_key = worker_key(key, step, axis_name, current.shared)
    payload = edge.sealed(current.encode(x, step_key))
    one_round = functools.partial(
      _one_round, use, current, agree or default, share, axis_name, most
    )
    branches = [functools.partial(one_round, topology) for topology in schedule]
    turn = step % len(branches)
    if len(branches) == 1:
      result, seen, short = branches[0](payload, reference, *args)
    else:
      result, seen, short = lax.switch(
        turn, branches, payload, reference, *args
      )
    tuned = quantizer.observe(heard.tuned, seen, x)
    return result, Heard(tuned, seen, heard.short.at[turn].add(short))

  def exchange(x, reference, heard, step, agree=None):
    (own, pull), heard = talk(_read, x, reference, heard, step, agree)
    return own, pull, heard

  def mix(onto, x, heard, step, agree=None):
    return talk(_mix, x, x, heard, step, agree, onto)

  return Neighbours(init, exchange, mix)


def _as_vector(row):
  """The same, laid out as a vector.

  A row of a sharded array is laid out as the matrix f32[1, d] that it is, and
  XLA for TPUs would choose that for all that is done with it: up to five times
  the traffic.
  """
  return lax.optimization_barrier(row)


def _one_round(
  use,
  quantizer,
  agree,
  share,
  axis_name,
  most,
  topology,
  payload,
  reference,
  *args,
):
  """The messages of one round, and what those that count are used for."""

  def send_all(message):
    return [
      collectives.send(message, perm, axis_name) for _, perm in topology.edges
    ]

  def pull(x_hats, came):
    own, *theirs = x_hats
    total = jnp.zeros_like(own)
    for k, (weight, perm) in enumerate(topology.edges):
      counts = came[k], went[k]
      total += share(own, theirs[k], weight, perm, counts, axis_name)
    return total

  received, short = quantized_mean.carried(
    quantizer, reference.size, payload, send_all, axis_name
  )
  if quantizer.inspect_all:
    seen = quantizer.inspect_all(received, reference)
  else:
    seen = [quantizer.inspect(message, reference) for message in received]
  seen = jax.tree.map(lambda *edges: jnp.stack(edges), *seen)
  came, went = agree(seen.readable, topology, axis_name)
  result = use(quantizer, payload, received, reference, came, pull, *args)
  # Who is not finite has read nothing, though there is nothing to leave out.
  seen = seen._replace(readable=came & jnp.isfinite(seen.distance))
  missing = no_news(most - len(topology.edges))
  seen = jax.tree.map(lambda *s: jnp.concatenate(s), seen, missing)
  return result, seen, short


def _read(quantizer, payload, received, reference, came, pull):
  """What others believe of this worker, and the pull towards them."""
  x_hats = [quantizer.decode(each, reference) for each in (payload, *received)]
  return x_hats[0], pull(x_hats, came)


def _mix(quantizer, payload, received, x, came, pull, onto):
  """The pull on top of a vector, or of x itself if that is None."""
  if quantizer.mix is None:
    _, pulls = _read(quantizer, payload, received, x, came, pull)
    return (x if onto is None else onto) + pulls
  return quantizer.mix(x, payload, received, came, pull, onto)


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
  round_of = functools.partial(_alone, x, key, topology, quantizer, axis_name)
  (_, pull), seen = round_of(_read)
  return pull, seen


def mixed(
  x: Array,
  key: Array,
  *,
  topology: topologies.Topology,
  quantizer: base.Quantizer,
  axis_name: str,
) -> tuple[Array, base.Seen]:
  """x with the `correction` added: row i of x + W x_hat - x_hat.

  The same bits, but of a long x with less memory traffic.

  Args:
    x: f32[d], this worker's vector.
    key: for `quantizer.encode`; shared or private as `quantizer.shared` says.
    topology: who sends to whom, with which weight.
    quantizer: what is sent.
    axis_name: of the workers.

  Returns:
    f32[d], and what was seen on the edges, each field [E].

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> mix = lambda x: mixed(
  ...   x, jax.random.key(0), topology=topologies.ring(2),
  ...   quantizer=base.full_precision(), axis_name=AXIS)[0]
  >>> simulated(mix, (0,))(jnp.array([[0.0], [2.0]])).ravel()
  Array([1., 1.], dtype=float32)

  Source: lines 2 to 5 of Algorithm 1 of Moniqua, arXiv:2002.11787.
  """
  round_of = functools.partial(_alone, x, key, topology, quantizer, axis_name)
  return round_of(_mix, None)


def _alone(x, key, topology, quantizer, axis_name, use, *args):
  x = _as_vector(x)
  payload = edge.sealed(quantizer.encode(x, key))  # line 2
  edges = len(topology.edges)
  result, seen, _ = _one_round(  # lines 3 to 5
    use,
    quantizer,
    edge.alone,
    edge.by_receiver,
    axis_name,
    edges,
    topology,
    payload,
    x,
    *args,
  )
  return result, seen


def max_edges(schedule: tuple[topologies.Topology, ...]) -> int:
  """E, the most edges that a topology of the schedule has.

  Args:
    schedule: topologies.

  Returns:
    E.

  >>> max_edges((topologies.ring(4), topologies.complete(4)))
  3
  """
  return max(len(topology.edges) for topology in schedule)


def no_news(edges: int) -> base.Seen:
  """What is seen before the first message: readable, at no distance.

  Args:
    edges: E.

  Returns:
    A `Seen` of [E] arrays.

  >>> no_news(2).readable.tolist()
  [True, True]
  """
  return base.Seen(
    jnp.ones(edges, jnp.bool),
    jnp.zeros(edges, jnp.float32),
    jnp.full(edges, jnp.inf, jnp.float32),
  )


def worker_key(key: Array, step: Array, axis_name: str, shared: bool) -> Array:
  """The key of a step: the same on all workers if shared, else private.

  fold_in(key, step), and then also the worker's index if private. Keys are
  derived and never stored, so a restart at a step repeats that step.

  Args:
    key: of the run, the same on all workers.
    step: i32[].
    axis_name: of the workers.
    shared: as `Quantizer.shared`.

  Returns:
    A key.

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> def draws(shared):
  ...   key = lambda i: worker_key(jax.random.key(0), 0 * i, AXIS, shared)
  ...   draw = simulated(lambda i: jax.random.bits(key(i)), (0,))
  ...   return len(set(draw(jnp.arange(4)).tolist()))
  >>> draws(shared=True), draws(shared=False)
  (1, 4)
  """
  key = jax.random.fold_in(key, step)
  return key if shared else jax.random.fold_in(key, lax.axis_index(axis_name))


def flatten(params) -> tuple[Array, Callable]:
  """One f32[d] for a pytree of parameters, and the function back.

  Args:
    params: a pytree of f32 arrays, or all of them f64 (the laboratory).

  Returns:
    f32[d] and its inverse.

  Raises:
    ValueError: no parameters, or a leaf that is neither, by its path.

  >>> flatten({'w': jnp.ones(2), 'b': jnp.zeros(1)})[0]
  Array([0., 1., 1.], dtype=float32)
  """
  leaves = jax.tree.leaves_with_path(params)
  if not leaves:
    raise ValueError('gossip needs parameters; update() was given none.')
  exact = all(leaf.dtype == jnp.float64 for _, leaf in leaves)
  for path, leaf in leaves:
    # `ravel_pytree` would promote the dtypes without a word.
    if leaf.dtype != jnp.float32 and not exact:
      raise ValueError(
        f'params{jax.tree_util.keystr(path)} is {leaf.dtype}; gossip takes '
        'float32 parameters (cast in the forward pass instead).'
      )
  return ravel_pytree(params)


def consensus(x: Array, axis_name: str) -> tuple[Array, Array]:
  """How far the workers are apart: x_i - mean_j x_j, over all workers.

  Costs an exact all-reduce of d floats; for evaluation, not for every step.

  Args:
    x: f32[d], this worker's vector.
    axis_name: of the workers.

  Returns:
    f32[] root mean square and f32[] largest absolute value, over workers and
    coordinates.

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> apart = simulated(lambda x: consensus(x, AXIS), (0,))
  >>> [each.tolist() for each in apart(jnp.array([[0.0], [4.0]]))]
  [[2.0, 2.0], [2.0, 2.0]]
  """
  apart = x - collectives.mean(x, axis_name)
  square = collectives.mean(jnp.mean(apart**2), axis_name)
  return jnp.sqrt(square), collectives.largest(
    jnp.max(jnp.abs(apart)), axis_name
  )
