"""Evaluation: the mean model, every worker's, and how far they are apart."""

import functools
import json

import jax
from jax import lax
import numpy as np

from moniqua_jax import collectives, data, gossip, pods, workers
from moniqua_jax.launch import multihost
from moniqua_jax.models import norms
from moniqua_jax.training import quantizer, whole


def make(experiment, eval_step):
  """Builds (state, last) -> metrics of the mean model; of all at the last.

  The mean model takes the mean of the parameters; running statistics of batch
  normalisation are pooled exactly (models/norms.py). In pods no device holds
  more of the mean model than it holds of its own; distances count the zeros
  that fill up the leaves.
  """
  config, run, pod = (
    experiment.setup.config,
    experiment.run,
    experiment.setup.pod,
  )
  n, dataset = pod.workers, experiment.data.dataset
  own, alone = multihost.own(pod.devices), pod.size == 1
  mean = run(eval_step, (None if alone else 0, None, 0))
  mean_of = run(lambda x: collectives.mean(x, workers.AXIS), (0,))
  each = run(eval_step if alone else _shared(eval_step, pod), (0, 0, None))
  apart = run(lambda x: gossip.consensus(x, workers.AXIS), (0,))
  batch_size = 8 * config.batch_size

  def split(batch):
    shape = pod.devices, n * batch_size // pod.devices
    rows = {k: v.reshape(*shape, *v.shape[1:])[own] for k, v in batch.items()}
    return multihost.placed(rows)

  def evaluate(state, last):
    rms, largest = multihost.fetched(apart(state.params))
    params = mean_of(state.params)
    params = multihost.to_host(params)[0] if alone else params
    pooled = norms.combine(multihost.fetched(state.model_state))
    sums = sum(
      mean(params, pooled, split(batch))
      for batch in data.test_batches(dataset, n * batch_size)
    )
    sums = multihost.fetched(sums).sum(axis=0)
    row = {
      'test/loss': sums[0] / sums[2],
      'test/accuracy': sums[1] / sums[2],
      'gossip/consensus_rms': np.sqrt(np.mean(rms**2)),
      'gossip/consensus_max': largest.max(),
      **experiment.task.measures(float(sums[0] / sums[2])),
    }
    if last:
      accuracies = evaluate_workers(state)
      row['test/worst_worker'] = accuracies.min()
      row['test/mean_worker'] = accuracies.mean()
    return row

  def evaluate_workers(state):
    sums = 0
    batches = data.test_batches(dataset, batch_size)
    for index, batch in enumerate(batches):
      if index * batch_size >= config.worker_test_images:
        break
      sums += each(state.params, state.model_state, batch)
    sums = multihost.fetched(sums).reshape(n, pod.size, 3).sum(axis=1)
    return sums[:, 1] / sums[:, 2]

  return evaluate


def export(experiment, state, workdir) -> None:
  """Writes the mean model: workdir/mean_model/variables.npz, a name a leaf.

  'params/Dense_0/kernel' and so on, as the model's `apply` wants them; running
  statistics are pooled. A model of text goes on in workdir/sample.txt.
  Collective; process 0 writes.
  """
  variables = mean_model(experiment, state)
  if multihost.is_primary():
    folder = workdir / 'mean_model'
    folder.mkdir(exist_ok=True)
    leaves = jax.tree.leaves_with_path(variables)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
    with whole.written(folder / 'variables.npz', 'wb') as file:
      np.savez(file, **{name(path): leaf for path, leaf in leaves})
    apply = experiment.model.module.apply
    if made := experiment.task.sample(apply, variables):
      whole.write(workdir / 'sample.txt', made)


def mean_model(experiment, state) -> dict:
  """Takes the mean of the workers, as variables of the model. Collective."""
  pod, like = experiment.setup.pod, experiment.model.variables['params']
  mean = experiment.run(lambda x: collectives.mean(x, workers.AXIS), (0,))
  rows, alone = mean(state.params), pod.size == 1
  # All have the same mean; in pods each device has a part of it.
  rows = multihost.to_host(rows)[:1] if alone else multihost.fetched(rows)
  params = pods.joined(np.asarray(rows), like, pod)
  pooled = norms.combine(multihost.fetched(state.model_state))
  return {'params': params, **pooled}


def _shared(eval_step, pod):
  """Evaluates in a pod: each device its images, with the pod's statistics."""

  def step(params, model_state, batch):
    every = jax.tree.map(
      lambda leaf: collectives.gathered(leaf, pods.INSIDE), model_state
    )
    me = lax.axis_index(pods.INSIDE)
    mine = jax.tree.map(
      lambda leaf: leaf.reshape(pod.size, -1, *leaf.shape[1:])[me], batch
    )
    return eval_step(params, norms.combine(every), mine)

  return step


class Probe:
  """Keeps the largest distance of neighbours in each parameter leaf.

  Exact in a full-precision run; `config.scales_from` reads what it wrote.
  """

  def __init__(self, experiment, workdir):
    part, setup = experiment.model.held.part, experiment.setup
    self._names = quantizer.leaf_names(part)
    sizes = [leaf.size for leaf in jax.tree.leaves(part)]
    # Pods, the parts of the model in each, the values of a part.
    self._shape = setup.pod.workers, -1, sum(sizes)
    self._starts = np.cumsum([0, *sizes[:-1]])
    self._edges = {
      perm for topology in setup.schedule for _, perm in topology.edges
    }
    self._path = workdir / 'leaf_distance.json'
    self._largest = np.zeros(len(sizes))
    if self._path.exists():
      self._largest = np.array([*whole.read_json(self._path).values()])

  def look(self, params: jax.Array) -> None:
    """Takes the workers' parameters into account, and writes the file."""
    x = multihost.fetched(params).reshape(self._shape)
    for perm in self._edges:
      gap = np.abs(x - x[list(perm)]).max(axis=(0, 1))
      leaves = np.maximum.reduceat(gap, self._starts)
      self._largest = np.maximum(self._largest, leaves)
    rows = dict(zip(self._names, self._largest.tolist(), strict=True))
    if multihost.is_primary():
      whole.write(self._path, json.dumps(rows, indent=1))
