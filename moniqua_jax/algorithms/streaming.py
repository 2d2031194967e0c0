"""Streaming gossip: in each step another fragment of the parameters.

Douillard et al., "Streaming DiLoCo with overlapping communication", 2025,
arXiv:2501.18512, where the fragments take turns in an all-reduce.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from moniqua_jax import gossip, wire
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.every import require_rest
from moniqua_jax.algorithms.transformation import Gossip
from moniqua_jax.quantizers import unreadable

Array = jax.Array

_LONG = 64 * wire.TILE  # values of a fragment that may grow by two tiles


class StreamingState(NamedTuple):
  """State of a streaming algorithm.

  Attributes:
    heard: of the fragment that talked last. `turn` counts messages of all
      fragments, `lost` all lost steps, and `short` is i32[R * K]: each of the
      K fragments in turn goes through the first round, then the second.
    own: of the algorithm, with a row for each fragment.
  """

  heard: gossip.Heard
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
    algorithm: dpsgd, d2, choco, deepsqueeze or push_sum, or `every` or
      `answered` of one. Its quantizer knows nothing of leaves (not `scaled`,
      `smooth` or `block`), since a fragment is cut without regard to them.
    fragments: K, >= 1; 1 gives the algorithm as it is.

  Returns:
    A transformation whose state is a `StreamingState`.

  Raises:
    ValueError: fragments < 1; an algorithm that must see each step, or sends
      nothing; later, fewer parameters than fragments.

  >>> import jax
  >>> from moniqua_jax import dpsgd, moniqua, ring
  >>> gossip = dpsgd(ring(8), moniqua(theta=1.0, bits=4),
  ...                axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.sgd(0.1), streaming(gossip, fragments=4))

  Source: arXiv:2501.18512 for the fragments; with gossip it is ours.
  """
  if not isinstance(fragments, int) or fragments < 1:
    raise ValueError(
      f'fragments={fragments!r}; streaming needs a whole number >= 1.'
    )
  require_rest('streaming', algorithm)
  if getattr(algorithm, 'heard', None) is None:
    raise ValueError('streaming: the algorithm sends nothing; use dpsgd.')
  if fragments == 1:
    return algorithm

  def init(params):
    x, _ = gossip.flatten(params)
    windows = _windows(x.size, fragments)
    rows = jnp.stack([windows.read(x, f) for f in range(fragments)])
    own = jax.vmap(algorithm.init)(rows)
    return StreamingState(_heard(algorithm, own, 0), own)

  def update(updates, state, params=None, *, step, **extra_args):
    x, unravel = gossip.flatten(params)
    u = vectors.flatten_like(updates, params)
    # What would stay in the state is lost in the other fragments as well.
    u, state = algorithm.taken(u, state)
    windows = _windows(x.size, fragments)
    extra_args = {'counted': step} | extra_args
    turn = gossip.turn(state.heard, step)
    f = turn % fragments
    new, own = algorithm.update(
      windows.read(u, f),
      _with_account(_row(state.own, f), state.heard.account),
      windows.read(x, f),
      step=step // fragments,
      **extra_args,
    )
    own = jax.tree.map(
      lambda rows, row: lax.dynamic_update_index_in_dim(rows, row, f, 0),
      state.own,
      own,
    )
    heard = _heard(algorithm, own, f)
    heard = heard._replace(turn=turn + 1, lost=state.heard.lost)
    return unravel(windows.write(u, f, new)), StreamingState(heard, own)

  def message(quantizer, d):
    return algorithm.message(quantizer, _windows(d, fragments).size)

  says = {**vars(algorithm), 'heard': lambda state: state.heard}
  within = says.get('period', 1)
  says |= {'message': message, 'period': within and fragments * within}
  return Gossip(init, update, **says)


def _row(tree, f):
  return jax.tree.map(
    lambda rows: lax.dynamic_index_in_dim(rows, f, keepdims=False), tree
  )


def _heard(algorithm, own, f) -> gossip.Heard:
  """Returns what a fragment heard, with the short messages of all of them."""
  every = algorithm.heard(own)
  return _row(every, f)._replace(short=every.short.T.reshape(-1))


def _with_account(row, account: unreadable.Account):
  """Gives a fragment the account of all, but for what is of its own edges."""
  is_heard = lambda node: isinstance(node, gossip.Heard)

  def one(node):
    if not is_heard(node):
      return node
    own = account._replace(in_a_row=node.account.in_a_row)
    return node._replace(account=own)

  return jax.tree.map(one, row, is_leaf=is_heard)


class Windows(NamedTuple):
  """Where the fragments of a vector lie: in windows of one size.

  A window holds its fragment, and may reach into its neighbours. Vectors are
  cut as matrices of one row: a row of a sharded array is laid out as one, and a
  TPU would turn all of it into a vector and back for the part that is cut.

  Attributes:
    size: of each window, s.
    starts: u32[K], of the windows, in units.
    begins, ends: u32[K], of the fragments, in values.
    unit: values; a window starts at starts * unit, a multiple that XLA sees.
  """

  size: int
  starts: np.ndarray
  begins: np.ndarray
  ends: np.ndarray
  unit: int

  def _place(self, f) -> tuple[tuple, Array]:
    """Returns where a window starts, and which values are its fragment's."""
    start, begin, end = (
      jnp.asarray(table)[f] for table in (self.starts, self.begins, self.ends)
    )
    start = start * jnp.uint32(self.unit)
    at = start + lax.iota(jnp.uint32, self.size)
    return (jnp.uint32(0), start), (begin <= at) & (at < end)

  def read(self, vector: Array, f) -> Array:
    """Returns the window of a fragment, with zeros for its neighbours."""
    start, own = self._place(f)
    values = lax.dynamic_slice(vector[None], start, (1, self.size))[0]
    return jnp.where(own, values, 0)

  def write(self, vector: Array, f, new: Array) -> Array:
    """Puts a fragment back, and leaves its neighbours as they are."""
    start, own = self._place(f)
    old = lax.dynamic_slice(vector[None], start, (1, self.size))[0]
    new = jnp.where(own, new.astype(vector.dtype), old)
    written = lax.dynamic_update_slice(vector[None], new[None], start)
    # Else the place would be sought again for each value of the whole sum.
    return lax.optimization_barrier(written)[0]


def _windows(d: int, fragments: int) -> Windows:
  """Cuts d values into fragments of as many units, or one more.

  What is no whole unit at the end belongs to the last fragment.
  """
  if d < fragments:
    raise ValueError(
      f'fragments={fragments}; the vector that gossips has {d} values, and a '
      'fragment needs one.'
    )
  unit = wire.TILE if d >= fragments * _LONG else 1
  units, rest = divmod(d, unit)
  cuts = np.arange(fragments + 1, dtype=np.int64) * units // fragments
  most = -(-units // fragments)
  u32 = lambda numbers: np.asarray(numbers, np.uint32)
  return Windows(
    size=most * unit + rest,
    starts=u32(np.minimum(cuts[:-1], units - most)),
    begins=u32(cuts[:-1] * unit),
    ends=u32([*(cuts[1:-1] * unit), d]),
    unit=unit,
  )
