"""What the rounding sustains by itself, and where a theta runs away with it.

Ours: simulated, not proved.

All workers share the dither u, so the errors of two workers differ by more than
0 only where a grid line falls between them: in units of the step s their
difference is 0 or 1, with probability |x_i - x_j| / s. Near consensus there is
little noise, and gossip settles to neighbours a few grid steps times their
weight apart. With a slack matrix that is linear in gamma for dpsgd, where S'
hardly falls; d2 and deepsqueeze keep what they rounded away, and their floor
stays.

A pair that averages by shared dither, at a distance D of rms r, is left at one
of E (D - s B)^2 = s E|D| - r^2 (B is 0 or 1), and by gamma of it
r^2 (1 - 2 gamma) + gamma^2 s E|D|. With D normal that stands still at
r = gamma s / sqrt(2 pi), so kappa of the rms is sqrt(2 / pi) gamma on pairs,
and a theta of c r has a loop gain of .8 c gamma / (2^b - 1). No estimate of r
changes that: these distances are real. The pair gets closest at half the gain.

kappa: the noise floor. b: bits of dithered rounding. safety: theta over the
distance seen, at least 1; of the rms that is c, 6.5 for a million values.
distance: 'largest' for `auto_theta`, 'rms' for `fitted_theta`.
"""

from collections.abc import Sequence
import functools
import itertools

import numpy as np

from moniqua_jax import topologies
from moniqua_jax.quantizers import fitted
from moniqua_jax.theory import bounds, laws, responses, spectrum

Topology = topologies.Topology

# As many coordinates as the trial that the simulation was compared with: 10,000
# for each of 8 workers. The largest of them moves with their logarithm.
VALUES = 80_000
GAMMAS = (1.0, 0.7, 0.5, 0.25, 0.1, 0.05)
LONGEST = 2000  # steps; ends too high, not too low, where gamma is below .01
STEP = 2  # of the grid, in units of the error bound delta B_theta

SPREAD = fitted.spread(10**6)  # of `fitted_theta`, for a million values

# How the distance of two workers is measured: the one that `auto_theta` follows
# and the one that `fitted_theta` does.
DISTANCES = {
  'largest': lambda apart: abs(apart).max(),
  'rms': lambda apart: np.sqrt(np.mean(apart**2)),
}


def noise_floor(
  topology: Topology | Sequence[Topology],
  algorithm: str,
  distance: str = 'largest',
) -> float:
  """kappa: how far apart rounding alone keeps neighbours.

  max_ij |m_i - m_j| / (delta B_theta) over the pairs that speak, without
  gradients, with delta B_theta = theta / (2^b - 1); at most S'. |.| is the
  largest coordinate or the root mean square of all.

  A short run in NumPy with shared subtractive dither, from workers spread over
  about one grid step times their weights, mean over its second half; the seed
  is fixed. It does not depend on theta and bits while no message wraps.
  """
  if distance not in DISTANCES:
    raise ValueError(f'distance={distance!r}; choose from {sorted(DISTANCES)}.')
  responses.require_recursion(algorithm)
  rounds, _ = laws.checked(topology, algorithm)
  return _noise_floor(rounds, algorithm, distance)


@functools.cache
def _noise_floor(rounds, algorithm, distance) -> float:
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
  measure = DISTANCES[distance]
  apart = [
    max((measure(message[i] - message[j]) for i, j in where), default=0)
    for message, where in zip(itertools.islice(run, steps), pairs, strict=False)
  ]
  return float(np.mean(apart[steps // 2 :]))


def loop_gain(
  topology: Topology | Sequence[Topology],
  algorithm: str,
  bits: int,
  safety: float,
  distance: str = 'largest',
) -> float:
  """What a theta that follows the distances seen makes of its own noise.

  gain = safety kappa / (2^b - 1): theta = safety * distance, and the distance
  that rounding sustains is kappa theta / (2^b - 1). At 1 and above theta and
  the workers run away together, without a single wrap; keep to 1/2.
  """
  bounds.require_bits(bits)
  require_safety(safety)
  return safety * noise_floor(topology, algorithm, distance) / (2**bits - 1)


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
  distance: str = 'largest',
) -> float | None:
  """The largest gamma of `lazy` at which the loop gain is no more than `gain`.

  A gain of 1 is the brink, 1/2 is safe; None where even the smallest gamma
  leaves it larger. Interpolated between simulations at `GAMMAS`; for d2 and the
  stale forms no nearer to where they are refused than .95 of it.
  """
  bounds.require_bits(bits)
  require_safety(safety)
  allowed = gain * (2**bits - 1) / safety
  above = None
  for gamma in _stable(topology, algorithm):
    kappa = noise_floor(topologies.lazy(topology, gamma), algorithm, distance)
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
  distance: str = 'largest',
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
  there is none. It is an estimate, which unlike `theta` exists at 1 and 2 bits;
  `update` is as there.
  """
  if not 0 < update < np.inf:
    raise ValueError(f'update={update!r}; it must be positive and finite.')
  gain = loop_gain(topology, algorithm, bits, safety, distance)
  if gain >= 1:
    gamma = largest_gamma(topology, algorithm, bits, safety, 0.5, distance)
    fix = f'lazy(topology, {gamma:.2g}) or ' if gamma else ''
    raise ValueError(
      f'bits={bits}, safety={safety:g}: the loop gain of {algorithm} is '
      f'{gain:.2f}, and a theta that follows what is seen runs away from 1 on; '
      f'use {fix}more bits.'
    )
  gradient = responses.sums(topology, algorithm, rounds=rounds).gradient
  return safety * gradient * update / (1 - gain)
