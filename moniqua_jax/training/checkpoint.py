"""Checkpoints of the train state: by orbax, of many processes by parts."""

import json
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from moniqua_jax import pods
from moniqua_jax.launch import multihost
from moniqua_jax.models import norms
from moniqua_jax.quantizers import base
from moniqua_jax.training import parts


def manager(workdir: pathlib.Path, keep: int = 2):
  """Opens workdir/checkpoints, which holds the last few; to be closed."""
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  if jax.process_count() > 1:
    return parts.Manager(path, keep)
  options = ocp.CheckpointManagerOptions(max_to_keep=keep)
  return ocp.CheckpointManager(path, options=options)


def save(checkpoints, step: int, state) -> None:
  """Saves the state as it is after `step` steps."""
  if step not in checkpoints.all_steps():
    checkpoints.save(step, args=ocp.args.StandardSave(state))


def not_finite(state) -> list[str]:
  """Names the leaves of a state that hold what is not finite.

  What the last messages told is no matter: the next ones come without it.
  """
  is_news = lambda node: isinstance(node, base.Seen)
  named = {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree.leaves_with_path(state, is_leaf=is_news)
    if not is_news(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)
  }
  sound = np.asarray(_sound(list(named.values())))
  return [name for name, good in zip(named, sound, strict=True) if not good]


@jax.jit
def _sound(leaves):
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def restore(checkpoints, like):
  """Reads the last steps and state; (0, like) if nothing was saved.

  Of many processes: the last that all have, wherever each has it.
  """
  path = pathlib.Path(checkpoints.directory)
  steps, n = parts.found(path), _rows(like)
  step = parts.newest(steps, path.parent, n)
  if not step:
    return 0, like
  parts.forget(steps, step)
  try:
    if step in checkpoints.all_steps() and jax.process_count() == 1:
      abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
      args = ocp.args.StandardRestore(abstract)
      return step, checkpoints.restore(step, args=args)
    leaves = parts.read(steps[step], multihost.own(n), _whole)
    return step, _placed(leaves, like)
  except ValueError as error:
    raise ValueError(
      f'--resume: the checkpoint of step {step} holds another state than this '
      'version keeps. --start_from takes the model out of it, into a new '
      f'--workdir. {error}'
    ) from error


def _rows(state) -> int:
  """How many rows a train state has; of any other state it does not matter."""
  return (jnp.shape(jax.tree.leaves(state)[0]) or (0,))[0]


def _placed(leaves: dict, like):
  """The rows of this process as a state like another one."""
  wanted = parts.names(like)
  for name in wanted.keys() | leaves.keys():
    if name not in wanted or name not in leaves:
      raise ValueError(f'{name} is in one of them only.')
    if wanted[name].shape[1:] != leaves[name].shape[1:]:
      raise ValueError(f'{name} has another shape.')
  rows = [
    # A file does not know the types that NumPy does not.
    leaf.view(of.dtype) if leaf.dtype.kind == 'V' else leaf
    for leaf, of in ((leaves[name], of) for name, of in wanted.items())
  ]
  state = jax.tree.unflatten(jax.tree.structure(like), rows)
  if jax.process_count() > 1:
    return multihost.placed(state)
  return jax.tree.map(lambda x, of: jax.device_put(x, of.sharding), state, like)


def mean_model(workdir: str, like: dict) -> dict:
  """Reads the mean model of a run's last checkpoint, whatever its workers.

  Running statistics are pooled exactly. `like` has the variables of the model.
  """
  path = pathlib.Path(workdir).absolute()
  if not (path / 'checkpoints').is_dir():
    raise ValueError(f'--start_from={workdir}: it holds no checkpoints.')
  config = json.loads((path / 'config.json').read_text())
  pod = pods.of(ml_collections.ConfigDict(config))
  _, state = last(path, pod.devices)
  try:
    params = pods.joined(state['params'], like['params'], pod)
  except ValueError as error:
    raise ValueError(f'--start_from={workdir}: {error}') from error
  statistics = norms.combine(state.get('model_state') or {})
  return {'params': params, **statistics}


def last(workdir: pathlib.Path, n: int) -> tuple[int, dict]:
  """The last step of which all n rows are here, and its state, in NumPy."""
  steps = parts.found(pathlib.Path(workdir).absolute() / 'checkpoints')
  here = {step: parts.rows(files, n) for step, files in steps.items()}
  whole = [step for step, rows in here.items() if len(rows) == n]
  if not whole:
    raise ValueError(
      f'--start_from={workdir}: it holds no checkpoint yet.'
      if not steps
      else f'--start_from={workdir}: of its last checkpoint only the rows '
      f"{sorted(here[max(here)])} of {n} are here; copy the other processes' "
      'checkpoints/process_* beside it.'
    )
  step = max(whole)
  leaves = parts.read(steps[step], list(range(n)), _whole)
  return step, traverse_util.unflatten_dict(leaves, sep='/')


def _whole(folder) -> dict:
  """Reads all leaves of a folder of orbax as NumPy arrays, by their names."""
  # No other process is waited for: it may have none, or read another one.
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me,
    active_processes={me},
    barrier_sync_key_prefix=f'process_{me}',
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
  path = folder / 'default'
  with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    each = jax.tree.map(lambda _: as_numpy, tree)
    args = ocp.args.PyTreeRestore(restore_args=each)
    return parts.names(checkpointer.restore(path, args=args))
