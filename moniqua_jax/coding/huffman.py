"""Huffman codes of the levels, from how probable each is.

Faghri et al., "Adaptive gradient quantization", NeurIPS 2020, arXiv:2010.12460,
where they follow from a density fitted to the values. The code itself is built
by `bitarray`, canonical: shorter codewords first, then by symbol.
"""

from collections.abc import Callable, Sequence
import itertools
import math
from typing import NamedTuple

import numpy as np

from moniqua_jax import extras
from moniqua_jax.coding import message, prefix

_LONGEST = 16


def huffman(probabilities: Sequence[float]) -> message.Code:
  """The Huffman code of single codes, a sign and a level as one symbol.

    expected bits per value <= H(code) + 1

  Never longer than a Huffman code of the levels with a bit for each sign, which
  is one of the prefix codes it is the best of.

  Args:
    probabilities: of each code, in their order; see `level_probabilities`.

  Returns:
    A `Code` for grids of that many codes; others raise a ValueError as soon as
    they are met.

  Raises:
    ValueError: probabilities that are negative, not finite, or all 0.

  >>> from moniqua_jax.quantizers.base import Codes
  >>> code = huffman([0.25, 0.5, 0.25])
  >>> code.length(np.uint8([1, 1, 0, 2]), Codes(2, 3, 1, 8192))
  Array([6], dtype=int32)

  Source: arXiv:2010.12460, which codes levels and adds a bit for each sign.
  """
  tables = prefix.prefix(codewords(probabilities))
  count = tables.values.size

  def checked(about):
    if about.count != count:
      raise ValueError(f'{count} probabilities for {about.count} codes.')
    return tables

  return message.by_symbol(checked)


def codewords(probabilities: Sequence[float]) -> tuple[str, ...]:
  """The codewords of the canonical Huffman code.

  None is longer than 16 bits. Where one would be, the least probabilities are
  raised, by powers of 2, to what it takes; that is a little worse than the best
  code of that length, on symbols that hardly come. A symbol of probability 0
  has a codeword, too.

  Args:
    probabilities: of each symbol, or any weights.

  Returns:
    A text of 0 and 1 for each.

  Raises:
    ValueError: as for `huffman`.

  >>> codewords([0.25, 0.5, 0.25])
  ('10', '0', '11')
  """
  words = _tables(probabilities)[0]
  return tuple(words[symbol].to01() for symbol in range(len(words)))


def to_bytes(codes: np.ndarray, probabilities: Sequence[float]) -> bytes:
  """The codewords of a message on the host, as the stream has them.

  Args:
    codes: u8[d].
    probabilities: as for `huffman`.

  Returns:
    The bytes; the last is filled with zeros.

  Raises:
    ValueError: as for `huffman`.

  >>> to_bytes(np.uint8([1, 1, 0, 2]), [0.25, 0.5, 0.25]).hex()
  '2c'
  """
  with extras.needed('coding'):
    import bitarray

  stream = bitarray.bitarray()
  stream.encode(_tables(probabilities)[0], np.asarray(codes).tolist())
  return stream.tobytes()


def from_bytes(
  data: bytes, size: int, probabilities: Sequence[float]
) -> np.ndarray:
  """The inverse of `to_bytes`.

  Args:
    data: its bytes.
    size: number of codes, d.
    probabilities: as for `huffman`.

  Returns:
    u8[d].

  Raises:
    ValueError: as for `huffman`, or the bytes end too soon.

  >>> from_bytes(b'\\x2c', 4, [0.25, 0.5, 0.25])
  array([1, 1, 0, 2], dtype=uint8)
  """
  with extras.needed('coding'):
    from bitarray import bitarray, util

  stream = bitarray()
  stream.frombytes(data)
  _, counts, symbols = _tables(probabilities)
  # Decoding goes on into the zeros at the end, which may be half a codeword.
  decoded = util.canonical_decode(stream, counts, symbols)
  codes = np.fromiter(itertools.islice(decoded, size), np.uint8)
  if codes.size != size:
    raise ValueError(f'The bytes hold {codes.size} codes; expected {size}.')
  return codes


class Density(NamedTuple):
  """How the values r are distributed.

  Attributes:
    cdf: x -> F(x), both float64 arrays.
    moment: x -> the integral of r dF(r) up to x.

  >>> round(float(normal(0, 1).moment(0.0)), 4)
  -0.3989
  """

  cdf: Callable[[np.ndarray], np.ndarray]
  moment: Callable[[np.ndarray], np.ndarray]


def normal(mean: float, sigma: float) -> Density:
  """The normal distribution.

    F(x) = Phi(z),  moment(x) = mean Phi(z) - sigma phi(z),  z = (x-mean)/sigma

  Args:
    mean: any number.
    sigma: above 0. Values of a bucket over its L2 norm have about
      1/sqrt(bucket_size).

  Returns:
    A `Density`.

  >>> float(normal(0, 1).cdf(0))
  0.5

  Source: the moments of a normal distribution, well known.
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
  """The normal distribution between two bounds.

    F(x) = (G(x) - G(low)) / (G(high) - G(low)), G normal; the moment likewise

  Args:
    mean: any number.
    sigma: above 0.
    low: the lower bound.
    high: the upper bound.

  Returns:
    A `Density`.

  >>> float(truncated_normal(0, 1).cdf(1))
  1.0

  Source: the density of arXiv:2010.12460.
  """
  whole = normal(mean, sigma)
  mass = whole.cdf(high) - whole.cdf(low)
  within = lambda f: lambda x: (f(np.clip(x, low, high)) - f(low)) / mass
  return Density(within(whole.cdf), within(whole.moment))


def level_probabilities(
  levels: Sequence[float], density: Density
) -> np.ndarray:
  """How often each level comes when values are rounded to them at random.

    Pr(l_j) = integral of (r - l_{j-1}) / (l_j - l_{j-1}) over the cell below
            + integral of (l_{j+1} - r) / (l_{j+1} - l_j) over the cell above

  Args:
    levels: k of them, ascending. Values beyond the ends become the end level.
    density: of the values.

  Returns:
    float64[k], with the sum 1.

  >>> level_probabilities((-1, 0, 1), truncated_normal(0, 100)).round(3)
  array([0.25, 0.5 , 0.25])

  Source: arXiv:2010.12460.
  """
  levels = np.asarray(levels, float)
  mass, moment = np.diff(density.cdf(levels)), np.diff(density.moment(levels))
  up = np.clip((moment - levels[:-1] * mass) / np.diff(levels), 0, mass)
  probabilities = np.zeros(levels.size)
  probabilities[1:] += up
  probabilities[:-1] += mass - up
  probabilities[0] += density.cdf(levels[0])
  probabilities[-1] += 1 - density.cdf(levels[-1])
  return probabilities / probabilities.sum()


def _tables(probabilities):
  """Codewords as bitarrays, and what `canonical_decode` takes."""
  with extras.needed('coding'):
    from bitarray import util

  p = np.asarray(probabilities, float)
  if p.ndim != 1 or not (np.isfinite(p) & (p >= 0)).all() or not p.sum() > 0:
    raise ValueError(
      f'probabilities={probabilities!r}; not below 0, not all 0.'
    )
  p, least = p / p.sum(), 2.0**-30
  while True:
    weights = np.maximum(p, least).tolist()
    words, counts, symbols = util.canonical_huffman(dict(enumerate(weights)))
    if len(counts) <= _LONGEST + 1:
      return words, counts, symbols
    least *= 2
