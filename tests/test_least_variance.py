"""Levels and p of least Psi, against dense searches in float64."""

import functools

import jax
import numpy as np
import pytest
from scipy import special

from moniqua_jax.quantizers import least_variance
from moniqua_jax.quantizers import truncated_normal as tn

BITS = range(2, 9)
COMPONENTS = 4


class Dense:
  """Psi of a mixture of normals cut off to [-1, 1], by its moments."""

  def __init__(self, density):
    mean, std, weight = (np.float64(each) for each in density)
    self.mean, self.std = mean, np.maximum(std, tn.LEAST_STD)
    ends = special.ndtr(self._z(np.array([-1, 1])))
    self.weight = weight / (ends[1] - ends[0])

  def _z(self, x):
    return (x[..., None] - self.mean) / self.std

  def moments(self, x):
    """int r^k dF up to x, k = 0, 1, 2."""
    z = self._z(x)
    below, bell = special.ndtr(z), np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    m, s = self.mean, self.std
    each = below, m * below - s * bell
    each += ((m**2 + s**2) * below - s * bell * (x[..., None] + m),)
    return np.stack([moment @ self.weight for moment in each])

  def cost(self, c, d):
    """int (r - c) (d - r) dF from c to d."""
    m0, m1, m2 = self.moments(d) - self.moments(c)
    return np.maximum((c + d) * m1 - m2 - c * d * m0, 0)

  def psi(self, levels):
    return self.cost(levels[..., :-1], levels[..., 1:]).sum(-1)

  def nodes(self, count):
    """Many where levels are, as f^(1/3), and some far out."""
    far = np.sinh(np.linspace(-9, 9, 600))
    x = self.mean[:, None] + self.std[:, None] * far
    x = np.unique(np.clip(np.append(x.ravel(), [-1, 1]), -1, 1))
    bell = np.exp(-(self._z(x) ** 2) / 2) / self.std
    near = np.cbrt(bell @ self.weight)
    wide = 1 / (abs(x) + self.std.min())
    mass = lambda f: np.append(0, np.cumsum((f[1:] + f[:-1]) * np.diff(x)))
    share = mass(near) / mass(near)[-1] + 0.25 * mass(wide) / mass(wide)[-1]
    return np.interp(np.linspace(0, share[-1], count), share, x)

  def least_psi(self, count, nodes):
    """Of `count` levels: the best path through the nodes, then around it."""
    x = self.nodes(nodes)
    cost = self.cost(*np.broadcast_arrays(x[:, None], x[None]))
    cost[np.tri(nodes, dtype=bool)] = np.inf
    levels = self._path([x[:1], *[x] * (count - 2), x[-1:]], lambda j: cost)
    for width in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
      room = np.minimum(np.diff(levels)[1:], np.diff(levels)[:-1])
      around = levels[1:-1, None] + width * room[:, None] * np.linspace(
        -0.9, 0.9, 7
      )
      places = [levels[:1], *around, levels[-1:]]

      def between(j, places=places):
        c, d = np.broadcast_arrays(places[j][:, None], places[j + 1][None])
        return np.where(c < d, self.cost(c, d), np.inf)

      levels = self._path(places, between)
    return self.psi(levels)

  def _path(self, places, cost):
    """The cheapest way through one of each of the places, in order."""
    total, back, last = np.zeros(1), [], len(places) - 2
    for j in range(last + 1):
      step = cost(j)
      step = step[:1] if j == 0 else step
      step = step[:, -1:] if j == last else step
      ways = total[:, None] + step
      back.append(ways.argmin(0))
      total = ways.min(0)
    at, path = 0, []
    for j in reversed(range(last + 1)):
      path.append(places[j + 1][at])
      at = back[j][at]
    return np.array([places[0][0], *reversed(path)])


def gradient(law):
  rng = np.random.default_rng(5)
  normal = rng.standard_normal(2**15)
  if law == 'real':
    from tests.test_coding import gradient_of_the_digits

    return np.float64(gradient_of_the_digits())
  return {
    'normal': normal,
    'student': rng.standard_t(3, normal.size),
    'sparse': np.where(rng.random(normal.size) < 0.03, normal, 0),
    'scales': normal * np.exp(np.repeat(rng.standard_normal(2**9), 2**6)),
  }[law]


@functools.cache
def density(law, bucket, norm, kind):
  """What ALQ and AMQ ('mixture'), or ALQ-N and AMQ-N ('one'), fit to it."""
  x = gradient(law)
  rows = x[: len(x) // bucket * bucket].reshape(-1, bucket)
  size = np.linalg.norm(rows, axis=1) if norm == 'l2' else abs(rows).max(1)
  largest = np.argsort(-size)[:COMPONENTS]
  largest = largest[np.arange(COMPONENTS) % len(largest)]
  u = rows[largest] / size[largest, None]
  mean, std, weight = u.mean(1), u.std(1, ddof=1), size[largest] ** 2
  if kind == 'one':
    mean, std = 0 * mean + u.mean(), 0 * std + u.std()
  return tn.Mixture(*np.float32([mean, std, weight / weight.sum()]))


FEW = [
  ('normal', 256, 'l2', 'mixture'),
  ('normal', 64, 'l2', 'one'),
  ('student', 8192, 'linf', 'one'),
  ('sparse', 8192, 'l2', 'mixture'),
  ('scales', 512, 'linf', 'mixture'),
]
ALL = [
  (law, bucket, norm, kind)
  for law in ('normal', 'student', 'sparse', 'scales', 'real')
  for bucket in (64, 512, 8192)
  for norm in ('l2', 'linf')
  for kind in ('mixture', 'one')
]


@functools.cache
def fitted(method, bits):
  fit = {
    'amq': least_variance.of_powers,
    'alq': least_variance.from_starts(30),
  }[method]
  start = np.asarray(least_variance.exponential(0.5, bits))
  return jax.jit(lambda density: fit(density, start))


def of_all_p(bits):
  """A dense grid of +-(1, p, p^2, ...), even in log p."""
  log_p = np.geomspace(0.001, 6.9, 1000)
  half = np.exp(-np.outer(log_p, np.arange(2 ** (bits - 1))))
  return np.concatenate([-half, half[:, ::-1]], axis=1)


cases = lambda fast: pytest.mark.parametrize(
  'bits, rows',
  [(bits, FEW) for bits in fast]
  + [pytest.param(bits, ALL, marks=pytest.mark.slow) for bits in BITS],
  ids=lambda value: {len(FEW): 'few', len(ALL): 'all'}.get(
    len(value) if isinstance(value, list) else 0, str(value)
  ),
)


@cases(fast=(2, 8))
def test_no_p_has_less_variance_than_that_of_amq(bits, rows):
  for row in rows:
    exact = Dense(density(*row))
    least = exact.psi(of_all_p(bits)).min()
    found = exact.psi(np.float64(fitted('amq', bits)(density(*row))))
    assert found <= 1.005 * least, row


def test_amq_never_leaves_a_better_p():
  # A bucket of one value: Psi is 0 in a hair's breadth around its mean.
  spike = tn.Mixture(*np.float32([[0.3] * 4, [1e-5] * 4, [0.25] * 4]))
  there = np.float32([-1, -0.3, 0.3, 1])
  fit = jax.jit(least_variance.of_powers)
  found = np.float64(fit(spike, there))
  exact = Dense(spike)
  assert exact.psi(found) <= 1.01 * exact.psi(np.float64(there))


@cases(fast=(5,))
def test_no_levels_have_less_variance_than_those_of_alq(bits, rows):
  nodes = 400 if bits < 7 else 600
  for row in rows:
    exact = Dense(density(*row))
    least = exact.least_psi(2**bits, nodes)
    found = exact.psi(np.float64(fitted('alq', bits)(density(*row))))
    assert found <= 1.005 * least, row


def test_even_cells_cost_the_same():
  d = density('normal', 512, 'l2', 'one')
  levels = np.linspace(-1, 1, 64, dtype=np.float32)
  levels = jax.jit(least_variance.evened)(levels, d)
  cost = Dense(d).cost(*np.float64([levels[:-1], levels[1:]]))[8:-8]
  assert cost.max() < 1.2 * cost.min()
