"""Error feedback: what was not sent in this step is sent in a later one.

Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy
et al., "Error feedback fixes SignSGD", ICML 2019, arXiv:1901.09847; on both
sides: Tang et al., "DoubleSqueeze", ICML 2019, arXiv:1905.05957.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import optax

from moniqua_jax import arguments, quantized_mean
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.quantizers import base


def error_feedback(
  quantizer: base.Quantizer | base.Tuned,
  strategy: str = 'scatter_reduce',
  decay: float = 1.0,
  *,
  axis_name: str,
  key: jax.Array,
  keep: Callable[[jax.Array], bool] = large_leaves.small,
) -> optax.GradientTransformationExtraArgs:
  """First in the chain: the mean of gradients with a memory of each worker.

    p_i = g_i + e_i    g_i <- (1/n) sum_j Q(p_j)    e_i <- decay (p_i - Q(p_i))

  With `sign` it is EF-SignSGD, with `one_bit` 1-bit SGD, with `top_k` sparse
  SGD with memory; `outer` of it with `chunked_top_k`, 'of_senders' and a decay
  of .95 is SparseLoCo. The memory is in units of the gradient. For the paper's
  units, those of the update, and for momentum of each worker's own, put
  `optax.trace` and the learning rate before it in the chain.

  Args:
    quantizer: what is sent, biased or not; a `Quantizer` or a `Tuned`.
    strategy: as for `allreduce`, but not 'exact'. With 'scatter_reduce' the
      memory knows nothing of the second quantization, that of the mean; see
      `double_squeeze`. 'of_senders' takes of each value the mean over those
      that sent it, no message longer than the median.
    decay: of the memory in a step, above 0 and at most 1.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    keep: as for `allreduce`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers.

  Raises:
    ValueError: unknown strategy, decay outside (0, 1], a quantizer that needs a
      reference near what is sent (moniqua); later, if no leaf is large enough.

  >>> from moniqua_jax import sign
  >>> tx = error_feedback(sign(bucket_size=64), 'all_gather',
  ...                     axis_name='workers', key=jax.random.key(0))

  Source: Algorithm 2 of arXiv:1901.09847, for n workers.
  """
  by = large_leaves.chosen(quantizer, strategy, key)
  decay = arguments.share(decay, 'decay={}; it must be above 0, at most 1.')

  def mean(quantizer, x, error, key, axis_name):
    reduced = by.mean(quantizer, x + error, key, axis_name)
    left = x + error - reduced.own
    return reduced, left if decay == 1 else decay * left

  rule = large_leaves.Rule('error_feedback', mean, jnp.zeros_like, by.rounds)
  return large_leaves.on_large_leaves(
    rule, quantizer, axis_name=axis_name, key=key, keep=keep
  )


def double_squeeze(
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: jax.Array,
  keep: Callable[[jax.Array], bool] = large_leaves.small,
) -> optax.GradientTransformationExtraArgs:
  """First in the chain: error feedback of the workers and of the mean.

    p_i = g_i + e_i        v = (1/n) sum_j Q(p_j) + e        g_i <- Q(v)
    e_i <- p_i - Q(p_i)        e <- v - Q(v)

  The paper's server is the worker that sums up a chunk: e is cut into chunks.

  Args:
    quantizer: of both ways, biased or not; a `Quantizer` or a `Tuned`.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    keep: as for `allreduce`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers. It keeps d + d / n values.

  Raises:
    ValueError: a quantizer that needs a reference near what is sent (moniqua);
      later, if no leaf is large enough to be quantized.

  >>> from moniqua_jax import sign
  >>> tx = double_squeeze(sign(bucket_size=64),
  ...                     axis_name='workers', key=jax.random.key(0))

  Source: Algorithm 1 of arXiv:1905.05957.
  """
  by = large_leaves.chosen(quantizer, 'scatter_reduce', key)

  def mean(quantizer, x, error, key, axis_name):
    of_worker, of_mean = error
    first, second = jax.random.split(key)
    x = x + of_worker
    scattered = quantized_mean.scatter(quantizer, x, first, axis_name)
    chunk = scattered.mean + of_mean
    reduced, sent, gathered = quantized_mean.gather(
      quantizer, chunk, x, second, axis_name
    )
    short = jnp.stack([scattered.short, gathered])
    left = x - scattered.own, chunk - sent
    return scattered._replace(mean=reduced, short=short), left

  def error(x):
    n = lax.axis_size(axis_name)
    return jnp.zeros_like(x), jnp.zeros(-(-x.size // n), x.dtype)

  rule = large_leaves.Rule('double_squeeze', mean, error, by.rounds)
  return large_leaves.on_large_leaves(
    rule, quantizer, axis_name=axis_name, key=key, keep=keep
  )
