"""Gossip: each worker tells its neighbours what it holds, and moves to them.

The only file with `ppermute`. A worker is a pure function of its own arrays and
the name of the axis over which the workers are laid out.

n workers, d parameters, E edges: messages that a worker sends in one round.
"""

from collections.abc import Callable
import functools

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
  own = quantizer.decode(payload, x)  # line 3: what others believe of me
  total, seen = jnp.zeros_like(x), []
  for weight, perm in topology.edges:
    received = send(payload, perm, axis_name)
    theirs = quantizer.decode(received, x)  # line 4
    seen.append(quantizer.inspect(received, x))
    # A worker that could not say what it holds moves on no edge either.
    usable = seen[-1].readable & jnp.isfinite(own)
    moved = _mine(weight, axis_name) * (theirs - own)
    total += jnp.where(usable, moved, 0)  # line 5
  return total, jax.tree.map(lambda *edges: jnp.stack(edges), *seen)


def rounds(
  schedule: tuple[topologies.Topology, ...],
  quantizer: base.Quantizer,
  axis_name: str,
) -> Callable[[Array, Array, Array], tuple[Array, base.Seen]]:
  """`correction` over a time-varying topology: schedule[step mod length].

  Args:
    schedule: one topology or several, cycled by step.
    quantizer: what is sent.
    axis_name: of the workers.

  Returns:
    (x: f32[d], key, step: i32[]) -> (f32[d], Seen over the most edges that any
    topology of the schedule has; those a round lacks read as no news). `step`
    must be the same on all workers, not one array per worker: it chooses who
    talks to whom.
  """
  most = max_edges(schedule)

  def one_round(topology, x, key):
    total, seen = correction(
      x, key, topology=topology, quantizer=quantizer, axis_name=axis_name
    )
    missing = no_news(most - len(topology.edges))
    return total, jax.tree.map(lambda *s: jnp.concatenate(s), seen, missing)

  branches = [functools.partial(one_round, topology) for topology in schedule]
  if len(branches) == 1:
    return lambda x, key, step: branches[0](x, key)
  return lambda x, key, step: lax.switch(step % len(branches), branches, x, key)


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
    params: a pytree of f32 arrays.

  Returns:
    f32[d] and its inverse.

  Raises:
    ValueError: no parameters, or a leaf that is not float32, by its path.

  >>> flatten({'w': jnp.ones(2), 'b': jnp.zeros(1)})[0]
  Array([0., 1., 1.], dtype=float32)
  """
  leaves = jax.tree.leaves_with_path(params)
  if not leaves:
    raise ValueError('gossip needs parameters; update() was given none.')
  for path, leaf in leaves:
    # `ravel_pytree` would promote the dtypes without a word.
    if leaf.dtype != jnp.float32:
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


def _mine(weight: float | tuple[float, ...], axis_name: str):
  """The weight of what this worker receives on an edge."""
  if isinstance(weight, tuple):
    return jnp.asarray(weight, jnp.float32)[lax.axis_index(axis_name)]
  return weight
