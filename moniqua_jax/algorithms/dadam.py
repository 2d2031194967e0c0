"""Adam whose workers agree on how large a step is: second moments by gossip.

Each worker of AdamW divides by the root of its own second moments. Where their
data differ the mean of the workers then moves along sum_i m_i / sqrt(v_i),
which does not vanish at the optimum, however well the parameters agree.

Ours; with moments in full precision it is near Chen et al., "On the convergence
of decentralized adaptive gradient methods", 2021, arXiv:2109.03194.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from moniqua_jax import arguments, gossip, topologies
from moniqua_jax.algorithms import transformation, turns, vectors
from moniqua_jax.quantizers import base
from moniqua_jax.quantizers.float8 import float8

Array = jax.Array


class DadamState(NamedTuple):
  """State of Adam with shared second moments.

  Attributes:
    told: of the messages of moments; `lost` counts gradients that were not
      finite, and taken as 0.
    gradients: i32[], so far.
    m: f32[d], first moments, of a worker by itself.
    v: f32[d], second moments, never negative.
  """

  told: gossip.Heard
  gradients: Array
  m: Array
  v: Array


def dadam(
  learning_rate: float | Callable,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  every: int = 10,
  *,
  topology: topologies.Topology | tuple[topologies.Topology, ...],
  axis_name: str,
  key: Array,
  quantizer: base.Quantizer | base.Tuned | None = None,
) -> optax.GradientTransformationExtraArgs:
  """In place of `optax.adamw`, before the gossip of the parameters.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    v_i <- max(0, v_i + sum_j W_ij (v_hat_j - v_hat_i))     in some steps
    u = -alpha (m / (1 - b1^k) / (sqrt(v / (1 - b2^k)) + eps) + weight_decay x)

  the second line in one step of `every`. Second moments span decades, so they
  travel as floats of 8 bits: 8 / every bits for each parameter, edge and step.

  Args:
    learning_rate: alpha, a number or a schedule of optax.
    b1: of the first moments.
    b2: of the second moments; `every` well below ln(.5) / ln(b2), 13 steps at
      .95, 693 at .999.
    eps: added to the root.
    weight_decay: of AdamW.
    every: steps from one message of moments to the next.
    topology: doubly stochastic; a tuple is cycled by message.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    quantizer: of second moments, one that needs nothing near; `float8()` if not
      given.

  Returns:
    A transformation whose `update(gradients, state, params, *, step)` gives u.

  Raises:
    ValueError: every < 1; b1 or b2 not in [0, 1); a rate that is none; a
      topology as `dpsgd` refuses it; a quantizer that reads a message next to
      the values of the receiver.

  >>> from moniqua_jax import dpsgd, moniqua, ring
  >>> slots = dict(axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(dadam(1e-3, topology=ring(8), **slots),
  ...                  dpsgd(ring(8), moniqua(theta=1.0, bits=4), **slots))

  Source: ours; with moments in full precision near arXiv:2109.03194.
  """
  arguments.rate(learning_rate, 'dadam')
  arguments.decay(b1, f'b1={b1!r}; dadam')
  arguments.decay(b2, f'b2={b2!r}; dadam')
  clock = turns.every(every, f'every={every!r}; dadam')
  schedule = topologies.schedule(topology)
  topologies.require_doubly_stochastic(schedule, 'dadam')
  topologies.require_agreement(schedule, 'dadam')
  tuned = base.tuned(quantizer or float8())
  if base.needs_near(tuned):
    raise ValueError(
      'dadam: second moments span decades, so no theta holds for all of them; '
      'take float8() or another quantizer that reads messages by themselves.'
    )
  neighbours = gossip.neighbours(
    schedule, tuned, axis_name=axis_name, key=key, on_unreadable='ignore'
  )
  adam = optax.scale_by_adam(b1, b2, eps)
  rate = learning_rate if callable(learning_rate) else lambda k: learning_rate

  def init(params):
    x, _ = gossip.flatten(params)
    m, v = jnp.zeros_like(x), jnp.zeros_like(x)  # each is donated by itself
    return DadamState(neighbours.init(), jnp.int32(0), m, v)

  def update(updates, state, params=None, *, step, **extra_args):
    del extra_args
    x, unravel = gossip.flatten(params)
    g, lost = transformation.unless_finite(
      vectors.flatten_like(updates, params)
    )
    own = optax.ScaleByAdamState(state.gradients, state.m, state.v)
    _, (count, m, v) = adam.update(g, own)

    def talk(v, heard):
      mixed, heard = neighbours.mix(v, v, heard, clock.before(step))
      return jnp.maximum(mixed, 0), heard

    rest = lambda v, heard: (v, heard)
    v, heard = lax.cond(clock.at(step) > 0, talk, rest, v, state.told)
    heard = heard._replace(lost=state.told.lost + lost)
    root = jnp.sqrt(v / (1 - b2**count)) + eps
    way = m / (1 - b1**count) / root + weight_decay * x
    return unravel(-rate(state.gradients) * way), DadamState(heard, count, m, v)

  update = transformation.stepped(update, 'dadam')
  return optax.GradientTransformationExtraArgs(init, update)
