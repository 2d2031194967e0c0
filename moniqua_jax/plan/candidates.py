"""Ways to talk that a plan chooses from, each with what it costs.

Gossip in pairs, rotated, at 4 bits, of which fragments, rounds and local steps
make more or less; all-reduce by EDEN in fragments; and what both are compared
with, D-PSGD on a ring and an all-reduce in full precision.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moniqua_jax import bytes_sent, quantizers, theory, topologies
from moniqua_jax.algorithms import fragments as parts
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.quantizers import base

BITS = 4  # of gossip: fewer coordinates are better than fewer bits
FRAGMENTS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
STEPS = (2, 4, 8, 16)  # from one round of gossip to the next
ROUNDS = (2, 3)
MOST = 16  # workers; on pairs more of them are hardly further apart

# Seconds of one CPU core for a parameter that is sent and received, measured at
# 394,634 of them with the forms in C++; of EDEN for a mean in two passes.
PLAIN, ROTATED, EDEN = 0.8e-9, 5e-9, 6e-9


class Candidate(NamedTuple):
  """A way to talk.

  Attributes:
    name: in words.
    specs: all of a config that says how to talk; what is not said is unset.
    size: (params) -> bytes that a worker sends in a step; the mean over steps.
    messages: one after another, in a step; the mean over steps. As XLA's Gloo
      sends them: 2 (n - 1) in an all-reduce, one to all at once.
    codec: seconds for a parameter and step.
    beside: the share of steps in which messages travel while the gradient is
      computed.
    apart: the variance of workers around their mean, over that of 8 on a ring
      in full precision.
    noise: of a mean, over that of the gradients of one batch.
    order: which comes first, where it is not known what a way to talk costs in
      steps: the least one that lets workers compute.
  """

  name: str
  specs: dict
  size: Callable
  messages: float
  codec: float
  beside: float = 0.0
  apart: float = 0.0
  noise: float = 0.0
  order: tuple = ()


def every(n: int, momentum: float) -> list[Candidate]:
  """All candidates of n workers, the two in full precision first."""
  pairs = functools.partial(gossip, pairs_of(n), n, momentum)
  then = functools.partial(pairs, order='adapt_then_combine')
  return [
    exact(n),
    gossip('ring', n, momentum, bits=None),
    gossip('ring', n, momentum),
    then(bits=None),
    *(then(rounds=rounds) for rounds in ROUNDS),
    *(then(fragments=k) for k in FRAGMENTS),
    *(then(local_steps=steps) for steps in STEPS),
    # Of local steps only the last one has messages beside it.
    *(pairs(fragments=k, overlap=True) for k in FRAGMENTS),
    *(means(n, momentum, bits, k) for bits in (1, 2) for k in FRAGMENTS),
    *(means(n, momentum, 4, k) for k in FRAGMENTS[:2]),
    *(means(n, momentum, bits, 1, h) for bits in (1, 2) for h in STEPS),
  ]


def pairs_of(n: int) -> str:
  """The graph on which n workers, each with one other, agree in few rounds."""
  return 'base_graph' if n & (n - 1) else 'one_peer_hypercube'


# ------------------------------------------------------------------- gossip


def gossip(
  graph: str,
  n: int,
  momentum: float,
  bits: int | None = BITS,
  order: str = 'adapt_with_combine',
  overlap: bool = False,
  fragments: int = 1,
  local_steps: int = 1,
  rounds: int = 1,
) -> Candidate:
  """Builds D-PSGD; `bits` of rotated parameters, None for full precision."""
  quantizer: dict = dict(name='full_precision')
  if bits:
    quantizer = dict(name='fitted_theta', bits=bits)
  often = dict(fragments=fragments, local_steps=local_steps, rounds=rounds)
  edges = [len(topology.edges) for topology in _schedule(graph, n)]
  share = rounds / local_steps
  return Candidate(
    _words(graph, bits, order, overlap, **often),
    specs(
      gossip=dict(name='dpsgd'),
      topology=dict(name=graph),
      quantizer=quantizer,
      rotated=bits is not None,
      order=order,
      overlap=overlap,
      **often,
    ),
    functools.partial(gossiped, graph, n, bits, fragments, share),
    # Who reads a code answers whether it could.
    share * sum(edges) / len(edges) * (2 if bits else 1),
    share / fragments * (ROTATED if bits else PLAIN) * sum(edges) / len(edges),
    overlap,
    apart=_apart(
      *(graph, min(n, MOST), order, bits, momentum),
      *(local_steps, rounds, fragments),
    ),
  )


@functools.cache
def _schedule(graph, n) -> tuple[topologies.Topology, ...]:
  make: Callable = topologies.BY_NAME[graph]
  return topologies.schedule(make(n))


def gossiped(graph, n, bits, fragments, share, params) -> float:
  """Counts the bytes of gossip; fragments are as long as the longest."""
  d = size_of(params)
  size = parts.windows(d, fragments).size if fragments > 1 else d
  return share * _in_a_round(graph, n, bits, size)


@functools.cache
def _in_a_round(graph, n, bits, size) -> float:
  full = base.tuned(quantizers.full_precision())
  q = quantizers.rotated(quantizers.fitted_theta(bits)) if bits else full
  sent = bytes_sent.of_gossip(_schedule(graph, n), q, size)
  return float(sent.gossip.mean())


@functools.cache
def _apart(graph, n, order, bits, momentum, steps, rounds, fragments) -> float:
  law = 'atc_dpsgd' if order == 'adapt_then_combine' else 'dpsgd'
  often = dict(steps=steps, rounds=rounds, fragments=fragments)
  found = theory.disagreement(_schedule(graph, n), law, bits, momentum, **often)
  return found / theory.disagreement(_schedule('ring', 8), momentum=momentum)


def _words(graph, bits, order, overlap, fragments, local_steps, rounds) -> str:
  words = [
    graph.replace('_', ' '),
    f'{bits} bits' if bits else '32 bits',
    f'{fragments} fragments' if fragments > 1 else '',
    f'every {local_steps} steps' if local_steps > 1 else '',
    f'{rounds} rounds' if rounds > 1 else '',
    'combined last' if order == 'adapt_then_combine' else '',
    'beside the gradient' if overlap else '',
  ]
  return ', '.join(filter(None, words))


# -------------------------------------------------------------------- means


def exact(n: int) -> Candidate:
  """Builds the mean of gradients in full precision."""
  return Candidate(
    'all-reduce, 32 bits',
    specs(reduce=dict(name='allreduce')),
    lambda params: bytes_sent.of_exact(params, n).exact,
    2 * (n - 1),
    PLAIN,
  )


def means(
  n: int, momentum: float, bits: int, fragments: int, local_steps: int = 1
) -> Candidate:
  """Builds an all-reduce by EDEN, in two passes of so many bits.

  The error of each worker in the first pass falls in the mean, as the noise of
  its batch does; the second pass errs by omega of the mean. Of fragments, or
  after local steps, the mean is of what workers moved: in between they drift.
  """
  often = dict(fragments=fragments, local_steps=local_steps)
  # Of gradients: small leaves go by an exact mean of their own.
  whole = fragments == local_steps == 1
  words = [
    f'all-reduce, EDEN {bits} bit{"s" * (bits > 1)}',
    f'{fragments} fragments' if fragments > 1 else '',
    f'every {local_steps} steps' if local_steps > 1 else '',
  ]
  apart = ('complete', min(n, MOST), 'adapt_then_combine', None, momentum)
  return Candidate(
    ', '.join(filter(None, words)),
    specs(
      reduce=dict(name='allreduce', strategy='scatter_reduce'),
      quantizer=dict(name='eden', bits=bits),
      **often,
    ),
    functools.partial(reduced, n, bits, fragments, local_steps),
    (2 + (2 * (n - 1) if whole else 0)) / local_steps,
    EDEN / fragments / local_steps,
    apart=0.0 if whole else _apart(*apart, local_steps, 1, fragments),
    noise=2 * theory.eden_variance(bits),
  )


def reduced(n, bits, fragments, local_steps, params) -> float:
  """Counts the bytes of a mean; of what was moved small leaves take part."""
  shapes = tuple(leaf.shape for leaf in jax.tree.leaves(params))
  if fragments == local_steps == 1:
    return _in_two_passes(n, bits, shapes, large_leaves.small)
  shapes = ((parts.windows(size_of(params), fragments).size,),)
  return _in_two_passes(n, bits, shapes, large_leaves.none_small) / local_steps


@functools.cache
def _in_two_passes(n, bits, shapes, keep) -> float:
  leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  q = base.tuned(quantizers.eden(bits))
  sent = bytes_sent.of_reduce('scatter_reduce', q, leaves, n, keep)
  return bytes_sent.total(sent, steps=1, rounds=0)


def size_of(params) -> int:
  """Counts the values of a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


# What a candidate leaves as it is.
_QUIET = dict(
  reduce=dict(name='none'),
  gossip=dict(name='none'),
  topology=dict(name='ring'),
  quantizer=dict(name='full_precision'),
  theta=dict(name='fixed'),
  smoothness=dict(name='none'),
  momentum_kind=dict(name='local'),
  outer=dict(learning_rate=1.0, momentum=0.0, nesterov=False, delay=0),
  rotated=False,
  order='adapt_with_combine',
  overlap=False,
  fragments=1,
  local_steps=1,
  local_steps_from=(),
  rounds=1,
  rounds_from=(),
  gamma=1.0,
  coded=None,
  scales_from='',
  answered=False,
)


def specs(**own) -> dict:
  """All of a config that says how to talk."""
  return _QUIET | own
