"""The levels of least variance Psi for a density: how ALQ and AMQ find them.

Faghri et al., "Adaptive gradient quantization", NeurIPS 2020, arXiv:2010.12460,
and its code, Tabrizian/learning-to-quantize. Ours are the search for p, whose
descent there need not converge, and ALQ's start from cells of equal cost.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import arguments
from moniqua_jax.quantizers import truncated_normal as tn

Array = jax.Array
Fit = Callable[[tn.Mixture, Array], Array]  # the levels so far -> levels

_GAP = 2.0**-22  # between levels of ALQ; two float32 next to 1 are 2^-24 apart
_ROUNDS = 10  # after which the cells cost the same to a few percent
_RANGE = 0.001, 0.999  # of p
_POINTS, _ZOOMS = 64, 4  # of the search for it, to 5e-6 of log p


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
  half = jnp.maximum(
    lax.pow(jnp.asarray(p, jnp.float32), jnp.asarray(j)), least
  )
  return jnp.concatenate([-half, half[::-1]])


def from_starts(sweeps: int) -> Fit:
  """Builds ALQ's fit: `coordinate_descent` from five grids, lowest Psi kept.

  They are quantiles, uniform and exponential levels, the present ones, and
  quantiles moved by `evened`: sweeps move a level past its neighbours only, and
  of many levels the others hardly get anywhere.
  """
  sweeps = arguments.integer(sweeps)
  if type(sweeps) is not int or sweeps < 1:
    raise ValueError(f'sweeps={sweeps!r}; it must be at least 1.')

  def fit(density, levels):
    count = len(levels)
    even = jnp.linspace(0, 1, count)
    quantiles = _apart(tn.quantile(density, even))
    starts = jnp.stack(
      [
        quantiles,
        _apart(2 * even - 1),
        _apart(exponential(0.5, (count - 1).bit_length())),
        _apart(levels),
        evened(quantiles, density),
      ]
    )
    descend = lambda start: coordinate_descent(start, density, sweeps)
    return _lowest(jax.vmap(descend)(starts), density)

  return fit


def evened(levels: Array, density: tn.Mixture) -> Array:
  """Moves levels until all cells have the same part of Psi, ten rounds of it.

  A narrow cell of width h costs f h^3 / 6, so that Psi of many levels is least
  where their density is as f^(1/3) and all cells cost the same. A round takes
  cost^(1/3) as spread evenly over each cell.
  """
  count = len(levels)

  def even_out(_, levels):
    cost = tn.cell_variance(density, levels[:-1], levels[1:])
    share = jnp.append(0, jnp.cumsum(jnp.cbrt(cost)))
    wanted = jnp.linspace(0, 1, count) * share[-1]
    moved = jnp.interp(wanted, share, levels)
    return _apart(levels.at[1:-1].set(moved[1:-1]))  # the ends stay

  return lax.fori_loop(0, _ROUNDS, even_out, levels)


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
  """AMQ's fit: +-(1, p, p^2, ...) of least Psi, or the present ones if less.

  Psi has several minima in p if the bucket is large: one for each number of
  levels beyond the mass, all but one of them far above it. So 64 values of p,
  from .001 to .999 in even ratios of log p, are tried; then as many between the
  neighbours of the best, three times.
  """
  bits = (len(levels) - 1).bit_length()
  grid = lambda at: exponential(jnp.exp(-jnp.exp(at)), bits)

  def zoom(_, ends):
    low, high = ends
    at = jnp.linspace(low, high, _POINTS)
    # One after another: together they would take 64 times the memory.
    best = at[jnp.argmin(lax.map(lambda a: psi(grid(a), density), at))]
    step = (high - low) / (_POINTS - 1)
    return jnp.maximum(best - step, low), jnp.minimum(best + step, high)

  # What is found may differ between workers, and so may 0 times a weight.
  none = 0 * density.weight[0]
  ends = tuple(none + np.log(-np.log(p)) for p in reversed(_RANGE))
  low, high = lax.fori_loop(0, _ZOOMS, zoom, ends)
  found = grid((low + high) / 2)
  # By more than rounding: near the least Psi is flat.
  better = psi(levels, density) < 0.9999 * psi(found, density)
  return jnp.where(better, levels, found)


def _apart(levels):
  """Moves levels at least _GAP apart, from -1 to 1: the two ends stay."""
  room = _GAP * np.arange(len(levels), dtype=np.float32)
  levels = lax.cummax(levels - room) + room
  return jnp.minimum(levels, 1 - room[::-1])


def _lowest(candidates, density):
  losses = jax.vmap(lambda levels: psi(levels, density))(candidates)
  return candidates[jnp.argmin(losses)]
