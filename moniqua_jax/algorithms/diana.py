"""DIANA and DIANA+: only what a worker's gradient has changed by is quantized.

Mishchenko, Gorbunov, Takac and Richtarik, arXiv:1901.09269; with smoothness
matrices, Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524,
Algorithm 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import arguments, quantized_mean
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.quantizers import base


class Shifts(NamedTuple):
  """Shifts of DIANA, in `ReduceState.error`.

  Attributes:
    own: f32[d], h_i, which learns the gradient of this worker at the optimum.
    mean: f32[d], h, the mean of all h_i, the same on all workers.
    sent: u8[m], the last message.
  """

  own: jax.Array
  mean: jax.Array
  sent: jax.Array


def diana(
  quantizer: base.Quantizer | base.Tuned,
  alpha: float,
  *,
  axis_name: str,
  key: jax.Array,
  keep: Callable[[jax.Array], bool] = large_leaves.small,
) -> optax.GradientTransformationExtraArgs:
  """First in the chain: a mean of gradients whose noise vanishes.

    D_i = C_i(grad f_i(x) - h_i)
    g = h + (1/n) sum_i D_i,  then  h_i <- h_i + alpha D_i,  h = (1/n) sum_i h_i

  DIANA+ is the same with `per_worker(row -> smooth(C(row), L(row)))`, so that
  D_i = L_i^{1/2} C_i(L_i^{-1/2} (grad f_i(x) - h_i)). On a strongly convex
  problem it converges to the optimum, linearly, for the step size
  `theory.gammas.gamma_diana`.

  Args:
    quantizer: C, unbiased; a `Quantizer` or a `Tuned`.
    alpha: of the shifts; theory wants at most 1 / (1 + omega), omega of C_i
      without L_i, see `theory.gammas.alpha_diana`.
    axis_name: of the workers.
    key: of the run, the same on all workers.
    keep: leaf -> whether its mean is exact, as for `allreduce`.

  Returns:
    A transformation whose `update(updates, state, params, *, step)` takes the
    step as i32[], the same on all workers. It keeps two vectors and what was
    sent.

  Raises:
    ValueError: alpha outside (0, 1], a quantizer that needs a reference near
      what is sent (moniqua); later, if no leaf is large enough.

  >>> from moniqua_jax import dithering
  >>> mean = diana(dithering(1), 0.2, axis_name='workers',
  ...              key=jax.random.key(0))
  >>> tx = optax.chain(mean, optax.sgd(0.1))

  Source: Algorithm 2 of arXiv:2106.03524.
  """
  said = 'alpha={}; diana needs it above 0 and at most 1.'
  alpha = arguments.share(alpha, said)

  def mean(quantizer, x, shifts, key, axis_name):
    reduced = quantized_mean.all_gathered(
      quantizer, x - shifts.own, key, axis_name
    )
    g = shifts.mean + reduced.mean  # with h before it moves
    moved = Shifts(
      shifts.own + alpha * reduced.own,
      shifts.mean + alpha * reduced.mean,
      reduced.sent,
    )
    return reduced._replace(mean=g), moved

  def start(x):
    sent = quantized_mean.first_sent(quantizer, x)
    return Shifts(jnp.zeros_like(x), jnp.zeros_like(x), sent)

  rule = large_leaves.Rule(
    'diana', mean, start, shift=lambda state: state.error.own
  )
  return large_leaves.on_large_leaves(
    rule, quantizer, axis_name=axis_name, key=key, keep=keep
  )
