"""Who sends to whom, and with which weight: W as a sum of permutations.

A topology is a list of edges, each a full permutation of the workers and a
weight: exactly what one collective permute carries and what it is worth.

  W = I + sum_k diag(w_k) (P_k - I),   P_k[perm[i], i] = 1,   x_new = W x

n: workers.  Row i of W is receiver i, column j is sender j; a worker's own
weight is what its edges leave.  All of this runs on the host, in float64,
before anything is traced.

References, by first author below:
  Lian et al., "Can Decentralized Algorithms Outperform Centralized
    Algorithms?" (D-PSGD), NeurIPS 2017.
  Lu and De Sa, "Moniqua: Modulo Quantized Communication in Decentralized SGD",
    ICML 2020.
  Ying et al., "Exponential Graph is Provably Efficient for Decentralized Deep
    Training", NeurIPS 2021.
  Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML
    2019.
  Takezawa et al., "Beyond Exponential Graph: Communication-Efficient Topologies
    for Decentralized Learning via Finite-time Convergence", NeurIPS 2023.
  Koenig, "Ueber Graphen und ihre Anwendung auf Determinantentheorie und
    Mengenlehre", 1916; Birkhoff, "Tres observaciones sobre el algebra lineal",
    1946.
"""

from moniqua_jax.topologies.agreement import (
  require_agreement,
  rho,
  spectral_gap,
)
from moniqua_jax.topologies.base import (
  Topology,
  matrix,
  push_matrix,
  sources,
)
from moniqua_jax.topologies.finite_time import base_graph
from moniqua_jax.topologies.given import (
  from_graph,
  from_matrix,
)
from moniqua_jax.topologies.named import (
  complete,
  exponential,
  hypercube,
  one_peer_exponential,
  one_peer_hypercube,
  random_matchings,
  ring,
  star,
  torus,
)
from moniqua_jax.topologies.requirements import (
  require_doubly_stochastic,
  require_symmetric,
)
from moniqua_jax.topologies.rounds import (
  lazy,
  one_symmetric,
  push_schedule,
  schedule,
)

# Those that a name and numbers choose: in a config, on a command line.
BY_NAME = {
  make.__name__: make
  for make in (
    base_graph,
    complete,
    exponential,
    hypercube,
    one_peer_exponential,
    one_peer_hypercube,
    random_matchings,
    ring,
    star,
    torus,
  )
}

__all__ = [
  'BY_NAME',
  'Topology',
  'base_graph',
  'complete',
  'exponential',
  'from_graph',
  'from_matrix',
  'hypercube',
  'lazy',
  'matrix',
  'one_peer_exponential',
  'one_peer_hypercube',
  'one_symmetric',
  'push_matrix',
  'push_schedule',
  'random_matchings',
  'require_agreement',
  'require_doubly_stochastic',
  'require_symmetric',
  'rho',
  'ring',
  'schedule',
  'sources',
  'spectral_gap',
  'star',
  'torus',
]
