"""One edge: what travels on it, whether it counts, and what it moves.

A worker is a pure function of its own arrays and the name of the axis over
which the workers are laid out.

n workers, d parameters, E edges: messages that a worker sends in one round.
"""

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
  del perm
  mine = _at(weight, lax.axis_index(axis_name))
  return pulled(own, theirs, mine, counts[0])


def by_sender(own, theirs, weight, perm, counts, axis_name) -> Array:
  """Returns w_j x_hat_j, which came in, less w_i x_hat_i, given away: push-sum.

  They go to one worker and come from another; either may count alone. Who could
  not say what it holds gives nothing away, and takes what came.
  """
  came, went = counts[0], counts[1] & jnp.isfinite(own)
  worker = lax.axis_index(axis_name)
  source = jnp.asarray(topologies.sources(perm))[worker]
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
  one-sided: the mean of the workers moves then, and the run should stop.
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
  topologies.require_symmetric((topology,), 'answered')
  perms = [perm for _, perm in topology.edges]
  inverses = [topologies.sources(perm) for perm in perms]
  answers = zip(readable[:, None].astype(jnp.uint8), inverses, strict=True)
  read = [collectives.send(*answer, axis_name)[0] > 0 for answer in answers]
  read, me = jnp.stack(read), lax.axis_index(axis_name)
  # By the edge on which I reach whom I hear, and hear whom I reach.
  reach, hear = _same_worker(inverses, perms), _same_worker(perms, inverses)
  return readable & read[reach[:, me]], read & readable[hear[:, me]]


def _same_worker(of: list, among: list) -> Array:
  """Finds for each edge and worker the first edge with the same other end.

  `of` and `among` hold perms or their inverses; the result is i32[E, n].
  """
  find = lambda i, other: next(k for k, p in enumerate(among) if p[i] == other)
  return jnp.array([[find(*end) for end in enumerate(perm)] for perm in of])
