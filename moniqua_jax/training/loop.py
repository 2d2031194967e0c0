"""The training loop.

Metrics leave the step per worker and are reduced on the host, one step late.
"""

import contextlib
import pathlib
from typing import NamedTuple

import numpy as np

from moniqua_jax import pods
from moniqua_jax.curvature import refresh
from moniqua_jax.launch import multihost
from moniqua_jax.plan import report as plan_report
from moniqua_jax.training import (
  bytes_sent,
  checkpoint,
  evaluation,
  gradient_noise,
  monitor,
  same_run,
  signals,
  suggestion,
  summary,
  talk,
)
from moniqua_jax.training import experiment as experiment_lib
from moniqua_jax.training import metrics as metrics_lib
from moniqua_jax.training import step as step_lib
from moniqua_jax.training import workdir as workdir_lib


def train_and_evaluate(
  config, workdir: str, resume: bool = False, start_from: str | None = None
) -> dict:
  """Trains, evaluates, writes below workdir; returns the last row of metrics.

  With `resume` it goes on from the last checkpoint in workdir; with
  `start_from` all workers start at the mean model of the run in that folder.
  Raises `monitor.Stopped` where a loss is not finite, or a message unreadable,
  and `signals.Interrupted` at the end of a step in which a signal came.
  """
  experiment = _experiment(config, None if resume else start_from)
  config = experiment.setup.config  # with what a budget chose
  marks = experiment.marks()
  opened = workdir_lib.opened(pathlib.Path(workdir), config, resume, marks)
  with opened as workdir, contextlib.ExitStack() as stack:
    return _train(experiment, workdir, stack)


def _train(experiment, workdir, stack) -> dict:
  """Does that in a folder of its own; what it opens is closed by the stack."""
  # ------------------------------------------------------------------ set up
  config, noise = experiment.setup.config, _noise(experiment)
  if multihost.is_primary():
    print(summary.describe(experiment))
    if planned := experiment.setup.planned:
      workdir_lib.note(workdir, planned=plan_report.noted(planned))
    if text := experiment.data.dataset.text:
      workdir_lib.note(workdir, text=text.noted())
  pod, pace = experiment.setup.pod, experiment.pace
  own = multihost.own(pod.devices)
  own_workers = [device // pod.size for device in own]
  init, _, eval_step = step_lib.make_steps(experiment)
  rows = multihost.placed(experiment.model.held.rows(own))
  state = experiment.run(init, (0,))(rows)
  train = step_lib.train_program(experiment)
  refreshed = refresh.make(experiment)
  evaluate = evaluation.make(experiment, eval_step)
  probe = evaluation.Probe(experiment, workdir)
  came = stack.enter_context(signals.heard())  # until all is saved
  stack.callback(workdir_lib.note_saved, workdir)  # when all is on the disk
  checkpoints = checkpoint.manager(workdir)
  stack.enter_context(contextlib.closing(checkpoints))
  watch = monitor.of(
    experiment.setup,
    workdir,
    own_workers,
    checkpoints.latest_step,
    suggest=suggestion.make(experiment, own_workers),
  )
  start, state = checkpoint.restore(checkpoints, state)
  log = workdir_lib.Log(workdir, config.tensorboard, pace.steps, start)
  stack.enter_context(contextlib.closing(log))

  # -------------------------------------------------------------- train loop
  row = {}
  for step, batch in experiment_lib.batches(
    experiment, config.seed, start, pace.steps, sorted({*own_workers})
  ):
    state = refreshed(state, step)
    batch = multihost.placed(pods.split(pod, batch, own))
    state, report = train(state, batch, np.int32(step))
    watch.take(step, report, state.params)
    due = _due(config, pace, step + 1)
    if number := multihost.leaving(step, came()):
      due = due._replace(row=True, checkpoint=True)
    if due.probe:
      probe.look(state.params)
    if not due.row:
      continue
    row = _row(experiment, step, state, watch.taken())
    if due.evaluation:
      row |= evaluate(state, due.last)
    if due.noise:
      row |= noise(state, step + 1)
    if not np.isnan(share := metrics_lib.noise_share(config, row)):
      row['gossip/noise_share'] = share
    log.write(row)
    if due.checkpoint:
      _save(checkpoints, step + 1, state, workdir)
    if number and not due.last:
      raise signals.Interrupted(number, f'{workdir} has all of step {step + 1}')
  log.note_seconds()
  evaluation.export(experiment, state, workdir)
  return row


def _experiment(config, start_from):
  experiment = experiment_lib.from_config(config)
  if not start_from:
    return experiment
  variables = checkpoint.mean_model(start_from, experiment.model.variables)
  noted = workdir_lib.noted(start_from).get('data', {})
  same_run.check_start(noted, experiment.marks(), start_from)
  return experiment_lib.starting_at(experiment, variables)


def _noise(experiment):
  every = experiment.setup.config.gradient_probe_every
  return gradient_noise.make(experiment) if every else None


class _Due(NamedTuple):
  """What happens after a step."""

  last: bool
  probe: bool
  evaluation: bool
  checkpoint: bool
  noise: bool
  row: bool


def _due(config, pace, done: int) -> _Due:
  last = done == pace.steps
  every = lambda steps: steps and (done % steps == 0 or last)
  epochs = lambda number: max(1, round(number * pace.steps_per_epoch))
  evaluation = every(epochs(config.eval_every))
  saving = every(epochs(config.checkpoint_every))
  noise = every(config.gradient_probe_every)
  logging = done % config.log_every == 0
  row = evaluation or saving or noise or logging
  return _Due(last, every(config.probe_every), evaluation, saving, noise, row)


def _row(experiment, step, state, reports) -> dict:
  """One row of the metrics, of the steps since the last row."""
  done, pace = step + 1, experiment.pace
  clock, reports = experiment.turns, metrics_lib.of_all(reports)
  seen = [
    each
    for at, report in enumerate(reports, done - len(reports))
    for each in talk.told(clock, at, report['seen'])
  ]
  return {
    'step': done,
    'epoch': done / pace.steps_per_epoch,
    **bytes_sent.so_far(experiment, done, state.opt_state),
    'train/learning_rate': pace.learning_rate(step),
    **metrics_lib.summarise(reports, seen),
  }


def _save(checkpoints, done, state, workdir):
  """Saves the state, unless a step made it worthless."""
  bad = checkpoint.not_finite(state)
  if bad:
    raise monitor.Stopped(
      f'step {done - 1}: {bad[0]} is not finite after it, so nothing is saved; '
      'try a smaller learning rate. '
      f'{monitor.way_on(workdir, checkpoints.latest_step())}'
    )
  checkpoint.save(checkpoints, done, state)
