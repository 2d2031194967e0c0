"""How far apart the workers stay: the variance that gossip leaves, expected.

A worker's update is the momentum of noise of variance 1 in each coordinate, and
that of one coordinate does not depend on others. All algorithms of `laws` are
linear, so the covariance of what the workers hold has a recursion of its own;
it is iterated until it stands still. Ours; the bounds of `bounds` are worst
cases, this is what a run shows.

Workers share the dither. With steps s of the grid, and a distance D of the
messages of two of them that is normal with rms r, their errors e have

  E e_i e_j = s^2 sum_k exp(-2 (pi k r / s)^2) / (2 (pi k)^2),   k = 1, 2, ...

which is s^2 / 12 for r = 0 and vanishes where r is beyond s. An error does not
depend on what is sent.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import numpy as np

from moniqua_jax import topologies
from moniqua_jax.theory import bounds, laws, noise, responses, spectrum

Topology = topologies.Topology

SETTLED = 1e-5  # in 100 rounds and steps the variance changes by less
MOST = 100_000  # messages before giving up


class Step(NamedTuple):
  """One round of messages, or a step without any, as matrices.

  Attributes:
    after: f64[2 n, 4 n], from x, what is kept, u, e to the next x and kept.
    message: f64[n, 4 n]; None where nothing is sent.
    pairs: of those that speak.
    given: whether u is a new update, or 0.
    last: whether it is the last round of its step.
  """

  after: np.ndarray
  message: np.ndarray | None
  pairs: np.ndarray
  given: bool
  last: bool


def disagreement(
  topology: Topology | Sequence[Topology],
  algorithm: str = 'dpsgd',
  bits: int | None = None,
  momentum: float = 0.9,
  steps: int = 1,
  rounds: int = 1,
  fragments: int = 1,
  spread: float = noise.SPREAD,
  shrink: float = 0.9,
) -> float:
  """Computes E |x_i - mean|^2 of a coordinate, over workers and steps.

  In units of the variance of the noise in an update; with `momentum` a worker
  moves by more. `bits` of a dithered
  `moniqua` whose theta is `spread` times the rms distance and shrinks by
  `shrink` in a message, as of `fitted_theta`; None for full precision. A
  coordinate talks in one step of `steps` times `fragments`, in so many rounds;
  of fragments all are alike. No message wraps: where rounds differ much in
  their distances, that takes a `shrink` closer to 1.

  Infinite where theta runs away with its own noise: bits too few for gamma. As
  theta follows the largest of distances that vary, a run close to that shows
  more, with 3 bits up to twice as much.

  >>> from moniqua_jax import one_peer_hypercube, ring
  >>> full, four = disagreement(ring(8)), disagreement(ring(8), bits=4)
  >>> fewer = disagreement(one_peer_hypercube(8), bits=4, fragments=2)
  >>> round(four / full, 1), round(fewer / full, 1)
  (1.0, 1.7)
  """
  responses.require_recursion(algorithm)
  responses.require_rounds(algorithm, rounds)
  if bits is not None:
    bounds.require_bits(bits)
  for name, value in (('steps', steps), ('fragments', fragments)):
    if type(value) is not int or value < 1:
      raise ValueError(f'{name}={value!r}; it is a whole number, 1 or more.')
  if not 0 <= momentum < 1:
    raise ValueError(f'momentum={momentum!r}; it is at least 0 and below 1.')
  schedule, _ = laws.checked(topology, algorithm)
  cycle = _cycle(schedule, algorithm, steps * fragments, rounds)
  errors = functools.partial(_errors, bits=bits, spread=spread, shrink=shrink)
  return _settled(cycle, schedule[0].n, momentum, errors)


def _cycle(schedule, algorithm, every, rounds) -> list[Step]:
  """The steps and rounds until all comes back."""
  law, n = laws.law(algorithm), schedule[0].n
  quiet = laws.Recursion(
    lambda x, kept, u: x, lambda x, kept, u, noise, pull: (x + u, kept)
  )
  rest = _step(quiet, np.eye(n), None, True, True)._replace(message=None)
  weights = [law.weights(r) for r in schedule]
  pairs = responses.neighbours(schedule)
  given, cycle = law.given % rounds, []
  for number in range(np.lcm(len(schedule), rounds)):
    at, k = number % rounds, number % len(schedule)
    if at == 0:
      cycle += [rest] * (every - 1)
    recursion = law.again if at else law.recursion
    last = at == rounds - 1
    cycle.append(_step(recursion, weights[k], pairs[k], at == given, last))
  return cycle


def _step(recursion, w, pairs, given, last) -> Step:
  n = len(w)
  x, kept, u, e = np.split(np.eye(4 * n), 4)
  message = recursion.message(x, kept, u)
  pull = w @ (message + e) - (message + e)
  x, kept = recursion.after(x, kept, u, e, pull)
  return Step(np.concatenate([x, kept + 0 * x]), message, pairs, given, last)


def _settled(cycle, n, momentum, errors) -> float:
  """Iterates the covariance of x, what is kept and v, of all less its mean.

  Weights keep a mean, so it is enough to take it from what is new.
  """
  apart = np.eye(n) - 1 / n
  S, theta, before = np.zeros((3 * n, 3 * n)), 0.0, 0.0
  for _ in range(MOST // len(cycle)):
    seen = []
    for step in cycle:
      if step.given:
        S[2 * n :] *= momentum
        S[:, 2 * n :] *= momentum
        S[2 * n :, 2 * n :] += apart
      # u = -v in the step that is given it.
      turn = np.zeros((4 * n, 3 * n))
      turn[: 2 * n, : 2 * n] = np.eye(2 * n)
      turn[2 * n : 3 * n, 2 * n :] = -np.eye(n) * step.given
      E, theta = errors(step, turn @ S @ turn.T, theta)
      after = np.concatenate([step.after @ turn, np.eye(3 * n)[2 * n :]])
      S = after @ S @ after.T
      noise_of = step.after[:, 3 * n :] @ apart
      S[: 2 * n, : 2 * n] += noise_of @ E @ noise_of.T
      if step.last:
        seen.append(np.trace(S[:n, :n]) / n)
    now = float(np.mean(seen))
    if not now < 1e12:
      return np.inf
    if abs(now - before) <= SETTLED * now * len(cycle) / 100:
      return now
    before = now
  raise ValueError(spectrum.too_slow(n))


def _errors(step, M, theta, bits, spread, shrink):
  """The covariance of the errors of a round, and theta behind it."""
  n = len(M) // 4
  if step.message is None or bits is None:
    return np.zeros((n, n)), theta
  C = step.message @ M @ step.message.T
  own = np.diag(C)
  squares = np.maximum(own[:, None] + own[None] - 2 * C, 0)
  i, j = step.pairs.T
  theta = max(spread * np.sqrt(squares[i, j].max(initial=0)), shrink * theta)
  if not theta:
    return np.zeros((n, n)), theta
  s = 2 * theta / (2**bits - 1)
  k = np.arange(1, 200)[:, None, None] * np.pi
  terms = np.exp(-2 * k**2 * squares / s**2) / (2 * k**2)
  return s**2 * terms.sum(0), theta
