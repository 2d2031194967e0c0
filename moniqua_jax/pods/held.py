"""How a device holds the parameters: whole, or its shard of every leaf.

Each leaf is filled up with zeros and cut over 'fsdp', and each shard once more
over 'data' into the parts that its replicas gossip:

  leaf f32[F, D, k]    device (d, f) holds leaf[f], and gossips leaf[f, d]

A device's vector is f32[D * q], q the sum of k over the leaves: its part of the
gossip is one slice, and has the same leaves in the same places on all devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import collectives, gossip
from moniqua_jax.pods.gathering import late
from moniqua_jax.pods.pod import FSDP, Pod

Array = jax.Array


class Held(NamedTuple):
  """What a device holds, and how the model reads it.

  Attributes:
    rows: devices -> an array with a row for each, from which it begins.
    begin: row -> f32[m], the vector of this device.
    pieces: f32[m] -> the tree of what it holds of each leaf.
    vector: the way back.
    apply: (fn, pieces, *args) -> fn(params, *args).
    part: the tree of what it gossips of each leaf, or of its shapes.

  >>> uncut({'w': jnp.ones(3)}).pieces(jnp.arange(3.0))
  {'w': Array([0., 1., 2.], dtype=float32)}
  """

  rows: Callable[[Sequence[int]], np.ndarray]
  begin: Callable[[Any], Array]
  pieces: Callable[[Array], Any]
  vector: Callable[[Any], Array]
  apply: Callable
  part: Any


def hold(params, pod: Pod) -> Held:
  """What a device of a pod holds: a shard, or all where it is alone.

  Args:
    params: a tree of f32 arrays.
    pod: size of it.

  Returns:
    `Held`.

  >>> hold({'w': jnp.ones(3)}, Pod(8)).part['w'].shape
  (3,)
  """
  return cut(jax.device_get(params), pod) if pod.size > 1 else uncut(params)


def uncut(params) -> Held:
  """Every device holds the whole model, and gossips it.

  Args:
    params: a tree of f32 arrays.

  Returns:
    `Held`; rows are numbers of workers, which all begin at `params`.

  >>> uncut({'w': jnp.ones(3)}).begin(0)
  Array([1., 1., 1.], dtype=float32)
  """
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

  Args:
    params: a tree of f32 arrays. They stay on the host.
    pod: data and fsdp of it.

  Returns:
    `Held`. A leaf is whole only within the operation that uses it, and the
    gradient of a piece is the mean over 'fsdp': see `late`.

  Raises:
    ValueError: a leaf is not float32, by its path.

  >>> cut({'w': np.arange(4, dtype='f')}, Pod(1, fsdp=2)).rows([0, 1])
  array([[0., 1.],
         [2., 3.]], dtype=float32)
  """
  jax.eval_shape(lambda tree: gossip.flatten(tree)[0], params)  # refuses some
  leaves, tree = jax.tree.flatten(params)
  sizes = [-(-leaf.size // pod.size) for leaf in leaves]
  ends = np.cumsum(sizes)[:-1]
  shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]

  def rows(devices):
    padded = [
      np.pad(np.ravel(leaf), (0, size * pod.size - leaf.size))
      for leaf, size in zip(leaves, sizes, strict=True)
    ]
    shards = [leaf.reshape(pod.fsdp, pod.data, -1) for leaf in padded]
    shards = np.concatenate(shards, axis=-1).reshape(pod.fsdp, -1)
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

  def unpadded(number, piece):
    leaf = shapes[number]
    return piece.reshape(-1)[: leaf.size].reshape(leaf.shape)

  def gathered(number, piece):
    return unpadded(number, collectives.whole(piece.reshape(-1), FSDP))

  part = tree.unflatten(
    jax.ShapeDtypeStruct((size,), jnp.float32) for size in sizes
  )

  def apply(fn, pieces, *args):
    leaves = map(unpadded, range(len(shapes)), jax.tree.leaves(pieces))
    return fn(tree.unflatten(leaves), *args)

  if pod.fsdp > 1:
    apply = late(tree.unflatten(shapes), gathered)
  return Held(rows, lambda row: row, pieces, vector, apply, part)


def joined(rows: np.ndarray, params, pod: Pod):
  """The mean model of all pods, from what their devices hold.

  Args:
    rows: f32[devices, m], on the host.
    params: a tree of the model's leaves, for their shapes.
    pod: in which the devices stand.

  Returns:
    A tree like `params`.

  Raises:
    ValueError: the rows are of another model.

  >>> joined(np.array([[0.0, 1], [2, 3]]), {'w': np.zeros(4)}, Pod(1, fsdp=2))
  {'w': array([0., 1., 2., 3.])}
  """
  leaves, tree = jax.tree.flatten(params)
  sizes = [-(-leaf.size // pod.size) for leaf in leaves]
  if rows.shape[1] != pod.data * sum(sizes):
    ours, theirs = pod.fsdp * pod.data * sum(sizes), pod.fsdp * rows.shape[1]
    raise ValueError(
      f'its model has {theirs:,} parameters, that of the config {ours:,}.'
    )
  shards = rows.reshape(-1, pod.fsdp, rows.shape[1])
  shards = shards.mean(axis=0, dtype=np.float64).astype(rows.dtype)
  shards = shards.reshape(pod.fsdp, pod.data, -1)
  parts = np.split(shards, np.cumsum(sizes)[:-1], axis=-1)
  return tree.unflatten(
    part.reshape(-1)[: leaf.size].reshape(leaf.shape)
    for part, leaf in zip(parts, leaves, strict=True)
  )
