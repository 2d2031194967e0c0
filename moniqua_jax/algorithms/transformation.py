"""Optax transformations that say their name and their messages.

Each is a pair (init, update) wherever optax wants one; what it says about
itself is in attributes beside the pair, which wrappers hand on:
`Gossip(init, update, **vars(algorithm))`.
"""

from collections.abc import Callable
import functools
import inspect
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax.quantizers import numerics


class Counted(NamedTuple):
  """What is counted of an algorithm that hears no single neighbour.

  Attributes:
    turn: i32[], rounds so far.
    lost: i32[], updates and means that were not finite, and not taken.
  """

  turn: jax.Array
  lost: jax.Array


def stepped(update: Callable, name: str) -> Callable:
  """Refuses what is no number of a step, where an update asks for one."""
  if 'step' not in inspect.signature(update).parameters:
    return update

  @functools.wraps(update)
  def with_step(updates, state, params=None, **extra_args):
    step = extra_args.get('step')
    if not _is_whole(step):
      raise TypeError(
        f'{name}: update() was given step={step!r:.60}; it takes the number of '
        'the step, one whole number, the same on all workers: tx.update(grads, '
        'opt_state, params, step=step). apply_gradients of a TrainState of '
        'flax and gradient_transformation() of optax.MultiSteps hand none on.'
      )
    return update(updates, state, params, **extra_args)

  return with_step


def _is_whole(step) -> bool:
  of_array = jnp.issubdtype(getattr(step, 'dtype', float), jnp.integer)
  return isinstance(step, int) or (of_array and not jnp.ndim(step))


def _replaced(self, **changes):
  """As of any named tuple, and keeps what stands beside the pair."""
  return type(self)(**self._asdict() | vars(self) | changes)


class Gossip(optax.GradientTransformationExtraArgs):
  """A transformation that stands last in the chain, and what it says.

  Attributes:
    name: of the algorithm, as in `theory.LAWS`.
    heard: state -> `gossip.Heard`; None where no messages are sent.
    may_rest: whether `every` may leave steps out.
    told: (state, u_k) -> state, for who adds the updates after the messages.
    message: (`Tuned`, d) -> (`Tuned`, values): what of a quantizer travels, and
      how many values there are in a message of d parameters.
    taken: (u_k, state) -> (what counts of u_k, state), see `remembering`.
    period: steps in which each parameter is in one message; None if it changes.
  """

  _replace = _replaced

  def __new__(
    cls,
    init: Callable,
    update: Callable,
    name: str = 'this algorithm',
    heard: Callable | None = operator.attrgetter('heard'),
    may_rest: bool = True,
    told: Callable = lambda state, updates: state,
    message: Callable = lambda quantizer, d: (quantizer, d),
    taken: Callable = lambda updates, state: (updates, state),
    period: int | None = 1,
  ):
    self = super().__new__(cls, init, stepped(update, name))
    self.name, self.heard, self.may_rest = name, heard, may_rest
    self.told, self.message, self.taken = told, message, taken
    self.period = period
    return self


def require_gossip(wrapper: str, algorithm) -> None:
  """Refuses what is no gossip by itself, such as a chain that ends with one.

  A wrapper that lets it rest hands the updates on as they are: to a chain those
  are gradients, which nothing has made a step of yet.
  """
  if isinstance(algorithm, Gossip):
    return
  name = getattr(algorithm, 'name', 'this transformation')
  raise ValueError(
    f'{wrapper}: {name} is no gossip algorithm; give it dpsgd or another one, '
    'or outer of a mean, and nothing else of the chain: optax.chain(optax.sgd('
    f'0.1), {wrapper}(dpsgd(...), ...)).'
  )


def unless_finite(updates: Any) -> tuple[Any, jax.Array]:
  """Takes updates that are not finite as 0; returns i32[], 1 where it did."""
  sound = numerics.finite(updates)
  nothing = jax.tree.map(jnp.zeros_like, updates)
  return numerics.select(sound, updates, nothing), (~sound).astype(jnp.int32)


def _counted(updates, state):
  updates, lost = unless_finite(updates)
  heard = state.heard._replace(lost=state.heard.lost + lost)
  return updates, state._replace(heard=heard)


def remembering(
  init: Callable, update: Callable, name: str, taken=_counted, **says
) -> Gossip:
  """Builds the `Gossip` of an algorithm whose state holds vectors.

  What is not finite would stay in them, and in those of the neighbours. So an
  update of a worker's own that is not finite is lost: taken as 0, and counted.
  """

  @functools.wraps(update)
  def steady(updates, state, params=None, **extra_args):
    updates, state = taken(updates, state)
    return update(updates, state, params, **extra_args)

  return Gossip(init, steady, name, taken=taken, **says)


class Reduction(optax.GradientTransformationExtraArgs):
  """A transformation that stands first in the chain, and what it says.

  Attributes:
    name: of the algorithm.
    quantizes: whether its state has `tuned`, of a quantizer, and `short`.
    shift: state -> what is subtracted from gradients before they are quantized.
    axis_name: of the workers; None where it takes no mean.
    whole: () -> the same `Reduction`, of a vector without leaves; None where it
      must see each gradient, or takes no mean.
  """

  _replace = _replaced

  def __new__(
    cls,
    init: Callable,
    update: Callable,
    name: str,
    quantizes: bool = True,
    shift: Callable = lambda state: 0.0,
    axis_name: str | None = None,
    whole: Callable | None = None,
  ):
    self = super().__new__(cls, init, stepped(update, name))
    self.name, self.quantizes, self.shift = name, quantizes, shift
    self.axis_name, self.whole = axis_name, whole
    return self


def no_gossip() -> Gossip:
  """Returns the `Gossip` that leaves the updates as they are."""
  tx = optax.with_extra_args_support(optax.identity())
  return Gossip(tx.init, tx.update, 'none', None)


def no_reduction() -> Reduction:
  """Returns the `Reduction` that leaves the gradients as they are."""
  tx = optax.with_extra_args_support(optax.identity())
  return Reduction(tx.init, tx.update, 'none', quantizes=False)
