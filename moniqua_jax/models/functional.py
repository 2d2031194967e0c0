"""Models of flax NNX as two pure functions, as a training loop wants them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp


class Functional(NamedTuple):
  """A model as a pair of functions, called as those of `flax.linen.Module`.

  Attributes:
    init: (key, inputs, train=) -> {'params': tree}.
    apply: (variables, inputs, train=, mutable=) -> outputs; with `mutable`,
      (outputs, {}), since nothing but parameters is kept.
  """

  init: Callable
  apply: Callable


def nnx_model(make: Callable[[nnx.Rngs], Any]) -> Functional:
  """Takes an NNX module apart: `make(rngs)` is called as module(inputs).

  Raises:
    ValueError: the module keeps more than parameters, such as statistics.

  >>> model = nnx_model(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
  >>> variables = model.init(jax.random.key(0), None)
  >>> model.apply(variables, jax.numpy.ones((5, 3))).shape
  (5, 2)
  """

  def init(key, inputs, train=False):
    del inputs, train
    params, kept = nnx.state(make(nnx.Rngs(key)), nnx.Param, ...)
    rest = nnx.filter_state(kept, nnx.Not(nnx.RngState))
    if jax.tree.leaves(rest):
      raise ValueError(
        f'the model keeps {list(rest)} beside its parameters; take norms '
        'without statistics, or a module of flax.linen.'
      )
    return {'params': nnx.to_pure_dict(params)}

  def apply(variables, inputs, train=False, mutable=None):
    del train
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, params, *rest = nnx.split(model, nnx.Param, ...)
    given = jax.tree.map(jnp.asarray, variables['params'])
    nnx.replace_by_pure_dict(params, given)
    outputs = nnx.merge(graph, params, *rest)(inputs)
    return outputs if mutable is None else (outputs, {})

  return Functional(init, apply)
