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
  apart = theirs - own
  return jnp.where(readable & jnp.isfinite(apart), weight * apart, 0)


def by_receiver(own, theirs, weight, perm, counts, axis_name) -> Array:
  """`pulled` with the weights as W has them: w of worker i, who receives.

  Args:
    own: f32[d], x_hat_i.
    theirs: f32[d], x_hat_j, of who sent on this edge.
    weight: of the edge, one number or one for each worker.
    perm: of the edge.
    counts: bool[], whether what came in counts; bool[], whether what went out
      does.
    axis_name: of the workers.

  Returns:
    f32[d].

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> counts = jnp.bool(True), jnp.bool(True)
  >>> one = lambda x, y: by_receiver(x, y, 0.5, (1, 0), counts, AXIS)
  >>> simulated(one, (0, 0))(jnp.zeros((2, 1)), jnp.ones((2, 1))).ravel()
  Array([0.5, 0.5], dtype=float32)
  """
  del perm
  mine = _at(weight, lax.axis_index(axis_name))
  return pulled(own, theirs, mine, counts[0])


def by_sender(own, theirs, weight, perm, counts, axis_name) -> Array:
  """As push-sum has it: w_j x_hat_j comes in, w_i x_hat_i is given away.

  To one worker and from another, so that either may count without the other.

  Args:
    own: f32[d], x_hat_i.
    theirs: f32[d], x_hat_j, of who sent on this edge.
    weight: of the edge, one number or one for each worker.
    perm: of the edge.
    counts: bool[], whether what came in counts; bool[], whether what went out
      does.
    axis_name: of the workers.

  Returns:
    f32[d].

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> counts = jnp.bool(True), jnp.bool(False)  # ours was not read: we keep it
  >>> one = lambda x, y: by_sender(x, y, 0.5, (1, 0), counts, AXIS)
  >>> simulated(one, (0, 0))(jnp.ones((2, 1)), jnp.ones((2, 1))).ravel()
  Array([0.5, 0.5], dtype=float32)
  """
  came, went = (count & jnp.isfinite(own) for count in counts)
  worker = lax.axis_index(axis_name)
  source = jnp.asarray(topologies.sources(perm))[worker]
  taken = jnp.where(came, _at(weight, source) * theirs, 0)
  return taken - jnp.where(went, _at(weight, worker) * own, 0)


def _at(weight: float | tuple[float, ...], worker: Array):
  """One weight for all, or that of a worker."""
  if isinstance(weight, tuple):
    return jnp.asarray(weight, jnp.float32)[worker]
  return weight


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

  >>> read = jnp.array([True, False])
  >>> came, went = alone(read, topologies.ring(4), 'workers')
  >>> came.tolist(), went.tolist()
  ([True, False], [True, True])
  """
  del topology, axis_name
  return readable, jnp.ones_like(readable)


def acknowledged(
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

  >>> from moniqua_jax.workers import AXIS, simulated
  >>> ring = topologies.ring(2)
  >>> agree = simulated(lambda r: acknowledged(r, ring, AXIS)[0], (0,))
  >>> agree(jnp.array([[True], [False]])).ravel().tolist()
  [False, False]
  """
  topologies.require_symmetric((topology,), 'answered')
  perms = [perm for _, perm in topology.edges]
  inverses = [topologies.sources(perm) for perm in perms]
  read = jnp.stack(
    [
      collectives.send(
        readable[k : k + 1].astype(jnp.uint8), inverse, axis_name
      )[0]
      > 0
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
