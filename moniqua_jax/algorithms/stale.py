"""Gossip beside the gradient: messages that hold the update of the step before.

For D^2 the result is EXTRA: Shi, Ling, Wu and Yin, "EXTRA: An exact first-order
algorithm for decentralized consensus optimization", SIAM J. Optim. 25(2), 2015,
arXiv:1404.6264.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import theory, topologies
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import remembering, unless_finite


class StaleState(NamedTuple):
  """State of a stale algorithm.

  Attributes:
    own: of the algorithm.
    before: u_{k-1}, like the parameters; 0 at first.
    lost: i32[], updates that were not finite, and taken as 0.
  """

  own: Any
  before: Any
  lost: jax.Array

  @property
  def heard(self):
    """Of the messages."""
    return self.own.heard._replace(lost=self.lost)


def stale(
  algorithm: optax.GradientTransformationExtraArgs,
  topology: topologies.Topology,
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: the algorithm, whose messages do not wait for gradients.

    x_{k+1} = x_k + u_k + [algorithm(x_k, u_{k-1}) - u_{k-1}]

  with u = -alpha g. The messages of d2, choco and deepsqueeze hold the update
  of their step, so they start when the gradient is there and all wait for them.
  With the update of the step before in its place the bracket is known when the
  step begins, and travels while the gradient is computed. (dpsgd sends x_k and
  never waits.) What was added is u_k, the bracket sums to 0 over the workers:
  their mean still moves by the mean update. d2 becomes EXTRA with 2 W - I,

    x_{k+1} = W (2 x_k - x_{k-1}) + u_k - u_{k-1}

  and still forgets whose data it was. One vector more is kept, and a theta must
  cover two steps, since x_k and the message hold u_{k-1} each: `theory.theta`
  of 'stale_d2'.

  The price is in the step size. On a loss of curvature L with a = alpha L, the
  part of x along an eigenvector of W, of eigenvalue lambda < 1, follows

    d2:                 z^2 = (2 lambda - a) z - (lambda - a)
    choco, deepsqueeze: z^2 = (lambda - a) z + (1 - lambda) a

  in full precision. From lambda = 0 on the roots are within the unit circle iff
  a < (1 + 3 lambda) / 2 and a < (1 + lambda) / (2 - lambda): for a <= 1/2
  wherever lambda_n(W) > 0. Below 0 the room shrinks, for d2 to nothing at -1/3.
  EXTRA asks for lambda_n(W) > 0 as well.

  Args:
    algorithm: d2, choco or deepsqueeze, or `every` or `streaming` of one.
    topology: that of the algorithm, symmetric, with lambda_n(W) > 0; lazy(W,
      eta) or lazy(W, gamma) where deepsqueeze or choco have a consensus step.

  Returns:
    A transformation whose state is a `StaleState`.

  Raises:
    ValueError: another algorithm, several topologies, W is not symmetric, or
      lambda_n(W) <= 0: it names a gamma for `lazy(topology, gamma)`.

  >>> from moniqua_jax import d2, lazy, moniqua, ring
  >>> w = lazy(ring(8), 0.5)
  >>> tx = optax.chain(optax.sgd(0.1), stale(d2(
  ...   w, moniqua(theta=1.0, bits=4), axis_name='workers',
  ...   key=jax.random.key(0)), w))

  Source: Algorithm 1 of arXiv:1404.6264 for d2; the others are ours.
  """
  _check(algorithm, topology)

  def init(params):
    nothing = vectors.complete(None, params)
    return StaleState(algorithm.init(params), nothing, jnp.int32(0))

  def taken(updates, state):
    updates, lost = unless_finite(updates)
    return updates, state._replace(lost=state.lost + lost)

  def update(updates, state, params=None, **extra_args):
    moved, own = algorithm.update(state.before, state.own, params, **extra_args)
    pull = jax.tree.map(jnp.subtract, moved, state.before)
    updates = vectors.complete(updates, params)
    state = state._replace(own=own, before=updates)
    return jax.tree.map(jnp.add, updates, pull), state

  told = lambda state, updates: state._replace(before=updates)
  name, message = f'stale_{algorithm.name}', algorithm.message
  # u_{k-1} is that of the step before, so it must see each.
  says = dict(told=told, message=message, may_rest=False)
  return remembering(init, update, name, taken, **says)


def _check(algorithm, topology):
  name = getattr(algorithm, 'name', 'this algorithm')
  law = theory.LAWS.get(f'stale_{name}')
  if law is None:
    raise ValueError(
      f'stale: {name} has no stale form; d2, choco and deepsqueeze have one, '
      'and dpsgd needs none.'
    )
  law.check(topology)
