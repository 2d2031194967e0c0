"""Quantize and dequantize, without any communication."""

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import dither, gossip
from moniqua_jax.gossip import edge
from moniqua_jax.quantizers import base


def quantize(
  quantizer: base.Quantizer, key: jax.Array
) -> optax.GradientTransformation:
  """Anywhere in a chain: replaces the updates by what a receiver would decode.

    u <- decode(encode(u, key_t), reference=u)

  To study a quantizer alone in an ordinary optax loop, on one device.

  Args:
    quantizer: a `Quantizer`.
    key: of the run; step t draws with fold_in(key, t).

  Returns:
    A transformation; its state counts the steps.

  Raises:
    TypeError: not a `Quantizer`, such as the `Tuned` of `auto_theta` or `alq`.
    ValueError: later, a key that is none.

  >>> import jax.numpy as jnp
  >>> from moniqua_jax import uniform
  >>> tx = quantize(uniform(bits=8, rounding='nearest'), jax.random.key(0))
  >>> updates, _ = tx.update({'w': jnp.ones(3)}, tx.init(None))
  >>> updates['w']
  Array([1., 1., 1.], dtype=float32)

  Source: ours.
  """
  if not isinstance(quantizer, base.Quantizer):
    raise TypeError(
      f'quantizer is a {type(quantizer).__name__}; quantize takes a Quantizer, '
      'as there are no messages from which one could learn: moniqua(theta, '
      'bits) in place of auto_theta, leveled(levels) in place of alq.'
    )

  def init(params):
    del params
    return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    del params
    x, unravel = gossip.flatten(updates)
    payload = quantizer.encode(x, dither.key_of(key, state.count))
    x_hat = quantizer.decode(edge.sealed(payload), x)
    count = optax.safe_increment(state.count)
    quantized = jax.tree.map(
      lambda new, old: new.astype(jnp.result_type(old)), unravel(x_hat), updates
    )
    return quantized, optax.ScaleByScheduleState(count)

  return optax.GradientTransformation(init, update)
