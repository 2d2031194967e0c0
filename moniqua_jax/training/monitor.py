"""Stops a run that goes wrong, and says where, why, and what to do."""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any

import numpy as np

from moniqua_jax import topologies
from moniqua_jax.algorithms import turns
from moniqua_jax.launch import multihost
from moniqua_jax.quantizers import unreadable
from moniqua_jax.training import talk

PATIENCE = unreadable.PATIENCE  # in a row, where edges are acknowledged


class Stopped(RuntimeError):
  """The run cannot go on; the message says why and what to do."""


class Guard:
  """Looks at the metrics of every step, one step late, on the host.

  Each process watches its own workers. An edge may be unreadable as often in a
  row as the patience says; 0 stops at the first. More is for edges that are
  acknowledged: else the mean of the workers moves each time.
  """

  def __init__(
    self,
    schedule: tuple[topologies.Topology, ...],
    patience: int,
    clock: turns.Turns,
    workdir: pathlib.Path,
    own: Sequence[int],
    saved: Callable[[], int | None] = lambda: None,
    suggest: Callable = lambda step, theta, distance, params: cure(
      theta, distance
    ),
  ):
    self._schedule, self._patience = schedule, patience
    self._turns, self._own = clock, own
    self._in_a_row = [0] * len(schedule)  # of each round, i64[n, E]
    self._late: tuple[int, dict] | None = None
    self._taken = []
    self._lost = None
    self._lost_in_a_row: Any = 0  # of each worker
    self._way_on = lambda: way_on(workdir, saved())
    # What the workers hold, and the step whose messages will be of it.
    self._suggest, self._now = suggest, (0, None)

  def take(self, step: int, report: dict, params=None) -> None:
    """Keeps the metrics of a step, and checks those of the step before.

    `params` are those of now: how far apart the workers are.
    """
    self._now = step + 1, params
    self._check_late()
    self._late = step, report

  def taken(self) -> list[dict]:
    """Checks the last step, and returns all metrics since it was asked last."""
    self._check_late()
    taken, self._taken = self._taken, []
    return taken

  def _check_late(self):
    if self._late is not None:
      self._taken.append(self.check(*self._late))
      self._late = None

  def check(self, step: int, report: dict) -> dict:
    """Returns the metrics of a step on the host; raises `Stopped` if need be.

    Of `report` it looks at `loss` f32[n], `seen`, a `Seen` of [n, R E] for the
    rounds of the step, and at `lost` i32[n], how many updates were lost so far.
    """
    report = multihost.to_host(report)
    self._check_loss(step, report['loss'])
    if self._schedule:
      told = talk.told(self._turns, step, report['seen'])
      for number, seen in enumerate(told, self._turns.before(step)):
        self._check_messages(step, number % len(self._schedule), seen)
    if 'lost' in report:
      self._check_lost(step, report['lost'])
    return report

  def _check_loss(self, step, loss):
    bad = np.flatnonzero(~np.isfinite(loss))
    if bad.size:
      raise Stopped(
        f'step {step}: the loss of worker {self._own[bad[0]]} is '
        f'{loss[bad[0]]}; try a '
        f'smaller learning rate. {self._way_on()}'
      )

  def _check_lost(self, step, lost):
    before = lost if self._lost is None else self._lost
    in_a_row = np.where(lost > before, self._lost_in_a_row + 1, 0)
    self._lost, self._lost_in_a_row = lost, in_a_row
    if in_a_row.max() >= PATIENCE:
      worker = int(in_a_row.argmax())
      raise Stopped(
        f'step {step}: the updates of worker {self._own[worker]} were not '
        f'finite, {in_a_row[worker]} times in a row, and were lost (its '
        'momentum may stay so for good). Try a smaller learning rate. '
        f'{self._way_on()}'
      )

  def _check_messages(self, step, turn, seen):
    in_a_row = np.where(seen.readable, 0, self._in_a_row[turn] + 1)
    self._in_a_row[turn] = in_a_row
    lost = in_a_row > self._patience
    if not lost.any():
      return
    # A sender that could not say what it holds is the cause, not the effect.
    mute = lost & ~np.isfinite(seen.theta)
    row, edge = np.argwhere(mute if mute.any() else lost)[0]
    perm = self._schedule[turn].edges[edge][1]
    receiver = self._own[row]
    sender = topologies.sources(perm)[receiver]
    often = f', {in_a_row[row, edge]} times in a row'
    theta, distance = (
      float(number[row, edge]) for number in (seen.theta, seen.distance)
    )
    at, params = self._now
    raise Stopped(
      f'step {step}: worker {receiver} could not read the message of worker '
      f'{sender}{often if self._patience else ""}. '
      f'{self._suggest(at, theta, distance, params)} {self._way_on()}'
    )


def of(
  setup,
  workdir: pathlib.Path,
  own: Sequence[int],
  saved: Callable[[], int | None],
  **suggest,
) -> Guard:
  """Builds the guard of a run, for the workers of this process.

  `saved` gives the step of the last checkpoint, None if there is none;
  `suggest=` says what to try, (step, theta, distance, params) -> a line, with
  the parameters that the workers send in that step.
  """
  # Each fragment goes through a round before the next one comes.
  fragments = range(setup.config.fragments)
  schedule = tuple(r for r in setup.schedule for _ in fragments)
  clock = talk.of(setup.config)
  return Guard(schedule, setup.patience, clock, workdir, own, saved, **suggest)


def way_on(workdir: pathlib.Path, saved: int | None) -> str:
  """Says from where a run that stopped can go on, which --resume does.

  >>> way_on('runs/a', None).split(':')[0]
  'The last good state is the first, since no checkpoint was written yet'
  """
  again = 'with the same command, --resume, and the changed entry.'
  if saved is None:
    return (
      'The last good state is the first, since no checkpoint was written yet: '
      f'begin again {again}'
    )
  return (
    f'The last good checkpoint is in {workdir}, of step {saved}; go on from it '
    f'{again}'
  )


def cure(theta: float, distance: float) -> str:
  """Says why a message was unreadable, and what to try.

  A theta that is not finite means that the sender could not say what it holds.

  >>> cure(0.5, 0.8)
  'They are further apart than theta=0.5: try theta=1.6.'
  """
  if not np.isfinite(theta):
    return unreadable.cure(theta)
  return (
    f'They are further apart than theta={theta:.4g}: try '
    f'theta={2 * max(theta, distance):.4g}.'
  )
