"""How many bytes each worker puts on the wire, from the sizes of payloads.

The sizes are those of the arrays that travel; tests read the same from the
compiled program. n workers, d values.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax import quantized_mean, topologies, wire, workers
from moniqua_jax.quantizers import base


class Traffic(NamedTuple):
  """Bytes that a worker sends, the mean over workers.

  Attributes:
    gossip: f64[R], in each round of the schedule; () without gossip.
    gossip_short: f64[R], the same with messages in their short form.
    exact: in each step, of what is reduced in full precision.
    whole: f64[P], in each step, of each round of messages of a quantized mean.
    short: f64[P], the same in their short form.
    estimate: of each estimate of smoothness that the workers exchange.
    moments: f64[R], in each round of the second moments that they share.
  """

  gossip: np.ndarray
  gossip_short: np.ndarray
  exact: float
  whole: np.ndarray
  short: np.ndarray
  estimate: float = 0.0
  moments: np.ndarray = np.zeros(0)


_NONE = np.zeros(0)
NOTHING = Traffic(_NONE, _NONE, 0.0, _NONE, _NONE)


def of_gossip(
  schedule: tuple[topologies.Topology, ...], quantizer: base.Tuned, d: int
) -> Traffic:
  """Counts bytes per gossip round: (payload + acknowledgement) x receivers.

  That is of messages of d values of the quantizer; an algorithm says which it
  sends: `of_gossip(schedule, *algorithm.message(quantizer, d))`.

  >>> from moniqua_jax import full_precision
  >>> q = base.tuned(full_precision())
  >>> of_gossip((topologies.ring(4),), q, d=10).gossip
  array([80.])
  """
  now = quantizer.quantizer(quantizer.init(), jnp.int32(0))
  whole, short = _sizes(now, schedule[0].n)
  flag = _flags(now, 1, schedule[0].n)
  to = receivers(schedule)
  return NOTHING._replace(
    gossip=to * float(whole(d) + quantizer.answered) + flag,
    gossip_short=to * float(short(d) + quantizer.answered) + flag,
  )


def receivers(schedule: tuple[topologies.Topology, ...]) -> np.ndarray:
  """Counts the messages of a worker in each round, the mean over workers.

  >>> receivers((topologies.star(4),))
  array([1.5])
  """
  sent = [
    [i != j for _, perm in topology.edges for i, j in enumerate(perm)]
    for topology in schedule
  ]
  return np.array(
    [sum(away) / t.n for away, t in zip(sent, schedule, strict=True)]
  )


def of_exact(params, n: int) -> Traffic:
  """Counts what a ring all-reduce of float32 sends: 2 (n - 1) / n * 4 d.

  >>> of_exact(jnp.zeros(10), n=2).exact
  40.0
  """
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  return NOTHING._replace(exact=_all_reduced(4 * size, n))


def of_reduce(
  strategy: str,
  quantizer: base.Tuned,
  params,
  n: int,
  keep: Callable[[jax.Array], bool],
  means: int = 1,
) -> Traffic:
  """Counts the messages of quantized means, and the leaves whose mean is exact.

  Not what `alq` and `amq` tell each other: in every step one integer, and where
  they fit 12 bytes of each of up to 50 buckets, and the levels.
  """
  leaves = jax.tree.leaves(params)
  d = sum(leaf.size for leaf in leaves if not keep(leaf))
  if not d:
    raise ValueError(
      f'all {len(leaves)} leaves stay in full precision: none is large enough '
      "to be quantized. Take the quantizer 'full_precision', or a larger model."
    )
  now = quantizer.quantizer(quantizer.init(), jnp.int32(0))
  whole, short = _sizes(now, n)
  by = quantized_mean.STRATEGIES[strategy]
  count, size = by.messages(n, d)
  exact = of_exact([leaf for leaf in leaves if keep(leaf)], n).exact
  return NOTHING._replace(
    exact=exact + _flags(now, means * by.rounds, n),
    whole=np.full(means * by.rounds, float(count * whole(size))),
    short=np.full(means * by.rounds, float(count * short(size))),
  )


def total(
  traffic: Traffic,
  steps: int,
  rounds: int,
  short=0,
  gossip_short=0,
  estimates: int = 0,
  moments: int = 0,
) -> float:
  """Sums up what a worker sent so far.

  `rounds` of gossip were done, in more or fewer `steps`; `short` and
  `gossip_short` count, for each round of messages in a step and of the
  schedule, how often it went in short form; `estimates` are of smoothness, and
  `moments` counts the rounds of second moments.

  >>> sizes = np.array([1.0, 10.0])
  >>> total(NOTHING._replace(gossip=sizes, gossip_short=sizes), 5, 3)
  12.0
  """
  times = _times(traffic.gossip, rounds)
  gossip = traffic.gossip * (times - gossip_short)
  gossip = gossip + traffic.gossip_short * gossip_short
  messages = traffic.whole * (steps - short) + traffic.short * short
  rest = traffic.exact * steps + traffic.estimate * estimates
  rest += np.sum(traffic.moments * _times(traffic.moments, moments))
  return float(np.sum(gossip) + rest + np.sum(messages))


def _times(sizes, rounds: int) -> np.ndarray:
  """Counts how often each of the rounds came in so many."""
  turns = len(sizes)
  return (rounds + turns - 1 - np.arange(turns)) // max(turns, 1)


def _all_reduced(size: float, n: int) -> float:
  """Counts what each of n sends of so many bytes in a ring all-reduce."""
  return 2 * (n - 1) / n * size


def _flags(quantizer, rounds: int, n: int) -> float:
  """Counts how n workers agree, by one i32 a round, that all fit in short."""
  return _all_reduced(4 * rounds, n) if quantizer.short else 0.0


def _sizes(quantizer, n):
  """Builds values -> bytes of a message: of a whole one, of a short one."""

  @functools.cache  # rounds are of one size
  def whole(size):
    x = jax.ShapeDtypeStruct((n, size), jnp.float32)
    key = jax.random.key(0)
    # Of all workers: a message may end with the index of its own.
    encode = jax.vmap(quantizer.encode, (0, None), axis_name=workers.AXIS)
    return wire.nbytes(jax.eval_shape(encode, x, key)) // n

  return whole, quantizer.short.capacity if quantizer.short else whole
