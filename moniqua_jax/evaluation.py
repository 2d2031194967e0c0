"""Evaluation: the mean model, every worker's, and how far they are apart."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import data, gossip, workers
from moniqua_jax import experiment as experiment_lib
from moniqua_jax.models import norms


def make(experiment, eval_step, config):
  """(state, last) -> test metrics of the mean model, and of each at the last.

  The mean model takes the mean of the parameters; running statistics of batch
  normalisation are pooled exactly (models/norms.py).
  """
  n, run = config.workers, experiment.run
  mean = run(eval_step, (None, None, 0))
  each = run(eval_step, (0, 0, None))
  apart = run(lambda x: gossip.consensus(x, workers.AXIS), (0,))
  batch_size = 8 * config.batch_size

  def split(batch):
    return {k: v.reshape(n, -1, *v.shape[1:]) for k, v in batch.items()}

  def evaluate(state, last):
    rms, largest = (float(v[0]) for v in apart(state.params))
    params = jnp.mean(state.params, axis=0)
    model_state = jax.tree.map(np.asarray, state.model_state)
    pooled = norms.combine(model_state)
    sums = sum(
      np.asarray(mean(np.asarray(params), pooled, split(batch))).sum(0)
      for batch in data.test_batches(experiment.dataset, n * batch_size)
    )
    row = {
      'test/loss': sums[0] / sums[2],
      'test/accuracy': sums[1] / sums[2],
      'gossip/consensus_rms': rms,
      'gossip/consensus_max': largest,
    }
    if last:
      accuracies = evaluate_workers(state)
      row['test/worst_worker'] = accuracies.min()
      row['test/mean_worker'] = accuracies.mean()
    return row

  def evaluate_workers(state):
    sums = 0
    batches = data.test_batches(experiment.dataset, batch_size)
    for index, batch in enumerate(batches):
      if index * batch_size >= config.worker_test_images:
        break
      sums += np.asarray(each(state.params, state.model_state, batch))
    return sums[:, 1] / sums[:, 2]

  return evaluate


class Probe:
  """Largest distance of neighbours in each parameter leaf, over the run.

  Exact in a full-precision run; `config.scales_from` reads what it wrote.
  """

  def __init__(self, experiment, workdir):
    params = experiment.variables['params']
    self._names = experiment_lib.leaf_names(params)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    self._starts = np.cumsum([0, *sizes[:-1]])
    self._edges = {
      perm for topology in experiment.schedule for _, perm in topology.edges
    }
    self._path = workdir / 'leaf_distance.json'
    self._largest = np.zeros(len(sizes))
    if self._path.exists():
      self._largest = np.array([*json.loads(self._path.read_text()).values()])

  def look(self, params: jax.Array) -> None:
    """Takes the state of the workers into account, and writes the file."""
    x = np.asarray(params)
    for perm in self._edges:
      gap = np.abs(x - x[list(perm)]).max(axis=0)
      leaves = np.maximum.reduceat(gap, self._starts)
      self._largest = np.maximum(self._largest, leaves)
    rows = dict(zip(self._names, self._largest.tolist(), strict=True))
    self._path.write_text(json.dumps(rows, indent=1))
