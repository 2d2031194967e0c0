"""Streaming: in each step another fragment of the vector.

Douillard et al., "Streaming DiLoCo with overlapping communication", 2025,
arXiv:2501.18512, where the fragments take turns in an all-reduce.
"""

import operator
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from moniqua_jax import arguments, gossip
from moniqua_jax.algorithms import fragments as parts
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.every import require_rest
from moniqua_jax.algorithms.transformation import Counted, Gossip


class StreamingState(NamedTuple):
  """State of a streaming algorithm.

  Attributes:
    heard: of the fragment that talked last. `turn` counts messages of all
      fragments, `lost` all lost steps, and `short` is i32[R * K]: each of the
      K fragments in turn goes through the first round, then the second.
    own: of the algorithm, with a row for each fragment.
  """

  heard: gossip.Heard | Counted
  own: Any


def streaming(
  algorithm: optax.GradientTransformationExtraArgs, fragments: int
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: the algorithm on one fragment in each step, in turn.

    x^(f) <- algorithm(x^(f), u^(f)) in its round k div K,   f = k mod K
    x^(l) <- x^(l) + u^(l)                                   of all other l

  A fragment gossips in one step of K, as all parameters do with `every`; but
  the link carries a K-th of the message in each step, and not all of it in one.
  No index travels, and each fragment has a state of its own. At equal bytes
  fewer coordinates of more bits keep workers closer than all of fewer bits. A
  theta must cover the K updates between two messages of a fragment.

  Messages are equally long: of s values, where a fragment is shorter with zeros
  in place of its neighbours' values. Fragments begin at tiles of 1024 values,
  so that a TPU finds them in place, and s < d / K + 2048. Where d < 65,536 K
  that would be too much: there they begin anywhere, and s = ceil(d / K).

  Args:
    algorithm: dpsgd, d2, choco, deepsqueeze, push_sum or outer, or `every` or
      `answered` of one. Its quantizer knows nothing of leaves (not `scaled`,
      `smooth` or `block`), since a fragment is cut without regard to them.
    fragments: K, >= 1; 1 gives the algorithm as it is.

  Returns:
    A transformation whose state is a `StreamingState`.

  Raises:
    ValueError: fragments < 1; an algorithm that must see each step, or sends
      nothing; later, one that streams already, fewer parameters than fragments.

  >>> import jax
  >>> from moniqua_jax import dpsgd, moniqua, ring
  >>> gossip = dpsgd(ring(8), moniqua(theta=1.0, bits=4),
  ...                axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.sgd(0.1), streaming(gossip, fragments=4))

  Source: arXiv:2501.18512 for the fragments; with gossip it is ours.
  """
  fragments = arguments.integer(fragments)
  if not isinstance(fragments, int) or fragments < 1:
    raise ValueError(
      f'fragments={fragments!r}; streaming needs a whole number >= 1.'
    )
  if not hasattr(algorithm, 'period') or algorithm.name == 'none':
    name = getattr(algorithm, 'name', 'the algorithm')
    raise ValueError(
      f'streaming: {name} is not the last of a chain, or sends nothing; use '
      'dpsgd, or outer around a mean.'
    )
  require_rest('streaming', algorithm)
  if fragments == 1:
    return algorithm

  def init(params):
    x, _ = gossip.flatten(params)
    windows = parts.windows(x.size, fragments)
    rows = jnp.stack([windows.read(x, f) for f in range(fragments)])
    own = jax.vmap(algorithm.init)(rows)
    _require_whole(own, fragments)
    return StreamingState(_heard(algorithm, own, 0), own)

  # What would stay in the state is lost in the other fragments as well.
  def taken(updates, state):
    row = _row(state.own, 0)
    updates, counted = algorithm.taken(updates, row)
    lost = state.heard.lost + counted.heard.lost - row.heard.lost
    return updates, state._replace(heard=state.heard._replace(lost=lost))

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    u, state = taken(u, state)
    windows = parts.windows(x.size, fragments)
    extra_args = {'counted': step} | extra_args
    turn = gossip.turn(state.heard, step)
    f = turn % fragments
    before = _with_account(_row(state.own, f), state.heard)
    new, after = algorithm.update(
      windows.read(u, f),
      before,
      windows.read(x, f),
      step=turn // fragments,
      **extra_args,
    )
    own = jax.tree.map(
      lambda rows, row: lax.dynamic_update_index_in_dim(rows, row, f, 0),
      state.own,
      after,
    )
    lost = state.heard.lost + after.heard.lost - before.heard.lost
    heard = _heard(algorithm, own, f)._replace(turn=turn + 1, lost=lost)
    return unravel(windows.write(u, f, new)), StreamingState(heard, own)

  def message(quantizer, d):
    return algorithm.message(quantizer, parts.windows(d, fragments).size)

  says = vars(algorithm) | dict(message=message, taken=taken)
  within = algorithm.period
  says['heard'] = algorithm.heard and operator.attrgetter('heard')
  says['period'] = within and fragments * within
  return Gossip(init, update, **says)


def _require_whole(own, fragments: int) -> None:
  """Refuses an algorithm that takes its vector by fragments already."""
  streams = lambda node: isinstance(node, StreamingState)
  if any(map(streams, jax.tree.leaves(own, is_leaf=streams))):
    raise ValueError(
      f'streaming: fragments={fragments} of an algorithm that streams already; '
      'leave one of the two out, and give the other the product of both.'
    )


def _row(tree, f):
  return jax.tree.map(
    lambda rows: lax.dynamic_index_in_dim(rows, f, keepdims=False), tree
  )


def _heard(algorithm, own, f) -> gossip.Heard | Counted:
  """Returns what a fragment heard, with the short messages of all of them."""
  if algorithm.heard is None:
    return _row(own.heard, f)
  every = algorithm.heard(own)
  return _row(every, f)._replace(short=every.short.T.reshape(-1))


def _with_account(row, heard):
  """Gives a fragment the account of all, but for what is of its own edges."""
  is_heard = lambda node: isinstance(node, gossip.Heard)

  def one(node):
    if not is_heard(node):
      return node
    own = heard.account._replace(in_a_row=node.account.in_a_row)
    return node._replace(account=own)

  return jax.tree.map(one, row, is_leaf=is_heard)
