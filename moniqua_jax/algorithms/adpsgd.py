"""AD-PSGD, and Moniqua on AD-PSGD: pairs of workers, late gradients.

Lian et al., "Asynchronous decentralized parallel stochastic gradient descent",
ICML 2018, arXiv:1710.06952, Algorithm 1. With the quantizer `moniqua` it is
Moniqua on AD-PSGD of Lu and De Sa, ICML 2020, arXiv:2002.11787.

Here all workers tick together, so that a run can be repeated bit for bit; the
form in which every worker has its own pace is `moniqua_jax.asynchronous`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import arguments, gossip, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import remembering
from moniqua_jax.quantizers import base


class ADPSGDState(NamedTuple):
  """State of AD-PSGD.

  Attributes:
    heard: of the messages.
    late: f32[delay + 1, d], the updates of the last ticks; slot
      t mod (delay + 1) is that of turn t. () where no update is late.
  """

  heard: gossip.Heard
  late: jax.Array | tuple[()]


def adpsgd(
  topology: topologies.Topology | tuple[topologies.Topology, ...],
  quantizer: base.Quantizer | base.Tuned,
  delays: int | tuple[int, ...] = 1,
  *,
  axis_name: str,
  key: jax.Array,
  on_unreadable: str = 'warn',
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: averages pairs of workers; updates come late.

    X_{k+1} = X_k W_k + Omega_k (W_k - I) + U_{k - tau}

  with u = -alpha g of the model tau ticks ago, and W_k a matching: each worker
  moves half the way to its partner. Each update is applied once, tau ticks late
  (none before that).

  Args:
    topology: doubly stochastic, usually `random_matchings(n, rounds, seed)`; a
      tuple is cycled by step.
    quantizer: a `Quantizer` or a `Tuned`.
    delays: tau, in ticks, >= 0: one for all workers, or one for each.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    on_unreadable: 'warn', 'raise' or 'ignore', see `check`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers. It keeps max(delays) + 1 updates, or
    none where no update is late.

  Raises:
    ValueError: columns of W do not sum to 1, the workers are not connected or
      never agree, or the delays are negative or not one for each worker.

  >>> from moniqua_jax import moniqua, random_matchings
  >>> algorithm = adpsgd(random_matchings(8, rounds=64, seed=0),
  ...                    moniqua(theta=1.0, bits=4), delays=2,
  ...                    axis_name='workers', key=jax.random.key(0))

  Source: arXiv:1710.06952, Algorithm 1; arXiv:2002.11787 for the messages.
  """
  schedule = topologies.schedule(topology)
  topologies.require_doubly_stochastic(schedule, 'adpsgd')
  topologies.require_agreement(schedule, 'adpsgd')
  delays = _checked_delays(delays, schedule[0].n)
  slots = max(delays) + 1 if max(delays) else 0
  neighbours = gossip.neighbours(
    schedule,
    quantizer,
    axis_name=axis_name,
    key=key,
    on_unreadable=on_unreadable,
  )

  def init(params):
    flat, _ = gossip.flatten(params)
    # Not an array without values: a checkpoint does not hold one.
    late = jnp.zeros((slots, flat.size), flat.dtype) if slots else ()
    return ADPSGDState(neighbours.init(), late)

  def delayed(u, late, turn):
    if not slots:
      return u, late
    late = late.at[turn % slots].set(u)
    mine = jnp.asarray(delays)[jax.lax.axis_index(axis_name)]
    # Before its first update has arrived a worker reads a slot of zeros.
    return late[(turn - mine) % slots], late

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    u, late = delayed(u, state.late, gossip.turn(state.heard, step))
    updates, heard = neighbours.mix(u, x, state.heard, step, **extra_args)
    return unravel(updates), ADPSGDState(heard, late)

  return remembering(init, update, 'adpsgd', may_rest=False)


def _checked_delays(delays, n: int) -> tuple[int, ...]:
  each = delays if isinstance(delays, (tuple, list)) else (delays,) * n
  each = tuple(map(arguments.integer, each))
  if len(each) != n or not all(
    isinstance(tau, int) and tau >= 0 for tau in each
  ):
    raise ValueError(
      f'delays={delays!r}; give one whole number of ticks, at least 0, or one '
      f'for each of the {n} workers.'
    )
  return each
