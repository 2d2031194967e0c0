"""Gossip beside the gradient on CPUs: two programs from two threads.

A program of XLA:CPU waits in its collectives until they are done, and the
programs that one thread dispatches run one after the other; those of two
threads run at once. On a GPU or TPU the one program of `step.make_steps` has
the messages and the gradient side by side already.
"""

from collections.abc import Callable
from concurrent import futures
import inspect

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import pods
from moniqua_jax.gossip import no_news
from moniqua_jax.training import optimizer, registry


def pays(config) -> bool:
  """Tells whether two threads help: on CPUs, where nothing but gossip talks.

  And where it takes updates: quasi-global momentum makes them of gradients.
  """
  makes = registry.found(
    registry.OPTIMIZERS, 'optimizer', config.optimizer.name
  )
  # One that is given the axis, as dadam, may talk by itself.
  silent = 'axis_name' not in inspect.signature(makes).parameters
  silent &= config.reduce.name == 'none' or optimizer.is_outer(config)
  silent &= config.momentum_kind.name == 'local'
  alone = silent and pods.of(config).size == 1
  several = jax.default_backend() == 'cpu' and jax.process_count() > 1
  return (config.overlap or config.outer.delay > 0) and alone and several


def train_step(experiment, gradient: Callable) -> Callable:
  """Builds the train step of all workers, as two programs and a third.

    pull, state = gossip(x_k, u = 0)   beside   u_k = alone(gradient(x_k))
    x_{k+1} = x_k + u_k + pull

  Only the first has collectives. It is over before the step returns, so that
  no other collective of the training loop comes in between. The gossip is one
  that does not wait for u_k: dpsgd, a stale form, or a delayed one. The state
  is donated.
  """
  chain = experiment.optimizer
  alone, gossip = chain.alone, chain.gossip

  def exchange(params, state, step):
    nothing = jnp.zeros_like(params)
    return gossip.update(nothing, state, params, step=step)

  def compute(params, model_state, state, batch, step):
    (loss, (accuracy, model_state)), grads = gradient(
      params, model_state, batch
    )
    updates, state = alone.update(grads, state, params, step=step)
    return updates, state, model_state, {'loss': loss, 'accuracy': accuracy}

  def combine(params, updates, pull, state):
    updates, state = gossip.taken(updates, state)
    params = optax.apply_updates(params, updates + pull)
    state = gossip.told(state, updates)
    seen = gossip.heard(state).seen if gossip.heard else no_news(0)
    return params, state, {'seen': seen, 'lost': state.heard.lost}

  run = experiment.run
  exchange = run(exchange, (0, 0, None))
  compute = run(compute, (0, 0, 0, 0, None), donate_argnums=(1, 2))
  combine = run(combine, (0, 0, 0, 0), donate_argnums=(0, 2, 3))
  talker = futures.ThreadPoolExecutor(1, 'gossip')

  def talk(*args):
    return jax.block_until_ready(exchange(*args))

  def step(state, batch, k):
    *own, heard = state.opt_state
    told = talker.submit(talk, state.params, heard, k)
    updates, own, model_state, report = compute(
      state.params, state.model_state, tuple(own), batch, k
    )
    params, heard, said = combine(state.params, updates, *told.result())
    return type(state)(params, (*own, heard), model_state), report | said

  return step
