"""Topologies from a matrix of weights, or from a graph."""

from typing import TYPE_CHECKING

import numpy as np

from moniqua_jax import extras
from moniqua_jax.topologies.base import ROUNDING, TOLERANCE, Topology, Weight
from moniqua_jax.topologies.requirements import check_connected

if TYPE_CHECKING:
  import networkx as nx


def from_matrix(w: np.ndarray) -> Topology:
  """The edges of any doubly stochastic W, as few of them as there can be.

  max_i max(in_i, out_i) edges, in_i and out_i the off-diagonal non-zeros of
  row i and column i: no worker is ever made to wait for another (Koenig).

  Args:
    w: float[n, n], W_ij what receiver i makes of sender j; need not be
      symmetric. The diagonal is taken as what the other entries leave. Entries
      below 1e-6 / n are what rounding left of 0; and where it has parted W_ij
      from W_ji, no further than 1e-6, both are their mean.

  Returns:
    A Topology whose `matrix` is `w` to 1e-6. An idle worker's arc is a
    self-loop, always so if each worker sends to as many as it hears (every
    symmetric W); else there are sum_i max(0, in_i - out_i) messages of weight
    0, the minimum.

  Raises:
    ValueError: if `w` is not square, has an entry that is negative or not
      finite, a row or column sum that is not 1 to 1e-6, or is not connected.

  >>> from_matrix([[0.75, 0.25], [0.25, 0.75]]).edges
  ((0.25, (1, 0)),)

  Source: Koenig 1916 (colouring the edges of bipartite graphs).
  """
  w = np.array(w, np.float64)
  _check_entries(w)
  w = _without_noise(w)
  _check_sums(w)
  check_connected(w, 'the graph of w')
  return coloured(w)


def coloured(w: np.ndarray) -> Topology:
  """`from_matrix` of a W without noise, which need not join all workers."""
  w = w * ~np.eye(len(w), dtype=bool)
  w /= max(1, w.sum(1).max())  # an off-diagonal sum of 1 + 1e-7 is float32's
  return Topology([_take(w, senders) for senders in _colour(w > 0)])


def _check_entries(w: np.ndarray) -> None:
  if w.ndim != 2 or w.shape[0] != w.shape[1] or not w.size:
    raise ValueError(f'w must be a square matrix; got shape {w.shape}.')
  bad = np.argwhere(~np.isfinite(w) | (w < -_noise(w))).tolist()
  if bad:
    i, j = bad[0]
    raise ValueError(f'w[{i}, {j}] = {w[i, j]} must be finite and at least 0.')


def _noise(w: np.ndarray) -> float:
  """What is no weight: n of them are within what a sum may be off."""
  return TOLERANCE / len(w)


def _without_noise(w: np.ndarray) -> np.ndarray:
  """Puts right what rounding made of 0, and of a symmetric matrix."""
  if abs(w - w.T).max() <= TOLERANCE:
    w = (w + w.T) / 2  # so that an arc that stays has one back
  return np.where(w > _noise(w), w, 0)


def _check_sums(w: np.ndarray) -> None:
  for name, sums in (('row', w.sum(1)), ('column', w.sum(0))):
    worst = int(np.argmax(abs(sums - 1)))
    if abs(sums[worst] - 1) > TOLERANCE:
      raise ValueError(
        f'w must be doubly stochastic, but {name} {worst} sums to '
        f'{sums[worst]} instead of 1.'
      )


def _colour(heard: np.ndarray) -> list[np.ndarray]:
  """Splits arcs, bool[receiver, sender], into rounds, each senders int[n].

  Padded until each worker has `degree` arcs in and as many out, the arcs are a
  regular bipartite multigraph: it has a perfect matching, and is regular again
  without it. Self-loops are the padding that costs nothing, so they come first.
  """
  from scipy.sparse import csgraph, csr_array  # slow

  workers = np.arange(len(heard))
  into, out = heard.sum(1), heard.sum(0)
  degree = max(1, into.max(), out.max())
  arcs = heard + np.diag(degree - np.maximum(into, out))
  receivers = np.repeat(workers, degree - arcs.sum(1))
  senders = np.repeat(workers, degree - arcs.sum(0))
  np.add.at(arcs, (receivers, senders), 1)

  colours = []
  for _ in range(degree):
    senders = csgraph.maximum_bipartite_matching(csr_array(arcs), 'column')
    arcs[workers, senders] -= 1
    colours.append(senders)
  return colours


def _take(w: np.ndarray, senders: np.ndarray) -> tuple[Weight, np.ndarray]:
  """Moves one edge out of `w`: padding that repeats an arc finds 0 there."""
  workers = np.arange(len(w))
  weight = w[workers, senders]
  w[workers, senders] = 0
  # Self-loops do not care for the weight, so it may be the others' constant;
  # the least, so that no row grows.
  moving = weight[senders != workers] if (senders != workers).any() else [0.0]
  one = np.min(moving) if np.ptp(moving) <= ROUNDING else weight
  return one, np.argsort(senders)


def from_graph(g: 'nx.Graph') -> Topology:
  """Metropolis weights on any connected undirected graph.

  W_ij = 1 / (1 + max(deg_i, deg_j)) on its edges.

  Args:
    g: networkx graph. Its nodes become workers 0..n-1 in sorted order, or in
      the order of iteration if they cannot be sorted; self-loops and the
      graph's own weights are ignored.

  Returns:
    A Topology of max deg_i edges, symmetric; idle workers send nothing.

  Raises:
    ValueError: if `g` is directed, empty or not connected.

  >>> import networkx as nx
  >>> from moniqua_jax import matrix
  >>> matrix(from_graph(nx.path_graph(3))).round(2).tolist()
  [[0.67, 0.33, 0.0], [0.33, 0.33, 0.33], [0.0, 0.33, 0.67]]

  Source: Xiao, Boyd, Lall, "Distributed Average Consensus with Time-Varying
  Metropolis Weights", 2006.
  """
  with extras.needed('graphs'):
    import networkx as nx

  if not isinstance(g, nx.Graph) or g.is_directed() or not len(g):
    raise ValueError(
      'from_graph needs an undirected graph with a node, of networkx; got '
      f'{g!s:.60}. A directed one can be given to from_matrix, as a doubly '
      'stochastic matrix.'
    )
  try:
    nodes = sorted(g)
  except TypeError:
    nodes = list(g)
  parts = [[v for v in nodes if v in c] for c in nx.connected_components(g)]
  if len(parts) > 1:
    raise ValueError(f'g is not connected: its parts are the nodes {parts}.')
  return metropolis(nx.to_numpy_array(g, nodelist=nodes, weight=None) > 0)


def metropolis(near: np.ndarray) -> Topology:
  """`from_graph`, of a symmetric bool[n, n] whose diagonal is ignored."""
  near = near & ~np.eye(len(near), dtype=bool)
  degree = near.sum(0)
  w = near / (1 + np.maximum.outer(degree, degree))
  return from_matrix(w + np.diag(1 - w.sum(1)))
