"""One byte back along each edge: what was not read moves neither end."""

import optax

from moniqua_jax.algorithms.transformation import Gossip, require_gossip


def answered(
  algorithm: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: the algorithm, with one byte back along each edge.

  An edge counts only if both of its ends could read. A theta that is too small
  mostly wraps on one side only; left out there alone, the mean of the workers
  moves. With the answer it does not, at the price of one more latency. In
  `push_sum` each message counts by itself: a share that was not read stays with
  its sender, so that no mass is lost, on directed graphs as well.

  Args:
    algorithm: any gossip algorithm with a symmetric W, or `push_sum`, in which
      each worker keeps a share of its own.

  Returns:
    The same algorithm; its `seen.readable` says whether both ends read; that of
    `push_sum`, whether what came in and what went out on an edge was read.

  Raises:
    ValueError: no gossip algorithm; when it is traced, W is not symmetric; of
      `push_sum`, a worker gives all away.

  >>> import jax
  >>> from moniqua_jax import dpsgd, moniqua, ring
  >>> gossip = answered(dpsgd(ring(8), moniqua(theta=1.0, bits=4),
  ...                         axis_name='workers', key=jax.random.key(0)))
  >>> tx = optax.chain(optax.sgd(0.1), gossip)

  Source: ours; the verification by a hash is a remark of arXiv:2002.11787.
  """
  require_gossip('answered', algorithm)

  def update(updates, state, params=None, **extra_args):
    extra_args = {'agree': True, **extra_args}
    return algorithm.update(updates, state, params, **extra_args)

  def message(quantizer, d):
    return algorithm.message(quantizer._replace(answered=True), d)

  says = {**vars(algorithm), 'message': message}
  return Gossip(algorithm.init, update, **says)
