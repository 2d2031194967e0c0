"""From a config to what is trained, in one direction.

resolve(config) -> data, model -> quantizer -> optimizer -> bytes sent

A budget chooses the way to talk as soon as the model is known.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import data, pods
from moniqua_jax.algorithms import large_leaves, turns
from moniqua_jax.curvature import refresh
from moniqua_jax.plan import choice
from moniqua_jax.training import (
  bytes_sent,
  digests,
  ones_own,
  optimizer,
  quantizer,
  talk,
  tasks,
  unfit,
)
from moniqua_jax.training.resolve import Setup, resolve


class Data(NamedTuple):
  """Images, and whose they are.

  Attributes:
    dataset: images.
    shards: indices of each worker's training images.
  """

  dataset: data.Dataset
  shards: tuple[np.ndarray, ...]

  def marks(self) -> dict[str, str]:
    """Digests of what is learned from: another run has others."""
    labels, text = self.dataset.train.labels, self.dataset.text
    marked = {'labels': labels, 'shards': np.concatenate(self.shards)}
    if text:
      marked['text'] = np.frombuffer(bytes.fromhex(text.sha256), np.uint8)
      symbols = repr(text.symbols).encode()
      marked['symbols'] = np.frombuffer(symbols, np.uint8)
    return digests.of(marked)


class Pace(NamedTuple):
  """The length of a run, and its learning rate.

  Attributes:
    steps: of the whole run.
    steps_per_epoch: steps in which the workers together see as many images as
      there are.
    learning_rate: by step.
  """

  steps: int
  steps_per_epoch: int
  learning_rate: Callable


class Model(NamedTuple):
  """The net, its first parameters, and how devices hold them.

  Attributes:
    module: of flax.
    variables: as initialised; all workers start from them.
    held: how each device of a worker holds the parameters.
  """

  module: Any
  variables: Any
  held: pods.Held


class Experiment(NamedTuple):
  """What a config describes, built and checked.

  Attributes:
    setup: what the config says without data and without a net.
    data: images, and whose they are.
    pace: steps and learning rate.
    model: the net and its first parameters.
    quantizer: of the gossip, or without gossip of the gradients.
    optimizer: the chain of one worker.
    sent: bytes of a step.
  """

  setup: Setup
  data: Data
  pace: Pace
  model: Model
  quantizer: quantizer.Quantized
  optimizer: optimizer.Optimizer
  sent: bytes_sent.Sent

  @property
  def turns(self) -> turns.Turns:
    """Counts the rounds of gossip by step."""
    return talk.of(self.setup.config)

  @property
  def task(self) -> tasks.Task:
    """What the model learns of a batch."""
    return tasks.of(self.data.dataset)

  @property
  def run(self) -> Callable:
    """The runner, (fn, in_axes, **jit_options) -> mapped fn."""
    return self.setup.run

  def marks(self) -> dict[str, str]:
    """Digests of the data and of the shapes of the model, see `same_run`."""
    leaves = jax.tree.leaves(self.model.variables['params'])
    shapes = repr([leaf.shape for leaf in leaves]).encode()
    parameters = {'parameters': np.frombuffer(shapes, np.uint8)}
    return self.data.marks() | digests.of(parameters)


def from_config(config) -> Experiment:
  """Builds what a config names; a `ValueError` says what does not fit."""
  setup = resolve(config)
  read = _data(setup)
  pace = _pace(setup, read)
  model = _model(setup, read)
  setup = _within_budget(setup, model)
  unfit.fragments(setup.config, model.held.part)
  part, gradient = model.held.part, _gradient(model.held, setup.pod)
  quantized = quantizer.make(
    setup,
    pace.learning_rate,
    pace.steps,
    part,
    refresh.quantized(part, setup.all_leaves),
  )
  slices = large_leaves.slices(gradient, rows=setup.pod.data)
  means = optimizer.of_means(setup, quantized.tuned, slices)
  chain = optimizer.make(
    setup, quantized.tuned, means, slices, pace.learning_rate, model.held
  )
  sent = bytes_sent.make(
    setup, chain.gossip, quantized.tuned, means, part, gradient
  )
  return Experiment(setup, read, pace, model, quantized, chain, sent)


def starting_at(experiment: Experiment, variables: dict) -> Experiment:
  """Returns the experiment with other first variables of its model."""
  held = pods.hold(variables['params'], experiment.setup.pod)
  model = experiment.model._replace(variables=variables, held=held)
  return experiment._replace(model=model)


def batches(experiment: Experiment, seed: int, start: int, stop: int, own):
  """Yields (step, batch) of some workers, for steps `start` to `stop`."""
  return data.batches(
    *experiment.data,
    seed=seed,
    start=start,
    stop=stop,
    batch_size=experiment.setup.config.batch_size,
    workers=own,
  )


def _within_budget(setup, model) -> Setup:
  """Takes the way to talk that the budget chooses for this net, if there is."""
  budget = choice.budget(setup.config.budget)
  if budget is None:
    return setup
  rows = choice.of_config(setup.config, model.variables['params'], budget)
  best = choice.best(rows, budget)
  return resolve(choice.applied(setup.config, best))._replace(planned=best)


def _data(setup) -> Data:
  config = setup.config
  with ones_own.named(config, 'data', ones_own.A_DATA_SET):
    dataset = setup.make.dataset()
  ones_own.dataset(config, dataset)
  labels = np.asarray(dataset.train.labels)
  with ones_own.named(config, 'partition', ones_own.A_PARTITION):
    shards = setup.make.partition(
      labels=labels, n=config.workers, seed=config.seed
    )
  shards = ones_own.shards(config, shards, len(labels))
  unfit.batch(config.batch_size, shards)
  return Data(dataset, shards)


def _pace(setup, read) -> Pace:
  config, images = setup.config, len(read.dataset.train.labels)
  steps_per_epoch = max(1, images // (config.workers * config.batch_size))
  steps = max(1, round(config.epochs * steps_per_epoch))
  learning_rate = setup.make.learning_rate(
    steps=steps, steps_per_epoch=steps_per_epoch
  )
  ones_own.learning_rate(config, learning_rate)
  return Pace(steps, steps_per_epoch, learning_rate)


def _model(setup, read) -> Model:
  with ones_own.named(setup.config, 'model', ones_own.A_MODEL):
    module = setup.make.model(num_classes=read.dataset.num_classes)
  variables = _variables(setup.config, module, read.dataset)
  held = pods.hold(variables['params'], setup.pod)
  if setup.pod.size > 1:
    # Made on one device, which now lets go of them.
    variables = jax.device_get(variables)
  return Model(module, variables, held)


def _variables(config, module, dataset):
  task = tasks.of(dataset)
  inputs = task.inputs(task.example(1))
  with ones_own.named(config, 'model', ones_own.A_MODEL):
    init = jax.jit(functools.partial(module.init, train=False))
    variables = init(jax.random.key(config.seed), inputs)
  ones_own.model(config, module, variables, dataset)
  return variables


def _gradient(held, pod):
  """The tree of shapes of what a device has of each leaf of a gradient."""
  size = pod.data * sum(leaf.size for leaf in jax.tree.leaves(held.part))
  vector = jax.ShapeDtypeStruct((size,), jnp.float32)
  return jax.eval_shape(held.pieces, vector)
