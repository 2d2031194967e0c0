"""One edge: what travels on it, whether it counts, and what it moves.

A worker is a pure function of its own arrays and the name of the axis over
which the workers are laid out.

n workers, d parameters, E edges: messages that a worker sends in one round.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import collectives, topologies

Array = jax.Array


def sealed(payload: Array) -> Array:
  """Fixes a payload, so that what is sent is what the sender decodes itself.

  Without this barrier XLA recomputes the codes in another fusion, a rounding
  tie flips, and the sender believes what it did not send.
  """
  return lax.optimization_barrier(payload)


def pulled(own: Array, theirs: Array, weight, readable: Array) -> Array:
  """Returns w (x_hat_j - x_hat_i), and 0 where the message is not readable."""
  # A worker that could not say what it holds moves on no edge either.
  apart = theirs - own
  return jnp.where(readable & jnp.isfinite(apart), weight * apart, 0)


def by_receiver(own, theirs, weight, perm, counts, axis_name) -> Array:
  """Returns `pulled` with the receiver's weight, as W has it.

  The weight is one number or one for each worker; counts are two bool[]:
  whether what came in on this edge counts, and whether what went out does.
  """
  came = counts[0]
  if any(i == to for i, to in enumerate(perm)):
    # What a worker tells itself says nothing, but by the error of its code.
    worker = lax.axis_index(axis_name)
    came &= jnp.asarray(perm)[worker] != worker
  return pulled(own, theirs, mine(weight, axis_name), came)


def mine(weight, axis_name: str):
  """Returns the weight of an edge for this worker, who receives."""
  return _at(weight, lax.axis_index(axis_name))


def by_sender(own, theirs, weight, perm, counts, axis_name) -> Array:
  """Returns w_j x_hat_j, which came in, less w_i x_hat_i, given away: push-sum.

  They go to one worker and come from another; either may count alone. Who could
  not say what it holds gives nothing away, and takes what came.
  """
  worker = lax.axis_index(axis_name)
  source = jnp.asarray(topologies.sources(perm))[worker]
  # What a worker tells itself it neither gives away nor can lose.
  elsewhere = source != worker
  came, went = (count & elsewhere for count in counts)
  went &= jnp.isfinite(own)
  taken = jnp.where(came, _at(weight, source) * theirs, 0)
  return taken - jnp.where(went, _at(weight, worker) * own, 0)


def _at(weight: float | tuple[float, ...], worker: Array):
  """Returns the one weight of all, or that of a worker."""
  if isinstance(weight, tuple):
    return jnp.asarray(weight, jnp.float32)[worker]
  return weight


def unacknowledged(
  readable: Array, topology: topologies.Topology, axis_name: str
) -> tuple[Array, Array]:
  """The default rule: every readable message counts; the sender is not told.

  Returns bool[E] for what came in and for what went out. First wraps are mostly
  one-sided: the mean of the workers moves then, and by sender the share is
  gone; the run should stop.
  """
  del topology, axis_name
  return readable, jnp.ones_like(readable)


def acknowledged(
  readable: Array, topology: topologies.Topology, axis_name: str
) -> tuple[Array, Array]:
  """A message counts if both ends of its edge could read each other.

  One byte goes back along each edge; both ends leave out the same edges, and
  the mean of the workers survives, since W is symmetric (else a ValueError).
  """
  require_both_ways((topology,))
  perms = [perm for _, perm in topology.edges]
  inverses = [topologies.sources(perm) for perm in perms]
  read, me = _answers(readable, inverses, axis_name), lax.axis_index(axis_name)
  # By the edge on which I reach whom I hear, and hear whom I reach.
  reach, hear = _same_worker(inverses, perms), _same_worker(perms, inverses)
  return readable & read[reach[:, me]], read & readable[hear[:, me]]


def delivered(
  readable: Array, topology: topologies.Topology, axis_name: str
) -> tuple[Array, Array]:
  """A message counts if it was read: what was not stays with its sender.

  One byte goes back on each edge, of whatever graph: who gives a share away
  need not hear whom it gives it to. Something must stay of what a worker holds,
  or it may give all away and hear of nobody (else a ValueError).
  """
  require_kept((topology,))
  inverses = [topologies.sources(perm) for _, perm in topology.edges]
  return readable, _answers(readable, inverses, axis_name)


def require_both_ways(schedule: tuple[topologies.Topology, ...]) -> None:
  """Refuses graphs on which an answer has no way back: W is not symmetric."""
  topologies.require_symmetric(
    schedule,
    'answered',
    'For answers, which auto_theta needs, use one_peer_hypercube(n), or '
    'base_graph(n) for any n, with one message a round; or ring, torus, '
    'hypercube, complete, from_graph',
  )


def require_kept(schedule: tuple[topologies.Topology, ...]) -> None:
  """Refuses graphs on which a worker gives away all that it holds."""
  for topology in schedule:
    kept = topologies.push_matrix(topology).diagonal()
    if kept.min() < 1e-6:  # 0, but for the rounding of the others
      raise ValueError(
        f'answered: worker {kept.argmin()} gives away all that it holds; if it '
        'then hears of nobody, nothing is left. Use lazy(topology, 0.5).'
      )


def _answers(readable: Array, inverses: list, axis_name: str) -> Array:
  """Tells each sender, and is told on each edge, whether a message was read."""
  answers = zip(readable[:, None].astype(jnp.uint8), inverses, strict=True)
  read = [collectives.send(*answer, axis_name)[0] > 0 for answer in answers]
  return jnp.stack(read)


def _same_worker(of: list, among: list) -> Array:
  """Finds for each edge and worker the first edge with the same other end.

  `of` and `among` hold perms or their inverses; the result is i32[E, n].
  """

  def find(i, other):
    for k, perm in enumerate(among):
      if perm[i] == other:
        return k
    raise ValueError(
      f'answered: workers {i} and {other} have an edge one way only, of no '
      'weight; from_matrix(matrix(topology)) leaves it out.'
    )

  return jnp.array([[find(*end) for end in enumerate(perm)] for perm in of])


class Share(NamedTuple):
  """Whose weight an edge has, and what follows for its messages.

  Attributes:
    moved: (own, theirs, weight, perm, counts, axis_name) -> f32[d].
    answered: the rule where edges are answered: (readable bool[E], topology,
      axis_name) -> (came bool[E], went bool[E]).
    read: (came, went) -> bool[E], what `Seen.readable` says of an edge.
    check: schedule -> None; refuses graphs that cannot be answered.
    weight: (weight, axis_name) -> f32[], that of `pulled`, if it is `moved`.
  """

  moved: Callable
  answered: Callable
  read: Callable
  check: Callable
  weight: Callable | None = None


BY_RECEIVER = Share(
  by_receiver, acknowledged, lambda came, went: came, require_both_ways, mine
)
BY_SENDER = Share(
  by_sender, delivered, lambda came, went: came & went, require_kept
)
