"""Algorithms in a pod: whose part they work on, and with which key."""

from collections.abc import Callable

import jax
from jax import lax
import optax

from moniqua_jax import collectives
from moniqua_jax.pods.pod import DATA, INSIDE, Pod


def of_device(
  make: Callable, key: jax.Array, axes: tuple[str, ...]
) -> optax.GradientTransformationExtraArgs:
  """The algorithm with a key of its own at each place on some axes.

  Args:
    make: key -> a transformation.
    key: of the run, the same on all devices.
    axes: at whose places the keys differ.

  Returns:
    A transformation.

  >>> tx = of_device(lambda key: optax.sgd(0.1), jax.random.key(0), INSIDE)
  >>> tx.init(jax.numpy.zeros(1))
  (EmptyState(), EmptyState())
  """

  def update(updates, state, params=None, **extra_args):
    own = jax.random.fold_in(key, lax.axis_index(axes))
    tx = optax.with_extra_args_support(make(own))
    return tx.update(updates, state, params, **extra_args)

  # What a state begins with, and its name, depend on no key.
  tx = optax.with_extra_args_support(make(key))
  return type(tx)(tx.init, update, **vars(tx))


def on_own_part(
  make: Callable, key: jax.Array, pod: Pod
) -> optax.GradientTransformationExtraArgs:
  """Gossip in pods: a device's own 1 / data of its shard, then all have all.

    part = x[d]        u[d] <- gossip(u[d], x[d])        u = u[0], ..., u[D - 1]

  The replicas over 'data' would all send the same; so each sends a part, and
  they tell each other over the fast links what came of it. The dither of each
  part is drawn with a seed of its own.

  Args:
    make: key -> the gossip algorithm over 'workers'.
    key: of the run, the same on all devices.
    pod: data of it.

  Returns:
    Last in the chain, on the vectors that `held.cut` describes. Its state is
    that of the algorithm, of the part.

  >>> gossip = on_own_part(lambda key: optax.identity(), jax.random.key(0),
  ...                      Pod(4, data=2))
  >>> isinstance(gossip, optax.GradientTransformation)
  True
  """
  algorithm = of_device(make, key, INSIDE)
  if pod.data == 1:
    return algorithm
  own = lambda x: x.reshape(pod.data, -1)[lax.axis_index(DATA)]

  def update(updates, state, params=None, **extra_args):
    part, state = algorithm.update(
      own(updates), state, own(params), **extra_args
    )
    return collectives.gathered(part, DATA).reshape(-1), state

  init = lambda params: algorithm.init(own(params))
  return type(algorithm)(init, update, **vars(algorithm))
