"""The order of D-PSGD in which gradients are taken at mixed points.

Sayed, "Adaptation, learning, and optimization over networks", Foundations and
Trends in Machine Learning 7, 2014, where it is called adapt-then-combine.
"""

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import gossip
from moniqua_jax.algorithms import vectors
from moniqua_jax.algorithms.transformation import Gossip, require_gossip

# Of the others, by name: why their order is not to be chosen.
_FIXED = dict.fromkeys(
  ('choco', 'd2', 'deepsqueeze', 'push_sum'),
  'its messages hold the update of their step already',
) | dict.fromkeys(
  ('dcd', 'ecd'), 'its neighbours keep a copy of x_k, which is what it sends'
)


def adapt_then_combine(
  algorithm: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: D-PSGD whose messages hold the update of their step.

    y_{k,i} = x_{k,i} + u_{k,i}
    x_{k+1,i} = y_{k,i} + sum_j W_ij (y_hat_{k,j} - y_hat_{k,i})

  with u = -alpha g taken at x_k. `dpsgd` by itself mixes x_k and adds u_k,
  which it has taken a whole local step, momentum and noise and all, away from
  what the neighbours agree on. Here gradients are taken at mixed points: on
  ResNet-20 the workers stay half as far apart, at no bits. On a complete graph
  this is all-reduce with local momentum. The price: a message waits for the
  gradient of its step, so the two can no longer overlap; and a theta must cover
  one update more on either side, see `theory` of 'atc_dpsgd'.

  Args:
    algorithm: dpsgd; or `every`, `streaming`, `rounds` or `answered` of one.

  Returns:
    A transformation whose state is that of the algorithm.

  Raises:
    ValueError: another algorithm. The messages of d2, choco, deepsqueeze and
      push_sum hold u_k already.

  >>> from moniqua_jax import dpsgd, moniqua, ring
  >>> tx = optax.chain(optax.sgd(0.1, momentum=0.9), adapt_then_combine(dpsgd(
  ...   ring(8), moniqua(theta=1.0, bits=4), axis_name='workers',
  ...   key=jax.random.key(0))))

  Source: Sayed 2014; with few bits it is ours.
  """
  require_gossip('adapt_then_combine', algorithm)
  name = algorithm.name
  if name != 'dpsgd':
    why = _FIXED.get(name, 'the order is not defined for it')
    raise ValueError(
      f'adapt_then_combine is for dpsgd; of {name} {why}: leave it as it is.'
    )

  def update(updates, state, params=None, **extra_args):
    u = vectors.complete(updates, params)
    dtype = gossip.vector_type(params)
    y = jax.tree.map(lambda x, u: jnp.asarray(x, dtype) + u, params, u)
    nothing = jax.tree.map(jnp.zeros_like, u)
    pull, state = algorithm.update(nothing, state, y, **extra_args)
    return jax.tree.map(jnp.add, u, pull), state

  says = {**vars(algorithm), 'name': f'atc_{name}'}
  return Gossip(algorithm.init, update, **says)
