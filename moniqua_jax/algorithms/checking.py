"""What the state of an optimizer knows of its messages, for anybody's loop.

An algorithm keeps an account of all messages in its state, from the first step
on and through checkpoints. These functions find it, wherever it is.
"""

import logging
from typing import Any

import jax
import numpy as np

from moniqua_jax import gossip, workers
from moniqua_jax.quantizers import unreadable

_LOG = logging.getLogger('moniqua_jax')


def check(opt_state: Any, on_unreadable: str = 'raise') -> str:
  """Says whether the workers really communicate: which message failed first.

  It is for the host, outside of `jit`, at any time: what failed long ago is not
  forgotten. An edge fails at its first unreadable message; where edges are
  answered (`answered`, `auto_theta`, `fitted_theta`), which then move neither
  end, after 20 in a row.

  Refused as well: a gossip that is not the last of its chain, and two gossips
  in one chain. What a loop does to updates outside of the chain cannot be seen.

  Args:
    opt_state: of optax, as `tx.init` or `tx.update` gave it: of one worker,
      stacked or sharded over workers, within any pytree. Of an array that is
      over several processes each looks at its own rows.
    on_unreadable: 'raise', 'warn' in the log 'moniqua_jax', or 'ignore'.

  Returns:
    One line: step, edge, and what to try; '' if all is well.

  Raises:
    RuntimeError: that line.
    ValueError: the state holds no gossip, or gossip in another place of a chain
      than the last; an unknown `on_unreadable`; a call within jit.

  >>> from moniqua_jax import dpsgd, moniqua, ring
  >>> tx = dpsgd(ring(8), moniqua(theta=1.0, bits=4), axis_name='workers',
  ...            key=jax.random.key(0))
  >>> check(tx.init(None))
  ''

  Source: ours.
  """
  unreadable.telling(on_unreadable)
  if fault := workers.chain_fault(opt_state):
    raise ValueError(f'check: {fault}')
  heard = _heard(opt_state, 'check')
  said = _unreadable(heard) or _lost(heard)
  if said and on_unreadable == 'raise':
    raise RuntimeError(said)
  if said and on_unreadable == 'warn':
    _LOG.warning(said)
  return said


def report(opt_state: Any) -> dict[str, float]:
  """Gives the numbers of the messages to log, under the names of the program.

  Args:
    opt_state: as for `check`.

  Returns:
    Of all steps so far `gossip/messages`, `gossip/unreadable`, `train/lost`
    (updates that were not finite, and taken as 0) and `wire/bytes_sent`, of a
    worker, the mean over workers, if no message went in a short form. Of the
    last round, the largest over workers: `gossip/disagreement`, the distance of
    neighbours, `gossip/theta` and `gossip/distance_over_theta`, below 1 while
    messages are readable.

  Raises:
    ValueError: the state holds no gossip; a call within jit.

  >>> from moniqua_jax import dpsgd, moniqua, ring
  >>> tx = dpsgd(ring(8), moniqua(theta=1.0, bits=4), axis_name='workers',
  ...            key=jax.random.key(0))
  >>> report(tx.init(None))['gossip/unreadable']
  0

  Source: ours.
  """
  row = {}
  for heard in _heard(opt_state, 'report'):
    account, seen = heard.account, heard.seen
    messages = account.messages.astype(float)
    size = np.asarray(account.size, float) @ np.array([2.0**32, 1])
    theta = np.where(np.isfinite(seen.theta), seen.theta, 0)
    more = {
      'gossip/messages': int(messages.sum()),
      'gossip/unreadable': int(account.unreadable.sum()),
      'train/lost': int(heard.lost.sum()),
      'wire/bytes_sent': float(np.mean(messages * size)),
    }
    most = {
      'gossip/disagreement': np.nanmax(seen.distance, initial=0),
      'gossip/theta': np.max(theta, initial=0),
      'gossip/distance_over_theta': np.nanmax(
        seen.distance / seen.theta, initial=0
      ),
    }
    row |= {name: row.get(name, 0) + v for name, v in more.items()}
    row |= {name: max(row.get(name, 0.0), float(v)) for name, v in most.items()}
  return row


def _heard(tree, asks: str) -> list[gossip.Heard]:
  """Finds what each gossip heard, on the host."""
  is_heard = lambda node: isinstance(getattr(node, 'heard', node), gossip.Heard)
  found = [
    getattr(node, 'heard', node)
    for node in jax.tree.leaves(tree, is_leaf=is_heard)
    if is_heard(node)
  ]
  if not found:
    raise ValueError(
      f'{asks}: there is no gossip in {jax.tree.structure(tree)!s:.100}. Give '
      'it the state of the optimizer, as tx.init and tx.update return it (of a '
      'checkpoint, restored with such a state as its target).'
    )
  told = [heard._replace(tuned=()) for heard in found]
  return jax.tree.map(lambda leaf: _on_the_host(leaf, asks), told)


def _on_the_host(leaf, asks: str) -> np.ndarray:
  if isinstance(leaf, jax.core.Tracer):
    raise ValueError(
      f'{asks} reads numbers, on the host: call it outside of jit, between '
      "steps. Within, on_unreadable='raise' of an algorithm looks."
    )
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    shards = {str(s.index): s.data for s in leaf.addressable_shards}
    return np.concatenate([np.asarray(shard) for shard in shards.values()])
  return np.asarray(leaf)


def _unreadable(heard: list[gossip.Heard]) -> str:
  """One line of the message that failed first; '' if none did."""
  accounts = [each.account for each in heard]
  rows = lambda pick, width: np.concatenate(
    [np.reshape(pick(account), (-1, width)) for account in accounts]
  )
  step = rows(lambda account: account.step, 1)[:, 0]
  if (step < 0).all():
    return ''
  theta = rows(lambda account: account.told.theta, 1)[:, 0]
  said = unreadable.line(step, rows(lambda account: account.ends, 2), theta)
  lost, of = (
    int(sum(getattr(account, name).sum() for account in accounts))
    for name in ('unreadable', 'messages')
  )
  return f'{said} Unreadable so far: {lost:,} of {of:,} messages.'


def _lost(heard: list[gossip.Heard]) -> str:
  """One line of updates that were lost, one in ten or more; '' if fewer."""
  for each in heard:
    lost, account = np.ravel(each.lost), each.account
    # Not its turn: that begins with the step of the loop.
    rounds = np.max(account.messages) / account.in_a_row.shape[-1]
    worst = int(np.argmax(lost))
    if lost[worst] >= max(unreadable.PATIENCE, rounds / 10):
      return (
        f'{lost[worst]} updates of worker {worst} were not finite, and were '
        'lost (its momentum may stay so for good). Try a smaller learning rate.'
      )
  return ''
