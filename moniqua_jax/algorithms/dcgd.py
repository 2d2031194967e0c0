"""DCGD and DCGD+: gradient descent on compressed gradients.

Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524, Algorithm 1.
"""

from collections.abc import Callable

import jax
import optax

from moniqua_jax import quantized_mean
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.quantizers import base


def dcgd(
  quantizer: base.Quantizer | base.Tuned,
  *,
  axis_name: str,
  key: jax.Array,
  keep: Callable[[jax.Array], bool] = large_leaves.small,
) -> optax.GradientTransformationExtraArgs:
  """First in the chain: the mean of what all workers quantized.

    g = (1/n) sum_i C_i(grad f_i(x))                            DCGD
    g = (1/n) sum_i L_i^{1/2} C_i(L_i^{-1/2} grad f_i(x))       DCGD+

  The second is the first with `per_worker(row -> smooth(C(row), L(row)))`. It
  converges to a neighbourhood: to the optimum, take `diana`. The step size that
  goes with it is `theory.gammas.gamma_dcgd`.

  Args:
    quantizer: C, unbiased; a `Quantizer` or a `Tuned`.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    keep: leaf -> whether its mean is exact, as for `allreduce`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers. Its state has what was `sent`.

  Raises:
    ValueError: a quantizer that needs a reference near what is sent (moniqua);
      later, if no leaf is large enough to be quantized.

  >>> from moniqua_jax import dithering
  >>> mean = dcgd(dithering(1), axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(mean, optax.sgd(0.1))

  Source: Algorithm 1 of arXiv:2106.03524.
  """

  def mean(quantizer, x, sent, key, axis_name):
    del sent
    reduced = quantized_mean.all_gathered(quantizer, x, key, axis_name)
    return reduced, reduced.sent

  rule = large_leaves.Rule(
    'dcgd', mean, lambda x: quantized_mean.first_sent(quantizer, x)
  )
  return large_leaves.on_large_leaves(
    rule, quantizer, axis_name=axis_name, key=key, keep=keep
  )
