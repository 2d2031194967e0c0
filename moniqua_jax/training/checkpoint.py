"""Checkpoints of the train state: by orbax, of many processes by parts."""

import contextlib
import functools
import gc
import json
import logging
import os
import pathlib
import re
import sys
import time

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
from moniqua_jax.training import digests, parts, whole


def manager(workdir: pathlib.Path, keep: int = 2):
  """Opens workdir/checkpoints, which holds the last few; to be closed."""
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  if jax.process_count() > 1:
    return parts.Manager(path, keep)
  # What a run that was killed had begun to save takes room.
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep, cleanup_tmp_directories=True
  )
  _say_once()
  return _Manager(path, options=options)


class _Manager(ocp.CheckpointManager):
  """Orbax's, where a disk that fails is an `OSError` that names the folder."""

  def __init__(self, path, options):
    with of_the_disk(path):
      super().__init__(path, options=options)

  def save(self, *args, **kwargs):
    with of_the_disk(self.directory):
      return super().save(*args, **kwargs)

  def wait_until_finished(self):
    with of_the_disk(self.directory):
      super().wait_until_finished()

  def close(self):
    with of_the_disk(self.directory):
      super().close()


@contextlib.contextmanager
def of_the_disk(path):
  """Makes an `OSError` of tensorstore's errors that quote one."""
  try:
    with whole.naming(path):
      yield
  except OSError:
    raise
  except Exception as error:
    quoted = re.findall(r"os_error_code='(\d+)'", str(error))
    if not quoted:
      raise
    code = int(quoted[-1])
    raise OSError(code, os.strerror(code), str(path)) from error


@functools.cache
def _say_once():
  """Leaves out what orbax's threads say of an error that is raised here."""
  by_others = lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname
  logging.getLogger('absl').addFilter(by_others)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  hook = sys.unraisablehook

  def quieter(unraisable):
    if 'Event loop is closed' not in str(unraisable.exc_value):
      hook(unraisable)

  sys.unraisablehook = quieter


def save(checkpoints, step: int, state) -> None:
  """Saves the state as it is after `step` steps, and its digests."""
  if step in checkpoints.all_steps():
    return
  if jax.process_count() > 1:
    checkpoints.save(step, state)
    return
  marks = digests.of(parts.names(jax.device_get(state)))
  args = ocp.args.Composite(
    default=ocp.args.StandardSave(state), digests=ocp.args.JsonSave(marks)
  )
  checkpoints.save(step, args=args)


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

  Of many processes: the last that all have, wherever each has it. One that is
  damaged is named and put aside, for the last that is not.
  """
  path = pathlib.Path(checkpoints.directory)
  steps, own = parts.found(path), multihost.own(_rows(like))
  intact, damaged = _read(path, steps, own)
  step = parts.newest(intact, path.parent)
  if not step:
    return 0, like
  if damaged:
    print(f'The run goes on from step {step}.', file=sys.stderr)
  parts.forget(steps, step, damaged)
  checkpoints.reload()
  try:
    return step, _placed(intact[step], like)
  except ValueError as error:
    raise ValueError(
      f'--resume: the checkpoint of step {step} holds another state than this '
      'version keeps. --start_from takes the model out of it, into a new '
      f'--workdir. {error}'
    ) from error


def _read(path, steps, wanted) -> tuple[dict, list]:
  """Reads from the newest on, one process until it has what is intact.

  Returns the rows that are wanted of each leaf, by step, and the steps that are
  damaged, which it names; a `ValueError` if nothing else is left.
  """
  intact, damaged = {}, []
  for step in sorted(steps, reverse=True):
    try:
      leaves = parts.read(steps[step], wanted, _whole)
    except ValueError as error:
      print(
        f'warning: {path}: step {step} is damaged: {error}', file=sys.stderr
      )
      damaged.append(step)
      continue
    if leaves is not None:
      intact[step] = leaves
      if jax.process_count() == 1:
        break
  if damaged and not intact:
    raise ValueError(
      f'{path}: of the steps {sorted(steps)} no checkpoint is intact. Put back '
      'a copy of one, or begin again in another --workdir.'
    )
  return intact, damaged


def _rows(state) -> int:
  """How many rows a train state has; of any other state it does not matter."""
  return (jnp.shape(jax.tree.leaves(state)[0]) or (0,))[0]


def _placed(leaves: dict, like):
  """The rows of this process as a state like another one."""
  wanted = parts.names(like)
  for name in wanted.keys() | leaves.keys():
    if name not in wanted or name not in leaves:
      raise ValueError(f'{name} is in one of them only.')
    leaf, of = leaves[name], wanted[name]
    if of.shape[1:] != leaf.shape[1:]:
      raise ValueError(f'{name} has another shape.')
    # A file does not know the types that NumPy does not.
    leaves[name] = leaf.view(of.dtype) if leaf.dtype.kind == 'V' else leaf
    types = {jax.dtypes.canonicalize_dtype(x.dtype) for x in (leaves[name], of)}
    if len(types) > 1:
      raise ValueError(f'{name} has another type.')
  rows = [leaves[name] for name in wanted]
  state = jax.tree.unflatten(jax.tree.structure(like), rows)
  if jax.process_count() > 1:
    return multihost.placed(state)
  put = lambda x, of: jax.device_put(x, getattr(of, 'sharding', None))
  return jax.tree.map(put, state, like)


def mean_model(workdir: str, like: dict) -> dict:
  """Reads the mean model of a run's last checkpoint, whatever its workers.

  Running statistics are pooled exactly. `like` has the variables of the model.
  """
  path = pathlib.Path(workdir).absolute()
  if not (path / 'checkpoints').is_dir():
    raise ValueError(f'--start_from={workdir}: it holds no checkpoints.')
  config = whole.read_json(path / 'config.json')
  if 'laboratory' in config:
    raise ValueError(
      f'--start_from={workdir} is a laboratory: it has no model.'
    )
  pod = pods.of(ml_collections.ConfigDict(config))
  _, state = last(path, pod.devices)
  try:
    params = pods.joined(state['params'], like['params'], pod)
  except ValueError as error:
    raise ValueError(f'--start_from={workdir}: {error}') from error
  statistics = norms.combine(state.get('model_state') or {})
  return {'params': params, **statistics}


def last(
  workdir: pathlib.Path, n: int, flag: str = '--start_from'
) -> tuple[int, dict]:
  """The last step of which all n rows are here, and its state, in NumPy."""
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  steps = parts.found(path)
  intact, _ = _read(path, steps, list(range(n)))
  step = max(intact, default=0)
  if not step:
    raise ValueError(
      f'{flag}={workdir}: it holds no checkpoint yet.'
      if not steps
      else f'{flag}={workdir}: of its last checkpoint only the rows '
      f'{sorted(parts.rows(steps[max(steps)], n))} of {n} are here; copy the '
      "other processes' checkpoints/process_* beside it."
    )
  return step, traverse_util.unflatten_dict(intact[step], sep='/')


def _whole(folder) -> dict:
  """Reads all leaves of a folder of orbax as NumPy arrays, by their names.

  Raises whatever orbax raises, or a `ValueError` that names a damaged leaf.
  """
  # No other process is waited for: it may have none, or read another one.
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me,
    active_processes={me},
    barrier_sync_key_prefix=f'process_{me}',
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
  path = folder / 'default'
  with _quiet(), contextlib.closing(handler):
    tree = handler.metadata(path).tree
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    each = jax.tree.map(lambda _: as_numpy, tree)
    args = ocp.args.PyTreeRestore(restore_args=each)
    leaves = parts.names(handler.restore(path, args=args))
  marks = folder / 'digests' / 'metadata'
  if marks.exists():  # older versions saved none
    digests.check(leaves, json.loads(marks.read_text()))
  return leaves


@contextlib.contextmanager
def _quiet():
  """Says nothing of what orbax's tasks and threads say when one has failed."""
  hook, disabled = sys.unraisablehook, logging.root.manager.disable
  sys.unraisablehook = lambda unraisable: None
  logging.disable()
  try:
    yield
  except Exception:
    gc.collect()
    time.sleep(0.1)  # they report to a loop that has been closed
    raise
  finally:
    sys.unraisablehook = hook
    logging.disable(disabled)
