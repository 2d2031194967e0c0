"""Graphs on which any number of workers agree exactly in a few rounds.

Takezawa et al., "Beyond Exponential Graph: Communication-Efficient Topologies
for Decentralized Learning via Finite-time Convergence", NeurIPS 2023,
arXiv:2305.11420. Rounds are float64[n, n] here, of which the diagonal is not
read: it is what the other entries of a row leave.
"""

from collections.abc import Sequence
import math

import numpy as np

from moniqua_jax.topologies.base import Topology, require_whole
from moniqua_jax.topologies.given import coloured


def base_graph(n: int, k: int = 1) -> tuple[Topology, ...]:
  """Any number of workers agree in a few rounds of k messages each.

  W_{m-1} ... W_0 = 1 1^T / n,  m <= 2 log_{k+1} n + 2.

  Args:
    n: number of workers.
    k: the most messages that a worker sends in a round; k = 1 are pairs, in
      some rounds of unequal weight for different pairs, or none.

  Returns:
    A tuple of m Topologies of at most k edges, cycled by step; each one
    symmetric, so that edges can be answered. Powers of k + 1 take log_{k+1} n
    rounds; for k = 1 they are those of `one_peer_hypercube`. Some workers have
    little weight of their own in some rounds, so a code of few bits may ask for
    `lazy`, after which agreement is no longer exact.

  Raises:
    ValueError: if n < 1 or k < 1.

  >>> from moniqua_jax import spectral_gap
  >>> len(base_graph(6)), spectral_gap(base_graph(6))
  (4, 1.0)

  Source: Algorithms 1 to 3 of arXiv:2305.11420.
  """
  require_whole('base_graph', n=n, k=k)
  radices = _radices(n, k + 1)
  smooth = math.prod(radices)
  rest = n // smooth
  # Alike groups of `rest` workers agree first, then those in the same place.
  apart = [np.kron(np.eye(smooth), w) for w in _by_parts(rest, k + 1)]
  across = [np.kron(w, np.eye(rest)) for w in _by_digits(radices)]
  rounds = min(_by_parts(n, k + 1), apart + across, key=len)
  return tuple(coloured(w) for w in rounds or [np.eye(n)])


def _radices(n: int, most: int) -> list[int]:
  """Divides n by numbers of 2 to `most` for as long as one divides it."""
  divisors = [r for r in range(most, 1, -1) if n % r == 0]
  return [divisors[0], *_radices(n // divisors[0], most)] if divisors else []


def _by_digits(radices: Sequence[int]) -> list[np.ndarray]:
  """Takes means of the workers whose numbers differ in one digit, in turn."""
  n, stride, rounds = math.prod(radices), 1, []
  for radix in radices:
    mean = np.kron(np.full((radix, radix), 1 / radix), np.eye(stride))
    stride *= radix
    rounds.append(np.kron(np.eye(n // stride), mean))
  return rounds


def _by_parts(n: int, base: int) -> list[np.ndarray]:
  """Splits n as its digits do in a base, and joins the parts one by one.

    n = sum_l n_l,  n_l = a_l base^{p_l}: a_l sets of base^{p_l} workers

  Each part agrees by itself. Then for l = 0, 1, ... every worker of the later
  parts meets one of each set of part l, so that both sides, each as a whole,
  hold the mean of both; and the sets of part l agree by themselves.
  """
  parts, start = [], 0
  for p in range(n.bit_length(), -1, -1):
    a = (n - start) // base**p
    if a:
      parts.append((start, a, p))
      start += a * base**p
  _, a, p = parts[0]  # of which the sets are the largest
  first = p + (a > 1)
  count = first + (len(parts) > 1) * (1 + p)
  rounds = [np.eye(n) for _ in range(count)]
  for i, (start, a, p) in enumerate(parts):
    _put(rounds, start, _by_digits([base] * p + [a] * (a > 1)))
    if i < len(parts) - 1:
      _meet(rounds[first + i], start, a, base**p)
      sets = [np.kron(np.eye(a), w) for w in _by_digits([base] * p)]
      _put(rounds[first + i + 1 :], start, sets)
  return rounds


def _put(rounds: list[np.ndarray], start: int, blocks: list) -> None:
  """Writes blocks on the diagonals of the first of these rounds."""
  for w, block in zip(rounds, blocks, strict=False):
    part = slice(start, start + len(block))
    w[part, part] = block


def _meet(w: np.ndarray, start: int, a: int, size: int) -> None:
  """Pairs each later worker with one of each of `a` sets of `size` workers."""
  n, stop = len(w), start + a * size
  later = np.arange(stop, n)
  share = a * size / (n - start)
  for s in range(a):
    theirs = start + s * size + later - stop
    w[later, theirs] = w[theirs, later] = share / a
