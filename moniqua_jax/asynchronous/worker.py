"""What one worker is: its state, shared by two threads, and its pace."""

from collections.abc import Iterable
import pathlib
import re
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax.training import whole


class WorkerState(NamedTuple):
  """What a worker must not lose."""

  x: jax.Array  # f32[d], its parameters
  opt_state: Any  # of its local optimiser
  model_state: Any  # its running statistics; {} without
  tuned: Any  # of its quantizer; () where that does not move


class Worker:
  """A worker's state behind a lock.

  Both threads *add* to x: the main thread an averaging, the training thread the
  update of a gradient of a slightly older x. Arrays are immutable, so that a
  reference to one is a snapshot.
  """

  def __init__(self, state: WorkerState, steps: int = 0):
    self.state, self.steps = state, steps
    self._lock = threading.Lock()
    self._averaged = 0
    self._begun: int | None = None

  def begin(self) -> WorkerState:
    """The state at which the next gradient is taken."""
    with self._lock:
      self._begun = self._averaged
      return self.state

  @property
  def staleness(self) -> int:
    """Averagings since the gradient under way was begun; 0 if none is."""
    begun = self._begun
    return 0 if begun is None else self._averaged - begun

  def average(self, move: jax.Array | None, tuned) -> None:
    """Moves towards a neighbour; None for an averaging that does not count."""
    with self._lock:
      x = self.state.x
      if move is not None:
        x, self._averaged = x + move, self._averaged + 1
      self.state = self.state._replace(x=x, tuned=tuned)

  def descend(self, update: jax.Array, opt_state, model_state) -> int:
    """Applies the update of a gradient; how many averagings it is late."""
    with self._lock:
      x = self.state.x + update
      self.state = WorkerState(x, opt_state, model_state, self.state.tuned)
      self.steps += 1
      late, self._begun = self.staleness, None
      return late

  def save(self, folder: pathlib.Path, known: np.ndarray) -> bool:
    """Writes state.npz, all but `tuned`, unless the state is worthless."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.state[:3])]
    if not all(np.isfinite(leaf).all() for leaf in leaves):
      return False
    folder.mkdir(parents=True, exist_ok=True)
    with whole.written(folder / 'state.npz', 'wb') as file:
      np.savez(file, *leaves, known=known)
    return True


def load(folder: pathlib.Path, like: WorkerState):
  """What `Worker.save` wrote."""
  path = folder / 'state.npz'
  if not path.exists():
    return None
  treedef = jax.tree.structure(like[:3])
  names = [f'arr_{i}' for i in range(treedef.num_leaves)]
  try:
    with path.open('rb') as file, np.load(file) as saved:
      *leaves, known = [saved[name] for name in (*names, 'known')]
  except Exception as error:  # of zipfile, zlib, NumPy
    raise ValueError(
      f'{path} is damaged ({error}). Put back a copy, or remove it: the '
      'workers go on at the mean of what the others have.'
    ) from error
  x, opt_state, model_state = treedef.unflatten(map(jnp.asarray, leaves))
  return WorkerState(x, opt_state, model_state, like.tuned), known


class Pace(NamedTuple):
  """How slow a worker is made, to see what that does to the others."""

  seconds: float = 0.0  # that a step takes at least, as if so much was to do
  slow: float = 1.0  # a step takes so many times as long as it would

  def sleep(self, began: float) -> None:
    """Sleeps for the rest of a step that began at that `time.monotonic()`."""
    taken = time.monotonic() - began
    time.sleep(max(self.slow * max(taken, self.seconds) - taken, 0))


def factors(texts: Iterable[str], n: int) -> list[float]:
  """How slow each worker is made."""
  found = [1.0] * n
  for text in texts:
    match = re.fullmatch(r'(\d+):(\d+(?:\.\d+)?)', text)
    if not match or int(match[1]) >= n or float(match[2]) < 1:
      raise ValueError(
        f'--slow={text}; it takes RANK:FACTOR, a rank below {n} and a factor '
        'of 1 or more.'
      )
    found[int(match[1])] = float(match[2])
  return found
