"""What a device holds of the parameters, and what it gossips.

Alone, the whole model. In a pod each leaf is filled up with zeros and cut over
'fsdp', and each shard once more over 'data' into what its replicas gossip:

  leaf f32[F, D, k]    device (d, f) holds leaf[f], and gossips leaf[f, d]

A device's vector is f32[D * q], q the sum of k over the leaves: its part of the
gossip is one slice, and has the same leaves in the same places on all devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from moniqua_jax import collectives, gossip
from moniqua_jax.pods.gathering import late
from moniqua_jax.pods.pod import DATA, FSDP, INSIDE, Pod

Array = jax.Array


class Held(NamedTuple):
  """What a device holds of the parameters, and how the model reads it."""

  rows: Callable[[Sequence[int]], np.ndarray]  # devices -> a row for each
  begin: Callable[[Any], Array]  # row -> f32[m], the device's first vector
  pieces: Callable[[Array], Any]  # f32[m] -> what it holds of each leaf
  vector: Callable[[Any], Array]  # the way back
  apply: Callable  # (fn, pieces, *args) -> fn(params, *args)
  part: Any  # what it gossips of each leaf, or its shapes


def hold(params, pod: Pod) -> Held:
  """Cuts the parameters over a pod of several devices."""
  return cut(jax.device_get(params), pod) if pod.size > 1 else uncut(params)


def uncut(params) -> Held:
  """Every device holds and gossips the whole model; a row is its number."""
  flat, unravel = gossip.flatten(params)
  return Held(
    rows=np.asarray,
    begin=lambda worker: flat,
    pieces=unravel,
    vector=lambda params: gossip.flatten(params)[0],
    apply=lambda fn, params, *args: fn(params, *args),
    part=params,
  )


def cut(params, pod: Pod) -> Held:
  """A device holds 1 / fsdp of each leaf, and gossips 1 / (data fsdp) of it.

  `params` stay on the host. The gradient of a piece is the mean over 'fsdp'.
  """
  dtype = gossip.vector_type(params)  # refuses some
  leaves, tree = jax.tree.flatten(params)
  sizes = _sizes(leaves, pod)
  ends = np.cumsum(sizes)[:-1]
  shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]

  def rows(devices):
    padded = [
      np.pad(np.ravel(leaf).astype(dtype), (0, size * pod.size - leaf.size))
      for leaf, size in zip(leaves, sizes, strict=True)
    ]
    each = [leaf.reshape(pod.fsdp, pod.data, -1) for leaf in padded]
    shards = np.concatenate(each, axis=-1).reshape(pod.fsdp, -1)
    return shards[np.asarray(devices) % pod.fsdp]

  def pieces(x):
    parts = jnp.split(x.reshape(pod.data, -1), ends, axis=1)
    # A bias stays a vector: what is small is reduced exactly.
    return tree.unflatten(
      part if leaf.ndim > 1 else part.reshape(-1)
      for part, leaf in zip(parts, shapes, strict=True)
    )

  def vector(pieces):
    parts = [part.reshape(pod.data, -1) for part in jax.tree.leaves(pieces)]
    return jnp.concatenate(parts, axis=1).reshape(-1)

  def gathered(number, piece):
    shards = collectives.whole(piece.reshape(-1), FSDP)
    return _unpad(shards, shapes[number])

  def apply(fn, pieces, *args):
    leaves = map(_unpad, jax.tree.leaves(pieces), shapes)
    return fn(tree.unflatten(leaves), *args)

  if pod.fsdp > 1:
    apply = late(tree.unflatten(shapes), gathered)
  part = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in sizes]
  return Held(
    rows, lambda row: row, pieces, vector, apply, tree.unflatten(part)
  )


def joined(rows: np.ndarray, params, pod: Pod):
  """The mean model of all pods, like `params`, from f32[devices, m] rows."""
  leaves, tree = jax.tree.flatten(params)
  sizes = _sizes(leaves, pod)
  if rows.shape[1] != pod.data * sum(sizes):
    ours, theirs = pod.size * sum(sizes), pod.fsdp * rows.shape[1]
    raise ValueError(
      f'its model has {theirs:,} parameters, that of the config {ours:,}.'
    )
  shards = rows.reshape(-1, pod.fsdp, rows.shape[1])
  shards = shards.mean(axis=0, dtype=np.float64).astype(rows.dtype)
  shards = shards.reshape(pod.fsdp, pod.data, -1)
  parts = np.split(shards, np.cumsum(sizes)[:-1], axis=-1)
  return tree.unflatten(map(_unpad, parts, leaves))


def _sizes(leaves, pod: Pod) -> list[int]:
  """Values of each leaf that one device gossips."""
  return [-(-leaf.size // pod.size) for leaf in leaves]


def _unpad(padded, like):
  """The values of a leaf, without the zeros that fill it up."""
  return padded.reshape(-1)[: like.size].reshape(like.shape)


# ------------------------------------------------------- algorithms in a pod


def of_device(
  make: Callable, key: jax.Array, axes: tuple[str, ...]
) -> optax.GradientTransformationExtraArgs:
  """Runs make(key) with keys that differ along some axes of the mesh."""

  def update(updates, state, params=None, **extra_args):
    own = jax.random.fold_in(key, lax.axis_index(axes))
    tx = optax.with_extra_args_support(make(own))
    return tx.update(updates, state, params, **extra_args)

  # What a state begins with, and its name, depend on no key.
  tx = optax.with_extra_args_support(make(key))
  return type(tx)(tx.init, update, **vars(tx))


def on_own_part(
  make: Callable, key: jax.Array, pod: Pod
) -> optax.GradientTransformationExtraArgs:
  """Gossips 1 / data of a device's shard, then tells the replicas the outcome.

    part = x[d]        u[d] <- gossip(u[d], x[d])        u = u[0], ..., u[D - 1]

  Replicas over 'data' would all send the same to other pods; so each sends one
  part, with a dither of its own. Last in the chain, on vectors of `Held`.
  """
  algorithm = of_device(make, key, INSIDE)
  if pod.data == 1:
    return algorithm
  own = lambda x: x.reshape(pod.data, -1)[lax.axis_index(DATA)]

  def update(updates, state, params=None, **extra_args):
    part, state = algorithm.update(
      own(updates), state, own(params), **extra_args
    )
    return collectives.gathered(part, DATA).reshape(-1), state

  init = lambda params: algorithm.init(own(params))
  return type(algorithm)(init, update, **vars(algorithm))
