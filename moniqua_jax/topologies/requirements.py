"""What algorithms ask of W: connected, doubly stochastic, symmetric."""

import numpy as np

from moniqua_jax.topologies.base import ROUNDING, TOLERANCE, matrix, rounds_of

MANY_PEERS = 'Use ring, torus, hypercube, complete or from_graph'


def check_connected(w: np.ndarray, subject: str) -> None:
  """Refuses weights over which some worker never hears of another.

  A weight below ROUNDING joins nobody: in float32 nothing moves by it.
  """
  from scipy.sparse import csgraph, csr_array  # slow

  count, label = csgraph.connected_components(
    csr_array(w > ROUNDING), connection='strong'
  )
  if count > 1:
    groups = sorted(np.flatnonzero(label == k).tolist() for k in range(count))
    raise ValueError(
      f'{subject} is not connected: messages do not pass both ways between '
      f'the groups of workers {groups}.'
    )


def require_doubly_stochastic(schedule, algorithm: str) -> None:
  """Refuses weights that would move the mean of the workers.

  1^T W = 1^T in each round (W 1 = 1 always holds).

  Args:
    schedule: a Topology, or a tuple of them.
    algorithm: the name that the error blames.

  Raises:
    ValueError: naming the column whose sum is furthest from 1.

  >>> from moniqua_jax import exponential
  >>> require_doubly_stochastic(exponential(6), 'dpsgd')

  Source: Lian et al. 2017 (the assumptions on W).
  """
  for k, r in enumerate(rounds_of(schedule)):
    sums = matrix(r).sum(0)
    j = int(np.argmax(abs(sums - 1)))
    # from_matrix allows each of the two sums TOLERANCE, and moves one of them
    # into the diagonal.
    if abs(sums[j] - 1) > 2 * TOLERANCE:
      raise ValueError(
        f'{algorithm} needs a doubly stochastic W, else the mean of the '
        f'workers moves; in round {k} column {j}, what worker {j} gives, sums '
        f'to {sums[j]} instead of 1. Use from_matrix or from_graph, which '
        'ensure it, or push_sum, which does without.'
      )


def require_symmetric(
  schedule, algorithm: str, instead: str = MANY_PEERS
) -> None:
  """Refuses weights that differ between the two directions of an edge.

  W = W^T in each round.

  Args:
    schedule: a Topology, or a tuple of them.
    algorithm: the name that the error blames.
    instead: the topologies that the error names.

  Raises:
    ValueError: naming the two entries that differ most.

  >>> from moniqua_jax import ring
  >>> require_symmetric(ring(6), 'd2')

  Source: Lu and De Sa 2020 (the assumptions on W).
  """
  for k, r in enumerate(rounds_of(schedule)):
    w = matrix(r)
    i, j = np.unravel_index(np.argmax(abs(w - w.T)), w.shape)
    if abs(w[i, j] - w[j, i]) > TOLERANCE:
      raise ValueError(
        f'{algorithm} needs a symmetric W; in round {k} W[{i}, {j}] = '
        f'{w[i, j]} but W[{j}, {i}] = {w[j, i]}. {instead}, or give '
        'from_matrix (w + w.T) / 2.'
      )
