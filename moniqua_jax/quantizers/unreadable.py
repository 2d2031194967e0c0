"""A worker's account of its messages: how many, and which it could not read.

An unreadable message is left out, so that training goes on and its loss falls
as if nothing were wrong. What it was is kept in the state of the optimizer, and
said when it happens.

n workers; E edges, in each of R rounds of the schedule.
"""

from collections.abc import Callable
import logging
import math
import time
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import collectives
from moniqua_jax.quantizers import base

Array = jax.Array

PATIENCE = 20  # messages in a row, where edges are answered
QUIET = 10.0  # seconds; the workers of a run mostly fail together
_LOG = logging.getLogger('moniqua_jax')
_GOES_ON = (
  'It was left out, and training goes on: mj.check(opt_state) raises, '
  'mj.report(opt_state) counts.'
)


class Account(NamedTuple):
  """What a worker remembers of all messages so far.

  Attributes:
    messages: i32[], that went to another worker.
    size: u32[2], bytes of one message, with its answer: how many times 2^32,
      and the rest; 0 before the first.
    unreadable: i32[], of those that came in.
    in_a_row: i32[R, E], unreadable ones in a row until now, by round and edge.
    step: i32[], in which an edge failed first; -1 as long as none did.
    ends: i32[2], the worker that could not read on that edge, and the sender.
    told: `Seen` of that message.
  """

  messages: Array
  size: Array
  unreadable: Array
  in_a_row: Array
  step: Array
  ends: Array
  told: base.Seen


def nothing(rounds: int, edges: int) -> Account:
  """The account of a worker before its first message."""
  told = base.Seen(jnp.bool(True), *map(jnp.float32, (0, jnp.inf, 0)))
  messages, lost, size = jnp.int32(0), jnp.int32(0), jnp.zeros(2, jnp.uint32)
  row, ends = jnp.zeros((rounds, edges), jnp.int32), jnp.zeros(2, jnp.int32)
  return Account(messages, size, lost, row, jnp.int32(-1), ends, told)


class Place(NamedTuple):
  """Where a worker stands in a round.

  Attributes:
    at: i32[], the number of the round in the schedule.
    senders: i32[R, E, n], who sends on an edge, by receiver; where no edge is,
      a worker itself.
    worker: i32[], who reads.
  """

  at: Array
  senders: np.ndarray
  worker: Array


def booked(
  account: Account,
  seen: base.Seen,
  place: Place,
  step: Array,
  patience: int,
  size: int,
) -> tuple[Account, Array]:
  """Adds a round to the account; tells whether an edge failed, the first ever.

  An edge fails after `patience` unreadable messages in a row; `size` is that of
  each message.
  """
  at = place.at if len(place.senders) > 1 else 0
  me = place.worker
  senders = jnp.asarray(place.senders)[at, :, me]
  row = jnp.where(seen.readable, 0, account.in_a_row[at] + 1)
  failed = row > patience
  # A sender that could not say what it holds is the cause, not the effect.
  mute = failed & ~jnp.isfinite(seen.theta)
  edge = jnp.argmax(jnp.where(mute.any(), mute, failed))
  fails = failed.any() & (account.step < 0)
  # A sum over all edges is one with what is around it; a gather is not.
  hit = jnp.arange(failed.size) == edge
  pick = lambda v: jnp.sum(jnp.where(hit, v, jnp.zeros_like(v))).astype(v.dtype)
  ends = jnp.stack([me, pick(senders)]).astype(jnp.int32)
  told = jax.tree.map(pick, seen)
  first = jnp.asarray(step, jnp.int32), ends, told
  first = jax.tree.map(
    lambda new, old: jnp.where(fails, new, old), first, tuple(account[4:])
  )
  went = jnp.sum(senders != me, dtype=jnp.int32)
  unreadable = jnp.sum(~seen.readable, dtype=jnp.int32)
  account = Account(
    account.messages + went,
    # A sum, so that it stays one of this worker on a mesh that is checked.
    0 * account.size + np.array(divmod(size, 2**32), np.uint32),
    account.unreadable + unreadable,
    account.in_a_row.at[at].set(row),
    *first,
  )
  return account, fails


# ---------------------------------------------------------------- what is said


def cure(theta: float) -> str:
  """Says why a message was unreadable, and what to try.

  How far apart two workers are cannot be read off a message that wrapped. A
  theta that is not finite: the sender could not say what it holds.

  >>> cure(0.5)[:34]
  'They are further apart than theta='
  """
  if not np.isfinite(theta):
    return (
      'Its parameters were not finite, or so large that float32 cannot hold '
      'them in steps of theta, or its theta passed its limit: '
      'try a smaller learning rate, a larger theta, or a smaller gamma.'
    )
  return (
    f'They are further apart than theta={theta:.4g}; how far, a message that '
    f'wrapped cannot say. Try auto_theta(bits, start={theta:.4g}), which finds '
    'a theta.'
  )


def line(step, ends, theta) -> str:
  """Says in one line what failed first, of k workers.

  `step` [k], -1 of those that did not fail; `ends` [k, 2]; `theta` [k].

  >>> line([3], [[2, 1]], [0.5])[:55]
  'step 3: worker 2 could not read the message of worker 1'
  """
  step, ends, theta = map(np.asarray, (step, ends, theta))
  order = np.where(step < 0, np.iinfo(np.int32).max, step)
  # As for one worker: of those that failed at once a mute sender is named.
  k = np.lexsort((np.isfinite(theta), order))[0]
  receiver, sender = ends[k]
  return (
    f'step {step[k]}: worker {receiver} could not read the message of worker '
    f'{sender}. {cure(theta[k])}'
  )


def _ignoring() -> Callable:
  """Says nothing: who looks at the state does."""
  return lambda fails, account, axis_name: None


def _warning() -> Callable:
  """One line in the log: devices fail apart, and the first speaks for all."""
  said = [-math.inf]

  def warn(fails, *first):
    if time.monotonic() - said[0] > QUIET:
      said[0] = time.monotonic()
      _LOG.warning('%s %s', _of_those(fails, *first), _GOES_ON)

  @jax.custom_batching.custom_vmap
  def call(fails, *first):
    now = lambda: jax.debug.callback(warn, fails, *first)
    lax.cond(jnp.any(fails), now, lambda: None)
    return ()

  @call.def_vmap
  def call_once(axis_size, in_batched, *args):
    """Under `vmap` once for all workers, and only if one of them fails."""
    row = lambda v, has: (
      v if has else jnp.broadcast_to(v, (axis_size, *v.shape))
    )
    return call(*jax.tree.map(row, args, tuple(in_batched))), ()

  return lambda fails, account, axis_name: call(
    fails, account.step, account.ends, account.told.theta
  )


def _raising() -> Callable:
  """Ends the program of all workers in the same step.

  Would one device stop alone, the others waited for its next message. So all
  are told: five numbers of each.
  """

  def stop(every):
    fails, step, theta, *ends = np.array(np.asarray(every).T)
    theta = theta.view(np.float32)
    raise RuntimeError(_of_those(fails, step, np.stack(ends, 1), theta))

  def call(fails, account, axis_name):
    theta = lax.bitcast_convert_type(account.told.theta, jnp.int32)
    numbers = jnp.stack([fails, account.step, theta, *account.ends])
    every = collectives.told(numbers, axis_name)
    now = lambda: jax.debug.callback(stop, every)
    lax.cond(jnp.any(every[:, 0] > 0), now, lambda: None)

  return call


def _of_those(fails, step, ends, theta) -> str:
  """The line of those workers that have just failed.

  In NumPy from the start: a callback that asks JAX for anything waits for the
  program that waits for it.
  """
  fails, step, ends, theta = map(np.asarray, (fails, step, ends, theta))
  those = fails.ravel() > 0
  row = lambda v, *width: v.reshape(those.size, *width)[those]
  return line(row(step), row(ends, 2), row(theta))


TELL = {'ignore': _ignoring, 'raise': _raising, 'warn': _warning}


def telling(on_unreadable: str) -> Callable:
  """Builds (fails, account, axis_name) -> None, which acts on a failure."""
  if on_unreadable not in TELL:
    raise ValueError(
      f'on_unreadable={on_unreadable!r}; choose from {sorted(TELL)}.'
    )
  return TELL[on_unreadable]()
