"""Decentralized training in JAX: a few bits per parameter instead of 32.

This file is the table of contents: every public name, and nothing else.
"""

from moniqua_jax.algorithms import allreduce, dpsgd, quantize
from moniqua_jax.gossip import correction
from moniqua_jax.quantizers import (
  Quantizer,
  Seen,
  Tuned,
  full_precision,
  moniqua,
  scaled,
  scheduled,
  uniform,
  within,
)
from moniqua_jax.topologies import (
  Topology,
  complete,
  exponential,
  from_graph,
  from_matrix,
  hypercube,
  lazy,
  matrix,
  one_peer_exponential,
  random_matchings,
  ring,
  spectral_gap,
  star,
  torus,
)
from moniqua_jax.wire import nbytes, pack, unpack
from moniqua_jax.workers import pmapped, sharded, simulated

__all__ = [
  'Quantizer',
  'Seen',
  'Topology',
  'Tuned',
  'allreduce',
  'complete',
  'correction',
  'dpsgd',
  'exponential',
  'from_graph',
  'from_matrix',
  'full_precision',
  'hypercube',
  'lazy',
  'matrix',
  'moniqua',
  'nbytes',
  'one_peer_exponential',
  'pack',
  'pmapped',
  'quantize',
  'random_matchings',
  'ring',
  'scaled',
  'scheduled',
  'sharded',
  'simulated',
  'spectral_gap',
  'star',
  'torus',
  'uniform',
  'unpack',
  'within',
]
