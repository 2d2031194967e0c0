"""The noise of the mean gradient during training: config.gradient_probe_every.

The NUQSGD paper's figures show the variance of what the workers agree on. At
some steps gradients of fresh batches are drawn at the parameters of that
moment, and reduced as training would; nothing of it is kept.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import coding, data, edge, gossip, wire
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.algorithms.diana import Shifts
from moniqua_jax.launch import multihost

Array = jax.Array


def make(experiment, gradient: Callable, config) -> Callable:
  """(train state, step) -> metrics of the mean gradient.

    gradient/total_variance        E|a - E a|^2 / d, a the mean gradient
    gradient/normalised_variance   E|a - E a|^2 / E|a|^2
    gradient/quantization_variance E|Q(g) - g|^2 / |g|^2, of the large leaves;
                                   DIANA: the noise of Q(g - h), over |g|^2
    gradient/coded_bits            of a value in the recursive code
    gradient/entropy_bits          of a value, the least that any code needs

  The last three only where gradients are quantized, `coded_bits` where their
  levels have a zero.

  Args:
    experiment: as built from the config.
    gradient: as `loop.make_gradient` gives it.
    config: `gradient_probe_draws` is the number of gradients of each worker.

  Returns:
    A function; it takes the steps after `step` for the keys of its draws.

  Raises:
    ValueError: the config does not reduce gradients, or wants less than two.
  """
  if config.reduce.name == 'none':
    raise ValueError(
      'config.gradient_probe_every looks at mean gradients; set config.reduce.'
    )
  if config.gradient_probe_draws < 2:
    raise ValueError(
      f'config.gradient_probe_draws={config.gradient_probe_draws}; a variance '
      'needs 2 or more.'
    )
  _, unravel = gossip.flatten(experiment.variables['params'])

  def look(params, model_state, state, batch, step):
    _, grads = gradient(params, model_state, batch)
    mean, _ = experiment.reduce.update(grads, state, None, step=step)
    if not hasattr(state, 'tuned'):
      return mean, {}
    quantizer = experiment.quantizer.quantizer(state.tuned, step)
    x, _ = large_leaves.split(unravel(grads), large_leaves.small)
    sent = x - state.error.own if isinstance(state.error, Shifts) else x
    row = of_one(quantizer, sent, jax.random.key(step))[1]
    row['quantization_variance'] *= jnp.sum(sent**2) / jnp.sum(x**2)
    return mean, row

  look = experiment.run(look, (0, 0, 0, 0, None))

  def probe(state, step):
    draws = config.gradient_probe_draws
    batches = data.batches(
      experiment.dataset,
      experiment.shards,
      seed=config.seed + 1,
      start=step * draws,
      stop=(step + 1) * draws,
      batch_size=config.batch_size,
      workers=multihost.own(config.workers),
    )
    means, rows = [], []
    for draw, (_, batch) in enumerate(batches):
      mean, row = look(
        state.params,
        state.model_state,
        state.opt_state[1],
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


def of_one(quantizer, x: Array, key: Array) -> tuple[Array, dict[str, Array]]:
  """One quantized vector, its noise and its information.

  Args:
    quantizer: a `Quantizer`.
    x: f32[d].
    key: for `encode`.

  Returns:
    x_hat f32[d]; and f32[] each, by name.

  >>> from moniqua_jax import qsgd
  >>> sorted(of_one(qsgd(bits=4), jnp.ones(600), jax.random.key(0))[1])
  ['coded_bits', 'entropy_bits', 'quantization_variance']
  """
  payload = edge.sealed(quantizer.encode(x, key))
  x_hat = quantizer.decode(payload, x)
  error = jnp.sum((x_hat - x) ** 2)
  row = {'quantization_variance': error / jnp.sum(x**2)}
  about = quantizer.codes
  if about is not None:
    packed = payload[: wire.packed_size(x.size, about.bits)]
    codes = wire.unpack(packed, about.bits, x.size)
    row['entropy_bits'] = coding.entropy(codes, about)
  if about is not None and about.zero is not None:
    row['coded_bits'] = coding.coded_bits(quantizer, payload, x.size) / x.size
  return x_hat, row


def spread(estimates: np.ndarray) -> dict[str, float]:
  """Total and normalised variance of estimates of one vector.

  Args:
    estimates: [K, d], K of at least 2.

  Returns:
    v = sum_k |a_k - mean|^2 / (K - 1), over d and over the mean of |a_k|^2.

  >>> spread(np.array([[1.0, 0.0], [3.0, 0.0]]))
  {'total_variance': 1.0, 'normalised_variance': 0.4}
  """
  draws, d = estimates.shape
  square = np.sum((estimates - estimates.mean(axis=0)) ** 2) / (draws - 1)
  return {
    'total_variance': float(square / d),
    'normalised_variance': float(square / (np.sum(estimates**2) / draws)),
  }
