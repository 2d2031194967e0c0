"""A round of gossip by itself, on one graph and with one quantizer."""

import jax

from moniqua_jax import topologies
from moniqua_jax.gossip import one_round
from moniqua_jax.gossip.one_round import Round
from moniqua_jax.quantizers import base

Array = jax.Array


def correction(
  x: Array,
  key: Array,
  *,
  topology: topologies.Topology,
  quantizer: base.Quantizer,
  axis_name: str,
) -> tuple[Array, base.Seen]:
  """The row (W x_hat - x_hat)_i that worker i adds to its own x_i.

    sum_j W_ij (x_hat_j - x_hat_i)

  Equivalent, all workers stacked, while every message is readable:
  `x_hat = decode(encode(x)); W @ x_hat - x_hat` with `W = matrix(topology)`.
  An unreadable message is left out: its edge contributes nothing.

  Args:
    x: f32[d], this worker's vector.
    key: for `quantizer.encode`; shared or private as `quantizer.shared` says.
    topology: who sends to whom, with which weight.
    quantizer: what is sent.
    axis_name: of the workers.

  Returns:
    f32[d], and what was seen on the edges, each field [E].

  >>> from moniqua_jax import full_precision
  >>> from moniqua_jax.workers import AXIS, simulated
  >>> pull = lambda x: correction(
  ...   x, jax.random.key(0), topology=topologies.ring(2),
  ...   quantizer=full_precision(), axis_name=AXIS)[0]
  >>> simulated(pull, (0,))(jax.numpy.array([[0.0], [2.0]])).ravel()
  Array([ 1., -1.], dtype=float32)

  Source: lines 2 to 5 of Algorithm 1 of Moniqua, arXiv:2002.11787.
  """
  each = _alone(topology, quantizer, axis_name)
  (_, pull), seen = _encoded(one_round.read, each, x, key)
  return pull, seen


def mixed(
  x: Array,
  key: Array,
  *,
  topology: topologies.Topology,
  quantizer: base.Quantizer,
  axis_name: str,
) -> tuple[Array, base.Seen]:
  """Adds the `correction` to x: the same bits in less memory traffic."""
  each = _alone(topology, quantizer, axis_name)
  return _encoded(one_round.mix, each, x, key, None)


def _alone(topology, quantizer, axis_name) -> Round:
  """A round by itself: on one graph, and of what learns nothing from it."""
  if not isinstance(quantizer, base.Quantizer):
    raise TypeError(
      f'quantizer={quantizer!r:.60}; correction and mixed take a Quantizer. '
      'What learns, such as auto_theta, is for dpsgd and its like.'
    )
  topology = topologies.base.single(topology, 'correction')
  return Round(topology, quantizer, axis_name)


def _encoded(use, each: Round, x, key, *args):
  """Runs a round by itself, from the vector that is sent."""
  x = one_round.as_vector(x)
  payload = one_round.sealed(each.quantizer, x, key)  # line 2
  result, seen, _ = one_round.talk(use, each, payload, x, *args)  # lines 3 to 5
  return result, seen
