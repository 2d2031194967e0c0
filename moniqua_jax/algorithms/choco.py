"""CHOCO-SGD: gossip of compressed differences to replicas.

Koloskova, Stich and Jaggi, "Decentralized stochastic optimization and gossip
algorithms with compressed communication", ICML 2019, arXiv:1902.00340.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import arguments, gossip, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import remembering
from moniqua_jax.quantizers import base


class ChocoState(NamedTuple):
  """State of CHOCO-SGD: two vectors instead of a replica per neighbour.

  Attributes:
    heard: of the messages.
    replica: f32[d], x_hat_i, what the others believe of this worker.
    apart: f32[d], sum_j W_ij (x_hat_j - x_hat_i).
  """

  heard: gossip.Heard
  replica: jax.Array
  apart: jax.Array


def choco(
  topology: topologies.Topology,
  quantizer: base.Quantizer | base.Tuned,
  gamma: float = 1.0,
  *,
  axis_name: str,
  key: jax.Array,
  on_unreadable: str = 'warn',
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: CHOCO-SGD.

    y_i = x_i + u_i,  q_i = Q(y_i - x_hat_i),  x_hat_j <- x_hat_j + q_j
    x_i <- y_i + gamma sum_j W_ij (x_hat_j - x_hat_i)

  with u = -alpha g. Q may be biased, as long as it contracts.

  Args:
    topology: symmetric, one for all steps.
    quantizer: of the differences; a `Quantizer` or a `Tuned`.
    gamma: consensus step size, 0 < gamma <= 1; smaller for coarser quantizers.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    on_unreadable: 'warn', 'raise' or 'ignore', see `check`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers.

  Raises:
    ValueError: several topologies, W is not symmetric or not connected,
      gamma outside (0, 1], or the workers never agree with it.

  >>> from moniqua_jax import ring, uniform
  >>> algorithm = choco(ring(8), uniform(bits=4), gamma=0.5,
  ...                   axis_name='workers', key=jax.random.key(0))

  Source: Algorithm 2 of arXiv:1902.00340; the lean form is of the same paper.
  """
  schedule = topologies.one_symmetric(topology, 'choco')
  gamma = arguments.share(gamma, 'gamma={}; choco needs 0 < gamma <= 1.')
  topologies.require_agreement(schedule, f'choco ({gamma=})', gamma)
  neighbours = gossip.neighbours(
    schedule,
    quantizer,
    axis_name=axis_name,
    key=key,
    on_unreadable=on_unreadable,
  )

  def init(params):
    flat, _ = gossip.flatten(params)
    return ChocoState(
      neighbours.init(), jnp.zeros_like(flat), jnp.zeros_like(flat)
    )

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    difference = x + u - state.replica
    q, pull, heard = neighbours.exchange(
      difference, jnp.zeros_like(x), state.heard, step, **extra_args
    )
    # Of a difference beyond float32 nothing was said.
    q = jnp.where(jnp.isfinite(q), q, 0)
    apart = state.apart + pull
    return unravel(u + gamma * apart), ChocoState(
      heard, state.replica + q, apart
    )

  return remembering(init, update, 'choco')
