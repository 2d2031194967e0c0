"""All-reduce SGD: every worker takes the step of the mean gradient.

With a quantizer: QSGD, arXiv:1610.02132, Algorithm 1; NUQSGD, arXiv:1908.06077,
Algorithm 1; on chunks as common low-precision collectives have it.
"""

from collections.abc import Callable

import jax
import optax

from moniqua_jax import collectives, quantized_mean, quantizers
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.algorithms.transformation import Reduction
from moniqua_jax.quantizers import base

STRATEGIES = sorted(['exact', *quantized_mean.STRATEGIES])


def allreduce(
  quantizer: base.Quantizer | base.Tuned | None = None,
  strategy: str = 'exact',
  *,
  axis_name: str,
  key: jax.Array | None = None,
  keep: Callable[[jax.Array], bool] = large_leaves.small,
) -> optax.GradientTransformationExtraArgs:
  """First in the chain: replaces each worker's gradient by the mean of all.

    g_i <- (1/n) sum_j g_j               'exact'
    g_i <- (1/n) sum_j Q(g_j)            'all_gather'
    g_i <- Q((1/n) sum_j Q(g_j))         'scatter_reduce', chunk by chunk

  Args:
    quantizer: what is sent, a `Quantizer` or a `Tuned`; none with 'exact'.
    strategy: 'exact', an all-reduce of float32; 'all_gather', one quantization
      and n - 1 messages of d values; 'of_senders', the same messages, and of
      each value the mean over those who sent it; 'scatter_reduce', two
      quantizations and 2 (n - 1) messages of d / n values.
    axis_name: of the workers.
    key: of the run, the same on all workers; 'exact' needs none.
    keep: leaf -> whether its mean is exact; by default leaves of less than 1024
      values or of one dimension. The others are quantized as one vector.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers. 'exact' needs no step.

  Raises:
    ValueError: unknown strategy, a quantizer with 'exact', a strategy without
      quantizer or key, auto_theta, which learns from answers; later, if no leaf
      is large enough to be quantized.

  >>> from moniqua_jax import nuqsgd
  >>> mean = allreduce(nuqsgd(bits=4), 'scatter_reduce',
  ...                  axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(mean, optax.sgd(0.1))

  Source: Algorithm 1 of arXiv:1610.02132 and of arXiv:1908.06077.
  """
  if strategy not in STRATEGIES:
    raise ValueError(f'strategy={strategy!r}; choose from {STRATEGIES}.')
  if strategy == 'exact':
    return _exact(quantizer, axis_name, keep)
  by = large_leaves.chosen(quantizer, strategy, key)
  assert quantizer is not None and key is not None  # else refused

  def mean(quantizer, x, error, key, axis_name):
    return by.mean(quantizer, x, key, axis_name), error

  rule = large_leaves.Rule('allreduce', mean, lambda x: (), by.rounds)
  return large_leaves.on_large_leaves(
    rule, quantizer, axis_name=axis_name, key=key, keep=keep
  )


def _exact(quantizer, axis_name, keep) -> Reduction:
  if quantizer not in (None, quantizers.full_precision()):
    raise ValueError(
      "strategy='exact' sends full precision; it takes no other quantizer. "
      f'For one, choose from {sorted(quantized_mean.STRATEGIES)}.'
    )

  def update(updates, state, params=None, **extra_args):
    del params, extra_args
    leaves, whole, _ = large_leaves.parts(updates, keep)
    return whole(collectives.mean(leaves, axis_name)), state

  init = lambda params: optax.EmptyState()
  whole = lambda: _exact(quantizer, axis_name, large_leaves.none_small)
  says = dict(axis_name=axis_name, whole=whole)
  return Reduction(init, update, 'allreduce', quantizes=False, **says)
