"""The types Quantizer, Tuned and Seen, and what is done with any of them.

A quantizer turns one flat vector of d floats into one payload and back. It
knows nothing of workers, topologies and algorithms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from moniqua_jax.quantizers import numerics

Array = jax.Array


class Seen(NamedTuple):
  """What a receiver learned from one message.

  Attributes:
    readable: bool[]; decode gave what was sent (digest agrees, header finite).
    distance: f32[]; max|x_hat_j - reference| less the sender's own error bound.
    theta: f32[]; the bound on that distance under which the message was made,
      infinite for a quantizer that needs none.
    square: f32[]; the mean of (x_j - reference)^2, free of the error of the
      code; 0 unless the quantizer was built to measure it.

  >>> from moniqua_jax import full_precision
  >>> full_precision().inspect(jnp.ones(2), jnp.zeros(2)).distance
  Array(1., dtype=float32)
  """

  readable: Array
  distance: Array
  theta: Array
  square: Array | float = 0.0


def plain(payload: Array, reference: Array) -> Seen:
  """The default `inspect`, which cannot tell: readable, at distance 0."""
  del payload, reference
  return Seen(jnp.bool(True), jnp.float32(0), jnp.float32(jnp.inf))


class Codes(NamedTuple):
  """How a payload begins: one packed code for each value."""

  bits: int  # of a code as it is packed, 1 to 8
  # Of different codes, at most 2**bits. (Hides the method of tuples.)
  count: int  # type: ignore[assignment]
  zero: int | None  # the code of 0 in the middle of the codes; None without
  bucket_size: int  # values that belong together


class Short(NamedTuple):
  """The same message in fewer bytes, where it fits. Nothing is lost."""

  capacity: Callable[[int], int]  # size d -> the number of bytes, static
  # (payload u8[m], size d) -> (u8[capacity(d)], fits bool[])
  shorten: Callable[[Array, int], tuple[Array, Array]]
  # (short u8[capacity(d)], size d) -> payload u8[m], if it fitted
  restore: Callable[[Array, int], Array]


class Fast(NamedTuple):
  """The same results in less time or memory traffic, each if there is a way.

  A wrapper that changes what goes in or comes out drops them all.
  """

  # (payloads u8[n, m], reference f32[d]) -> f32[n, d], row j from worker j, NaN
  # where it is not readable: for quantizers that know their senders.
  decode_all: Callable[[Array, Array], Array] | None = None
  # (payloads: list, reference) -> list of Seen, as `inspect` of each.
  inspect_all: Callable[..., list[Seen]] | None = None
  # (x f32[d], payloads: own first, came bool[E], pull, onto=None) -> f32[d],
  # onto (x if None) + pull(x_hats, came), with all payloads decoded next to x.
  # `pull` works value by value, so any part of the vectors will do.
  mix: Callable[..., Array] | None = None
  # size d -> where a payload may be cut, so that it need not be copied together
  cuts: Callable[[int], tuple[int, ...]] | None = None


class Pull(NamedTuple):
  """How the values of a round move a worker: called as in `Fast.mix`."""

  total: Callable[[list, Array], Array]
  # f32[E], if the total is that of w_k (x_hat_k - x_hat_own), of the finite.
  weights: Array | None

  def __call__(self, x_hats: list, came: Array) -> Array:
    return self.total(x_hats, came)


class Quantizer(NamedTuple):
  """How one vector becomes one message, and back.

  Attributes:
    encode: (x: f32[d], key) -> payload u8[m].
    decode: (payload, reference: f32[d]) -> x_hat f32[d]. The reference is the
      receiver's own vector: `moniqua` resolves the modulo with it, others use
      its shape only.
    inspect: (payload, reference) -> Seen.
    shared: `encode` wants a key that all workers share, not a private one.
    codes: how the payload begins, if with packed codes.
    short: a shorter form of the payload, if there is one.
    fast: the same results in less time, if there is a way.
    near: `decode` reads the values of its reference, which must be near x.

  >>> signs = Quantizer(
  ...   encode=lambda x, key: (x < 0).astype(jnp.uint8),
  ...   decode=lambda payload, reference: 1 - 2 * jnp.float32(payload))
  >>> signs.decode(signs.encode(jnp.array([3.0, -2.0]), None), jnp.zeros(2))
  Array([ 1., -1.], dtype=float32)
  """

  encode: Callable[[Array, Array], Array]
  decode: Callable[[Array, Array], Array]
  inspect: Callable[[Array, Array], Seen] = plain
  shared: bool = False
  codes: Codes | None = None
  short: Short | None = None
  fast: Fast | None = None
  near: bool = False


class Tuned(NamedTuple):
  """A quantizer whose numbers move during training.

  Attributes:
    init: () -> state, a pytree, kept in the algorithm's state and checkpointed.
    quantizer: (state, step: i32[]) -> Quantizer.
    observe: (state, Seen over the edges, x: f32[d]) -> state.
    answered: its workers want to know whether they were read: one byte goes
      back along each edge, and `Seen.readable` says whether both ends read.

  >>> from moniqua_jax import auto_theta
  >>> finds_itself = auto_theta(bits=4, start=2.0)
  >>> finds_itself.init(), finds_itself.answered
  (Array(2., dtype=float32), True)
  """

  init: Callable[[], Any]
  quantizer: Callable[[Any, Array], Quantizer]
  observe: Callable[[Any, Seen, Array], Any]
  answered: bool = False


# What is given, a quantizer of either kind, is what comes back.
Either = TypeVar('Either', Quantizer, Tuned, Quantizer | Tuned)


def require_known(quantizer) -> None:
  """Refuses what is no quantizer, such as a function that makes one."""
  if not isinstance(quantizer, Quantizer | Tuned):
    raise TypeError(
      f'quantizer={quantizer!r}; expected a Quantizer or a Tuned, as the '
      'functions of moniqua_jax.quantizers return.'
    )


def tuned(quantizer: Quantizer | Tuned) -> Tuned:
  """Returns a `Tuned` for either: a plain quantizer is one that never moves."""
  require_known(quantizer)
  if isinstance(quantizer, Tuned):
    return quantizer
  return scheduled(lambda step: quantizer, lambda step: step)


def needs_near(quantizer: Quantizer | Tuned) -> bool:
  """Tells whether it needs a reference near what is sent; computes nothing."""
  moving, found = tuned(quantizer), []

  def make():
    made = moving.quantizer(moving.init(), jnp.int32(0))
    found.append(made.near)

  jax.eval_shape(make)
  return found[0]


def scheduled(
  make: Callable[[Array], Quantizer], schedule: Callable[[Array], Array]
) -> Tuned:
  """A quantizer with a number that follows the step: make(schedule(step)).

  Args:
    make: number f32[] -> Quantizer, for instance
      `lambda theta: moniqua(theta, bits=4)`.
    schedule: step i32[] -> number f32[], for instance an optax schedule. The
      step is the algorithm's: within `every`, `rounds` and `streaming` its own
      rounds.

  Returns:
    A `Tuned` without state.

  Raises:
    TypeError: make or schedule is no function.

  >>> from moniqua_jax import full_precision
  >>> halving = scheduled(lambda theta: full_precision(), lambda step: .5**step)
  >>> halving.init()
  ()

  Source: the theta_k of arXiv:2002.11787 is such a number.
  """
  if not (callable(make) and callable(schedule)):
    raise TypeError(
      f'make={make!r:.40}, schedule={schedule!r:.40}; both are functions.'
    )
  return Tuned(
    init=lambda: (),
    quantizer=lambda state, step: make(schedule(step)),
    observe=lambda state, seen, x: state,
  )


def vector(x) -> Array:
  """Takes what a message is made of as f32[d]; refuses what is no vector."""
  require_vector(x)
  return jnp.asarray(x).astype(jnp.float32)


def require_vector(x) -> None:
  """Refuses what is no vector of floats, of one value or more."""
  kind = getattr(x, 'dtype', None)
  floats = kind is not None and jnp.issubdtype(kind, jnp.floating)
  if floats and x.ndim == 1 and x.size:
    return
  what = type(x).__name__ if kind is None else f'{kind}{list(x.shape)}'
  raise ValueError(
    f'encode was given {what}; it takes one vector of floats, [d] with d >= 1. '
    'jax.flatten_util.ravel_pytree makes one of a matrix or a tree.'
  )


def inspect_all(quantizer: Quantizer, payloads: list, reference: Array) -> list:
  """Returns `inspect` of each message, in one pass if there is a way."""
  if quantizer.fast and quantizer.fast.inspect_all:
    return quantizer.fast.inspect_all(payloads, reference)
  return [quantizer.inspect(payload, reference) for payload in payloads]


def read(quantizer: Quantizer, payloads: list, reference: Array) -> list:
  """Returns what each message says, in the type of the reference."""
  decoded = (quantizer.decode(payload, reference) for payload in payloads)
  return [x_hat.astype(reference.dtype) for x_hat in decoded]


def cuts(quantizer: Quantizer, size: int) -> tuple[int, ...]:
  """Returns where a payload may be cut; see `Fast`."""
  if quantizer.fast and quantizer.fast.cuts:
    return quantizer.fast.cuts(size)
  return ()


def mix(
  quantizer: Quantizer, x, payloads: list, came, pull, onto=None
) -> Array:
  """Adds the pull to a vector, or to x itself if that is None; see `Fast`."""
  if quantizer.fast and quantizer.fast.mix:
    return quantizer.fast.mix(x, payloads, came, pull, onto)
  pulls = pull(read(quantizer, payloads, x), came)
  return (x if onto is None else onto) + pulls


def watched(decode: Callable[[Array, Array], Array]) -> Callable:
  """Builds `inspect` from `decode`: unreadable where it is not finite."""

  def inspect(payload: Array, reference: Array) -> Seen:
    distance = numerics.largest(decode(payload, reference) - reference)
    return Seen(jnp.isfinite(distance), distance, jnp.float32(jnp.inf))

  return inspect
