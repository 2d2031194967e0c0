"""How far neighbours can get apart: sums over impulse responses.

The workers start equal. What is sent is linear in all updates and rounding
errors so far, so its largest difference between two workers is reached by one
sequence of signs, and is the sum of the absolute impulse responses.

n: workers.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from moniqua_jax import topologies
from moniqua_jax.theory import laws, spectrum

Topology = topologies.Topology

SETTLED = 1e-8  # of the largest response; the sums miss ten times this part
WORK = 5e10  # multiplications before giving up: some seconds
ROUNDS = 1000  # of a step at most; in seconds, too


class Sums(NamedTuple):
  """|m_i - m_j| <= gradient * alpha G + noise * delta B_theta."""

  gradient: float  # S, per bound alpha G on the coordinates of the updates
  noise: float  # S', per bound delta B_theta on the rounding errors


def neighbours(rounds: Sequence[Topology]) -> list[np.ndarray]:
  """The pairs that speak in each round, whose distance theta must bound.

  Source: Lemma 2 of arXiv:2002.11787.
  """
  pairs = [{tuple(sorted(arc)) for arc in arcs(r)} for r in rounds]
  return [np.array(sorted(each), int).reshape(-1, 2) for each in pairs]


def arcs(r: Topology) -> set[tuple[int, int]]:
  """Who sends to whom; a self-loop sends nothing."""
  pairs = [arc for _, perm in r.edges for arc in enumerate(perm)]
  return {(i, j) for i, j in pairs if i != j}


def everyone(rounds: Sequence[Topology]) -> list[np.ndarray]:
  """All pairs i < j of workers, whether they speak or not.

  >>> everyone([topologies.ring(4)])[0].shape
  (6, 2)
  """
  return [np.argwhere(np.tri(r.n, k=-1).T) for r in rounds]


def messages(
  algorithm: str,
  weights: Sequence[np.ndarray],
  x: np.ndarray,
  update: Callable,
  rounding: Callable,
  rounds: int = 1,
  first: int = 0,
) -> Iterator[np.ndarray]:
  """Runs an algorithm, all workers stacked, and gives what they send.

  So many rounds are a step; `first` says with which of them it begins.
  """
  run = _run(algorithm, weights, x, update, rounding, rounds, first)
  return (message for message, _ in run)


def _run(algorithm, weights, x, update, rounding, rounds, first):
  """Yields each message, and what the workers hold after it."""
  law = laws.law(algorithm)
  given = require_recursion(algorithm)
  again, kept = law.again or given, given.start(x)
  for step, w in enumerate(itertools.cycle(weights)):
    recursion = again if (first + step) % rounds else given
    u = update(step)
    message = recursion.message(x, kept, u)
    noise = rounding(step, message)
    believed = message + noise
    pull = w @ believed - believed
    x, kept = recursion.after(x, kept, u, noise, pull)
    yield message, (x, kept)


def sums(
  topology: Topology | Sequence[Topology],
  algorithm: str,
  pairs: Callable = neighbours,
  rounds: int = 1,
) -> Sums:
  """S and S', the worst over pairs and, of several rounds, over the start.

  dpsgd:  S = max_ij sum_t ||(e_i - e_j)^T W^t||_1
          S' = max_ij sum_t ||(e_i - e_j)^T W^t (W - I)||_1

  and the same sums over the impulse responses of the other `LAWS`; for d2 those
  of the half step, which is what it sends. `pairs` is `neighbours` or
  `everyone`; the error is about 1e-7. With several rounds in a step the updates
  come in one of them, and all messages count.

  Source: ours; the paper bounds S of W alone by log(16 n) / (1 - rho).
  """
  require_recursion(algorithm)
  require_rounds(algorithm, rounds)
  schedule, _ = laws.checked(topology, algorithm)
  return _sums(schedule, algorithm, pairs, rounds)


def require_recursion(algorithm: str) -> laws.Recursion:
  """Refuses algorithms of whose messages no theta is known, or needed."""
  law = laws.law(algorithm)
  if law.recursion is None:
    known = sorted(name for name, law in laws.LAWS.items() if law.recursion)
    raise ValueError(f'{algorithm} {law.without}; it is for {known}.')
  return law.recursion


def require_rounds(algorithm: str, rounds: int) -> None:
  """Refuses several rounds in a step of an algorithm that has one."""
  if not isinstance(rounds, int) or rounds not in range(1, ROUNDS + 1):
    raise ValueError(f'rounds={rounds!r}; a step has 1 to {ROUNDS}.')
  if rounds > 1 and laws.law(algorithm).again is None:
    known = sorted(name for name, law in laws.LAWS.items() if law.again)
    raise ValueError(
      f'rounds={rounds}: there is no law of {algorithm} with several rounds in '
      f'a step; there is of {known}.'
    )


@functools.cache
def _sums(schedule, algorithm, pairs, rounds) -> Sums:
  # What comes back after a period, of the schedule and of steps.
  times = math.lcm(len(schedule), rounds) // len(schedule)
  law = laws.law(algorithm)
  weights = [law.weights(r) for r in schedule] * times
  where, n = pairs(schedule) * times, schedule[0].n
  once = lambda step: np.eye(n) if step == 0 else np.zeros((n, n))
  kicks = [
    (once, lambda step, message: np.zeros((n, n))),
    (lambda step: np.zeros((n, n)), lambda step, message: once(step)),
  ]
  # All rounds round, and one of a step is given u.
  starts = range(law.given % rounds, len(weights), rounds), range(len(weights))
  return Sums(
    *(
      _sum(algorithm, weights, where, each, rounds, kick)
      for each, kick in zip(starts, kicks, strict=True)
    )
  )


def _sum(algorithm, weights, where, starts, rounds, kick) -> float:
  """The largest sum of one kind of impulses, sent off in each of `starts`."""
  n, m, (update, rounding) = len(weights[0]), len(weights), kick
  totals = [np.zeros(len(pairs)) for pairs in where]
  for start in starts:
    cycle = weights[start:] + weights[:start]
    at_first = np.zeros((n, n))
    run = _run(algorithm, cycle, at_first, update, rounding, rounds, start)
    largest = 0.0
    for step, (message, held) in enumerate(run):
      i, j = where[(start + step) % m].T
      totals[(start + step) % m] += abs(message[i] - message[j]).sum(1)
      largest = max(largest, _spread(message))
      # The messages of d2 swing through 0, all that it holds does not.
      if _spread(held) <= SETTLED * largest:
        break
      if step * n**3 > WORK or step > spectrum.STEPS:
        raise ValueError(spectrum.too_slow(n))
  return float(max(total.max(initial=0) for total in totals))


def _spread(held) -> float:
  """How far apart the workers are, in an array or in tuples of them."""
  if isinstance(held, tuple):
    return max(map(_spread, held))
  return np.ptp(held, axis=0).max()
