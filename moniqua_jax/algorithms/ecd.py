"""ECD-PSGD: gossip of compressed extrapolations.

Tang et al., "Communication compression for decentralized training", NeurIPS
2018, arXiv:1803.06443, Algorithm 2; with NUQSGD as the compressor it is
Algorithm 3 of the NUQSGD paper, JMLR 2021, arXiv:1908.06077.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import gossip, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import remembering
from moniqua_jax.quantizers import base


class ECDState(NamedTuple):
  """State of ECD-PSGD: two vectors instead of a replica per neighbour.

  Attributes:
    heard: of the messages.
    replica: f32[d], x_hat_i, what the others believe of this worker.
    apart: f32[d], sum_j W_ij (x_hat_j - x_hat_i).
    model: () but where the model is rounded, such as to bfloat16: f32[d], x_i
      before that. Roundings would add up in the replica otherwise.
  """

  heard: gossip.Heard
  replica: jax.Array
  apart: jax.Array
  model: jax.Array | tuple[()]


def ecd(
  topology: topologies.Topology,
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: jax.Array,
  on_unreadable: str = 'warn',
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: ECD-PSGD.

    x_{t+1,i} = sum_j W_ij x_hat_{t,j} + u_{t,i}
    z_{t+1,i} = (1 - t/2) x_{t,i} + t/2 x_{t+1,i}
    x_hat_{t+1,j} = (1 - 2/t) x_hat_{t,j} + 2/t C(z_{t+1,j})

  with u = -alpha g and t = step + 2, since at t = 1 the weight 2/t exceeds 1
  (`gossip.turn` says what counts as a step). C must be unbiased with bounded
  variance. z grows like t, so a quantizer whose error is relative to z diverges
  with few bits.

  Args:
    topology: symmetric, one for all steps.
    quantizer: of the extrapolations; a `Quantizer` or a `Tuned`.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    on_unreadable: 'warn', 'raise' or 'ignore', see `check`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers. All must start from the same x.

  Raises:
    ValueError: several topologies; W is not symmetric or not connected, or the
      workers never agree.

  >>> from moniqua_jax import ring, uniform
  >>> algorithm = ecd(ring(8), uniform(bits=8),
  ...                 axis_name='workers', key=jax.random.key(0))

  Source: Algorithm 2 of arXiv:1803.06443.
  """
  schedule = topologies.one_symmetric(topology, 'ecd')
  topologies.require_agreement(schedule, 'ecd')
  neighbours = gossip.neighbours(
    schedule,
    quantizer,
    axis_name=axis_name,
    key=key,
    on_unreadable=on_unreadable,
  )

  def init(params):
    flat, _ = gossip.flatten(params)
    # Copies: whoever donates the parameters keeps the replica.
    model = jnp.copy(flat) if vectors.are_rounded(params) else ()
    zeros = jnp.zeros_like(flat)
    return ECDState(neighbours.init(), jnp.copy(flat), zeros, model)

  def update(updates, state, params=None, *, step, **extra_args):
    given, unravel = gossip.flatten(params)
    x = state.model if vectors.are_rounded(params) else given
    u = vectors.flatten_like(updates, params)
    t = gossip.turn(state.heard, step).astype(x.dtype) + 2
    new = state.replica + state.apart + u  # x_{t+1}
    z = x + t / 2 * (new - x)
    sent, pull, heard = neighbours.exchange(
      z, jnp.zeros_like(x), state.heard, step, **extra_args
    )
    # Of a z beyond float32 nothing was said, and what others believe stays.
    sent = jnp.where(jnp.isfinite(sent), sent, state.replica)
    # By what differs: of equal ones two products need not sum to the same, and
    # x would follow for ever.
    replica = state.replica + 2 / t * (sent - state.replica)
    apart = state.apart + 2 / t * (pull - state.apart)
    model = new if vectors.are_rounded(params) else ()
    return unravel(new - given), ECDState(heard, replica, apart, model)

  return remembering(init, update, 'ecd', may_rest=False)
