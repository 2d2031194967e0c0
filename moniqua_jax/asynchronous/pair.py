"""The two ends of one averaging of two workers: pure functions, and no wire.

  worker i, who asks                       worker j, who is asked
  may I?                        ------->   snapshot x_j, q_j = encode(x_j)
  snapshot x_i, q_i = encode(x_i)  <-----  q_j
  could i read q_j?  q_i        ------->   could j read q_i?
                                <-------   both could
  x_i += w (x_hat_j - x_hat_i)             x_j += w (x_hat_i - x_hat_j)

Both ends compute both x_hat from the same bytes, bit for bit, so the two moves
are opposite and the mean of the workers stays where it is. A move is *added*:
gradients that were applied since the message was made are not lost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from moniqua_jax.gossip import edge
from moniqua_jax.quantizers import base

Array = jax.Array


class Ends(NamedTuple):
  """What either end of an averaging computes; jitted."""

  # (x: f32[d], tuned, clock: i32[], asker: i32[], event: i32[]) -> (payload,
  # own), own being what the other end will believe of x
  speak: Callable[..., tuple[Array, Array]]
  # (payload, x, own, tuned, clock) -> (Seen, move: f32[d]), x and own being
  # those of `speak`; the move counts only if both ends could read
  listen: Callable[..., tuple[base.Seen, Array]]
  # (tuned, Seen, both: bool[], x: f32[d]) -> tuned
  observe: Callable[[Any, base.Seen, Array, Array], Any]


def ends(
  quantizer: base.Quantizer | base.Tuned,
  *,
  key: Array,
  rank: int,
  weight: float = 0.5,
) -> Ends:
  """The functions of worker `rank`.

    x_i <- x_i + w (x_hat_j - x_hat_i)        x_j <- x_j + w (x_hat_i - x_hat_j)

  Source: arXiv:1710.06952, Algorithm 1; arXiv:2002.11787 for the messages.
  """
  quantizer = base.tuned(quantizer)

  @jax.jit
  def speak(x, tuned, clock, asker, event):
    current = quantizer.quantizer(tuned, clock)
    own_key = jax.random.fold_in(jax.random.fold_in(key, asker), event)
    if not current.shared:
      own_key = jax.random.fold_in(own_key, rank)
    payload = edge.sealed(current.encode(x, own_key))
    return payload, current.decode(payload, x)

  @jax.jit
  def listen(payload, x, own, tuned, clock):
    current = quantizer.quantizer(tuned, clock)
    seen = current.inspect(payload, x)
    theirs = current.decode(payload, x)
    return seen, edge.pulled(own, theirs, weight, seen.readable)

  @jax.jit
  def observe(tuned, seen, both, x):
    seen = jax.tree.map(lambda leaf: leaf[None], seen._replace(readable=both))
    return quantizer.observe(tuned, seen, x)

  return Ends(speak, listen, observe)
