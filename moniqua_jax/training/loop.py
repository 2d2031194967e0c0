"""The training loop: what `train.py` runs.

The step of a worker has no collective but the algorithm's; its metrics leave it
per worker and are reduced on the host, one step late.
"""

from collections.abc import Callable
import contextlib
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from moniqua_jax import bytes_sent, data, gossip, plots, pods
from moniqua_jax.curvature import refresh
from moniqua_jax.launch import multihost
from moniqua_jax.training import (
  checkpoint,
  evaluation,
  gradient_noise,
  monitor,
  overlap,
  summary,
)
from moniqua_jax.training import experiment as experiment_lib
from moniqua_jax.training import metrics as metrics_lib
from moniqua_jax.training import workdir as workdir_lib


class TrainState(NamedTuple):
  """All that must survive a step; every leaf has the workers first.

  In pods the rows are devices: n of them, and d is what one of them holds.

  Attributes:
    params: f32[n, d], flat: one payload and no copies into it.
    opt_state: of the chain reduce, local, gossip.
    model_state: running statistics of batch normalisation; {} without.
  """

  params: jax.Array
  opt_state: Any
  model_state: Any


def make_steps(experiment: experiment_lib.Experiment):
  """The functions of one worker: init, train_step and eval_step.

  Args:
    experiment: as built from the config.

  Returns:
    init(row: as `experiment.held` has it, i32[] if whole) -> TrainState,
    train_step(state, batch, step: i32[]) -> (state, metrics),
    eval_step(params, model_state, batch) -> sums over the batch.
  """
  model, tx, gradient = (
    experiment.model,
    experiment.tx,
    make_gradient(experiment),
  )
  held, variables = experiment.held, dict(experiment.variables)
  del variables['params']

  def init(row):
    params = held.begin(row)
    return TrainState(params, tx.init(params), variables)

  def train_step(state, batch, step):
    (loss, (accuracy, model_state)), grads = gradient(
      state.params, state.model_state, batch
    )
    # Of the same batch at other parameters; only `adiana` asks for it.
    grad_fn = lambda params: gradient(params, state.model_state, batch)[1]
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, step=step, grad_fn=grad_fn
    )
    params = optax.apply_updates(state.params, updates)
    heard = getattr(opt_state[-1], 'heard', None)
    seen = heard.seen if heard else gossip.no_news(0)
    report = {'loss': loss, 'accuracy': accuracy, 'seen': seen}
    return TrainState(params, opt_state, model_state), report

  def forward(params, model_state, image):
    return model.apply({'params': params, **model_state}, image, train=False)

  def eval_step(params, model_state, batch):
    pieces = held.pieces(params)
    logits = held.apply(forward, pieces, model_state, batch['image'])
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )
    hits = jnp.argmax(logits, axis=-1) == batch['label']
    mask = batch['mask']
    return jnp.stack([(losses * mask).sum(), (hits * mask).sum(), mask.sum()])

  return init, train_step, eval_step


def train_program(experiment: experiment_lib.Experiment, config) -> Callable:
  """The train step of all workers, compiled; or two at once where that pays.

  Args:
    experiment: as built from the config.
    config: a ConfigDict.

  Returns:
    (state, batch, step) -> (state, metrics), on stacked workers; the state is
    donated.
  """
  if overlap.pays(config):
    return overlap.train_step(experiment, make_gradient(experiment))
  train_step = make_steps(experiment)[1]
  return experiment.run(train_step, (0, 0, None), donate_argnums=0)


def make_gradient(experiment: experiment_lib.Experiment):
  """The loss of one worker and its gradient, on flat parameters.

  In pods of a device, for its images; the gradient is the mean over 'fsdp'.

  Args:
    experiment: as built from the config.

  Returns:
    (params: f32[d], model_state, batch) -> ((loss f32[], (accuracy f32[],
    model_state)), gradient f32[d]).
  """
  held = experiment.held

  def loss_of_whole(params, model_state, batch):
    logits, new_state = experiment.model.apply(
      {'params': params, **model_state},
      batch['image'],
      train=True,
      mutable=list(model_state),
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )
    hits = jnp.argmax(logits, axis=-1) == batch['label']
    return jnp.mean(losses), (jnp.mean(hits), dict(new_state))

  def loss_fn(pieces, model_state, batch):
    return held.apply(loss_of_whole, pieces, model_state, batch)

  def gradient(params, model_state, batch):
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    aux, grads = grad_fn(held.pieces(params), model_state, batch)
    return aux, held.vector(grads)

  return gradient


def train_and_evaluate(
  config, workdir: str, resume: bool = False, start_from: str | None = None
) -> dict:
  """Trains, evaluates, writes everything below workdir.

  Args:
    config: a ConfigDict, see configs/digits.py for its entries.
    workdir: an empty or new folder, or with `resume` that of a stopped run.
    resume: go on from the last checkpoint.
    start_from: the work directory of a run of the same model, with any number
      of workers; all start at its mean model.

  Returns:
    The last row of the metrics.

  Raises:
    ValueError: the config or the folder does not fit.
    guard.Stopped: a loss was not finite, or messages were unreadable.
  """
  # ------------------------------------------------------------------ set up
  experiment, noise = experiment_lib.from_config(config), None
  if start_from and not resume:
    variables = checkpoint.mean_model(start_from, experiment.variables)
    held = pods.hold(variables['params'], experiment.pod)
    experiment = experiment._replace(variables=variables, held=held)
  if config.gradient_probe_every:
    noise = gradient_noise.make(experiment, make_gradient(experiment), config)
  shape = experiment.smoothness
  estimate = refresh.make(experiment, config) if shape else None
  workdir, lead = pathlib.Path(workdir), multihost.is_primary()
  multihost.by_primary(lambda: workdir_lib.open_(workdir, config, resume))
  if lead:
    print(summary.describe(config, experiment))
  init, _, eval_step = make_steps(experiment)
  pod, run = experiment.pod, experiment.run
  own = multihost.own(pod.devices)
  own_workers = [device // pod.size for device in own]
  state = run(init, (0,))(multihost.placed(experiment.held.rows(own)))
  train = train_program(experiment, config)
  evaluate = evaluation.make(experiment, eval_step, config)
  checkpoints = checkpoint.manager(workdir)
  start, state = checkpoint.restore(checkpoints, state)
  before = workdir_lib.rewind(workdir, start) if lead else 0.0
  writer = metrics_lib.Writer(workdir, config.tensorboard) if lead else None
  probe = evaluation.Probe(experiment, workdir)
  watch = monitor.Guard(
    experiment.schedule,
    experiment.patience,
    config.local_steps,
    workdir,
    own_workers,
  )
  progress = tqdm(
    total=experiment.steps,
    initial=start,
    unit='step',
    mininterval=1,
    disable=not lead,
  )
  batches = data.batches(
    experiment.dataset,
    experiment.shards,
    seed=config.seed,
    start=start,
    stop=experiment.steps,
    batch_size=config.batch_size,
    workers=sorted({*own_workers}),
  )

  # -------------------------------------------------------------- train loop
  began, recent, late, row = time.perf_counter() - before, [], None, {}
  with contextlib.ExitStack() as open_:
    open_.enter_context(contextlib.closing(checkpoints))
    if lead:
      open_.enter_context(contextlib.closing(writer))
    open_.enter_context(progress)
    for step, batch in batches:
      if shape and refresh.due(shape, step):
        state = estimate(state, step)
      batch = multihost.placed(pods.split(pod, batch, own))
      state, report = train(state, batch, np.int32(step))
      if late is not None:
        recent.append(watch.check(*late))
      late = step, report
      done = step + 1
      last = done == experiment.steps
      if config.probe_every and (done % config.probe_every == 0 or last):
        probe.look(state.params)
      evaluating = done % _steps(config.eval_every, experiment) == 0 or last
      saving = done % _steps(config.checkpoint_every, experiment) == 0 or last
      probing = noise and (done % config.gradient_probe_every == 0 or last)
      logging = done % config.log_every == 0
      if not (evaluating or saving or probing or logging):
        continue
      recent.append(watch.check(*late))
      late = None
      row = {
        'step': done,
        'epoch': done / experiment.steps_per_epoch,
        **_bytes_sent(config, experiment, done, state),
        'train/learning_rate': experiment.learning_rate(step),
        **metrics_lib.summarise(metrics_lib.of_all(recent)),
      }
      recent = []
      if evaluating:
        row |= evaluate(state, last)
      if probing:
        row |= noise(state, done)
      row['seconds'] = time.perf_counter() - began
      if lead:
        writer.write(row)
      progress.update(done - progress.n)
      progress.set_postfix_str(_one_line(row))
      if saving:
        _save(checkpoints, done, state, workdir)

  # ------------------------------------------------------------------ finish
  if lead:
    workdir_lib.note(workdir, seconds=row.get('seconds', before))
    print(plots.report([workdir], workdir))
  return row


def _bytes_sent(config, experiment, done, state) -> dict:
  """Of a worker so far; how often a message was short is in the state."""
  short = getattr(state.opt_state[1], 'short', None)
  heard = getattr(state.opt_state[-1], 'heard', None)
  gossip_short = heard.short if heard else None
  shape = experiment.smoothness
  short, gossip_short = _of_one(short), _of_one(gossip_short)
  row, inside = {}, experiment.pod.size > 1
  if inside:
    within = bytes_sent.total(experiment.inside, done, 0, short)
    row['wire/bytes_within_pod'] = within  # of a device
  sent = bytes_sent.total(
    experiment.traffic,
    done,
    done // config.local_steps,
    0 if inside else short,
    gossip_short,
    refresh.estimates(shape, done) if shape else 0,
  )
  return {'wire/bytes_sent': sent, **row}


def _of_one(count):
  """Of any worker: all choose the short form together."""
  return np.zeros(1) if count is None else multihost.to_host(count)[0]


def _steps(epochs, experiment) -> int:
  return max(1, round(epochs * experiment.steps_per_epoch))


def _one_line(row) -> str:
  names = {
    'loss': 'train/loss',
    'accuracy': 'train/accuracy',
    'disagreement': 'gossip/disagreement',
  }
  text = [f'{k} {row[v]:.3g}' for k, v in names.items() if v in row]
  return ', '.join([*text, f'sent {row["wire/bytes_sent"] / 1e6:.1f} MB'])


def _save(checkpoints, done, state, workdir):
  """Saves the state, unless the last step made it worthless."""
  if not bool(jnp.isfinite(state.params).all()):
    raise monitor.Stopped(
      f'step {done - 1}: the parameters are not finite after it; try a smaller '
      f'learning rate. The last good checkpoint is in {workdir}.'
    )
  checkpoint.save(checkpoints, done, state)
