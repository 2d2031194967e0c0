"""All-reduce SGD: every worker takes the step of the mean gradient."""

import optax

from moniqua_jax import reduce
from moniqua_jax.quantizers import base

# strategy -> mean over the workers; each is a function of reduce.py.
STRATEGIES = {'exact': reduce.exact}


def allreduce(
  quantizer: base.Quantizer | None = None,
  strategy: str = 'exact',
  *,
  axis_name: str,
  key=None,
) -> optax.GradientTransformationExtraArgs:
  """First in the chain: replaces each worker's gradient by the mean of all.

    g_i <- (1/n) sum_j g_j

  Args:
    quantizer: what is sent; 'exact' sends full precision and takes only that.
    strategy: 'exact', an all-reduce of float32.
    axis_name: of the workers.
    key: of the run, the same on all workers; 'exact' draws nothing.

  Returns:
    A transformation without state.

  Raises:
    ValueError: unknown strategy, or a quantizer with 'exact'.

  >>> tx = optax.chain(allreduce(axis_name='workers'), optax.sgd(0.1))
  """
  del key
  if strategy not in STRATEGIES:
    raise ValueError(
      f'strategy={strategy!r}; choose from {sorted(STRATEGIES)}.'
    )
  if quantizer not in (None, base.full_precision()):
    raise ValueError(
      "strategy='exact' sends full precision; it takes no other quantizer."
    )
  mean = STRATEGIES[strategy]

  def update(updates, state, params=None, **extra_args):
    del params, extra_args
    return mean(updates, axis_name), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )
