"""Ways to talk of a language model: local steps, then an outer one.

What they send and how long a step takes is known; how many steps more they need
to a loss is not, here. So the choice is to talk as often as leaves 95 % of the
time to the gradients, and then in as many bits.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moniqua_jax import bytes_sent
from moniqua_jax.algorithms import fragments as parts
from moniqua_jax.plan import candidates

COMPUTES = 0.95  # of a step, at least
STEPS = (10, 30, 100, 300)  # from one message of a parameter to the next
OUTER = dict(learning_rate=0.7, momentum=0.5, nesterov=True)


class Way(NamedTuple):
  """What travels, however often.

  Attributes:
    name: in words.
    bits: of a value.
    specs: of a config.
    size: (fragments, steps from one of them to the next, params) -> bytes that
      a worker sends in a step.
    messages: one after another.
    codec: seconds for a parameter that is sent.
  """

  name: str
  bits: int
  specs: dict
  size: Callable
  messages: int
  codec: float


def every(n: int) -> list[candidates.Candidate]:
  """All candidates of n workers, two in full precision first."""
  ways = [means(n, None), *(means(n, bits) for bits in (4, 2, 1))]
  ways += [pairs(n, None), pairs(n, 4)]
  first = [candidates.exact(n)._replace(order=(1, -32, 0))]
  first += [made(ways[0], STEPS[0])]
  some = [made(way, *often) for way in ways for often in _often()]
  return [*first, *some[1:]]


def _often() -> list[tuple[int, int, int]]:
  """Steps, fragments and delay; fragments spread what would come at once."""
  each = [[(h, 1, 0), (h, 1, 1), (h, h // 10, 1)] for h in STEPS]
  return [*dict.fromkeys(often for rows in each for often in rows)]


def made(
  way: Way, steps: int, fragments: int = 1, delay: int = 0
) -> candidates.Candidate:
  """Builds a candidate: each parameter travels once in so many steps."""
  local = steps // fragments
  words = [
    f'{way.name} every {steps} steps',
    f'{fragments} fragments' if fragments > 1 else '',
    'beside a gradient' if delay else '',
  ]
  return candidates.Candidate(
    ', '.join(filter(None, words)),
    candidates.specs(
      **way.specs,
      outer=OUTER | dict(delay=delay),
      local_steps=local,
      fragments=fragments,
    ),
    functools.partial(way.size, fragments, local),
    way.messages / local,
    way.codec / steps,
    # Of the local steps one has a message beside it.
    beside=bool(delay) / local,
    order=(steps, -way.bits, delay * fragments),
  )


def pairs(n: int, bits: int | None) -> Way:
  """Builds DiLoCo by gossip of pairs; `bits` of rotated parameters."""
  graph = candidates.pairs_of(n)

  def size(fragments, local, params):
    return candidates.gossiped(graph, n, bits, fragments, 1 / local, params)

  quantizer: dict = dict(name='full_precision')
  if bits:
    quantizer = dict(name='fitted_theta', bits=bits)
  return Way(
    f'DiLoCo by pairs, {bits or 32} bits',
    bits or 32,
    dict(
      gossip=dict(name='dpsgd'),
      topology=dict(name=graph),
      quantizer=quantizer,
      rotated=bits is not None,
      order='adapt_then_combine',
    ),
    size,
    2 if bits else 1,
    candidates.ROTATED if bits else candidates.PLAIN,
  )


def means(n: int, bits: int | None) -> Way:
  """Builds DiLoCo; `bits` of EDEN in two passes, None for the exact mean."""
  reduce: dict = dict(name='allreduce')
  if bits is None:
    return Way(
      'DiLoCo, 32 bits',
      32,
      dict(reduce=reduce),
      functools.partial(_exactly, n),
      2 * (n - 1),
      candidates.PLAIN,
    )
  eden = dict(name='eden', bits=bits)
  return Way(
    f'DiLoCo, EDEN {bits} bit{"s" * (bits > 1)}',
    bits,
    dict(reduce=reduce | dict(strategy='scatter_reduce'), quantizer=eden),
    functools.partial(candidates.reduced, n, bits),
    2,
    candidates.EDEN,
  )


def _exactly(n, fragments, local, params) -> float:
  size = parts.windows(candidates.size_of(params), fragments).size
  vector = jax.ShapeDtypeStruct((size,), jnp.float32)
  return bytes_sent.of_exact(vector, n).exact / local
