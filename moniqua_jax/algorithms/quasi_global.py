"""Momentum of the way that all workers go, not of each one's gradients.

Lin, Karimireddy, Stich and Jaggi, "Quasi-global momentum: accelerating
decentralized deep learning on heterogeneous data", ICML 2021, arXiv:2102.04761.
"""

from collections.abc import Callable
import operator
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from moniqua_jax import arguments
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import (
  remembering,
  require_gossip,
  unless_finite,
)


class QuasiGlobalState(NamedTuple):
  """State of an algorithm with quasi-global momentum.

  Attributes:
    own: of the algorithm.
    momentum: m, in units of a gradient, like the parameters; 0 at first.
    moved: the sum of what was added since the last turn, like the parameters;
      None if each step is one.
    lost: i32[], gradients that were not finite, and taken as 0.
  """

  own: Any
  momentum: Any
  moved: Any
  lost: jax.Array

  @property
  def heard(self):
    """Of the messages."""
    heard = self.own.heard
    return heard._replace(lost=heard.lost + self.lost)


_REFUSED = {
  'adpsgd': 'its updates are late, so a move is not of the step that made it',
  'none': 'without gossip all workers go one way; take momentum of optax.sgd',
  'push_sum': 'its workers hold shares of unequal mass',
  'qdgd': 'it takes epsilon of an update, of which m would not know',
}


def quasi_global(
  algorithm: optax.GradientTransformationExtraArgs,
  learning_rate: float | Callable,
  momentum: float = 0.9,
  mu: float = 0.9,
  nesterov: bool = False,
  warmup: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain, in place of `optax.sgd`: gradients, momentum, gossip.

    d_k = momentum m + g_k        with nesterov: d_k <- g_k + momentum d_k
    x_{k+1} = algorithm(x_k, -alpha_k d_k)
    m <- mu m + (1 - mu) (x_{k+1-K} - x_{k+1}) / (alpha_{k+1-K} + ... + alpha_k)

  the last in one step of K, a turn: the K of `every` or `streaming`, else 1. m
  averages what a worker really moved, the pull of its neighbours included, so
  it forgets whose data it was.
  Nothing more is sent. m is 0 at first, and comes up over K / ((1 - mu)(1 -
  momentum)) steps, 100 K with .9 and .9: until then a step is shorter than with
  momentum of optax; and it lags by as much when the rate falls. `warmup`
  shortens the start: with mu = 0 it is the usual 1 / (1 - momentum) turns, but
  all the noise of the code is in m then.

  Args:
    algorithm: dpsgd, d2, choco, deepsqueeze, dcd, ecd, outer; or `every`,
      `streaming` or `adapt_then_combine` of one.
    learning_rate: alpha, a number or a schedule, step i32[] -> f32[].
    momentum: beta of the paper, above 0 and below 1.
    mu: part of m that stays in a turn, at least 0 and below 1.
    nesterov: whether the gradient is ahead of its momentum.
    warmup: turns over which mu rises linearly from 0.

  Returns:
    A transformation of gradients whose state is a `QuasiGlobalState`; one or
    two vectors more than the algorithm has.

  Raises:
    ValueError: a number out of its range; adpsgd, push_sum, qdgd, `stale` of
      any.

  >>> from moniqua_jax import dpsgd, moniqua, one_peer_hypercube
  >>> gossip = dpsgd(one_peer_hypercube(8), moniqua(theta=1.0, bits=4),
  ...                axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.add_decayed_weights(1e-4),
  ...                  quasi_global(gossip, learning_rate=0.1))

  Source: Algorithm 1 (QG-DSGDm) of arXiv:2102.04761; turns of K steps are ours.
  """
  require_gossip('quasi_global', algorithm)
  name = algorithm.name
  period = algorithm.period
  if period is None:
    raise ValueError(
      f'quasi_global: the steps between messages of {name} change during '
      'training, and m needs one number; give every(...) one.'
    )
  _check(name, momentum, mu, warmup)
  arguments.rate(learning_rate, 'quasi_global')
  rate = learning_rate if callable(learning_rate) else lambda _: learning_rate
  follow = _follow(rate, mu, period, warmup)

  def init(params):
    m, moved = (vectors.complete(None, params) for _ in range(2))
    moved = moved if period > 1 else None
    return QuasiGlobalState(algorithm.init(params), m, moved, jnp.int32(0))

  def taken(grads, state):
    grads, lost = unless_finite(grads)
    return grads, state._replace(lost=state.lost + lost)

  def update(grads, state, params=None, *, step, **extra_args):
    grads = vectors.complete(grads, params)
    ahead = _plus(grads, momentum, state.momentum)
    if nesterov:
      ahead = _plus(grads, momentum, ahead)
    updates = jax.tree.map(
      lambda d: -jnp.asarray(rate(step), d.dtype) * d, ahead
    )
    updates, own = algorithm.update(
      updates, state.own, params, step=step, **extra_args
    )
    m, moved = follow(state.momentum, state.moved, updates, step)
    return updates, QuasiGlobalState(own, m, moved, state.lost)

  says = dict(may_rest=False, message=algorithm.message, period=period)
  says['heard'] = algorithm.heard and operator.attrgetter('heard')
  return remembering(init, update, f'quasi_global_{name}', taken, **says)


def _plus(one, factor, other):
  return jax.tree.map(lambda v, w: v + factor * w, one, other)


def _follow(rate: Callable, mu: float, period: int, warmup: int) -> Callable:
  """Builds (m, moved, updates, step) -> (m, moved), the last line above."""

  def average(m, moved, step):
    rates = jax.vmap(lambda k: jnp.asarray(rate(k)))(step - jnp.arange(period))
    total = jnp.sum(rates)
    kept = mu * jnp.minimum(1, step // period / warmup) if warmup else mu

    def one(m, moved):
      both = [jnp.asarray(v, m.dtype) for v in (kept, 1 - kept)]
      new = both[0] * m - both[1] * moved / jnp.asarray(total, m.dtype)
      # Steps of rate 0 tell no direction.
      return jnp.where(total != 0, new, m)

    return jax.tree.map(one, m, moved)

  def follow(m, moved, updates, step):
    if period == 1:
      return average(m, updates, step), None
    nothing = jax.tree.map(jnp.zeros_like, moved)
    return lax.cond(
      jnp.equal((step + 1) % period, 0),
      lambda m, moved: (average(m, moved, step), nothing),
      lambda *both: both,
      m,
      _plus(moved, 1, updates),
    )

  return follow


def _check(name, momentum, mu, warmup):
  late = 'its messages hold the update of the step before'
  reason = late if name.startswith('stale_') else _REFUSED.get(name)
  if reason:
    raise ValueError(
      f'quasi_global: not of {name}, {reason}; use dpsgd, d2, choco or '
      'deepsqueeze.'
    )
  warmup = arguments.integer(warmup)
  arguments.decay(mu, f'mu={mu!r}; quasi_global')
  # `optax.inject_hyperparams` traces it, and then nothing is known of it.
  share = arguments.is_traced(momentum) or (
    arguments.is_number(momentum) and 0 < momentum < 1
  )
  whole = type(warmup) is int and warmup >= 0
  for entry, value, valid, range_ in (
    ('momentum', momentum, share, 'above 0 and below 1'),
    ('warmup', warmup, whole, 'a whole number >= 0'),
  ):
    if not valid:
      raise ValueError(f'{entry}={value!r}; quasi_global needs it {range_}.')
