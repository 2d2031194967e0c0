"""Push-sum: gossip over directed graphs, where W need not be doubly stochastic.

Assran et al., "Stochastic gradient push for distributed deep learning", ICML
2019, arXiv:1811.10792, Algorithm 1; push-sum itself is of Kempe et al. 2003.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import gossip, topologies, wire
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import remembering
from moniqua_jax.gossip import edge
from moniqua_jax.quantizers import base


class PushSumState(NamedTuple):
  """State of push-sum: one number.

  Attributes:
    heard: of the messages.
    mass: f32[], w_i, the share of the whole that this worker holds, times n.
  """

  heard: gossip.Heard
  mass: jax.Array


def push_sum(
  topology: topologies.Topology | tuple[topologies.Topology, ...],
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: jax.Array,
  on_unreadable: str = 'warn',
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: stochastic gradient push.

    y_i = z_i + u_i / w_i
    z_i <- sum_j A_ij w_j y_j / sum_j A_ij w_j,  w_i <- sum_j A_ij w_j

  with z the parameters and u = -alpha g at z. A is column stochastic: what a
  worker gives away and what it keeps sum to 1, so sum_i w_i z_i is conserved,
  whoever receives more than others. Sent is y, with w in the header: the y of
  neighbours are close to each other, as `moniqua` wants it, w y are not.

  Conserved, that is, while all messages are read: a share that was given away
  and not read is gone, and `seen.readable` of its receiver says so. With
  `answered` (and with `auto_theta`) it stays with its sender, whatever is lost.

  Args:
    topology: its weights are read by *sender*: worker i sends the share
      weight[i] along an edge. Nothing need be symmetric; a tuple is cycled by
      step.
    quantizer: of y; a `Quantizer` or a `Tuned`.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    on_unreadable: 'warn', 'raise' or 'ignore', see `check`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers.

  Raises:
    ValueError: the workers are not connected, or never agree.

  >>> from moniqua_jax import Topology, moniqua
  >>> uneven = Topology([((0.5, 0.25, 0.25), (1, 2, 0)),
  ...                    ((0.0, 0.5, 0.0), (2, 0, 1))])
  >>> algorithm = push_sum(uneven, moniqua(theta=1.0, bits=8),
  ...                      axis_name='workers', key=jax.random.key(0))

  Source: Algorithm 1 of arXiv:1811.10792.
  """
  schedule = topologies.push_schedule(topology)
  topologies.require_agreement(
    schedule, 'push_sum', weights=topologies.push_matrix
  )
  neighbours = gossip.neighbours(
    schedule,
    _with_mass(base.tuned(quantizer)),
    axis_name=axis_name,
    key=key,
    share=edge.BY_SENDER,
    on_unreadable=on_unreadable,
  )

  def init(params):
    flat, _ = gossip.flatten(params)
    return PushSumState(neighbours.init(), jnp.ones((), flat.dtype))

  def update(updates, state, params=None, *, step, **extra_args):
    z, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    half = jnp.append(z + u / state.mass, state.mass)
    _, pull, heard = neighbours.exchange(
      half, half, state.heard, step, **extra_args
    )
    mass = state.mass + pull[-1]
    new = (state.mass * half[:-1] + pull[:-1]) / mass
    return unravel(new - z), PushSumState(heard, mass)

  message = lambda quantizer, d: (_with_mass(quantizer), d + 1)
  return remembering(init, update, 'push_sum', message=message)


def _with_mass(quantizer: base.Tuned) -> base.Tuned:
  """Sends [z, w] and gives [w z_hat, w]: w rides in the header."""
  return base.Tuned(
    quantizer.init,
    lambda state, step: _massive(quantizer.quantizer(state, step)),
    lambda state, seen, x: quantizer.observe(state, seen, x[:-1]),
    quantizer.answered,
  )


def _massive(quantizer: base.Quantizer) -> base.Quantizer:
  def encode(x, key):
    payload = quantizer.encode(x[:-1], key)
    return jnp.append(payload, wire.cast(x[-1], payload.dtype))

  def split(payload):
    tail = 4 if payload.dtype == jnp.uint8 else 1
    return payload[:-tail], wire.uncast(payload[-tail:])

  def decode(payload, reference):
    message, mass = split(payload)
    z_hat = quantizer.decode(message, reference[:-1])
    # Who could not say z has not said w either: it gives neither away.
    return jnp.append(mass * z_hat, mass + 0 * z_hat[0])

  def inspect(payload, reference):
    message, mass = split(payload)
    seen = quantizer.inspect(message, reference[:-1])
    # Zeros are what JAX gives where no message came; and who is not finite
    # itself takes nothing, so that its neighbours keep what they have.
    sound = (mass > 0) & (mass < jnp.inf) & jnp.isfinite(seen.distance)
    return seen._replace(readable=seen.readable & sound)

  short = _massive_short(quantizer.short) if quantizer.short else None
  return base.Quantizer(
    encode,
    decode,
    inspect,
    quantizer.shared,
    short=short,
    near=quantizer.near,
  )


def _massive_short(short: base.Short) -> base.Short:
  """The short form of a message of bytes, with its mass behind it."""

  def shorten(payload, size):
    message, fits = short.shorten(payload[:-4], size - 1)
    return jnp.append(message, payload[-4:]), fits

  def restore(message, size):
    payload = short.restore(message[:-4], size - 1)
    return jnp.append(payload, message[-4:])

  return base.Short(lambda size: short.capacity(size - 1) + 4, shorten, restore)
