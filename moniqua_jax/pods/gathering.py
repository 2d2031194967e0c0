"""A leaf is whole only within the operation that uses it.

Not `jax.checkpoint`: it says what is kept for the backward pass, not when a
leaf is gathered, and the compiler is free to gather all leaves at the start.
XLA does: a step of 4 and of 12 equal layers, cut over 4 devices, needed room
for 5 and 16 leaves on a TPU v5e, with `jax.checkpoint` or without.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.extend import core
import jax.numpy as jnp


class _Late(NamedTuple):
  """A value that waits for its leaves.

  Attributes:
    leaves: their numbers.
    make: {number: whole leaf} -> the value.
  """

  leaves: frozenset
  make: Callable


def late(params, whole: Callable) -> Callable:
  """Functions of parameters as functions of their pieces.

    y = op(whole(piece), x)            and in the backward pass once more
    dpiece, dx = vjp(op)(whole(piece), x)(dy)

  where the first waits for x, the second for dy: no leaf is gathered before
  the operation that uses it can run, none is kept after it, and the second
  gather is none that a compiler could merge with the first.

  Args:
    params: a tree of the shapes of whole leaves.
    whole: (number of the leaf, its piece) -> the leaf; with a gradient that is
      the gradient of the piece.

  Returns:
    (fn, pieces, *args) -> fn(params, *args), with a gradient.

  >>> apply = late(jax.ShapeDtypeStruct((), jnp.float32), lambda _, x: 2 * x)
  >>> apply(lambda a, b: a * b, jnp.float32(3), jnp.float32(1))
  Array(6., dtype=float32)

  Source: the interpreter is that of JAX's "Writing custom interpreters".
  """

  def apply(fn, pieces, *args):
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(params, *args)
    pieces = jax.tree.leaves(pieces)
    out = _evaluated(closed, whole, pieces, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), out)

  return apply


def _evaluated(closed, whole, pieces, args) -> list:
  """The results of a program whose first arguments are late."""
  program = closed.jaxpr
  values = dict(zip(program.constvars, closed.consts, strict=True))
  first = [
    _Late(frozenset([i]), lambda leaves, i=i: leaves[i])
    for i in range(len(pieces))
  ]
  values |= zip(program.invars, [*first, *args], strict=True)

  def read(var):
    return var.val if isinstance(var, core.Literal) else values[var]

  for eqn in program.eqns:
    inputs = [read(var) for var in eqn.invars]
    waits = [isinstance(value, _Late) for value in inputs]
    if not any(waits):
      results = _bound(eqn, inputs)
    elif all(
      late or isinstance(var, core.Literal)
      for late, var in zip(waits, eqn.invars, strict=True)
    ):
      results = _postponed(eqn, inputs)
    else:
      results = _within(eqn, inputs, whole, pieces)
    values |= zip(eqn.outvars, results, strict=True)
  out = [read(var) for var in program.outvars]
  whole_of = lambda value: {i: whole(i, pieces[i]) for i in value.leaves}
  return [v.make(whole_of(v)) if isinstance(v, _Late) else v for v in out]


def _bound(eqn, inputs) -> list:
  params = eqn.primitive.get_bind_params(eqn.params)
  # Older versions of JAX give the functions among them apart.
  functions, params = params if isinstance(params, tuple) else ((), params)
  out = eqn.primitive.bind(*functions, *inputs, **params)
  return out if eqn.primitive.multiple_results else [out]


def _made(inputs, leaves) -> list:
  return [v.make(leaves) if isinstance(v, _Late) else v for v in inputs]


def _leaves(inputs) -> frozenset:
  late = (value.leaves for value in inputs if isinstance(value, _Late))
  return frozenset().union(*late)


def _postponed(eqn, inputs) -> list:
  """What is made of leaves alone is late, too: a reshaped or a cast one."""
  return [
    _Late(
      _leaves(inputs),
      lambda leaves, k=k: _bound(eqn, _made(inputs, leaves))[k],
    )
    for k in range(len(eqn.outvars))
  ]


def _within(eqn, inputs, whole, pieces) -> list:
  """The operation on whole leaves, which are there for it alone."""
  used = sorted(_leaves(inputs))
  held = [pieces[i] for i in used]
  given = [value for value in inputs if not isinstance(value, _Late)]

  def operation(held, given):
    leaves = {i: whole(i, piece) for i, piece in zip(used, held, strict=True)}
    rest = iter(given)
    return _bound(
      eqn,
      [v.make(leaves) if isinstance(v, _Late) else next(rest) for v in inputs],
    )

  @jax.custom_vjp
  def run(held, given):
    return operation(_after(held, given), given)

  def forward(held, given):
    return run(held, given), (held, given)

  def backward(kept, grads):
    held, given = kept
    _, pull = jax.vjp(operation, _after(held, grads), given)
    return pull(grads)

  run.defvjp(forward, backward)
  return run(held, given)


def _after(held, values) -> list:
  """The pieces, once the values are there.

  A zero that only shows at run time; a barrier would be gone before XLA on CPUs
  puts the operations in order.
  """
  inexact = [
    v
    for v in values
    if jnp.issubdtype(jnp.result_type(v), jnp.inexact) and jnp.size(v)
  ]
  if not inexact:
    return held
  zero = 0 * jnp.ravel(inexact[0])[0]
  return [piece + zero.astype(piece.dtype) for piece in held]
