"""The density of normalised gradients, from what workers tell of their buckets.

Faghri et al., "Adaptive gradient quantization", NeurIPS 2020, arXiv:2010.12460;
which buckets and which weights as in its code, Tabrizian/learning-to-quantize.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import collectives
from moniqua_jax.quantizers import buckets
from moniqua_jax.quantizers import truncated_normal as tn

Array = jax.Array

WEIGHTS = {'norm_squared': lambda norm: norm**2, 'norm': lambda norm: norm}


class Statistics(NamedTuple):
  """Of buckets u = x / norm.

  Attributes:
    mean: mu of u, f32[n].
    variance: sigma^2 of u, f32[n], with size - 1 in the denominator.
    norm: f32[n]; 0 for a bucket of no use, such as one that is not finite.
    size: values in a bucket.
  """

  mean: Array
  variance: Array
  norm: Array
  size: int


def statistics(
  x: Array, bucket_size: int, norm: str, components: int
) -> Statistics:
  """Mean, variance and norm of the buckets of largest norm.

  Args:
    x: f32[d].
    bucket_size: values of a bucket; a last one that is not full is left out,
      unless it is the only one.
    norm: 'l2' or 'linf'.
    components: how many buckets, at most.

  Returns:
    `Statistics` of min(components, buckets) buckets.

  >>> s = statistics(jnp.array([3.0, 0.0, 0.0, 0.0]), 2, 'l2', components=1)
  >>> print(s.mean, s.variance, s.norm)
  [0.5] [0.5] [3.]
  """
  full, size = x.size // bucket_size, min(x.size, bucket_size)
  rows = x[: max(full, 1) * size].reshape(-1, size).astype(jnp.float32)
  norms = buckets.NORMS[norm](rows)
  usable = jnp.where(jnp.isfinite(norms), norms, 0)
  norms, rank = lax.top_k(usable, min(components, len(rows)))
  known = (norms > 0)[:, None]
  u = jnp.where(known, rows[rank] / jnp.where(known, norms[:, None], 1), 0)
  mean = jnp.mean(u, axis=1)
  square = jnp.sum((u - mean[:, None]) ** 2, axis=1)
  return Statistics(mean, square / max(size - 1, 1), norms, size)


def together(own: Statistics, axis_name: str | None) -> Statistics:
  """The statistics of all workers on the axis; one's own without an axis.

  Args:
    own: of n buckets.
    axis_name: of the workers, or None.

  Returns:
    `Statistics` of n * workers buckets, the same on all.

  >>> own = statistics(jnp.ones(4), 2, 'l2', components=2)
  >>> together(own, None) is own
  True
  """
  if axis_name is None:
    return own
  three = jnp.stack([own.mean, own.variance, own.norm])
  of_all = jnp.moveaxis(collectives.gathered(three, axis_name), 1, 0)
  return Statistics(*of_all.reshape(3, -1), own.size)


def norm_based(weights: str) -> Callable[[Statistics], tn.Mixture]:
  """One truncated normal for each bucket, weighted by the norms: ALQ and AMQ.

    F = sum_n w_n TN(mu_n, sigma_n),  w_n = norm_n^2 / sum_m norm_m^2

  Args:
    weights: 'norm_squared', which E|x_hat - x|^2 calls for, or 'norm', as in
      the code.

  Returns:
    statistics -> density; all weights are 0 if no bucket is of use.

  Raises:
    ValueError: unknown weights.

  >>> seen = statistics(jnp.array([3.0, 0.0, 1.0, 0.0]), 2, 'l2', components=2)
  >>> print(norm_based('norm')(seen).weight)
  [0.75 0.25]

  Source: arXiv:2010.12460; the code has norm_n in place of its square.
  """
  if weights not in WEIGHTS:
    raise ValueError(f'weights={weights!r}; choose from {sorted(WEIGHTS)}.')

  def density(seen):
    most = jnp.max(seen.norm)
    weight = WEIGHTS[weights](seen.norm / jnp.where(most > 0, most, 1))
    total = jnp.sum(weight)
    weight /= jnp.where(total > 0, total, 1)
    return tn.Mixture(seen.mean, jnp.sqrt(seen.variance), weight)

  return density


def norm_less(seen: Statistics) -> tn.Mixture:
  """One truncated normal for all buckets, whatever their norm: ALQ-N, AMQ-N.

    mu = mean u,  sigma^2 = sum_n (size - 1) sigma_n^2 / N

  Args:
    seen: of n buckets; N = n size values.

  Returns:
    A density, of weight 0 if no bucket is of use.

  >>> seen = statistics(jnp.array([3.0, 0.0, 4.0, 0.0]), 2, 'l2', components=2)
  >>> print(norm_less(seen).mean, norm_less(seen).std)
  [0.5] [0.5]

  Source: arXiv:2010.12460, and its code for the pooling.
  """
  usable = (seen.norm > 0).astype(jnp.float32)
  share = usable / jnp.maximum(jnp.sum(usable), 1)
  mean = jnp.sum(share * seen.mean)
  variance = jnp.sum(share * seen.variance) * (seen.size - 1) / seen.size
  one = mean, jnp.sqrt(variance), jnp.max(usable)
  return tn.Mixture(*(number[None] for number in one))
