"""The noise of the mean gradient during training: config.gradient_probe_every.

The NUQSGD paper's figures show the variance of what the workers agree on. At
some steps gradients of fresh batches are drawn at the parameters of that
moment, and reduced as training would; nothing of it is kept.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import coding, wire
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.gossip import edge
from moniqua_jax.launch import multihost
from moniqua_jax.training import experiment as experiment_lib
from moniqua_jax.training import optimizer
from moniqua_jax.training import step as step_lib

Array = jax.Array


def make(experiment) -> Callable:
  """Builds (train state, step) -> metrics of the mean gradient.

    gradient/total_variance        E|a - E a|^2 / d, a the mean gradient
    gradient/normalised_variance   E|a - E a|^2 / E|a|^2
    gradient/quantization_variance E|Q(g) - g|^2 / |g|^2, of the large leaves;
                                   DIANA: the noise of Q(g - h), over |g|^2
    gradient/coded_bits            of a value in the recursive code
    gradient/entropy_bits          of a value, the least that any code needs

  The last three only where gradients are quantized, `coded_bits` where their
  levels have a zero. It takes the steps after `step` for the keys of its draws.
  """
  config = experiment.setup.config
  draws = config.gradient_probe_draws
  look = experiment.run(_look(experiment), (0, 0, 0, 0, None))

  def probe(state, step):
    batches = experiment_lib.batches(
      experiment,
      config.seed + 1,
      step * draws,
      (step + 1) * draws,
      multihost.own(config.workers),
    )
    means, rows = [], []
    for draw, (_, batch) in enumerate(batches):
      mean, row = look(
        state.params,
        state.model_state,
        optimizer.Optimizer(*state.opt_state).reduce,
        multihost.placed(batch),
        np.int32(step + draw),
      )
      means.append(multihost.to_host(mean)[0].astype(np.float64))
      row = multihost.fetched(row)
      rows.append({k: float(np.mean(v)) for k, v in row.items()})
    row = {k: np.mean([row[k] for row in rows]) for k in rows[0]}
    row |= spread(np.stack(means))
    return {f'gradient/{name}': float(value) for name, value in row.items()}

  return probe


def _look(experiment):
  """Builds one draw of a worker: its mean gradient and quantizer's noise."""
  gradient = step_lib.make_gradient(experiment)
  slices = large_leaves.slices(experiment.model.variables['params'])
  reduce = experiment.optimizer.reduce

  def look(params, model_state, state, batch, step):
    _, grads = gradient(params, model_state, batch)
    mean, _ = reduce.update(grads, state, None, step=step)
    if not reduce.quantizes:
      return mean, {}
    quantizer = experiment.quantizer.tuned.quantizer(state.tuned, step)
    x, _ = large_leaves.split(grads, slices)
    sent = x - reduce.shift(state)
    row = of_one(quantizer, sent, sent, jax.random.key(step))[1]
    row['quantization_variance'] *= jnp.sum(sent**2) / jnp.sum(x**2)
    return mean, row

  return look


def of_one(
  quantizer, x: Array, y: Array, key: Array
) -> tuple[Array, dict[str, Array]]:
  """Quantizes f32[d], read beside y; its noise and information by name too."""
  payload = edge.sealed(quantizer.encode(x, key))
  x_hat = quantizer.decode(payload, y)
  error = jnp.sum((x_hat - x) ** 2)
  row = {'quantization_variance': error / jnp.sum(x**2)}
  about = quantizer.codes
  if about is not None:
    codes, _ = wire.split(payload, about.bits, x.size)
    row['entropy_bits'] = coding.entropy(codes, about)
  if about is not None and about.zero is not None:
    row['coded_bits'] = coding.coded_bits(quantizer, payload, x.size) / x.size
  return x_hat, row


def spread(estimates: np.ndarray) -> dict[str, float]:
  """Computes total and normalised variance of K estimates [K, d] of a vector.

  v = sum_k |a_k - mean|^2 / (K - 1), over d and over the mean of |a_k|^2
  """
  draws, d = estimates.shape
  square = np.sum((estimates - estimates.mean(axis=0)) ** 2) / (draws - 1)
  return {
    'total_variance': float(square / d),
    'normalised_variance': float(square / (np.sum(estimates**2) / draws)),
  }
