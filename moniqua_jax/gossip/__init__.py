"""Gossip: each worker tells its neighbours what it holds, and moves to them.

What happens on one edge is in `edge`, one round in `one_round`, and what an
algorithm does in each step in `rounds`. A worker is a pure function of its
own arrays and the name of the axis over which the workers are laid out.

n workers, d parameters, E edges: messages that a worker sends in one round.
"""

from moniqua_jax.gossip.alone import correction, mixed
from moniqua_jax.gossip.one_round import Round, max_edges, no_news
from moniqua_jax.gossip.rounds import (
  Heard,
  Neighbours,
  neighbours,
  turn,
  worker_key,
)
from moniqua_jax.gossip.vectors import (
  consensus,
  end_to_end,
  flatten,
  vector_type,
)

__all__ = [
  'Heard',
  'Neighbours',
  'Round',
  'consensus',
  'correction',
  'end_to_end',
  'flatten',
  'max_edges',
  'mixed',
  'neighbours',
  'no_news',
  'turn',
  'vector_type',
  'worker_key',
]
