"""Checkpoints of the train state, by orbax."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from moniqua_jax import pods
from moniqua_jax.models import norms
from moniqua_jax.quantizers import base


def manager(workdir: pathlib.Path, keep: int = 2) -> ocp.CheckpointManager:
  """Opens workdir/checkpoints, which holds the last few; to be closed."""
  options = ocp.CheckpointManagerOptions(max_to_keep=keep)
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  return ocp.CheckpointManager(path, options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, state) -> None:
  """Saves the state as it is after `step` steps, in the background."""
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


def restore(checkpoints: ocp.CheckpointManager, like):
  """Reads the last steps and state; (0, like) if nothing was saved."""
  step = checkpoints.latest_step()
  if step is None:
    return 0, like
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  args = ocp.args.StandardRestore(abstract)
  try:
    return step, checkpoints.restore(step, args=args)
  except ValueError as error:
    raise ValueError(
      f'--resume: the checkpoint of step {step} holds another state than this '
      'version keeps. --start_from takes the model out of it, into a new '
      f'--workdir. {error}'
    ) from error


def mean_model(workdir: str, like: dict) -> dict:
  """Reads the mean model of a run's last checkpoint, whatever its workers.

  Running statistics are pooled exactly. `like` has the variables of the model.
  """
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  if not path.is_dir():
    raise ValueError(f'--start_from={workdir}: it holds no checkpoints.')
  with ocp.CheckpointManager(path) as checkpoints:
    step = checkpoints.latest_step()
  if step is None:
    raise ValueError(f'--start_from={workdir}: it holds no checkpoint yet.')
  state = _on_the_host(path / str(step) / 'default')
  config = json.loads((path.parent / 'config.json').read_text())
  pod = pods.of(ml_collections.ConfigDict(config))
  try:
    params = pods.joined(np.asarray(state['params']), like['params'], pod)
  except ValueError as error:
    raise ValueError(f'--start_from={workdir}: {error}') from error
  statistics = norms.combine(state.get('model_state') or {})
  return {'params': params, **statistics}


def _on_the_host(path):
  """Reads a state as NumPy arrays: its workers need not be ours."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    each = jax.tree.map(lambda _: as_numpy, tree)
    args = ocp.args.PyTreeRestore(restore_args=each)
    return checkpointer.restore(path, args=args)
