"""Gossip: each worker tells its neighbours what it holds, and moves to them.

The only file with `ppermute`. A worker is a pure function of its own arrays and
the name of the axis over which the workers are laid out.

n workers, d parameters, E edges: messages that a worker sends in one round.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from moniqua_jax import reduce, topologies
from moniqua_jax.quantizers import base

Array = jax.Array


def sealed(payload: Array) -> Array:
  """The payload, fixed: what is sent is what the sender decodes itself.

  Without this barrier XLA recomputes the codes in another fusion, a rounding
  tie flips, and the sender believes what it did not send.

  Args:
    payload: as `Quantizer.encode` made it.

  Returns:
    The same.

  >>> sealed(jnp.ones(1, jnp.uint8))
  Array([1], dtype=uint8)
  """
  return lax.optimization_barrier(payload)


def send(payload: Array, perm: tuple[int, ...], axis_name: str) -> Array:
  """Sends the payload along one edge, and returns what came in on it.

  Equivalent, all workers stacked: `received[perm[i]] = payload[i]`.

  Args:
    payload: u8[m] (or f32[d] of `full_precision`).
    perm: perm[i] is the worker to which worker i sends.
    axis_name: of the workers.

  Returns:
    An array like `payload`.
  """
  return lax.ppermute(payload, axis_name, tuple(enumerate(perm)))


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
  """

  init: Callable[[], Heard]
  exchange: Callable[..., tuple[Array, Array, Heard]]


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
    was heard. `step` must be the same on all workers: it chooses who talks to
    whom. `agree` says which messages count, by default `answers` if the
    quantizer wants them, else `alone`.
  """
  quantizer = base.tuned(quantizer)
  default = answers if quantizer.answered else alone
  most = max_edges(schedule)

  def init():
    return Heard(
      quantizer.init(), no_news(most), jnp.zeros(len(schedule), jnp.int32)
    )

  def exchange(x, reference, heard, step, agree=None):
    current = quantizer.quantizer(heard.tuned, step)
    step_key = worker_key(key, step, axis_name, current.shared)
    payload = sealed(current.encode(x, step_key))
    own = current.decode(payload, reference)  # what others believe of me
    one_round = functools.partial(
      _one_round,
      current,
      agree or default,
      share or by_receiver,
      axis_name,
      most,
    )
    branches = [functools.partial(one_round, topology) for topology in schedule]
    turn = step % len(branches)
    if len(branches) == 1:
      pull, seen, short = branches[0](payload, own, reference)
    else:
      pull, seen, short = lax.switch(turn, branches, payload, own, reference)
    tuned = quantizer.observe(heard.tuned, seen, x)
    return own, pull, Heard(tuned, seen, heard.short.at[turn].add(short))

  return Neighbours(init, exchange)


def _one_round(
  quantizer, agree, share, axis_name, most, topology, payload, own, reference
):
  """The messages of one round, and the pull of those that count."""

  def send_all(message):
    return [send(message, perm, axis_name) for _, perm in topology.edges]

  received, short = reduce.carried(
    quantizer, own.size, payload, send_all, axis_name
  )
  seen = [quantizer.inspect(message, reference) for message in received]
  seen = jax.tree.map(lambda *edges: jnp.stack(edges), *seen)
  came, went = agree(seen.readable, topology, axis_name)
  seen = seen._replace(readable=came)
  pull = jnp.zeros_like(own)
  for edge, (weight, perm) in enumerate(topology.edges):
    theirs = quantizer.decode(received[edge], reference)
    counts = came[edge], went[edge]
    pull += share(own, theirs, weight, perm, counts, axis_name)
  missing = no_news(most - len(topology.edges))
  seen = jax.tree.map(lambda *s: jnp.concatenate(s), seen, missing)
  return pull, seen, short


def pulled(own: Array, theirs: Array, weight, readable: Array) -> Array:
  """What one message moves its receiver: w (x_hat_j - x_hat_i), if readable.

  Args:
    own: f32[d], x_hat_i.
    theirs: f32[d], x_hat_j.
    weight: W_ij.
    readable: bool[]; an edge whose message was not contributes nothing.

  Returns:
    f32[d].

  >>> pulled(jnp.zeros(1), jnp.ones(1), 0.5, jnp.bool(True))
  Array([0.5], dtype=float32)
  """
  # A worker that could not say what it holds moves on no edge either.
  usable = readable & jnp.isfinite(own)
  return jnp.where(usable, weight * (theirs - own), 0)


def by_receiver(own, theirs, weight, perm, counts, axis_name) -> Array:
  """`pulled` with the weights as W has them: w of worker i, who receives."""
  del perm
  mine = _at(weight, lax.axis_index(axis_name))
  return pulled(own, theirs, mine, counts[0])


def by_sender(own, theirs, weight, perm, counts, axis_name) -> Array:
  """As push-sum has it: w_j x_hat_j comes in, w_i x_hat_i is given away.

  To one worker and from another, so that either may count without the other.
  """
  came, went = (count & jnp.isfinite(own) for count in counts)
  worker = lax.axis_index(axis_name)
  source = jnp.asarray(topologies.sources(perm))[worker]
  taken = jnp.where(came, _at(weight, source) * theirs, 0)
  return taken - jnp.where(went, _at(weight, worker) * own, 0)


def alone(
  readable: Array, topology: topologies.Topology, axis_name: str
) -> tuple[Array, Array]:
  """Which messages count: those that this worker could read, come what may.

  First wraps are mostly one-sided: the mean of the workers moves then, and the
  run should stop.

  Args:
    readable: bool[E], of what came in.
    topology: of this round.
    axis_name: of the workers.

  Returns:
    bool[E], what came in on each edge counts; bool[E], what went out on it is
    gone: always, since nobody says otherwise.
  """
  del topology, axis_name
  return readable, jnp.ones_like(readable)


def answers(
  readable: Array, topology: topologies.Topology, axis_name: str
) -> tuple[Array, Array]:
  """Which messages count: those between two workers that read each other.

  One byte goes back along each edge; both ends leave out the same edges, and
  the mean of the workers survives, since W is symmetric.

  Args:
    readable: bool[E], of what came in.
    topology: of this round, symmetric.
    axis_name: of the workers.

  Returns:
    bool[E], what came in on each edge counts; bool[E], so does what went out.

  Raises:
    ValueError: W is not symmetric.
  """
  topologies.require_symmetric((topology,), 'answers')
  perms = [perm for _, perm in topology.edges]
  inverses = [topologies.sources(perm) for perm in perms]
  read = jnp.stack(
    [
      send(readable[k : k + 1].astype(jnp.uint8), inverse, axis_name)[0] > 0
      for k, inverse in enumerate(inverses)
    ]
  )
  me = lax.axis_index(axis_name)
  # By the edge on which I reach whom I hear, and hear whom I reach.
  reach, hear = _same_worker(inverses, perms), _same_worker(perms, inverses)
  return readable & read[reach[:, me]], read & readable[hear[:, me]]


def _same_worker(of: list, among: list) -> Array:
  """i32[E, n]: for each edge and worker another edge with the same other end.

  Args:
    of: perms, or their inverses, of the edges that are asked for.
    among: the same of the edges to find: the first with the same worker.
  """
  find = lambda i, other: next(k for k, p in enumerate(among) if p[i] == other)
  return jnp.array([[find(*end) for end in enumerate(perm)] for perm in of])


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

  Source: lines 2 to 5 of Algorithm 1 of Moniqua, arXiv:2002.11787.
  """
  payload = sealed(quantizer.encode(x, key))  # line 2
  own = quantizer.decode(payload, x)  # line 3
  edges = len(topology.edges)
  pull, seen, _ = _one_round(  # lines 4 and 5
    quantizer, alone, by_receiver, axis_name, edges, topology, payload, own, x
  )
  return pull, seen


def max_edges(schedule: tuple[topologies.Topology, ...]) -> int:
  """E, the most edges that a topology of the schedule has."""
  return max(len(topology.edges) for topology in schedule)


def no_news(edges: int) -> base.Seen:
  """What is seen before the first message: readable, at no distance."""
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
  """
  apart = x - reduce.exact(x, axis_name)
  square = reduce.exact(jnp.mean(apart**2), axis_name)
  return jnp.sqrt(square), reduce.largest(jnp.max(jnp.abs(apart)), axis_name)


def _at(weight: float | tuple[float, ...], worker: Array):
  """One weight for all, or that of a worker."""
  if isinstance(weight, tuple):
    return jnp.asarray(weight, jnp.float32)[worker]
  return weight
