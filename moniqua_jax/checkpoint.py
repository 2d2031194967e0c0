"""Checkpoints of the train state, by orbax."""

import pathlib

import jax
import orbax.checkpoint as ocp


def manager(workdir: pathlib.Path, keep: int = 2) -> ocp.CheckpointManager:
  """Keeps the last checkpoints below workdir/checkpoints.

  Args:
    workdir: of the run.
    keep: how many.

  Returns:
    An orbax `CheckpointManager`; close it at the end.
  """
  options = ocp.CheckpointManagerOptions(max_to_keep=keep)
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  return ocp.CheckpointManager(path, options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, state) -> None:
  """Saves the state as it is after `step` steps, in the background.

  Args:
    checkpoints: from `manager`.
    step: number of steps taken.
    state: a pytree of arrays.
  """
  if step not in checkpoints.all_steps():
    checkpoints.save(step, args=ocp.args.StandardSave(state))


def restore(checkpoints: ocp.CheckpointManager, like):
  """The last saved state.

  Args:
    checkpoints: from `manager`.
    like: a pytree of arrays of the same shapes and placement.

  Returns:
    The number of steps taken and the state; (0, like) if nothing was saved.
  """
  step = checkpoints.latest_step()
  if step is None:
    return 0, like
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  args = ocp.args.StandardRestore(abstract)
  return step, checkpoints.restore(step, args=args)
