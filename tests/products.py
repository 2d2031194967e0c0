"""Finds products that a compiler may round, or not, in a jaxpr.

A product that is added to something may be fused with the sum, and is then not
rounded; a product of two may be computed in another order. Two programs that
write the same then differ in the last bit. `quantizers.numerics.rounded` adds a
zero, which is the minimum of something and 0.
"""

from collections.abc import Iterator

import jax
from jax.extend import core
import numpy as np

from tests import traced

MOVES = {
  *('broadcast_in_dim', 'concatenate', 'convert_element_type', 'pad'),
  *('reshape', 'slice', 'split', 'squeeze', 'transpose'),
}
SUMS = {'add', 'sub', 'reduce_sum'}
PRODUCTS = {'mul', 'div', 'integer_pow', 'square'}


def in_sums(fn, *args) -> list[str]:
  """The sums of unrounded products in fn(*args)."""
  return [
    str(eqn)
    for eqn, found in _walk(_program(fn, *args))
    if eqn.primitive.name in SUMS
    and any(map(_is_product, found))
    and not any(of is not None and of.primitive.name == 'min' for of in found)
  ]


def in_products(fn, *args, size) -> list[str]:
  """The products of unrounded products of `size` values and more."""
  return [
    str(eqn)
    for eqn, found in _walk(_program(fn, *args))
    if eqn.primitive.name in PRODUCTS
    and not any(map(_exact, eqn.invars))
    and any(_is_product(of) and of.outvars[0].aval.size >= size for of in found)
  ]


def _program(fn, *args):
  with jax.disable_jit():  # so that what stands in functions is seen as well
    return jax.make_jaxpr(fn)(*args).jaxpr


def _walk(jaxpr) -> Iterator[tuple]:
  """Yields each operation on floats, and those that made what it takes."""
  made = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
  for eqn in jaxpr.eqns:
    if eqn.outvars and eqn.outvars[0].aval.dtype == np.float32:
      yield eqn, [_made(made, var) for var in eqn.invars]
    for inner in traced.inner(eqn.params):
      yield from _walk(inner)


def _made(made, var):
  """What computed a value, before it was moved."""
  while not isinstance(var, core.Literal) and var in made:
    if made[var].primitive.name not in MOVES:
      return made[var]
    var = made[var].invars[0]
  return None


def _is_product(eqn) -> bool:
  if eqn is None or eqn.primitive.name not in PRODUCTS:
    return False
  return not any(map(_exact, eqn.invars))


def _exact(var) -> bool:
  """Whether a product with it needs no rounding: 0, or a power of two."""
  if not isinstance(var, core.Literal):
    return False
  return bool(np.isin(np.abs(np.frexp(np.float64(var.val))[0]), (0, 0.5)))
