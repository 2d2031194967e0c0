"""Runners: the same worker, under vmap, shard_map or pmap.

A worker is a function of its own arrays; a runner maps it over n of them. The
mapped function takes and returns arrays with a leading axis of n workers, so
that which runner was used does not show.

`in_axes` holds, for each argument, 0 (one slice per worker) or None (the same
for all).
"""

from collections.abc import Callable, Iterator
import functools
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import optax

AXIS = 'workers'


def simulated(
  fn: Callable, in_axes: tuple, axis_name: str = AXIS, **jit_options
) -> Callable:
  """All workers on one device, by `vmap`.

  Args:
    fn: one worker; its collectives run over the axis of the workers.
    in_axes: 0 or None for each argument.
    axis_name: of the workers.
    **jit_options: for `jax.jit`, such as donate_argnums.

  Returns:
    The compiled function of stacked arguments.

  Raises:
    ValueError: in_axes has something else for an argument.

  >>> import jax.numpy as jnp
  >>> from moniqua_jax import collectives
  >>> mean = simulated(lambda x: collectives.mean(x, AXIS), (0,))
  >>> mean(jnp.array([0.0, 2.0]))
  Array([1., 1.], dtype=float32)
  """
  in_axes = _checked(in_axes)
  fn = jax.vmap(_looked_at(fn), in_axes, axis_name=axis_name)
  return jax.jit(fn, **jit_options)


def sharded(
  fn: Callable,
  in_axes: tuple,
  mesh: jax.sharding.Mesh | None = None,
  axis_name: str = AXIS,
  **jit_options,
) -> Callable:
  """One worker per device, by `shard_map`; in one process or in many.

  Args:
    fn: one worker; its collectives run over the axis of the workers.
    in_axes: 0 or None for each argument.
    mesh: by default of one axis over all devices. With more axes there is a row
      for each device, see `pods` and `on_mesh`.
    axis_name: of the workers; the mesh must have it.
    **jit_options: for `jax.jit`, such as donate_argnums.

  Returns:
    The compiled function of stacked arguments.

  Raises:
    ValueError: the mesh has no such axis, in_axes has something else for an
      argument, or an argument has not a row for each device.

  >>> import jax.numpy as jnp
  >>> from moniqua_jax import collectives
  >>> mean = sharded(lambda x: collectives.mean(x, AXIS), (0,))
  >>> bool((mean(jnp.ones(jax.device_count())) == 1).all())
  True
  """
  mesh = device_mesh(axis_name=axis_name) if mesh is None else mesh
  in_axes = _checked(in_axes)
  if axis_name not in mesh.axis_names:
    raise ValueError(
      f'axis_name={axis_name!r} is not an axis of the mesh, which has '
      f'{mesh.axis_names}; name one of them, in the algorithm as well.'
    )
  looked_at = _looked_at(fn)

  def only(leaf):
    # shard_map keeps a worker axis of length 1, vmap and pmap do not.
    if leaf.shape[0] != 1:
      raise ValueError(
        f'sharded puts one worker on each device: {mesh.size} devices, but an '
        f'argument has {mesh.size * leaf.shape[0]} rows; give it {mesh.size}, '
        'or take simulated.'
      )
    return leaf[0]

  def local(*args):
    own = [
      jax.tree.map(only, arg) if axis == 0 else arg
      for arg, axis in zip(args, in_axes, strict=True)
    ]
    row = lambda leaf: jnp.asarray(leaf)[None]  # a number of Python as well
    return jax.tree.map(row, looked_at(*own))

  rows = P(mesh.axis_names)
  specs = tuple(rows if axis == 0 else P() for axis in in_axes)
  mapped = jax.shard_map(
    local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False
  )

  def laid_out(*args):
    # What has explicit axes, as meshes have them now, moves nothing by itself.
    put = lambda arg, spec: jax.sharding.reshard(arg, NamedSharding(mesh, spec))
    return mapped(*map(put, args, specs))

  explicit = jax.sharding.AxisType.Explicit in mesh.axis_types
  return jax.jit(laid_out if explicit else mapped, **jit_options)


def pmapped(fn: Callable, in_axes: tuple, **jit_options) -> Callable:
  """One worker per device, by `pmap`; kept for old training loops.

  Args:
    fn: one worker; its collectives run over the axis 'workers'.
    in_axes: 0 or None for each argument.
    **jit_options: for `jax.pmap`, such as donate_argnums.

  Returns:
    The compiled function of stacked arguments.

  Raises:
    ValueError: in_axes has something else for an argument.

  >>> import jax.numpy as jnp
  >>> from moniqua_jax import collectives
  >>> mean = pmapped(lambda x: collectives.mean(x, AXIS), (0,))
  >>> bool((mean(jnp.ones(jax.device_count())) == 1).all())
  True
  """
  in_axes = _checked(in_axes)
  return jax.pmap(_looked_at(fn), AXIS, in_axes=in_axes, **jit_options)


def _checked(in_axes) -> tuple:
  """Refuses what not all runners take alike, so that none shows."""
  known = lambda axis: axis is None or (type(axis) is int and axis == 0)
  if not isinstance(in_axes, (tuple, list)) or not all(map(known, in_axes)):
    raise ValueError(
      f'in_axes={in_axes!r}; for each argument, as a whole, it has 0 (a slice '
      'for each worker) or None (the same for all), such as (0, 0, None).'
    )
  return tuple(in_axes)


def device_mesh(
  n: int | None = None, axis_name: str = AXIS
) -> jax.sharding.Mesh:
  """Makes a mesh of one axis over all devices, which must be n."""
  devices = jax.devices()
  if n is not None and n != len(devices):
    raise ValueError(
      f'workers={n}, but there are {len(devices)} devices; the runners '
      "'sharded' and 'pmapped' put one worker on each device."
    )
  axis_types = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((len(devices),), (axis_name,), axis_types=axis_types)


def on_mesh(tx, params, specs, mesh: jax.sharding.Mesh):
  """An optax transformation for your own `shard_map`, and its state's specs.

  What the state has of the shape of the parameters (momentum, moments of Adam)
  lies as they do; of the rest there is a row for each device of the mesh.

  Args:
    tx: the transformation; its collectives run over axes of the mesh.
    params: arrays or their shapes, as they are outside of the shard_map.
    specs: a PartitionSpec for each of them.
    mesh: of the shard_map, which takes all its axes.

  Returns:
    (tx, specs of its state); `init` and `update` go into the shard_map.

  >>> import jax.numpy as jnp, optax
  >>> mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
  >>> w = jnp.ones((1, 4))
  >>> _, specs = on_mesh(optax.trace(0.9), w, P(None, 'data'), mesh)
  >>> specs.trace
  P(None, 'data')
  """
  place = lambda leaf, spec: jax.ShapeDtypeStruct(
    NamedSharding(mesh, spec).shard_shape(leaf.shape), leaf.dtype
  )
  own = jax.tree.map(place, params, specs)
  state, tree = jax.eval_shape(tx.init, own), jax.tree.structure(own)
  like = lambda node: (
    jax.tree.structure(node) == tree
    and all(jax.tree.leaves(jax.tree.map(_of_one_shape, node, own)))
  )
  everywhere = lambda node, value: jax.tree.map(lambda _: value, node)
  per_device = jax.tree.map(
    lambda node: everywhere(node, not like(node)), state, is_leaf=like
  )
  rows = P(mesh.axis_names)
  state_specs = jax.tree.map(
    lambda node: specs if like(node) else rows, state, is_leaf=like
  )

  def with_rows(state, change):
    return jax.tree.map(
      lambda leaf, row: change(leaf) if row else leaf, state, per_device
    )

  def init(params):
    return with_rows(tx.init(params), lambda leaf: leaf[None])

  def update(updates, state, params=None, **extra_args):
    state = with_rows(state, lambda leaf: leaf[0])
    updates, state = tx.update(updates, state, params, **extra_args)
    return updates, with_rows(state, lambda leaf: leaf[None])

  return optax.GradientTransformationExtraArgs(init, update), state_specs


def _of_one_shape(a, b) -> bool:
  return jnp.shape(a) == jnp.shape(b)


# ------------------------------------------------------- the place of a gossip


def _looked_at(fn: Callable) -> Callable:
  """Warns, when a worker is traced, of a chain that alters its gossip."""

  @functools.wraps(fn)
  def worker(*args):
    result = fn(*args)
    if fault := chain_fault(result):
      warnings.warn(fault, stacklevel=2)
    return result

  return worker


def chain_fault(tree) -> str:
  """Says what stands behind a gossip in a chain of optax; '' if nothing does.

  A chain keeps a tuple with the state of each part, in their order. A part
  cannot see its neighbours; who has the state can, wherever the chain is in a
  tree. What a loop does to updates by itself leaves no trace in it.
  """
  for node in _nodes(tree):
    if _skips(node) and any(map(_sends, _nodes(node))):
      return (
        f'{type(node).__name__} is around a gossip, a mean or dadam: a worker '
        'whose update is not finite would skip the messages that the others '
        'wait for. Put it around a local optimizer alone: '
        'optax.chain(optax.apply_if_finite(optax.sgd(0.1), 5), gossip); dadam '
        'takes such a gradient as 0 by itself.'
      )
    if type(node) is not tuple or not all(map(_is_part, node)):
      continue
    places = [
      k for k, part in enumerate(node) if any(map(gossips, _nodes(part)))
    ]
    if len(places) > 1:
      return (
        f'There are {len(places)} gossips in one chain of optax, in the places '
        f'{places}: each would move what the other has moved. Take one of them.'
      )
    if places and places[0] < len(node) - 1:
      behind = type(node[places[0] + 1]).__name__
      return (
        f'In a chain of optax {behind} stands behind the gossip, and alters '
        'what pulls the workers together (a clip or a scaling stands there). '
        'Gossip is the last of a chain: optax.chain(..., gossip).'
      )
  return ''


def _skips(node) -> bool:
  """Tells whether a wrapper of optax leaves out steps of one worker alone."""
  if isinstance(node, optax.MultiStepsState):
    return bool(jax.tree.leaves(node.skip_state))
  return isinstance(node, optax.ApplyIfFiniteState)


def gossips(node) -> bool:
  """Tells whether a node of a tree is the state of a gossip algorithm."""
  return hasattr(node, 'heard')


def _sends(node) -> bool:
  """Tells whether it is the state of what sends messages, as far as it says."""
  return any(hasattr(node, each) for each in ('heard', 'short', 'told'))


def _is_part(node) -> bool:
  """Tells whether this may be the state of a part of a chain."""
  if type(node) is tuple:
    return all(map(_is_part, node))
  ours = type(node).__module__.startswith(('moniqua_jax.', 'optax.'))
  return ours or gossips(node)


def _nodes(tree) -> Iterator:
  """Goes through all nodes of a tree, but for what is within a gossip's."""
  yield tree
  if not gossips(tree):
    children = jax.tree_util.default_registry.flatten_one_level(tree)
    for child in children[0] if children else ():
      yield from _nodes(child)
