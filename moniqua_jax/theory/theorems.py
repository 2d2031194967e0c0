"""The values of the paper, as we recall them: the body was not at hand.

Lu and De Sa, "Moniqua: Modulo quantized communication in decentralized SGD",
ICML 2020, arXiv:2002.11787. Nothing here was read in it; the constants of
D-PSGD were derived again and close the induction exactly. The theorem on D^2
has constants D_1 and D_2 that we do not know well enough to print.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

from moniqua_jax import topologies
from moniqua_jax.theory import laws, spectrum

Topology = topologies.Topology


class Paper(NamedTuple):
  """What the paper sets, as recalled; None where it sets nothing we recall."""

  theta: float | None  # in units of alpha G, for a constant step size alpha
  delta: float | None  # worst error of the quantizer that it asks for
  bits: int | None  # ceil(log2(1 / (2 delta) + 1))
  note: str  # what to know about it


def _from(theta, inverse_delta, note) -> Paper:
  bits = math.ceil(math.log2(inverse_delta / 2 + 1))
  return Paper(theta, 1 / inverse_delta, bits, note)


def _dpsgd(topology, gamma) -> Paper:
  if not _one_symmetric(topology):
    return _nothing('the paper has one symmetric W for D-PSGD')(topology, gamma)
  (single,) = topologies.schedule(topology)
  gap = topologies.spectral_gap(single)
  mixing = math.log(16 * single.n) / gap
  if gamma == 1:
    return _from(2 * mixing, 8 * mixing + 2, 'paper (as recalled)')
  note = 'paper (as recalled), slack matrix; its gamma is not recalled'
  return Paper(2 * mixing / gamma, None, None, note)


def _adpsgd(topology, gamma) -> Paper:
  mixing = spectrum.t_mix(topologies.lazy(topology, gamma))
  note = 'paper (as recalled), from t_mix'
  return _from(16 * mixing, 64 * mixing + 2, note)


def _nothing(note):
  return lambda topology, gamma: Paper(None, None, None, note)


_UNKNOWN = _nothing('no theorem on it that we know of')
_PAPER = {
  'adpsgd': _adpsgd,
  'd2': _nothing('D_1 and D_2 are not known for sure: not printed; use ours'),
  'dpsgd': _dpsgd,
}


def _one_symmetric(topology) -> bool:
  rounds = topologies.schedule(topology)
  w = topologies.matrix(rounds[0])
  return len(rounds) == 1 and bool(abs(w - w.T).max() < spectrum.MARGIN)


def paper(
  topology: Topology | Sequence[Topology], algorithm: str, gamma: float = 1.0
) -> Paper:
  """theta, delta and bits of the paper's theorems, as recalled.

  dpsgd:   theta = 2 alpha G log(16 n) / (gamma (1 - rho)); without slack
           delta = (1 - rho) / (8 log(16 n) + 2 (1 - rho))
  adpsgd:  theta = 16 t_mix alpha G, delta = 1 / (64 t_mix + 2)

  The topology is that before `lazy`.

  Source: the theorems of arXiv:2002.11787 on D-PSGD, on 1 bit and on AD-PSGD.
  """
  laws.checked(topologies.lazy(topology, gamma), algorithm)
  return _PAPER.get(algorithm, _UNKNOWN)(topology, gamma)
