"""ALQ and AMQ: levels that follow the density of the gradients.

Faghri, Tabrizian, Markov, Alistarh, Roy, Ramezani-Kebrya, "Adaptive gradient
quantization for data-parallel SGD", NeurIPS 2020, arXiv:2010.12460; numbers
that the paper leaves open as in its code, Tabrizian/learning-to-quantize.

At a few steps of the training the workers share mu, sigma and the norm of
their largest buckets, fit a density of `truncated_normal` to them, and all
find the same levels of least variance Psi for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import arguments, collectives
from moniqua_jax.quantizers import base, densities, least_variance
from moniqua_jax.quantizers.leveled import leveled

Array = jax.Array

FIRST, EVERY = (0, 100, 2000), 10_000


class Levels(NamedTuple):
  """The state, the same on all workers."""

  levels: Array  # f32[2^bits], ascending from -1 to 1
  # i32[], how often the worker has observed. (Hides the method of tuples.)
  count: Array  # type: ignore[assignment]


class Watch(NamedTuple):
  """What the workers observe of their gradients, and when the levels move."""

  bucket_size: int
  norm: str
  components: int
  first: Sequence[int]
  every: int
  axis_name: str | None


def alq(
  bits: int,
  bucket_size: int = 8192,
  norm: str = 'l2',
  weights: str = 'norm_squared',
  components: int = 50,
  sweeps: int = 30,
  first: Sequence[int] = FIRST,
  every: int = EVERY,
  axis_name: str | None = None,
) -> base.Tuned:
  """ALQ: levels by coordinate descent, for a mixture weighted by the norms.

    l_j <- F^-1( F(d) - int_c^d (r - c) / (d - c) dF ),  c = l_{j-1},
    d = l_{j+1};  F = sum_n w_n TN(mu_n, sigma_n),  w_n = norm_n^2 / sum norm^2

  A sweep takes all odd j and then all even j: they do not depend on each other,
  and the fixed points are those of j = 1, 2, .... It starts from quantiles,
  uniform and exponential levels, the present ones, and ours, that give all
  cells the same part of Psi; the lowest Psi is kept.

  A fit comes after the message of its step. Under `jax.jit` and `shard_map` a
  step without a fit costs nothing, but for one integer that the workers share
  if there is an axis. Under `vmap` that holds with the axis' name; without it
  `lax.cond` becomes a select, and the fit runs at every step.

  Args:
    bits: of a code, 2 to 8; there are 2^bits levels and none of them is 0.
    bucket_size: values that share a norm.
    norm: 'l2' or 'linf', of a bucket.
    weights: 'norm_squared', which Psi calls for, or 'norm', as in the code.
    components: how many buckets a worker tells of, those of largest norm; all
      if it has fewer. The last bucket is left out if it is not full.
    sweeps: of the coordinate descent.
    first: counts of observed steps at which the levels move, ascending.
    every: they also move at all positive multiples of it.
    axis_name: the axis of the workers whose statistics are put together, in
      place of the paper's 10 fresh mini-batches; None: each has its own, and
      its own levels, which its messages carry.

  Returns:
    A `Tuned` with state `Levels`, from +-(1, 1/2, 1/4, ...). Buckets that are
    zero or not finite count for nothing; if all are, the levels stay.

  Raises:
    ValueError: a number out of its range, unknown norm or weights.

  >>> print(alq(bits=2).init().levels)
  [-1.  -0.5  0.5  1. ]

  Source: ALQ of arXiv:2010.12460, `alq_nb` with `inv` in its code.
  """
  density = densities.norm_based(weights)
  fit = least_variance.from_starts(sweeps)
  watch = Watch(bucket_size, norm, components, first, every, axis_name)
  return _adaptive(bits, density, fit, watch)


def alq_n(
  bits: int,
  bucket_size: int = 8192,
  norm: str = 'l2',
  components: int = 50,
  sweeps: int = 30,
  first: Sequence[int] = FIRST,
  every: int = EVERY,
  axis_name: str | None = None,
) -> base.Tuned:
  """ALQ-N: as `alq`, but one density for all buckets, whatever their norm.

    F = TN(mu, sigma),  mu = mean u,  sigma^2 = sum_n (size - 1) sigma_n^2 / N

  F^-1 has a closed form.

  Args:
    bits, bucket_size, norm, components, sweeps, first, every, axis_name: as for
      `alq`.

  Returns:
    A `Tuned` with state `Levels`.

  Raises:
    ValueError: as for `alq`.

  >>> print(alq_n(bits=2).init().levels)
  [-1.  -0.5  0.5  1. ]

  Source: ALQ-N of arXiv:2010.12460, `alq` in its code.
  """
  fit = least_variance.from_starts(sweeps)
  watch = Watch(bucket_size, norm, components, first, every, axis_name)
  return _adaptive(bits, densities.norm_less, fit, watch)


def amq(
  bits: int,
  bucket_size: int = 8192,
  norm: str = 'l2',
  weights: str = 'norm_squared',
  components: int = 50,
  first: Sequence[int] = FIRST,
  every: int = EVERY,
  axis_name: str | None = None,
) -> base.Tuned:
  """AMQ: levels +-(1, p, p^2, ...) with the p of least Psi, for the mixture.

    p = argmin Psi,  to 5e-6 of log p, over .001 <= p <= .999

  by a search, where the paper and its code descend: with their step of .7 p
  does not settle if the bucket is large, and ends with up to 4.6 times the Psi.

  Args:
    bits, bucket_size, norm, weights, components, first, every, axis_name: as
      for `alq`.

  Returns:
    A `Tuned` with state `Levels`; p is the last level but one.

  Raises:
    ValueError: as for `alq`.

  >>> print(amq(bits=2).init().levels)
  [-1.  -0.5  0.5  1. ]

  Source: AMQ of arXiv:2010.12460, `amq_nb` in its code.
  """
  density = densities.norm_based(weights)
  watch = Watch(bucket_size, norm, components, first, every, axis_name)
  return _adaptive(bits, density, least_variance.of_powers, watch)


def amq_n(
  bits: int,
  bucket_size: int = 8192,
  norm: str = 'l2',
  components: int = 50,
  first: Sequence[int] = FIRST,
  every: int = EVERY,
  axis_name: str | None = None,
) -> base.Tuned:
  """AMQ-N: as `amq`, with the one density of `alq_n`.

  Args:
    bits, bucket_size, norm, components, first, every, axis_name: as for `alq`.

  Returns:
    A `Tuned` with state `Levels`; p is the last level but one.

  Raises:
    ValueError: as for `alq`.

  >>> print(amq_n(bits=2).init().levels)
  [-1.  -0.5  0.5  1. ]

  Source: AMQ-N of arXiv:2010.12460, `amq` in its code.
  """
  watch = Watch(bucket_size, norm, components, first, every, axis_name)
  return _adaptive(bits, densities.norm_less, least_variance.of_powers, watch)


def _adaptive(bits, density, fit, watch: Watch) -> base.Tuned:
  """Builds the `Tuned` of a density of `Statistics` and a fit to it."""
  bits = arguments.integer(bits)
  _check(bits, watch)
  leveled((-1, 1), watch.bucket_size, watch.norm)  # checks them

  def init():
    levels = least_variance.exponential(0.5, bits)
    return Levels(levels.astype(jnp.float32), jnp.int32(0))

  def quantizer(state, step):
    del step
    return leveled(state.levels, watch.bucket_size, watch.norm)

  def observe(state, seen, x):
    del seen

    def move(levels):
      own = densities.statistics(
        x, watch.bucket_size, watch.norm, watch.components
      )
      f = density(densities.together(own, watch.axis_name))
      levels = _agreed(levels, watch.axis_name)
      fitted = fit(f, levels).astype(jnp.float32)
      return jnp.where(jnp.sum(f.weight) > 0, fitted, levels)

    # Agreed upon, the count is one scalar for `vmap` too, and cond stays cond.
    count = _agreed(state.count, watch.axis_name)
    due = (count > 0) & (count % watch.every == 0)
    due |= jnp.any(count == jnp.array(tuple(watch.first), jnp.int32))
    levels = lax.cond(due, move, lambda levels: levels, state.levels)
    return Levels(levels, count + 1)

  return base.Tuned(init, quantizer, observe)


def _agreed(value, axis_name):
  """Tells `vmap` that a value is the same on all workers."""
  return value if axis_name is None else collectives.largest(value, axis_name)


def _check(bits: int, watch: Watch):
  first = watch.first if np.ndim(watch.first) else (-1,)  # no count at all
  schedule = (-1, *first)
  ascending = all(a < b for a, b in zip(schedule, schedule[1:], strict=False))
  for name, value, valid, range_ in (
    ('bits', bits, type(bits) is int and bits in range(2, 9), '2 to 8'),
    ('components', watch.components, watch.components >= 1, 'at least 1'),
    ('first', watch.first, ascending, 'counts that ascend, from 0 on'),
    ('every', watch.every, watch.every >= 1, 'at least 1'),
  ):
    if not valid:
      raise ValueError(f'{name}={value!r}; the choice is {range_}.')
