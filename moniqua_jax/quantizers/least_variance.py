"""The levels of least variance Psi for a density: how ALQ and AMQ find them.

Faghri et al., "Adaptive gradient quantization", NeurIPS 2020, arXiv:2010.12460;
step sizes and starts as in its code, Tabrizian/learning-to-quantize.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax.quantizers import truncated_normal as tn

Array = jax.Array
Fit = Callable[[tn.Mixture, Array], Array]  # the levels so far -> levels

_GAP = 2.0**-22  # between levels of ALQ; two float32 next to 1 are 2^-24 apart
_STEP, _ITERATIONS = 0.7, 50  # of the descent on p
_STARTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def psi(levels: Array, density: tn.Mixture) -> Array:
  """Returns the variance of one value of a bucket of norm 1, rounded to levels.

    Psi(l) = sum_j int_{l_j}^{l_{j+1}} (r - l_j) (l_{j+1} - r) dF

  For a bucket of d values: E|x_hat - x|^2 / norm^2 = d Psi.
  """
  return jnp.sum(tn.cell_variance(density, levels[:-1], levels[1:]))


def exponential(p: Array | float, bits: int) -> Array:
  """Returns the levels +-(1, p, p^2, ...), f32[2^bits] ascending, without zero.

  Levels that float32 cannot tell from 0 are put at multiples of 1e-30.
  """
  j = np.arange(2 ** (bits - 1))
  # The larger of two sequences that descend descends.
  least = np.float32(1e-30) * (len(j) - j)
  half = jnp.maximum(jnp.asarray(p, jnp.float32) ** j, least)
  return jnp.concatenate([-half, half[::-1]])


def from_starts(sweeps: int) -> Fit:
  """Builds ALQ's fit: `coordinate_descent` from four grids, lowest Psi kept.

  They are quantiles, uniform and exponential levels, and the present ones.
  """
  if type(sweeps) is not int or sweeps < 1:
    raise ValueError(f'sweeps={sweeps!r}; it must be at least 1.')

  def fit(density, levels):
    count = len(levels)
    even = jnp.linspace(0, 1, count)
    starts = jnp.stack(
      [
        tn.quantile(density, even),
        2 * even - 1,
        exponential(0.5, (count - 1).bit_length()),
        levels,
      ]
    )
    descend = lambda start: coordinate_descent(_apart(start), density, sweeps)
    return _lowest(jax.vmap(descend)(starts), density)

  return fit


def coordinate_descent(
  levels: Array, density: tn.Mixture, sweeps: int
) -> Array:
  """Moves each level to its best place between its neighbours, ALQ's descent.

  Odd ones, then even ones; the levels are at least 2^-22 apart, k is even, and
  Psi does not rise.
  """

  def half(levels, j):
    c, own, d = levels[j - 1 : -2 : 2], levels[j:-1:2], levels[j + 1 :: 2]
    best = tn.best_between(density, c, d, own)
    return levels.at[j:-1:2].set(jnp.clip(best, c + _GAP, d - _GAP))

  sweep = lambda _, levels: half(half(levels, 1), 2)
  return lax.fori_loop(0, sweeps, sweep, levels)


def of_powers(density: tn.Mixture, levels: Array) -> Array:
  """AMQ's fit: +-(1, p, p^2, ...) with p by gradient descent, lowest Psi kept.

  p <- p - .7 dPsi/dp,  50 times from each of .1, ..., .9 and the present p
  """
  bits = (len(levels) - 1).bit_length()
  # The negative half is the positive one of the mirrored density.
  both = tn.Mixture(
    jnp.concatenate([density.mean, -density.mean]),
    jnp.tile(density.std, 2),
    jnp.tile(density.weight / 2, 2),
  )

  def descend(p):
    step = lambda _, p: jnp.clip(
      p - _STEP * psi_slope(p, both, bits), 0.001, 0.999
    )
    return lax.fori_loop(0, _ITERATIONS, step, p)

  starts = jnp.append(jnp.array(_STARTS), levels[-2])
  grids = jax.vmap(lambda p: exponential(descend(p), bits))(starts)
  return _lowest(grids, density)


def psi_slope(p: Array, density: tn.Mixture, bits: int) -> Array:
  """Returns dPsi/dp of the levels p^s, ..., p, 1 over [0, 1].

  2 s p^(2s-1) m_0(0, p^s) + sum_{j<s} [ A_j m_1 - (2j+1) p^(2j) m_0 ],
  m over [p^(j+1), p^j],  A_j = j p^(j-1) + (j+1) p^j,  s = 2^(bits-1) - 1
  """
  s = 2 ** (bits - 1) - 1
  j = np.arange(s)
  a = j * p ** (j - 1) + (j + 1) * p**j
  m0, m1, _ = tn.moments(density, p ** (j + 1), p**j)
  centre, _, _ = tn.moments(density, jnp.zeros(1), p[None] ** s)
  outer = jnp.sum(a * m1 - (2 * j + 1) * p ** (2 * j) * m0)
  return 2 * s * p ** (2 * s - 1) * centre[0] + outer


def _apart(levels):
  """Moves levels at least _GAP apart, from -1 to 1: the two ends stay."""
  room = _GAP * np.arange(len(levels), dtype=np.float32)
  levels = lax.cummax(levels - room) + room
  return jnp.minimum(levels, 1 - room[::-1])


def _lowest(candidates, density):
  losses = jax.vmap(lambda levels: psi(levels, density))(candidates)
  return candidates[jnp.argmin(losses)]
