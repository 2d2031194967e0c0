"""What the rounding sustains by itself, and where a theta runs away with it.

Ours: simulated, not proved.

All workers share the dither u, so the errors of two workers differ by more than
0 only where a grid line falls between them: in units of the step s their
difference is 0 or 1, with probability |x_i - x_j| / s. Near consensus there is
little noise, and gossip settles to neighbours a few grid steps times their
weight apart. With a slack matrix that is linear in gamma for dpsgd, where S'
hardly falls; d2 and deepsqueeze keep what they rounded away, and their floor
stays.

kappa: the noise floor. b: bits.
"""

from collections.abc import Sequence
import functools
import itertools

import numpy as np

from moniqua_jax import topologies
from moniqua_jax.theory import bounds, laws, responses, spectrum

Topology = topologies.Topology

# As many coordinates as the trial that the simulation was compared with: 10,000
# for each of 8 workers. The largest of them moves with their logarithm.
VALUES = 80_000
GAMMAS = (1.0, 0.7, 0.5, 0.25, 0.1, 0.05)
LONGEST = 2000  # steps; ends too high, not too low, where gamma is below .01
STEP = 2  # of the grid, in units of the error bound delta B_theta


def noise_floor(
  topology: Topology | Sequence[Topology], algorithm: str
) -> float:
  """kappa: how far apart rounding alone keeps neighbours.

  max_ij |m_i - m_j| / (delta B_theta) over the pairs that speak and all
  coordinates, without gradients, with delta B_theta = theta / (2^b - 1);
  at most S'.

  A short run in NumPy with shared subtractive dither, from workers spread over
  about one grid step times their weights, mean over its second half; the seed
  is fixed. It does not depend on theta and bits while no message wraps.

  Args:
    topology: a Topology, or a tuple of them; `lazy` with its gamma, and with
      eta of deepsqueeze, if any.
    algorithm: a key of `LAWS` with a recursion.

  Returns:
    kappa.

  Raises:
    ValueError: as `sums`.

  >>> 1.2 < noise_floor(topologies.lazy(topologies.ring(8), 0.5), 'dpsgd') < 1.4
  True

  Source: ours.
  """
  responses.require_recursion(algorithm)
  rounds, _ = laws.checked(topology, algorithm)
  return _noise_floor(rounds, algorithm)


@functools.cache
def _noise_floor(rounds, algorithm) -> float:
  weights = [laws.law(algorithm).weights(r).astype(np.float32) for r in rounds]
  n = len(weights[0])
  rng = np.random.default_rng(0)
  uniform = lambda *shape: rng.random(shape, np.float32) - np.float32(0.5)
  given = 1 - np.mean([np.diag(w) for w in weights], axis=0)  # per step

  def rounding(step, message):
    u = uniform(message.shape[1])
    return (np.rint(message / STEP - u) + u) * STEP - message

  x = STEP * 3 * given.max() * uniform(n, max(1, VALUES // n))
  run = responses.messages(
    algorithm, weights, x.astype(np.float32), lambda step: 0, rounding
  )
  steps = min(int(30 / given.min()), LONGEST) + 2 * len(rounds)
  pairs = itertools.cycle(responses.neighbours(rounds))
  apart = [
    max((abs(message[i] - message[j]).max() for i, j in where), default=0)
    for message, where in zip(itertools.islice(run, steps), pairs, strict=False)
  ]
  return float(np.mean(apart[steps // 2 :]))


def loop_gain(
  topology: Topology | Sequence[Topology],
  algorithm: str,
  bits: int,
  safety: float,
) -> float:
  """What a theta that follows the distances seen makes of its own noise.

  gain = safety kappa / (2^b - 1): theta = safety * distance, and the distance
  that rounding sustains is kappa theta / (2^b - 1). At 1 and above theta and
  the workers run away together, without a single wrap; keep to 1/2.

  Args:
    topology: a Topology, or a tuple of them; `lazy` with its gamma, and with
      eta of deepsqueeze, if any.
    algorithm: a key of `LAWS` with a recursion.
    bits: b, of dithered rounding.
    safety: theta over the distance seen, >= 1.

  Returns:
    The gain.

  Raises:
    ValueError: bits or safety is out of range; and as `sums`.

  >>> slow = topologies.lazy(topologies.ring(8), 0.1)
  >>> loop_gain(slow, 'dpsgd', bits=1, safety=2.0) < 0.6
  True

  Source: ours.
  """
  bounds.require_bits(bits)
  require_safety(safety)
  return safety * noise_floor(topology, algorithm) / (2**bits - 1)


def require_safety(safety: float) -> None:
  """Refuses a theta that would start below the distance seen."""
  if not 1 <= safety < np.inf:
    raise ValueError(
      f'safety={safety!r}; theta over the distance seen is at least 1.'
    )


def largest_gamma(
  topology: Topology | Sequence[Topology],
  algorithm: str,
  bits: int,
  safety: float,
  gain: float,
) -> float | None:
  """The largest gamma of `lazy` at which the loop gain is no more than `gain`.

  Interpolated between simulations at `GAMMAS`; for d2 and the stale forms no
  nearer to where they are refused than .95 of it.

  Args:
    topology: before `lazy`.
    algorithm: a key of `LAWS` with a recursion.
    bits: b, of dithered rounding.
    safety: theta over the distance seen, >= 1.
    gain: of the loop; 1 is the brink, 1/2 is safe.

  Returns:
    gamma, or None where even the smallest leaves the gain larger.

  Raises:
    ValueError: as `loop_gain`.

  >>> largest_gamma(topologies.ring(8), 'dpsgd', bits=4, safety=1.5, gain=0.5)
  1.0

  Source: ours.
  """
  bounds.require_bits(bits)
  require_safety(safety)
  allowed = gain * (2**bits - 1) / safety
  above = None
  for gamma in _stable(topology, algorithm):
    kappa = noise_floor(topologies.lazy(topology, gamma), algorithm)
    if kappa <= allowed:
      here = np.log([kappa, gamma])
      if above is None:
        return gamma
      curve = np.array([here, above]).T
      return float(np.exp(np.interp(np.log(allowed), *curve)))
    above = np.log([kappa, gamma])
  return None


def _stable(topology, algorithm) -> list[float]:
  """GAMMAS, or those parts of the gamma from which on it is refused."""
  least = laws.law(algorithm).least
  if least is None:
    return list(GAMMAS)
  top = min(1.0, 0.95 * spectrum.limit(topology, least))
  return [gamma * top for gamma in GAMMAS]


def auto_theta_limit(
  topology: Topology | Sequence[Topology],
  algorithm: str,
  bits: int,
  update: float,
  safety: float,
  rounds: int = 1,
) -> float:
  """The theta that one that follows the distances seen has no reason to pass.

  theta = safety (S update + kappa theta / (2^b - 1))
        = safety S update / (1 - gain)

  What is sent is linear in updates and rounding errors, so the distance seen is
  at most the sum of what each makes of it alone. The first term is the worst
  case over all gradients; one sequence of signs attains it. The second is what
  rounding does as a rule: kappa times the error bound, while no message wraps.
  Both put into theta = safety * distance give the fixed point; from gain 1 on
  there is none. It is an estimate, which unlike `theta` exists at 1 and 2 bits.

  Args:
    topology: a Topology, or a tuple of them; `lazy` with its gamma, and with
      eta of deepsqueeze, if any.
    algorithm: a key of `LAWS` with a recursion.
    bits: b, of dithered rounding.
    update: bound on what a coordinate moves from one message to the next, in
      units of x: alpha G, over 1 - momentum, times the steps of `every`.
    safety: theta over the distance seen, >= 1.
    rounds: in each step that talks.

  Returns:
    theta, in units of x.

  Raises:
    ValueError: the loop gain is 1 or more, naming a gamma that brings it to
      1/2; and as `loop_gain`.

  >>> slow = topologies.lazy(topologies.ring(8), 0.2)
  >>> 200 < auto_theta_limit(slow, 'dpsgd', 1, update=1.0, safety=1.5) < 250
  True

  Source: ours.
  """
  if not 0 < update < np.inf:
    raise ValueError(f'update={update!r}; it must be positive and finite.')
  gain = loop_gain(topology, algorithm, bits, safety)
  if gain >= 1:
    gamma = largest_gamma(topology, algorithm, bits, safety, 0.5)
    fix = f'lazy(topology, {gamma:.2g}) or ' if gamma else ''
    raise ValueError(
      f'bits={bits}, safety={safety:g}: the loop gain of {algorithm} is '
      f'{gain:.2f}, and a theta that follows what is seen runs away from 1 on; '
      f'use {fix}more bits.'
    )
  gradient = responses.sums(topology, algorithm, rounds=rounds).gradient
  return safety * gradient * update / (1 - gain)
