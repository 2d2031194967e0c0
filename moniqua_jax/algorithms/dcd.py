"""DCD-PSGD: gossip of compressed differences between two models in a row.

Tang et al., "Communication compression for decentralized training", NeurIPS
2018, arXiv:1803.06443, Algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import gossip, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import remembering
from moniqua_jax.quantizers import base


class DCDState(NamedTuple):
  """State of DCD-PSGD: one vector instead of a replica per neighbour.

  Attributes:
    heard: of the messages.
    apart: f32[d], sum_j W_ij (x_j - x_i); the replicas are the models.
    replica: () but where the model is rounded, such as to bfloat16: f32[d], x_i
      as the others know it. Roundings would add up otherwise.
  """

  heard: gossip.Heard
  apart: jax.Array
  replica: jax.Array | tuple[()]


def dcd(
  topology: topologies.Topology,
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: jax.Array,
  on_unreadable: str = 'warn',
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: DCD-PSGD.

    z_i = sum_j W_ij x_j + u_i - x_i,  x_i <- x_i + C(z_i)

  with u = -alpha g. C must be unbiased and fine; with few bits it diverges.

  Args:
    topology: symmetric, one for all steps.
    quantizer: of the differences; a `Quantizer` or a `Tuned`.
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
  >>> algorithm = dcd(ring(8), uniform(bits=8),
  ...                 axis_name='workers', key=jax.random.key(0))

  Source: Algorithm 1 of arXiv:1803.06443.
  """
  schedule = topologies.one_symmetric(topology, 'dcd')
  topologies.require_agreement(schedule, 'dcd')
  neighbours = gossip.neighbours(
    schedule,
    quantizer,
    axis_name=axis_name,
    key=key,
    on_unreadable=on_unreadable,
  )

  def init(params):
    flat, _ = gossip.flatten(params)
    replica = jnp.copy(flat) if vectors.are_rounded(params) else ()
    return DCDState(neighbours.init(), jnp.zeros_like(flat), replica)

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    sent, pull, heard = neighbours.exchange(
      state.apart + u, jnp.zeros_like(u), state.heard, step, **extra_args
    )
    # Who could not say where it goes stays where it is.
    sent = jnp.where(jnp.isfinite(sent), sent, 0)
    moved, replica = sent, state.replica
    if vectors.are_rounded(params):
      replica = replica + sent
      moved = replica - x
    return unravel(moved), DCDState(heard, state.apart + pull, replica)

  return remembering(init, update, 'dcd', may_rest=False)
