"""QDGD: quantized models of neighbours, and a small step towards them.

Reisizadeh, Mokhtari, Hassani and Pedarsani, "An exact quantized decentralized
gradient descent algorithm", IEEE Transactions on Signal Processing 2019,
arXiv:1806.11536.
"""

from typing import NamedTuple

import jax
import optax

from moniqua_jax import arguments, gossip, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import Gossip
from moniqua_jax.quantizers import base


class QDGDState(NamedTuple):
  """State of QDGD: nothing that grows with the model."""

  heard: gossip.Heard


def qdgd(
  topology: topologies.Topology,
  quantizer: base.Quantizer | base.Tuned,
  epsilon: float = 1.0,
  *,
  axis_name: str,
  key: jax.Array,
  on_unreadable: str = 'warn',
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: QDGD.

    x_i <- x_i + epsilon (sum_j W_ij (Q(x_j) - x_i) + u_i)

  with u = -alpha g: (1 - epsilon + epsilon W_ii) x_i + epsilon sum_{j != i}
  W_ij Q(x_j) - alpha epsilon g. What is rounded is what others send, not its
  own, so that the mean of the workers does not go as without messages: their
  noise is in it, epsilon as large. For an epsilon of T^(-3 delta / 2) and an
  alpha of T^(-delta / 2), delta below 1/2, x after T steps is within
  T^(-delta) of the optimum, squared; without a small epsilon the noise of
  messages as large as x stays.

  Args:
    topology: symmetric, one for all steps.
    quantizer: Q, unbiased; a `Quantizer` or a `Tuned`.
    epsilon: step size, 0 < epsilon <= 1; smaller for coarser quantizers.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    on_unreadable: 'warn', 'raise' or 'ignore', see `check`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers.

  Raises:
    ValueError: several topologies, W is not symmetric or not connected, epsilon
      outside (0, 1], or the workers never agree with it.

  >>> from moniqua_jax import qsgd, ring
  >>> algorithm = qdgd(ring(8), qsgd(bits=4), epsilon=0.1,
  ...                  axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.sgd(1.0), algorithm)

  Source: Algorithm 1 of arXiv:1806.11536.
  """
  schedule = topologies.one_symmetric(topology, 'qdgd')
  epsilon = arguments.share(epsilon, 'epsilon={}; qdgd needs 0 < epsilon <= 1.')
  topologies.require_agreement(schedule, f'qdgd ({epsilon=})', epsilon)
  neighbours = gossip.neighbours(
    schedule,
    quantizer,
    axis_name=axis_name,
    key=key,
    on_unreadable=on_unreadable,
  )

  def init(params):
    del params
    return QDGDState(neighbours.init())

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    pull, heard = neighbours.towards(x, state.heard, step, **extra_args)
    return unravel(epsilon * (u + pull)), QDGDState(heard)

  return Gossip(init, update, 'qdgd')
