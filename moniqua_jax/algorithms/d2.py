"""D^2, and Moniqua on D^2: for workers whose data differ.

Tang et al., "D^2: Decentralized training over decentralized data", ICML 2018,
arXiv:1803.07068, Algorithm 1. With the quantizer `moniqua` it is Moniqua-D^2 of
Lu and De Sa, ICML 2020, arXiv:2002.11787.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import gossip, theory, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import remembering
from moniqua_jax.quantizers import base


class D2State(NamedTuple):
  """State of D^2.

  Attributes:
    heard: of the messages.
    drift: f32[d], the sum of all pulls so far: x_k - x_{k-1} - u_{k-1}.
  """

  heard: gossip.Heard
  drift: jax.Array


def d2(
  topology: topologies.Topology,
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: jax.Array,
  on_unreadable: str = 'warn',
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: gossip of a half step that forgets whose data it was.

    x_{k+1/2} = 2 x_k - x_{k-1} + u_k - u_{k-1}    (first: x_0 + u_0)
    x_{k+1,i} = x_{k+1/2,i} + sum_j W_ij (x_hat_{k+1/2,j} - x_hat_{k+1/2,i})

  with u = -alpha g. What differs between the workers' gradients cancels, so the
  workers agree on the minimum of the mean loss, where D-PSGD stops apart. One
  vector is kept, not two: x_k - x_{k-1} - u_{k-1} is the sum of the pulls so
  far. The half step is what is sent, so a theta must bound its distances.

  Args:
    topology: symmetric, with lambda_n(W) > -1/3, one for all steps.
    quantizer: a `Quantizer` or a `Tuned`.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    on_unreadable: 'warn', 'raise' or 'ignore', see `check`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers.

  Raises:
    ValueError: several topologies, W is not symmetric or not connected, or
      lambda_n(W) <= -1/3: an even ring with weights 1/3 has -1/3 exactly, and
      `lazy(ring(8), 0.75)` is what to use.

  >>> from moniqua_jax import lazy, moniqua, ring
  >>> algorithm = d2(lazy(ring(8), 0.75), moniqua(theta=1.0, bits=4),
  ...                axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.sgd(0.1, momentum=0.9), algorithm)

  Source: Algorithm 1 of arXiv:1803.07068; Moniqua-D^2 of arXiv:2002.11787.
  """
  schedule = topologies.one_symmetric(topology, 'd2')
  theory.require_d2_stable(schedule[0])
  topologies.require_agreement(schedule, 'd2')
  neighbours = gossip.neighbours(
    schedule,
    quantizer,
    axis_name=axis_name,
    key=key,
    on_unreadable=on_unreadable,
  )

  def init(params):
    flat, _ = gossip.flatten(params)
    return D2State(neighbours.init(), jnp.zeros_like(flat))

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    half = x + u + state.drift
    drift, heard = neighbours.mix(
      state.drift, half, state.heard, step, **extra_args
    )
    return unravel(u + drift), D2State(heard, drift)

  return remembering(init, update, 'd2')
