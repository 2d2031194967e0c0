"""ADIANA and ADIANA+: DIANA with Nesterov's acceleration.

Li, Kovalev, Qian and Richtarik, "Acceleration for compressed gradient descent
in distributed and federated optimization", ICML 2020, arXiv:2002.11364; with
smoothness matrices as in Safaryan, Hanzely and Richtarik, arXiv:2102.07245.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import collectives, gossip, quantized_mean
from moniqua_jax.algorithms import large_leaves, vectors
from moniqua_jax.algorithms.diana import Shifts
from moniqua_jax.algorithms.transformation import Reduction
from moniqua_jax.quantizers import base, numerics

_COIN = 2**31 - 1  # no worker has this index


class AdianaState(NamedTuple):
  """State of ADIANA; the parameters themselves are x.

  Attributes:
    tuned: state of the quantizer, () where it does not move.
    error: `Shifts`, whose `sent` is u8[2, m], both messages of the last step.
    short: i32[2], how often each message travelled in short form.
    y: like the parameters, the sequence that converges; in float32 at least.
    z: like y, the momentum.
    w: like y, the point whose gradients the shifts learn.
    lost: i32[], steps whose means were not finite; all but `short` stayed.
  """

  tuned: tuple
  error: Shifts
  short: jax.Array
  y: Any
  z: Any
  w: Any
  lost: jax.Array


def adiana(
  quantizer: base.Quantizer | base.Tuned,
  parameters: Any,
  *,
  axis_name: str,
  key: jax.Array,
  keep: Callable[[jax.Array], bool] = large_leaves.small,
) -> optax.GradientTransformationExtraArgs:
  """First in the chain: the way from x to the next x; follow by `sgd(1.0)`.

    x = th1 z + th2 w + (1 - th1 - th2) y
    g = h + (1/n) sum_i C_i(grad f_i(x) - h_i)
    h_i <- h_i + alpha C'_i(grad f_i(w) - h_i)
    y+ = x - eta g,  z+ = beta z + (1 - beta) x + (gamma / eta) (y+ - x)
    w+ = y with probability p, else w

  Two messages in each step. ADIANA+ is the same with
  `per_worker(row -> smooth(C(row), L(row)))`.

  Args:
    quantizer: C and C', unbiased; a `Quantizer` or a `Tuned`.
    parameters: alpha, eta, theta1, theta2, gamma, beta and p, as
      `theory.gammas.adiana` gives them.
    axis_name: of the workers.
    key: of the run, the same on all workers; also of the coin for w.
    keep: leaf -> whether its mean is exact, as for `allreduce`.

  Returns:
    A transformation whose `update(updates, state, params, *, step, grad_fn)`
    takes the gradient at x = params, the step as i32[], and grad_fn: params ->
    gradient of this worker, which it asks for at w. What it gives is x minus
    the next x: no momentum and no learning rate but 1 may follow.

  Raises:
    ValueError: a quantizer that needs a reference near what is sent (moniqua);
      later, without params or grad_fn, or if no leaf is large enough.

  >>> from moniqua_jax import dithering
  >>> from moniqua_jax.theory import gammas
  >>> parameters = gammas.adiana(
  ...   L=1.0, L_max=1.0, calL_max=2.0, omega=2.0, mu=0.1, n=4)
  >>> move = adiana(dithering(1), parameters, axis_name='workers',
  ...               key=jax.random.key(0))
  >>> tx = optax.chain(move, optax.sgd(1.0))

  Source: Algorithm 1 of arXiv:2002.11364, as recalled in the project's notes.
  """
  tuned, own = base.tuned(quantizer), parameters
  large_leaves.require_suited('adiana', tuned)

  def init(params):
    x, _ = large_leaves.split(params, keep)
    sent = quantized_mean.first_sent(tuned, x)
    shifts = Shifts(
      jnp.zeros_like(x), jnp.zeros_like(x), jnp.stack([sent, sent])
    )
    short = jnp.zeros(2, jnp.int32)
    # Copies: whoever donates the parameters keeps the state.
    x = vectors.complete(params, params)
    y, z, w = (jax.tree.map(jnp.copy, x) for _ in range(3))
    return AdianaState(tuned.init(), shifts, short, y, z, w, jnp.int32(0))

  def estimate(current, updates, at_w, shifts, step, params):
    """g, and the shifts moved by what is known of the gradients at w."""
    key_ = gossip.worker_key(key, step, axis_name, current.shared)
    x, join = large_leaves.split(updates, keep)
    large_leaves.require_memory_of(
      'adiana', jnp.zeros_like, x, shifts.own, updates, params
    )
    point, _ = large_leaves.split(at_w, keep)
    now, then = (
      quantized_mean.all_gathered(current, v - shifts.own, k, axis_name)
      for v, k in zip((x, point), jax.random.split(key_), strict=True)
    )
    kept = collectives.mean(join.kept, axis_name)
    moved = Shifts(
      shifts.own + own.alpha * then.own,
      shifts.mean + own.alpha * then.mean,
      jnp.stack([now.sent, then.sent]),
    )
    short = jnp.concatenate([now.short, then.short])
    g = join.together(shifts.mean + now.mean, kept)
    told = [large_leaves.told(m.mean, axis_name) for m in (now, then)]
    return g, numerics.finite((told, kept)), moved, short

  def update(updates, state, params=None, *, step, grad_fn=None, **extra_args):
    del extra_args
    if params is None or grad_fn is None:
      raise ValueError(
        'adiana: update() needs params, and grad_fn=: params -> gradient.'
      )
    current = tuned.quantizer(state.tuned, step)
    tree = lambda fn, *trees: jax.tree.map(fn, *trees)
    at_w = grad_fn(tree(lambda w, x: w.astype(x.dtype), state.w, params))
    g, took, shifts, short = estimate(
      current, updates, at_w, state.error, step, params
    )
    g, params = (vectors.complete(v, params) for v in (g, params))
    y = tree(lambda x, g: x - own.eta * g, params, g)
    z = tree(
      lambda z, x, y: (
        own.beta * z + (1 - own.beta) * x + own.gamma / own.eta * (y - x)
      ),
      *(state.z, params, y),
    )
    coin = jax.random.fold_in(jax.random.fold_in(key, step), _COIN)
    moves = jax.random.uniform(coin) < own.p
    w = tree(lambda y, w: jnp.where(moves, y, w), state.y, state.w)
    x = tree(
      lambda z, w, y: (
        own.theta1 * z + own.theta2 * w + (1 - own.theta1 - own.theta2) * y
      ),
      *(z, w, y),
    )
    flat, _ = large_leaves.split(updates, keep)
    seen = tuned.observe(state.tuned, gossip.no_news(1), flat)
    shifts, y, z, w = numerics.select(
      took,
      (shifts, y, z, w),
      (state.error, state.y, state.z, state.w),
    )
    short = state.short + short.astype(jnp.int32)
    lost = state.lost + (~took).astype(jnp.int32)
    state = AdianaState(seen, shifts, short, y, z, w, lost)
    return large_leaves.or_nothing(took, tree(jnp.subtract, params, x)), state

  shift = lambda state: state.error.own
  return Reduction(init, update, 'adiana', shift=shift)
