"""One step of a method, whole and in parts, as programs of all processes.

  full      the step that train.py takes
  compute   the same without gossip and without the reduction of gradients
  codec     what is left of both without a network: every collective is a copy
  encode    the same up to the first messages
  messages  every collective alone, with what it carries for a payload
  empty     the same with next to nothing

Which collectives there are is read from the traced step, not from a list.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.network import collectives
from configs import network_cifar10_cpu
from moniqua_jax import bytes_sent, data, workers
from moniqua_jax.collectives import mean
from moniqua_jax.launch import multihost
from moniqua_jax.training import experiment as experiment_lib
from moniqua_jax.training import optimizer, registry
from moniqua_jax.training import step as step_lib

MODELS = {
  'resnet20': dict(name='resnet20', norm='batch', hidden=None),
  # As large as ResNet-20, and quick to compile and to compute.
  'mlp270k': dict(name='mlp', norm=None, hidden=(88,)),
  'mlp395k': dict(name='mlp', norm=None, hidden=(128,)),  # as is trained
  'mlp5m': dict(name='mlp', norm=None, hidden=(1280, 830)),
}
# A theta per leaf is measured on one model, and takes the time of one theta.
METHODS = tuple(
  name
  for name, spec in network_cifar10_cpu.METHODS.items()
  if 'scales_from' not in spec
)


class Part(NamedTuple):
  """A program of all processes that can be run step after step.

  Attributes:
    step: (state, *inputs, step: i32[]) -> (state, anything), compiled.
    state: before the first step; given away in it.
    inputs: the same in every step.
  """

  step: Callable
  state: Any
  inputs: tuple

  def stepper(self) -> Callable[[], None]:
    """() -> None, which takes one step more and waits for all of it."""
    held = {'state': self.state, 'step': 0}

    def once():
      step = np.int32(held['step'])
      out = jax.block_until_ready(self.step(held['state'], *self.inputs, step))
      held.update(state=out[0], step=held['step'] + 1)

    return once


class Parts(NamedTuple):
  """The parts of a step, and what the software says that it sends.

  Attributes:
    of_step: name -> Part.
    meeting: a Part in which all processes wait for each other.
    claimed: bytes that a worker sends in a step, the mean over workers.
    size: d, parameters.
  """

  of_step: dict[str, Part]
  meeting: Part
  claimed: float
  size: int


def configured(method: str, model: str, n: int, batch_size: int):
  """The config of a method on noise in the form of CIFAR-10.

  Args:
    method: one of METHODS.
    model: a key of MODELS.
    n: workers, on a ring.
    batch_size: images per worker.

  Returns:
    A ConfigDict.
  """
  config = network_cifar10_cpu.get_config(method)
  config.model.update(MODELS[model])
  images = n * batch_size
  shape = dict(shape=(32, 32, 3), num_classes=10)
  config.data.update(
    name='synthetic', num_train=images, num_test=1, seed=0, **shape
  )
  config.workers, config.batch_size = n, batch_size
  # The rate stays where it is, and with it theta, however long it takes.
  config.learning_rate.update(name='constant', peak=0.01, warmup_epochs=None)
  if config.quantizer.theta:  # it is given
    config.quantizer.theta = 1.0
  return config


def make(config) -> Parts:
  """Builds the parts; all processes do so at the same time.

  Args:
    config: a ConfigDict, one worker for each device.

  Returns:
    `Parts`.
  """
  experiment, n = experiment_lib.from_config(config), config.workers
  local = optimizer.local(
    config, experiment.pace.learning_rate, experiment.model.held
  )
  # What talks, without what lies between.
  talk = optax.chain(experiment.optimizer.reduce, experiment.optimizer.gossip)
  own = multihost.own(n)
  index = multihost.placed(np.arange(n)[own])
  batch = multihost.placed(_batch(config, own))
  x = experiment.run(step_lib.make_steps(experiment)[0], (0,))(index).params
  used = _used(talk, x, n)
  alone = experiment._replace(optimizer=optimizer.only(local))
  train, train_alone = (
    step_lib.train_program(experiment),
    alone.run(step_lib.make_steps(alone)[1], (0, 0, None), donate_argnums=0),
  )
  parts = {
    'full': _stepping(experiment, train, index, batch),
    'compute': _stepping(alone, train_alone, index, batch),
    'codec': _codec(experiment, talk, used, index, x),
    'encode': _encode(experiment, talk, used, index, x),
    'messages': _alone(experiment, used, index, collectives.whole),
    'empty': _alone(experiment, used, index, collectives.least(n)),
  }
  everybody = collectives.found(
    lambda x: mean(x, workers.AXIS),
    workers.AXIS,
    n,
    jnp.float32(0),
  )
  claimed = bytes_sent.total(experiment.sent.by_worker, steps=1, rounds=1)
  meeting = _alone(experiment, everybody, index, collectives.least(n))
  return Parts(parts, meeting, claimed, x.shape[1])


def _used(talk, x, n):
  """The collectives of one step."""
  x = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
  state = jax.eval_shape(talk.init, x)
  update = lambda u, state, x, step: talk.update(u, state, x, step=step)
  return collectives.found(update, workers.AXIS, n, x, state, x, jnp.int32(0))


def _batch(config, own):
  """One batch of each of this process's workers."""
  rows = np.arange(config.workers * config.batch_size)
  return data.batch(
    registry.build(registry.DATASETS, 'data', config.data),
    np.split(rows, config.workers),
    seed=config.seed,
    step=0,
    batch_size=config.batch_size,
    workers=own,
  )


def _stepping(experiment, train, index, batch):
  """One step after the other, on the same batch."""
  init = experiment.run(step_lib.make_steps(experiment)[0], (0,))
  return Part(train, init(index), (batch,))


def _codec(experiment, talk, used, index, x):
  """Encode, decode and mix: the slots that talk, and nobody to talk to."""

  def offline(update, zeros, updates, state, x):
    updates, state = collectives.with_copies(update, zeros)(updates, state, x)
    return state, updates.sum()

  return _offline(offline, experiment, talk, used, index, x)


def _encode(experiment, talk, used, index, x):
  """What they compute before anything is sent, in each step from the start."""

  def offline(update, zeros, updates, state, x):
    sent = collectives.until_messages(update, zeros)(updates, state, x)
    return state, sent

  return _offline(offline, experiment, talk, used, index, x)


def _offline(offline, experiment, talk, used, index, x):
  """A part of the slots that talk, on an update as large as a step's."""

  def init(worker, x):
    return talk.init(x), 0 * worker + jnp.zeros(len(used), jnp.int32)

  def step_fn(held, x, step):
    state, zeros = held
    update = lambda u, state, x: talk.update(u, state, x, step=step)
    # Made here, as in a training step: changed in place, an argument is added
    # to at half the speed.
    updates = lax.optimization_barrier(1e-3 * x)
    state, out = offline(update, zeros, updates, state, x)
    return (state, zeros), out

  run = experiment.run(step_fn, (0, 0, None), donate_argnums=0)
  return Part(run, experiment.run(init, (0, 0))(index, x), (x,))


def _alone(experiment, used, index, shape):
  """The collectives one after the other, with operands of given shapes."""

  def step_fn(token, step):
    return collectives.alone(used, token + step, shape), ()

  run = experiment.run(step_fn, (0, None), donate_argnums=0)
  return Part(run, experiment.run(jnp.copy, (0,))(index), ())
