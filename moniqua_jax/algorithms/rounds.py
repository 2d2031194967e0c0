"""Several rounds of gossip in one step: the dual of local steps."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from moniqua_jax import gossip
from moniqua_jax.algorithms import turns, vectors
from moniqua_jax.algorithms.transformation import Gossip
from moniqua_jax.quantizers import base


class RoundsState(NamedTuple):
  """State of an algorithm that has several rounds in a step.

  Attributes:
    own: of the algorithm.
    seen: what the messages of all rounds of the last step told, each field
      [R E], round by round; rounds that it did not have told nothing.
  """

  own: Any
  seen: base.Seen

  @property
  def heard(self):
    """Of the messages."""
    return self.own.heard._replace(seen=self.seen)


def rounds(
  algorithm: optax.GradientTransformationExtraArgs,
  rounds: int | tuple[tuple[int, int], ...],
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: the algorithm, with several rounds in each step.

    dpsgd:       x_{k+1} = W_R ... W_1 x_k + u_k
    d2:          x_{k+1} = W^R (2 x_k - x_{k-1} + u_k - u_{k-1})
    the others:  x_{k+1} = A_R(... A_1(x_k, u_k) ..., 0)

  in full precision. R rounds send R times the bytes; three of a one-peer graph
  make eight workers agree, but for what the last ones round. Rounds go on
  through the schedule of topologies, each with a key of its own, and the mean
  of the workers moves as without. Workers are furthest apart in the first round
  of a step: what a theta must cover. adpsgd, dcd and ecd have one round in a
  step: the first counts its delays in rounds, the others send their updates.

  Args:
    algorithm: dpsgd, d2, choco, deepsqueeze or push_sum, or `answered`; `every`
      and `stale` stand around this, not within. Its steps are the rounds.
    rounds: R, or pairs such as ((0, 3), (500, 1)): three up to step 500, then
      one.

  Returns:
    A transformation whose state is a `RoundsState`.

  Raises:
    ValueError: rounds < 1, pairs that are not in order; another algorithm.

  >>> from moniqua_jax import dpsgd, moniqua, one_peer_exponential
  >>> gossip = dpsgd(one_peer_exponential(8), moniqua(theta=1.0, bits=4),
  ...                axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.sgd(0.1), rounds(gossip, 3))

  Source: ours.
  """
  clock, order = turns.several(rounds), _order(algorithm)
  fewest, most = clock.rounds

  def init(params):
    own = algorithm.init(params)
    edges = algorithm.heard(own).seen.readable.size
    return RoundsState(own, gossip.no_news(most * edges))

  def taken(updates, state):
    updates, own = algorithm.taken(updates, state.own)
    return updates, state._replace(own=own)

  def update(updates, state, params=None, *, step, **extra_args):
    updates, own = algorithm.taken(updates, state.own)
    updates = vectors.complete(updates, params)
    moved, first, seen = None, clock.before(step), []
    # As `gossip.no_news`, of this worker.
    of_one = [field[: field.size // most] for field in state.seen]
    quiet = map(jnp.full_like, of_one, (True, 0, jnp.inf, 0))
    nothing = base.Seen(*quiet)
    extra_args = {'counted': step} | extra_args

    def talk(r, moved, own):
      u, x, onto = order.given(updates, params, moved)
      more, own = algorithm.update(u, own, x, step=first + r, **extra_args)
      return _sum(onto, more), own, algorithm.heard(own).seen

    for r in range(most):
      one = functools.partial(talk, r)
      if r < fewest:
        moved, own, told = one(moved, own)
      else:
        rest = lambda moved, own: (moved, own, nothing)
        now = r < clock.at(step)
        moved, own, told = lax.cond(now, one, rest, moved, own)
      seen.append(told)
    seen = jax.tree.map(lambda *each: jnp.concatenate(each), *seen)
    return order.end(moved, updates), RoundsState(own, seen)

  return Gossip(init, update, **vars(algorithm) | {'taken': taken})


def _sum(onto, more):
  return more if onto is None else jax.tree.map(jnp.add, onto, more)


class _Order(NamedTuple):
  """What each round of a step is given, and what comes of the last.

  Attributes:
    given: (u, params, moved) -> (updates, params, onto) of a round; `moved` is
      what the rounds before have moved, None in the first, and what the round
      moves is added to `onto`, if that is not None.
    end: (moved, u) -> the updates of the step.
  """

  given: Callable
  end: Callable = lambda moved, u: moved


def _moving(u, params, moved):
  """A round like the last one's next step, in which the worker is given u."""
  return u, _sum(moved, params), moved


def _at_rest(u, params, moved):
  return _moving(jax.tree.map(jnp.zeros_like, u), params, moved)


def _first(u, params, moved):
  return (_moving if moved is None else _at_rest)(u, params, moved)


# The messages of dpsgd know nothing of u, and do not wait for it. What d2 keeps
# is the sum of all pulls: with it the half step of x and u is where they led.
_ORDERS = {
  'dpsgd': _Order(_at_rest, _sum),
  'd2': _Order(lambda u, params, moved: (u, params, None)),
  **dict.fromkeys(('choco', 'deepsqueeze', 'push_sum'), _Order(_first)),
}


def _order(algorithm) -> _Order:
  name = getattr(algorithm, 'name', 'this algorithm')
  if name not in _ORDERS:
    raise ValueError(
      f'rounds: {name} has one round in a step; {", ".join(_ORDERS)} may have '
      'several (and `stale` stands around rounds, not within).'
    )
  if algorithm.period != 1:
    raise ValueError(
      f'rounds: {name} rests in some steps; write every(rounds(...), steps).'
    )
  return _ORDERS[name]
