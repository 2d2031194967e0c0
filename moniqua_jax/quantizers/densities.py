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
  """Of buckets u = x / norm."""

  mean: Array  # mu of u, f32[n]
  variance: Array  # sigma^2 of u, f32[n], with size - 1 in the denominator
  norm: Array  # f32[n]; 0 for a bucket that is not finite, or zero
  size: int  # values in a bucket


def statistics(
  x: Array, bucket_size: int, norm: str, components: int
) -> Statistics:
  """Returns mean, variance and norm of the buckets of largest norm.

  A last bucket that is not full is left out, unless it is the only one.
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
  """Gathers the statistics of all workers; one's own without an axis."""
  if axis_name is None:
    return own
  three = jnp.stack([own.mean, own.variance, own.norm])
  of_all = jnp.moveaxis(collectives.told(three, axis_name), 1, 0)
  mean, variance, norm = of_all.reshape(3, -1)
  return Statistics(mean, variance, norm, own.size)


def norm_based(weights: str) -> Callable[[Statistics], tn.Mixture]:
  """Builds the density of ALQ and AMQ: a truncated normal for each bucket.

    F = sum_n w_n TN(mu_n, sigma_n),  w_n = norm_n^2 / sum_m norm_m^2

  E|x_hat - x|^2 calls for 'norm_squared', the authors' code has 'norm'. If
  every norm is 0, so is every weight.
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
  """Returns the density of ALQ-N and AMQ-N: one for all buckets.

    mu = mean u,  sigma^2 = sum_n (size - 1) sigma_n^2 / N

  over the N values of buckets with a norm; its weight is 0 if there are none.
  """
  usable = (seen.norm > 0).astype(jnp.float32)
  share = usable / jnp.maximum(jnp.sum(usable), 1)
  mean = jnp.sum(share * seen.mean)
  variance = jnp.sum(share * seen.variance) * (seen.size - 1) / seen.size
  one = mean, jnp.sqrt(variance), jnp.max(usable)
  return tn.Mixture(*(number[None] for number in one))
