"""DeepSqueeze: gossip of compressed models, with error compensation.

Tang et al., "DeepSqueeze: Decentralization meets error-compensated
compression", 2019, arXiv:1907.07346.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import arguments, gossip, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import remembering
from moniqua_jax.quantizers import base


class DeepSqueezeState(NamedTuple):
  """State of DeepSqueeze.

  Attributes:
    heard: of the messages.
    error: f32[d], what compression has left out so far.
  """

  heard: gossip.Heard
  error: jax.Array


def deepsqueeze(
  topology: topologies.Topology | tuple[topologies.Topology, ...],
  quantizer: base.Quantizer | base.Tuned,
  eta: float = 1.0,
  *,
  axis_name: str,
  key: jax.Array,
  on_unreadable: str = 'warn',
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: DeepSqueeze.

    y_i = x_i + u_i,  v_i = y_i + e_i,  e_i <- v_i - C(v_i)
    x_i <- y_i + eta sum_j W_ij (C(v_j) - C(v_i))

  with u = -alpha g. C may be biased.

  Args:
    topology: doubly stochastic; a tuple is cycled by step.
    quantizer: of the models; a `Quantizer` or a `Tuned`.
    eta: consensus step size, 0 < eta <= 1; smaller for coarser quantizers.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    on_unreadable: 'warn', 'raise' or 'ignore', see `check`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers.

  Raises:
    ValueError: columns of W do not sum to 1, the workers are not connected,
      eta outside (0, 1], or the workers never agree with it.

  >>> from moniqua_jax import ring, uniform
  >>> algorithm = deepsqueeze(ring(8), uniform(bits=4), eta=0.5,
  ...                         axis_name='workers', key=jax.random.key(0))

  Source: Algorithm 1 of arXiv:1907.07346.
  """
  schedule = topologies.schedule(topology)
  topologies.require_doubly_stochastic(schedule, 'deepsqueeze')
  eta = arguments.share(eta, 'eta={}; deepsqueeze needs 0 < eta <= 1.')
  topologies.require_agreement(schedule, f'deepsqueeze ({eta=})', eta)
  neighbours = gossip.neighbours(
    schedule,
    quantizer,
    axis_name=axis_name,
    key=key,
    on_unreadable=on_unreadable,
  )

  def init(params):
    flat, _ = gossip.flatten(params)
    return DeepSqueezeState(neighbours.init(), jnp.zeros_like(flat))

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    v = x + u + state.error
    sent, pull, heard = neighbours.exchange(
      v, v, state.heard, step, **extra_args
    )
    # Who could not say what it holds (theta is far too small) keeps its error.
    error = jnp.where(jnp.isfinite(sent), v - sent, state.error)
    return unravel(u + eta * pull), DeepSqueezeState(heard, error)

  return remembering(init, update, 'deepsqueeze')
