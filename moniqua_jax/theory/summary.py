"""All that is known about a topology and an algorithm."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moniqua_jax import topologies
from moniqua_jax.theory import (
  bounds,
  laws,
  noise,
  responses,
  spectrum,
  theorems,
)

Topology = topologies.Topology


class Row(NamedTuple):
  """What holds with a number of bits; None where nothing does.

  Attributes:
    bits: b.
    delta: 2^-(b+1), of nearest and dithered rounding.
    theta: in units of alpha G, ours.
    gain: loop gain of a theta that follows what is seen, at the gamma given.
    brink: largest gamma with a loop gain of at most 1.
    safe: largest gamma with a loop gain of at most 1/2.

  >>> report(topologies.ring(4), 'dpsgd', bits=4).rows[0].delta
  0.03125
  """

  bits: int
  delta: float
  theta: float | None
  gain: float
  brink: float | None
  safe: float | None


class Report(NamedTuple):
  """See the lines of `table`; None where something has no meaning.

  Attributes:
    algorithm: its name.
    often: rounds in a step that talks, and one step of how many talks.
    n: workers.
    messages: that all workers together send in a round, on average.
    rounds: in a period of the schedule.
    gamma: of the slack matrix; all below but `paper`, `brink` and `safe` is of
      lazy(topology, gamma).
    safety: theta over the distance seen.
    rho: of W, per round.
    lambda_2: second largest eigenvalue.
    lambda_n: smallest eigenvalue.
    t_mix: rounds.
    paper: its values, as recalled.
    sums: S and S'.
    least_bits: with which a theta holds for certain.
    noise_floor: kappa.
    rows: one for each number of bits.
    memory: vectors of d floats that a worker keeps beyond x.
    replicas: the same over the whole graph, in the form of the papers.
    size: d, or None.

  >>> report(topologies.ring(4), 'dpsgd', bits=4).messages
  8.0
  """

  algorithm: str
  often: tuple[int, int]
  n: int
  messages: float
  rounds: int
  gamma: float
  safety: float
  rho: float
  lambda_2: float | None
  lambda_n: float | None
  t_mix: int
  paper: theorems.Paper
  sums: responses.Sums | None
  least_bits: int | None
  noise_floor: float | None
  rows: tuple[Row, ...]
  memory: int
  replicas: int | None
  size: int | None


def report(
  topology: Topology | Sequence[Topology],
  algorithm: str,
  bits: int | None = None,
  gamma: float = 1.0,
  safety: float = 1.5,
  size: int | None = None,
  delay: int = 1,
  several: int = 1,
  local_steps: int = 1,
) -> Report:
  """Everything at once.

  Args:
    topology: before `lazy`; a tuple is cycled by step.
    algorithm: a key of `LAWS`.
    bits: 1 to 8; None reports on each.
    gamma: of the slack matrix, within (0, 1].
    safety: theta over the distance seen, >= 1.
    size: d, the number of parameters, for the memory in bytes.
    delay: of adpsgd, in ticks.
    several: rounds in a step that talks.
    local_steps: one step of so many talks.

  Returns:
    A `Report`.

  Raises:
    ValueError: an argument is out of range, or the algorithm refuses the
      topology.

  >>> ring = report(topologies.ring(8), 'dpsgd', bits=4)
  >>> ring.least_bits, ring.rows[0].safe, ring.memory
  (3, 1.0, 0)

  Source: ours; what is a paper's is in its field `paper`.
  """
  _check(bits, size, delay, local_steps)
  responses.require_rounds(algorithm, several)
  noise.require_safety(safety)
  least = laws.law(algorithm).least
  if least is not None:  # names a gamma of this topology, not of the lazy one
    spectrum.require_above(least, topology, algorithm, gamma)
  slow = topologies.lazy(topology, gamma)
  rounds, weights = laws.checked(slow, algorithm)
  law, n = laws.law(algorithm), rounds[0].n
  arcs = [responses.arcs(r) for r in rounds]
  lambda_2, lambda_n = _eigenvalues(weights)
  theta = law.recursion is not None
  sums = _sums(slow, algorithm, several, local_steps) if theta else None
  return Report(
    algorithm=algorithm,
    often=(several, local_steps),
    n=n,
    messages=sum(map(len, arcs)) / len(rounds),
    rounds=len(rounds),
    gamma=gamma,
    safety=safety,
    rho=topologies.rho(weights),
    lambda_2=lambda_2,
    lambda_n=lambda_n,
    t_mix=spectrum.mixing_time(weights),
    paper=theorems.paper(topology, algorithm, gamma),
    sums=sums,
    least_bits=bounds.least_bits(slow, algorithm, several) if theta else None,
    noise_floor=noise.noise_floor(slow, algorithm) if theta else None,
    rows=_rows(topology, slow, algorithm, sums, bits, safety) if theta else (),
    memory=law.memory(delay),
    replicas=law.replicas and law.replicas(n, len(set().union(*arcs))),
    size=size,
  )


def _check(bits, size, delay, local_steps):
  if local_steps < 1:
    raise ValueError(f'local_steps={local_steps!r}; 1 or more make a period.')
  if bits is not None:
    bounds.require_bits(bits)
  if size is not None and size < 1:
    raise ValueError(f'size={size!r}; a model has at least 1 parameter.')
  if delay < 0:
    raise ValueError(f'delay={delay!r}; updates are 0 or more ticks late.')


def _eigenvalues(weights):
  """lambda_2 and lambda_n, if there is one W and it is symmetric."""
  w = weights[0]
  if len(weights) > 1 or abs(w - w.T).max() > spectrum.MARGIN:
    return None, None
  values = np.linalg.eigvalsh(w)
  return float(values[-2]), float(values[0])


def _sums(slow, algorithm, several, local_steps) -> responses.Sums:
  found = responses.sums(slow, algorithm, rounds=several)
  return found._replace(gradient=local_steps * found.gradient)


def _rows(topology, slow, algorithm, sums, bits, safety) -> tuple[Row, ...]:
  gradient, rounded = sums

  def row(b):
    gamma = lambda gain: noise.largest_gamma(
      topology, algorithm, b, safety, gain
    )
    room = 1 - rounded / (2**b - 1)
    return Row(
      bits=b,
      delta=2.0 ** -(b + 1),
      theta=gradient / room if room > 0 else None,
      gain=noise.loop_gain(slow, algorithm, b, safety),
      brink=gamma(1.0),
      safe=gamma(0.5),
    )

  return tuple(row(b) for b in (bounds.BITS if bits is None else [bits]))
