"""Huffman codes of the levels, from how probable each is.

Faghri et al., "Adaptive gradient quantization", NeurIPS 2020, arXiv:2010.12460,
where they follow from a density fitted to the values. Where a codeword would
be too long: Larmore and Hirschberg, "A fast algorithm for optimal
length-limited Huffman codes", J. ACM 37(3), 1990.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import numpy as np

from moniqua_jax import extras
from moniqua_jax.coding import message, prefix

_LONGEST = 16


def huffman(probabilities: Sequence[float]) -> message.Code:
  """Builds the Huffman code of single codes, a sign and a level as one symbol.

    expected bits per value <= H(code) + 1

  Never longer than a Huffman code of the levels with a bit for each sign, which
  is one of the prefix codes it is the best of (and what arXiv:2010.12460 does).
  There is a probability for each code, in their order; grids of another number
  of codes are refused.
  """
  tables = prefix.prefix(codewords(probabilities))
  count = tables.values.size

  def checked(about):
    if about.count != count:
      raise ValueError(f'{count} probabilities for {about.count} codes.')
    return tables

  return message.by_symbol(checked)


def codewords(probabilities: Sequence[float]) -> tuple[str, ...]:
  """Returns the codewords of the best code, as texts of 0 and 1.

    sum_j p_j length_j is the least of all prefix codes of at most 16 bits

  Canonical: shorter ones first. A symbol of probability 0 has a codeword, too.
  Of several codes that are as good it is the one that `bitarray` builds.
  """
  p = np.asarray(probabilities, float)
  if p.ndim != 1 or not (np.isfinite(p) & (p >= 0)).all() or not p.sum() > 0:
    raise ValueError(
      f'probabilities={probabilities!r}; not below 0, not all 0.'
    )
  if p.size > prefix.SYMBOLS:
    raise ValueError(
      f'{p.size} probabilities; a code has at most {prefix.SYMBOLS} symbols.'
    )
  p /= p.max()
  p /= p.sum()
  usual, best = _usual(p), least_lengths(p, _LONGEST)
  as_good = p @ [len(word) for word in usual] <= p @ best + 1e-12
  return usual if as_good else _canonical(best)


class Density(NamedTuple):
  """How the values r are distributed; both functions take float64 arrays."""

  cdf: Callable[[np.ndarray], np.ndarray]  # x -> F(x)
  moment: Callable[[np.ndarray], np.ndarray]  # x -> int r dF(r) up to x


def normal(mean: float, sigma: float) -> Density:
  """The normal distribution: F(x) = Phi(z), z = (x - mean) / sigma.

    moment(x) = mean Phi(z) - sigma phi(z)

  Values of a bucket over its L2 norm have sigma = 1 / sqrt(bucket_size) or so.
  """
  from scipy.special import ndtr  # slow

  z = lambda x: (np.asarray(x, float) - mean) / sigma
  cdf = lambda x: ndtr(z(x))
  pdf = lambda x: np.exp(-(z(x) ** 2) / 2) / math.sqrt(2 * math.pi)
  moment = lambda x: mean * cdf(x) - sigma * pdf(x)
  return Density(cdf, moment)


def truncated_normal(
  mean: float, sigma: float, low: float = -1.0, high: float = 1.0
) -> Density:
  """The normal distribution between two bounds, as in arXiv:2010.12460.

  F(x) = (G(x) - G(low)) / (G(high) - G(low)), G normal; the moment likewise
  """
  whole, start = normal(mean, sigma), np.array(low)
  mass = whole.cdf(np.array(high)) - whole.cdf(start)
  within = lambda f: lambda x: (f(np.clip(x, low, high)) - f(start)) / mass
  return Density(within(whole.cdf), within(whole.moment))


def level_probabilities(
  levels: Sequence[float], density: Density
) -> np.ndarray:
  """Returns how often each level comes when values are rounded at random.

    Pr(l_j) = integral of (r - l_{j-1}) / (l_j - l_{j-1}) over the cell below
            + integral of (l_{j+1} - r) / (l_{j+1} - l_j) over the cell above

  float64[k] with the sum 1; values beyond the ends become the end level.
  """
  r = np.asarray(levels, float)
  below = density.cdf(r)
  mass, moment = np.diff(below), np.diff(density.moment(r))
  up = np.clip((moment - r[:-1] * mass) / np.diff(r), 0, mass)
  probabilities = np.zeros(r.size)
  probabilities[1:] += up
  probabilities[:-1] += mass - up
  probabilities[0] += below[0]
  probabilities[-1] += 1 - below[-1]
  return probabilities / probabilities.sum()


def least_lengths(p: np.ndarray, longest: int) -> np.ndarray:
  """Returns the lengths of least p @ lengths, none above `longest`.

  Package-merge: a symbol is a coin at each length; two coins, or packages, of
  one length that are next in weight are a package for the length below. The
  2n - 2 lightest of the last list have a symbol as often as its length.
  """
  coins = np.eye(len(p), dtype=np.int64)
  weights, contents = p, coins
  for _ in range(longest - 1):
    order = np.argsort(weights, kind='stable')[: len(weights) // 2 * 2]
    weights, contents = weights[order], contents[order]
    weights = np.concatenate([p, weights[::2] + weights[1::2]])
    contents = np.concatenate([coins, contents[::2] + contents[1::2]])
  lightest = np.argsort(weights, kind='stable')[: 2 * len(p) - 2]
  return np.maximum(contents[lightest].sum(0), 1)


def _usual(p):
  """Returns a Huffman code, with the least p raised until its words fit."""
  with extras.needed('coding'):
    from bitarray import util
  least = 2.0**-30
  while True:
    weights = dict(enumerate(np.maximum(p, least).tolist()))
    words, counts, _ = util.canonical_huffman(weights)
    if len(counts) <= _LONGEST + 1:
      return tuple(words[symbol].to01() for symbol in range(len(p)))
    least *= 2


def _canonical(lengths):
  """Returns the canonical codewords of these lengths."""
  words, code, before = {}, 0, 0
  for symbol in np.argsort(lengths, kind='stable').tolist():
    length = int(lengths[symbol])
    code <<= length - before
    words[symbol], code, before = f'{code:0{length}b}', code + 1, length
  return tuple(words[symbol] for symbol in range(len(lengths)))
