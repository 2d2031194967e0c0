"""One step of one worker: loss, gradient, update; and its evaluation.

The step has no collective but the algorithm's: metrics leave it per worker.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import gossip
from moniqua_jax.training import overlap


class TrainState(NamedTuple):
  """All that must survive a step; every leaf has the workers first.

  In pods the rows are devices: n of them, and d is what one of them holds.

  Attributes:
    params: f32[n, d], flat: one payload and no copies into it.
    opt_state: of the chain; its slots are those of `Optimizer`.
    model_state: running statistics of batch normalisation; {} without.
  """

  params: jax.Array
  opt_state: Any
  model_state: Any


def make_steps(experiment) -> tuple[Callable, Callable, Callable]:
  """Builds the functions of one worker: init, train_step and eval_step.

  init(row: as `held` has it, i32[] if whole) -> TrainState,
  train_step(state, batch, step: i32[]) -> (state, metrics),
  eval_step(params, model_state, batch) -> sums over the batch.
  """
  return _init(experiment), _train_step(experiment), _eval_step(experiment)


def train_program(experiment) -> Callable:
  """Compiles the train step of all workers, or two at once where that pays.

  (state, batch, step) -> (state, metrics), on stacked workers; the state is
  donated.
  """
  if overlap.pays(experiment.setup.config):
    return overlap.train_step(experiment, make_gradient(experiment))
  train_step = _train_step(experiment)
  return experiment.run(train_step, (0, 0, None), donate_argnums=0)


def make_gradient(experiment) -> Callable:
  """Builds the loss of one worker and its gradient, on flat parameters.

  (params: f32[d], model_state, batch) -> ((loss f32[], (accuracy f32[],
  model_state)), gradient f32[d]). In pods it is of a device, for its images;
  the gradient is the mean over 'fsdp'.
  """
  module, held = experiment.model.module, experiment.model.held
  task = experiment.task

  def loss_of_whole(params, model_state, batch):
    logits, new_state = module.apply(
      {'params': params, **model_state},
      task.inputs(batch),
      train=True,
      mutable=list(model_state),
    )
    losses, hits = task.losses(logits, batch)
    return jnp.mean(losses), (jnp.mean(hits), dict(new_state))

  def loss_fn(pieces, model_state, batch):
    return held.apply(loss_of_whole, pieces, model_state, batch)

  def gradient(params, model_state, batch):
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    aux, grads = grad_fn(held.pieces(params), model_state, batch)
    return aux, held.vector(grads)

  return gradient


def _init(experiment):
  held, tx = experiment.model.held, experiment.optimizer.chain
  statistics = dict(experiment.model.variables)
  del statistics['params']

  def init(row):
    params = held.begin(row)
    return TrainState(params, tx.init(params), statistics)

  return init


def _train_step(experiment):
  tx, gradient = experiment.optimizer.chain, make_gradient(experiment)

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
    heard = experiment.optimizer.heard(opt_state)
    seen = heard.seen if heard else gossip.no_news(0)
    lost = experiment.optimizer.lost(opt_state)
    report = {'loss': loss, 'accuracy': accuracy, 'seen': seen, 'lost': lost}
    return TrainState(params, opt_state, model_state), report

  return train_step


def _eval_step(experiment):
  module, held = experiment.model.module, experiment.model.held
  task = experiment.task

  def forward(params, model_state, inputs):
    return module.apply({'params': params, **model_state}, inputs, train=False)

  def eval_step(params, model_state, batch):
    pieces = held.pieces(params)
    logits = held.apply(forward, pieces, model_state, task.inputs(batch))
    losses, hits = task.losses(logits, batch)
    mask = batch['mask']
    return jnp.stack([(losses * mask).sum(), (hits * mask).sum(), mask.sum()])

  return eval_step
