"""Learning rates by step, and thetas that follow them.

A schedule is a function step i32[] -> f32[], as in optax.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

Schedule = Callable


def constant(
  peak: float, steps_per_epoch: int, warmup_epochs: float = 0
) -> Schedule:
  """Builds `peak` after a linear warm-up from peak / warm-up steps."""
  after = optax.constant_schedule(peak)
  return _after_warmup(after, peak, steps_per_epoch, warmup_epochs)


def step(
  peak: float,
  steps_per_epoch: int,
  milestones: Sequence[float],
  factor: float = 0.1,
  warmup_epochs: float = 0,
) -> Schedule:
  """Builds `peak` times `factor` at every milestone, after a linear warm-up.

  Milestones are epochs, counted from the start of the run.
  """
  shift = round(warmup_epochs * steps_per_epoch)
  drops = {}
  for milestone in milestones:
    at = round(milestone * steps_per_epoch) - shift
    drops[at] = drops.get(at, 1.0) * factor  # two may round to one step
  after = optax.piecewise_constant_schedule(peak, drops)
  return _after_warmup(after, peak, steps_per_epoch, warmup_epochs)


def cosine(
  peak: float, steps: int, steps_per_epoch: int, warmup_epochs: float = 0
) -> Schedule:
  """Builds half a cosine from `peak` to 0, after a linear warm-up."""
  warmup = round(warmup_epochs * steps_per_epoch)
  after = optax.cosine_decay_schedule(peak, max(1, steps - warmup))
  return _after_warmup(after, peak, steps_per_epoch, warmup_epochs)


def _after_warmup(after, peak, steps_per_epoch, warmup_epochs):
  warmup = round(warmup_epochs * steps_per_epoch)
  if warmup == 0:
    return after
  # Not from 0: the first step would be no step.
  ramp = optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1)
  return optax.join_schedules([ramp, after], [warmup])


def fixed() -> Schedule:
  """Builds a theta that stays: 1 at every step."""
  return optax.constant_schedule(1.0)


def follow(
  learning_rate: Schedule, steps: int, shrink: float, power: float = 1.0
) -> Schedule:
  """Builds a theta that follows the learning rate down, but late.

    r_t = max((lr_t / lr_peak)^power, shrink * r_{t-1}), and 1 up to the peak

  Distances between neighbours are proportional to the learning rate, but they
  relax over 1 / (gamma (1 - rho)) steps: a theta that shrank at the same step
  as the rate would wrap. So `shrink` is below 1 and above 1 - gamma (1 - rho).
  With theta per leaf a `power` of 1/2 follows more slowly, since some leaves
  are furthest apart when the rate has already halved.

  Source: the constant C_alpha of the theorem for D-PSGD in arXiv:2002.11787.
  """
  if not 0 < shrink < 1:
    raise ValueError(f'shrink={shrink!r}; it must be between 0 and 1.')
  rates = np.asarray(jax.vmap(learning_rate)(jnp.arange(steps)), np.float64)
  # All are 0 where the first round would be behind the end of the run.
  rates = (rates / rates.max()) ** power if rates.any() else np.ones(steps)
  relative = np.ones(steps)
  for t in range(int(rates.argmax()) + 1, steps):
    relative[t] = max(rates[t], shrink * relative[t - 1])
  table = jnp.asarray(relative, jnp.float32)
  return lambda t: table[jnp.minimum(t, steps - 1)]
