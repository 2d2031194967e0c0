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
  """What holds with a number of bits; None where nothing does."""

  bits: int
  delta: float  # 2^-(bits + 1), of nearest and dithered rounding
  theta: float | None  # in units of alpha G, ours
  gain: float  # of a theta that follows what is seen, at the gamma given
  fitted: float  # the same of `fitted_theta`, for a million values
  brink: float | None  # largest gamma with a loop gain of at most 1
  safe: float | None  # largest gamma with a loop gain of at most 1/2


class Report(NamedTuple):
  """See the lines of `table`; None where something has no meaning.

  All below gamma but `paper`, `brink` and `safe` is of lazy(topology, gamma).
  """

  algorithm: str
  often: tuple[int, int, int]  # rounds; in one of how many steps; fragments
  n: int  # workers
  messages: float  # that all workers together send in a round, on average
  rounds: int  # in a period of the schedule
  gamma: float
  safety: float  # theta over the distance seen
  rho: float  # of W, per round
  lambda_2: float | None  # second largest eigenvalue
  lambda_n: float | None  # smallest eigenvalue
  t_mix: int  # rounds
  paper: theorems.Paper
  sums: responses.Sums | None
  least_bits: int | None  # with which a theta holds for certain
  noise_floor: float | None  # kappa
  rows: tuple[Row, ...]  # one for each number of bits
  memory: int  # vectors of d floats that a worker keeps beyond x
  replicas: int | None  # the same over the whole graph, in the papers' form
  size: int | None  # d


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
  fragments: int = 1,
) -> Report:
  """Everything at once, of a topology before `lazy`.

  >>> ring = report(topologies.ring(8), 'dpsgd', bits=4)
  >>> ring.least_bits, ring.rows[0].safe, ring.memory
  (3, 1.0, 0)
  """
  _check(bits, size, delay, local_steps=local_steps, fragments=fragments)
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
  updates = local_steps * fragments  # between two messages of a value
  sums = _sums(slow, algorithm, several, updates) if theta else None
  return Report(
    algorithm=algorithm,
    often=(several, local_steps, fragments),
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


def _check(bits, size, delay, **parts):
  for name, number in parts.items():
    if number < 1:
      raise ValueError(f'{name}={number!r}; 1 or more make a period.')
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


def _sums(slow, algorithm, several, updates) -> responses.Sums:
  found = responses.sums(slow, algorithm, rounds=several)
  return found._replace(gradient=updates * found.gradient)


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
      fitted=noise.loop_gain(slow, algorithm, b, noise.SPREAD, 'rms'),
      brink=gamma(1.0),
      safe=gamma(0.5),
    )

  return tuple(row(b) for b in (bounds.BITS if bits is None else [bits]))
