"""The density that ALQ and AMQ fit to normalised gradients, in closed forms.

A mixture of normal densities, each cut off to [-1, 1]:

  f(r) = sum_n w_n phi((r - mu_n) / sigma_n) / (sigma_n Z_n)

Faghri et al., "Adaptive gradient quantization", NeurIPS 2020, arXiv:2010.12460.

In float32 differences of F cancel in the upper tail, so a cell [a, b] in
z = (r - mu) / sigma is reflected to [-b, -a] if that is further up, where erfc
has a small relative error. Cells narrower than sigma / 2, where all closed
forms cancel, are integrated by Gauss-Legendre, which has no minus.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc, ndtri
import numpy as np

Array = jax.Array

LEAST_STD = 1e-5  # a constant bucket has sigma = 0
_NARROW = 0.5  # in units of sigma
_HALVINGS = 36  # of a cell, at most 2 wide: below what float32 resolves
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)


class Mixture(NamedTuple):
  """A mixture of n normal densities, truncated to [-1, 1]."""

  mean: Array  # mu, f32[n] in [-1, 1], before truncation
  std: Array  # sigma, f32[n], before truncation; at least `LEAST_STD` is used
  weight: Array  # w, f32[n], not negative, of sum 1


def pdf(mixture: Mixture, x: Array) -> Array:
  """Returns the density f at x, f32[k] in [-1, 1]."""
  return _mixed(mixture, _phi(_z(mixture, x)) / _std(mixture))


def cdf(mixture: Mixture, x: Array) -> Array:
  """Returns the distribution F at x, from F(-1) = 0 to F(1) = 1."""
  return moments(mixture, jnp.full_like(x, -1), x)[0]


def moments(mixture: Mixture, c: Array, d: Array) -> tuple[Array, Array, Array]:
  """Integrates r^k dF from c to d, both f32[k]: m_0, m_1 and m_2.

  m_0 = F(d) - F(c)
  m_1 = mu m_0 - sigma^2 (f(d) - f(c))
  m_2 = (mu^2 + sigma^2) m_0 - sigma^2 ((d + mu) f(d) - (c + mu) f(c))
  """
  mean, std = mixture.mean[None], _std(mixture)
  near, far, _ = _reflected(_z(mixture, c), _z(mixture, d))
  m0 = _mass_between(near, far)
  left = std * _phi(_z(mixture, c))  # sigma^2 f
  right = std * _phi(_z(mixture, d))
  m1 = mean * m0 - (right - left)
  ends = (d[:, None] + mean) * right - (c[:, None] + mean) * left
  m2 = (mean**2 + std**2) * m0 - ends
  return _mixed(mixture, m0), _mixed(mixture, m1), _mixed(mixture, m2)


def cell_variance(mixture: Mixture, c: Array, d: Array) -> Array:
  """Returns what rounding at random to c or d costs: int (r - c)(d - r) dF.

  (c + d) m_1 - m_2 - c d m_0,  in z: sigma^2 (b phi(a) - a phi(b)
  - (1 + a b) m_0),  a = (c - mu) / sigma, b = (d - mu) / sigma
  """
  a, b, _ = _reflected(_z(mixture, c), _z(mixture, d))
  wide = b * _phi(a) - a * _phi(b) - (1 + a * b) * _mass_between(a, b)
  parabola = lambda t, node: (1 - node**2) * _phi(t)
  narrow = (b - a) ** 3 / 4 * _mean(parabola, a, b)
  value = jnp.where(b - a < _NARROW, narrow, jnp.maximum(wide, 0))
  return _mixed(mixture, _std(mixture) ** 2 * value)


def quantile(mixture: Mixture, q: Array) -> Array:
  """Returns F^-1: in closed form for one density, by bisection for more."""
  ends = _upper(jnp.abs(_z(mixture, jnp.array([-1.0, 1.0]))))
  below, above = _mixed(mixture, ends)  # what truncation cut off
  side = jnp.where(q < 0.5, -1, 1)
  tail = jnp.where(q < 0.5, q + below, 1 - q + above)
  one = jnp.ones_like(tail)
  x = _where_tail_is(mixture, side, tail, -one, one)
  return jnp.where(q <= 0, -1, jnp.where(q >= 1, 1, x))


def best_between(mixture: Mixture, c: Array, d: Array, start: Array) -> Array:
  """Finds the level l between c and d of least variance: ALQ's coordinate step.

    int_c^l (r - c) dF = int_l^d (d - r) dF,  that is (by parts)
    F(l) = mean of F over [c, d]
         = F(d) - ((mu - c) m_0 - sigma^2 (f(d) - f(c))) / (d - c)

  Solved for the smaller of F and 1 - F, which float32 has to a relative error.
  What truncation cuts off is the same on both sides and left out. Where float32
  sees no mass on one side, `start` is returned.
  """
  a, b, flipped = _reflected(_z(mixture, c), _z(mixture, d))
  # int_a^b of the upper tail is [phi(t) - t upper(t)] from b to a.
  antiderivative = lambda t: _phi(t) - t * _upper(t)
  narrow = _mean(lambda t, node: _upper(t), a, b)
  wide = antiderivative(a) - antiderivative(b)
  width = b - a
  wide /= jnp.where(width > 0, width, 1)
  mean = jnp.where(width < _NARROW, narrow, wide)
  above = _mixed(mixture, jnp.where(flipped, 1 - mean, mean))
  below = _mixed(mixture, jnp.where(flipped, mean, 1 - mean))
  side = jnp.where(below < above, -1, 1)
  tail = jnp.minimum(below, above)
  found = _where_tail_is(mixture, side, tail, c, d)
  return jnp.where(tail > 0, found, start)


def _where_tail_is(mixture, side, tail, c, d):
  """Finds x in [c, d] where the upper (side 1) or lower tail (-1) is `tail`."""
  if len(mixture.mean) == 1:
    total = _mixed(mixture, jnp.ones((1, 1)))
    z = -side * ndtri(tail / total)
    return jnp.clip(mixture.mean + _std(mixture)[0] * z, c, d)

  def halve(_, bracket):
    low, high = bracket
    x = (low + high) / 2
    mass = _mixed(mixture, _upper(side[:, None] * _z(mixture, x)))
    right = side * (mass - tail) > 0
    return jnp.where(right, x, low), jnp.where(right, high, x)

  low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (c, d))
  return (low + high) / 2


def _std(mixture):
  return jnp.maximum(mixture.std, LEAST_STD)[None]


def _z(mixture, x):
  """Normalises x: f32[k] -> f32[k, n]."""
  return (x[:, None] - mixture.mean[None]) / _std(mixture)


def _mixed(mixture, values):
  """Sums f32[k, n] with w / Z, Z being the mass before truncation."""
  low, high = _z(mixture, jnp.array([-1.0, 1.0]))
  mass = 1 - _upper(-low) - _upper(high)
  return jnp.sum(values * (mixture.weight / mass)[None], axis=1)


def _phi(z):
  return jnp.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def _upper(z):
  return erfc(z / np.sqrt(2)) / 2


def _reflected(a, b):
  """Returns [a, b] or [-b, -a], so that b >= |a|; and which of them."""
  flipped = a + b < 0
  return jnp.where(flipped, -b, a), jnp.where(flipped, -a, b), flipped


def _mean(fn, a, b):
  """Averages fn(t, node) over t in [a, b], for a narrow [a, b]."""
  middle, half = (a + b) / 2, (b - a) / 2
  nodes = jnp.asarray(_NODES, jnp.float32)[:, None, None]
  # One axis for the nodes: five copies would take five times to compile.
  values = fn(middle[None] + half[None] * nodes, nodes)
  weights = jnp.asarray(_WEIGHTS / 2, jnp.float32)[:, None, None]
  return jnp.sum(weights * values, axis=0)


def _mass_between(a, b):
  narrow = (b - a) * _mean(lambda t, node: _phi(t), a, b)
  return jnp.where(b - a < _NARROW, narrow, _upper(a) - _upper(b))
