"""D-PSGD, and Moniqua on D-PSGD.

Lian et al., "Can decentralized algorithms outperform centralized algorithms?",
NeurIPS 2017, arXiv:1705.09056, Algorithm 1. With the quantizer `moniqua` it is
Algorithm 1 of Lu and De Sa, ICML 2020, arXiv:2002.11787.
"""

from typing import NamedTuple

import jax
import optax

from moniqua_jax import gossip, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import Gossip
from moniqua_jax.quantizers import base


class DPSGDState(NamedTuple):
  """State of D-PSGD: nothing that grows with the model."""

  heard: gossip.Heard


def dpsgd(
  topology: topologies.Topology | tuple[topologies.Topology, ...],
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: jax.Array,
  on_unreadable: str = 'warn',
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: adds the gossip of the parameters to the updates.

    x_{k+1,i} = x_{k,i} + sum_j W_ij (x_hat_{k,j} - x_hat_{k,i}) + u_{k,i}

  with u = -alpha g taken at x_k, before the gossip: the message does not wait
  for the gradient. Full precision gives D-PSGD, `moniqua` gives Moniqua, and
  `lazy(topology, gamma)` the slack matrix that few bits need. While messages
  are readable the mean of the workers moves by the mean update, exactly.

  Args:
    topology: doubly stochastic; a tuple is cycled by step.
    quantizer: a `Quantizer` or a `Tuned`.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    on_unreadable: 'warn', 'raise' or 'ignore', see `check`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers.

  Raises:
    ValueError: columns of W do not sum to 1, or the workers are not connected
      or never agree.

  >>> from moniqua_jax import moniqua, ring
  >>> algorithm = dpsgd(ring(8), moniqua(theta=1.0, bits=4),
  ...                   axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.sgd(0.1, momentum=0.9), algorithm)

  Source: Algorithm 1 of arXiv:2002.11787; the slack matrix is its Theorem 3.
  """
  schedule = topologies.schedule(topology)
  topologies.require_doubly_stochastic(schedule, 'dpsgd')
  topologies.require_agreement(schedule, 'dpsgd')
  neighbours = gossip.neighbours(
    schedule,
    quantizer,
    axis_name=axis_name,
    key=key,
    on_unreadable=on_unreadable,
  )

  def init(params):
    del params
    return DPSGDState(neighbours.init())

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    updates, heard = neighbours.mix(u, x, state.heard, step, **extra_args)
    return unravel(updates), DPSGDState(heard)

  return Gossip(init, update, 'dpsgd')
