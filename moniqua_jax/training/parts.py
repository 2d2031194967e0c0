"""Checkpoints of many processes: each keeps the rows of its own workers.

  WORKDIR/checkpoints/process_1_of_2/12.npz

holds, leaf by leaf, some rows of the state after 12 steps, and which they are
(and a CRC of each, which NumPy compares when it reads).
Nobody waits for a file of another process, so each may have a WORKDIR on a disk
of its own.
"""

from collections.abc import Callable, Collection, Mapping
import contextlib
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from moniqua_jax.launch import multihost
from moniqua_jax.training import whole

_ROWS = '.rows'  # no leaf has this name


class Manager:
  """Writes and drops the files of this process, as orbax's manager does.

  A step needs all processes, and a file is whole before the next step: so of
  the last two files of each process one is of the same step.
  """

  def __init__(self, directory: pathlib.Path, keep: int):
    me, n = jax.process_index(), jax.process_count()
    self.directory, self._keep = directory, keep
    self._mine = directory / f'process_{me}_of_{n}'
    self._mine.mkdir(parents=True, exist_ok=True)
    whole.clear(self._mine)

  def all_steps(self) -> list[int]:
    """The steps of which this process has a file."""
    return sorted(int(path.stem) for path in self._mine.glob('*.npz'))

  def latest_step(self) -> int | None:
    """The last of them."""
    return max(self.all_steps(), default=None)

  def save(self, step: int, state) -> None:
    """Writes a file that is there when it is whole; drops the oldest."""
    rows = multihost.own(len(jax.tree.leaves(state)[0]))
    leaves = names(multihost.to_host(state))
    path = self._mine / f'{step}.npz'
    arrays: dict[str, Any] = {_ROWS: np.array(rows), **leaves}
    with whole.written(path, 'wb') as file:
      np.savez(file, **arrays)
    for old in self.all_steps()[: -self._keep]:
      (self._mine / f'{old}.npz').unlink()

  def reload(self) -> None:
    """Nothing is remembered."""

  def close(self) -> None:
    """Nothing is left to be done."""


def names(tree) -> dict:
  """The leaves of a state by the names that files have for them."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


# ------------------------------------------------------------ putting together


def found(directory: pathlib.Path) -> dict[int, list[pathlib.Path]]:
  """The files of each step, of all processes; a folder has all rows."""
  steps = {}
  for path in sorted(directory.glob('process_*_of_*/*.npz')):
    if path.stem.isdigit():
      steps.setdefault(int(path.stem), []).append(path)
  for path in directory.glob('[0-9]*'):
    if path.name.isdigit():
      steps[int(path.name)] = [path]
  return steps


def newest(mine: Collection[int], workdir: pathlib.Path) -> int:
  """The last step of which every process has its rows; 0 if there is none.

  Args:
    mine: the steps of which this process has its own.
    workdir: to be named.

  Raises:
    ValueError: some have checkpoints, and no step is with all.
  """
  table = multihost.table(sorted(mine)[-8:], 8)
  common = set.intersection(*map(set, table))
  if common or not any(table):
    return max(common, default=0)
  has = '; '.join(
    f'process {i} has those of {f"steps {row}" if row else "no step"}'
    for i, row in enumerate(table)
  )
  raise ValueError(
    f'--resume: no checkpoint in --workdir={workdir} is with all processes: '
    f'{has}. Each finds the rows of its own workers below its own checkpoints/ '
    '(process_I_of_N/STEP.npz, or STEP/ with all rows): start as many as '
    'before, each where it was, or copy the files to who lacks them.'
  )


def forget(steps: Mapping[int, list], step: int, damaged: Collection) -> None:
  """Removes what was saved after a step: the run goes on from there.

  What is damaged gets another name, STEP.damaged.
  """
  for path in [path for k in steps if k > step for path in steps[k]]:
    aside = path.with_name(f'{path.name}.damaged')
    is_damaged = int(path.stem) in damaged
    _remove(aside if is_damaged else path)
    with contextlib.suppress(FileNotFoundError):  # others see it, too
      if is_damaged:
        path.rename(aside)


def _remove(path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def read(files: list, wanted: list[int], whole: Callable) -> dict | None:
  """Reads some rows of all leaves, by name, out of the files of a step.

  `whole(folder)` reads the leaves of a folder with all rows. Returns None where
  the files have not all the rows.

  Raises:
    ValueError: they would, if none of them was damaged.
  """
  places, damaged = {}, []
  for path in files:
    try:
      leaves, rows = _one(path, wanted, whole)
    except Exception as error:  # of orbax, tensorstore, zipfile, json, ...
      said = ' '.join(str(error).split())[:160]
      damaged.append(f'{path.name}: {said or type(error).__name__}')
      continue
    if rows is None:
      return leaves
    places |= {row: (leaves, place) for place, row in enumerate(rows)}
  if places.keys() >= set(wanted):
    found = [places[row] for row in wanted]
    return {
      name: np.stack([of[name][at] for of, at in found]) for name in found[0][0]
    }
  if damaged:
    raise ValueError('; '.join(damaged))
  return None


def _one(path, wanted, whole) -> tuple[dict, list[int] | None]:
  """The leaves of a file, and which rows they are; None for all, in order."""
  if path.is_dir():
    leaves = whole(path)
    if jax.process_count() == 1:
      return leaves, None
    return {name: leaf[wanted] for name, leaf in leaves.items()}, wanted
  with np.load(path) as file:
    leaves = {name: file[name] for name in file.files}
  return leaves, leaves.pop(_ROWS).tolist()


def rows(files: list, n: int) -> set[int]:
  """Which of n rows the files of a step have; a damaged one has none."""
  have = set()
  for path in files:
    if path.is_dir():
      return set(range(n))
    with contextlib.suppress(Exception), np.load(path) as file:
      have |= {*file[_ROWS].tolist()}
  return have
