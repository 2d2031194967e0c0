"""Runs a function on sharded parameters, gathering each leaf when it is used.

    y = op(whole(piece), x)            and in the backward pass once more
    dpiece, dx = vjp(op)(whole(piece), x)(dy)

The first gather waits for x and the second for dy, so no leaf is there before
the operation that uses it can run, none is kept after it, and the compiler
cannot merge the two.

Neither `jax.checkpoint` nor sharding by annotation promises this: the former
says what is kept for the backward pass, not when a leaf is gathered, and with
the latter the compiler chooses what is sent. On CPUs both keep all leaves; see
docs/many_hosts.md for numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.extend import core
import jax.numpy as jnp


class _Late(NamedTuple):
  """A value made of leaves that are not gathered yet."""

  leaves: frozenset  # their numbers
  make: Callable  # {number: whole leaf} -> the value


def late(params, whole: Callable) -> Callable:
  """Turns (fn, pieces, *args) into fn(params, *args), with a gradient.

  `params` has the shapes of whole leaves; `whole` takes a leaf's number and its
  piece, and its gradient is that of the piece.
  """

  def apply(fn, pieces, *args):
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(params, *args)
    pieces = jax.tree.leaves(pieces)
    out = _evaluate(closed, whole, pieces, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), out)

  return apply


def _evaluate(closed, whole, pieces, args) -> list:
  """Evaluates a program whose first arguments are late, operation by operation.

  The interpreter is that of JAX's "Writing custom interpreters".
  """
  program = closed.jaxpr
  leaves = [
    _Late(frozenset([i]), lambda leaves, i=i: leaves[i])
    for i in range(len(pieces))
  ]
  values = dict(zip(program.constvars, closed.consts, strict=True))
  values |= zip(program.invars, [*leaves, *args], strict=True)

  def read(var):
    return var.val if isinstance(var, core.Literal) else values[var]

  for eqn in program.eqns:
    inputs = [read(var) for var in eqn.invars]
    waits = [isinstance(value, _Late) for value in inputs]
    known = [isinstance(var, core.Literal) for var in eqn.invars]
    if not any(waits):
      results = _bind(eqn, inputs)
    elif all(w or k for w, k in zip(waits, known, strict=True)):
      results = _postpone(eqn, inputs)
    else:
      results = _gather_and_run(eqn, inputs, whole, pieces)
    values |= zip(eqn.outvars, results, strict=True)
  leaf = lambda value: {i: whole(i, pieces[i]) for i in value.leaves}
  out = map(read, program.outvars)
  return [v.make(leaf(v)) if isinstance(v, _Late) else v for v in out]


def _bind(eqn, inputs) -> list:
  """Runs one operation of a program."""
  params = eqn.primitive.get_bind_params(eqn.params)
  # Older versions of JAX give the functions among them apart.
  functions, params = params if isinstance(params, tuple) else ((), params)
  out = eqn.primitive.bind(*functions, *inputs, **params)
  return out if eqn.primitive.multiple_results else [out]


def _make(inputs, leaves) -> list:
  """Replaces late values by what whole leaves make of them."""
  return [v.make(leaves) if isinstance(v, _Late) else v for v in inputs]


def _leaves(inputs) -> frozenset:
  """Numbers of the leaves that the late values among the inputs need."""
  late = (value.leaves for value in inputs if isinstance(value, _Late))
  return frozenset().union(*late)


def _postpone(eqn, inputs) -> list:
  """Keeps an operation on leaves alone, such as a cast or a reshape, late."""
  result = lambda leaves, k: _bind(eqn, _make(inputs, leaves))[k]
  return [
    _Late(_leaves(inputs), lambda leaves, k=k: result(leaves, k))
    for k in range(len(eqn.outvars))
  ]


def _gather_and_run(eqn, inputs, whole, pieces) -> list:
  """Runs one operation on whole leaves, which exist within it only."""
  used = sorted(_leaves(inputs))
  held = [pieces[i] for i in used]
  given = [value for value in inputs if not isinstance(value, _Late)]

  def operation(held, given):
    leaves = {i: whole(i, piece) for i, piece in zip(used, held, strict=True)}
    rest = iter(given)
    values = [v if isinstance(v, _Late) else next(rest) for v in inputs]
    return _bind(eqn, _make(values, leaves))

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
  """Makes pieces wait for values, by adding a zero known only at run time.

  A barrier would not do: XLA drops it on CPUs before it orders the operations.
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
