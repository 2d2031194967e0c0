"""A theta that holds for certain, and the fewest bits that have one. Ours.

b: bits. delta = 2^-(b+1), of nearest and dithered rounding, whence
2 delta / (1 - 2 delta) = 1 / (2^b - 1).
"""

from collections.abc import Sequence
import math

from moniqua_jax import topologies
from moniqua_jax.theory import responses

Topology = topologies.Topology

BITS = range(1, 9)


def theta(
  topology: Topology | Sequence[Topology],
  algorithm: str,
  bits: int,
  update: float,
  rounds: int = 1,
) -> float:
  """A theta that holds whatever the gradients and the rounding errors are.

  theta = S update / (1 - S' / (2^b - 1)), in exact arithmetic; float32 wants
  the few eps more of `moniqua`. In units of x, as is `update`, the bound on
  what a coordinate moves from one message to the next: alpha G, over
  1 - momentum, times the steps of `every`. `rounds`: in a step that talks.

  Source: ours; it replaces the theta of the theorem on D-PSGD, and of that on
  D^2, of arXiv:2002.11787.
  """
  require_bits(bits)
  if not 0 < update < math.inf:
    raise ValueError(f'update={update!r}; it must be positive and finite.')
  gradient, noise = responses.sums(topology, algorithm, rounds=rounds)
  room = 1 - noise / (2**bits - 1)
  if room <= 0:
    fewest = least_bits(topology, algorithm, rounds) or 'more than 8'
    raise ValueError(
      f'bits={bits}: no theta of {algorithm} holds against the worst rounding '
      f"errors, as S' = {noise:.3g} is not below 2^bits - 1 = {2**bits - 1}; "
      f'take {fewest} bits, or a theta that follows what is seen '
      '(auto_theta_limit).'
    )
  return gradient * update / room


def least_bits(
  topology: Topology | Sequence[Topology], algorithm: str, rounds: int = 1
) -> int | None:
  """The fewest bits with which a theta holds for certain: 2^b - 1 > S'."""
  noise = responses.sums(topology, algorithm, rounds=rounds).noise
  return next((b for b in BITS if 2**b - 1 > noise), None)


def require_bits(bits: int) -> None:
  """Refuses what is no number of bits per code."""
  if bits not in BITS:
    raise ValueError(f'bits={bits!r}; a code has 1 to 8 bits.')
