"""Local steps that go on while a message is on its way.

Douillard et al., "Streaming DiLoCo with overlapping communication", 2025,
arXiv:2501.18512, Section 2.3.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import arguments, gossip
from moniqua_jax.algorithms import turns, vectors
from moniqua_jax.algorithms.transformation import Gossip


class DelayedState(NamedTuple):
  """State of a delayed algorithm.

  Attributes:
    own: of the algorithm.
    sent: f32[d], y, what is on its way; None where it arrives in the next step.
  """

  own: Any
  sent: jax.Array | None

  @property
  def heard(self):
    """Of the messages."""
    return self.own.heard


def delayed(algorithm: Gossip, steps, delay: int) -> Gossip:
  """`every` of an `outer`, of which a message takes some steps to arrive.

    y <- x after a step that talks,   z <- x after `delay` steps more
    x <- algorithm(y) + (z - y)

  The message is written, sent and read in the last of these steps, and waits
  for nothing in it: all of it may go beside that step's gradient.
  """
  clock, delay = turns.every(steps), arguments.integer(delay)
  most = min(steps for *_, steps in clock.pieces)
  if type(delay) is not int or not 1 <= delay <= most:
    raise ValueError(
      f'delay={delay!r}; it is a whole number of steps, at most the {most} '
      'from one message to the next.'
    )
  due = clock._replace(late=delay)

  def init(params):
    x, _ = gossip.flatten(params)
    # A copy: whoever donates the parameters keeps what is sent.
    sent = jnp.copy(x) if delay > 1 else None
    return DelayedState(algorithm.init(params), sent)

  def taken(updates, state):
    updates, own = algorithm.taken(updates, state.own)
    return updates, state._replace(own=own)

  def update(updates, state, params=None, *, step, **extra_args):
    updates, state = taken(updates, state)
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    y = x if delay == 1 else jnp.where(clock.at(step - 1) > 0, x, state.sent)
    nothing, extra_args = jnp.zeros_like(x), {'counted': step} | extra_args

    def arrive(own):
      return algorithm.update(
        nothing, own, y, step=due.before(step), **extra_args
      )

    rest = lambda own: (nothing, own)
    pull, own = lax.cond(due.at(step) > 0, arrive, rest, state.own)
    return unravel(u + pull), DelayedState(own, y if delay > 1 else None)

  says = {**vars(algorithm), 'taken': taken}
  says['heard'] = algorithm.heard and (lambda s: algorithm.heard(s.own))
  within = algorithm.period
  says['period'] = within and clock.period and clock.period * within
  return Gossip(init, update, **says)
