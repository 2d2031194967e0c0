"""Optax transformations that say their name and their messages.

Each is a pair (init, update) wherever optax wants one; what it says about
itself is in attributes beside the pair, which wrappers hand on:
`Gossip(init, update, **vars(algorithm))`.
"""

from collections.abc import Callable
import operator

import optax


class Gossip(optax.GradientTransformationExtraArgs):
  """A transformation that stands last in the chain, and what it says.

  Attributes:
    name: of the algorithm, as in `theory.LAWS`.
    heard: state -> `gossip.Heard`; None where no messages are sent.
    may_rest: whether `every` may leave steps out.
    told: (state, u_k) -> state, for who adds the updates after the messages.
    message: (`Tuned`, d) -> (`Tuned`, values): what of a quantizer travels, and
      how many values there are in a message of d parameters.
  """

  def __new__(
    cls,
    init: Callable,
    update: Callable,
    name: str = 'this algorithm',
    heard: Callable | None = operator.attrgetter('heard'),
    may_rest: bool = True,
    told: Callable = lambda state, updates: state,
    message: Callable = lambda quantizer, d: (quantizer, d),
  ):
    self = super().__new__(cls, init, update)
    self.name, self.heard = name, heard
    self.may_rest, self.told, self.message = may_rest, told, message
    return self


class Reduction(optax.GradientTransformationExtraArgs):
  """A transformation that stands first in the chain, and what it says.

  Attributes:
    name: of the algorithm.
    quantizes: whether its state has `tuned`, of a quantizer, and `short`.
    shift: state -> what is subtracted from gradients before they are quantized.
  """

  def __new__(
    cls,
    init: Callable,
    update: Callable,
    name: str,
    quantizes: bool = True,
    shift: Callable = lambda state: 0.0,
  ):
    self = super().__new__(cls, init, update)
    self.name, self.quantizes, self.shift = name, quantizes, shift
    return self


def no_gossip() -> Gossip:
  """Returns the `Gossip` that leaves the updates as they are."""
  return Gossip(*optax.with_extra_args_support(optax.identity()), 'none', None)


def no_reduction() -> Reduction:
  """Returns the `Reduction` that leaves the gradients as they are."""
  tx = optax.with_extra_args_support(optax.identity())
  return Reduction(*tx, 'none', quantizes=False)
