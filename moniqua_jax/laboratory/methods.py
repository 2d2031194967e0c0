"""The methods that are compared: a design, an algorithm and its step size.

The step sizes are those of theory, or the authors' where the name says so.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import algorithms, quantizers, wire
from moniqua_jax.laboratory import cola as cola_lib
from moniqua_jax.laboratory import designs
from moniqua_jax.laboratory.problems import Problem
from moniqua_jax.theory import gammas

Array = jax.Array
AXIS = 'workers'
_ALL = lambda leaf: False  # no leaf stays in full precision


class Method(NamedTuple):
  """One line of the figures."""

  design: designs.Design | None  # what is sent; None for full precision
  # (own row, key) -> the optax transformation of one worker
  transform: Callable[[Any, Array], optax.GradientTransformationExtraArgs]
  gamma: float  # the step size; NaN for ADIANA, which has several
  sequence: Callable = lambda x, state: x  # what converges, x or of the state
  points: Callable = lambda state: ()  # where, besides x, gradients are needed
  sent: Callable = lambda state: None  # u8[k, m], messages of the last step
  messages: int = 1  # k
  most: int | None = None  # iterations after which its floor is reached
  floats: int | None = None  # sent in full precision, without a design; else d


def gd(problem: Problem) -> Method:
  """Gradient descent in full precision, gamma = 1 / L."""
  gamma = 1 / problem.L
  mean = lambda row, key: optax.chain(
    algorithms.allreduce(axis_name=AXIS), optax.sgd(gamma)
  )
  return Method(None, mean, gamma)


def cola(problem: Problem) -> Method:
  """COLA on a ring: the predictions for all rows, to both neighbours."""
  mix = lambda row, key: cola_lib.cola(problem, AXIS)
  return Method(None, mix, 1.0, floats=2 * problem.targets.size)


# Each is design -> (problem, norm) -> `Method`, a design being (problem, norm)
# -> `Design`; with one that has a plus it is DCGD+, DIANA+ or ADIANA+.


def dcgd(design: Callable, most: int = 12_000) -> Callable:
  """DCGD, which is at its floor after `most` iterations."""

  def method(problem, norm):
    made = design(problem, norm)
    gamma = gammas.gamma_dcgd(problem.L, made.calL, problem.n)
    sent = lambda state: state[0].error[None]
    return _method(made, algorithms.dcgd, gamma)._replace(sent=sent, most=most)

  return method


def _proven(problem, design):
  return gammas.gamma_diana(problem.L, design.calL, problem.n)


def diana(design: Callable, step_size: Callable = _proven) -> Callable:
  """DIANA, with the step size that is proven."""

  def method(problem, norm):
    made = design(problem, norm)
    alpha = gammas.alpha_diana(made.omega)
    algorithm = functools.partial(algorithms.diana, alpha=alpha)
    return _method(made, algorithm, step_size(problem, made))

  return method


def diana_authors(design: Callable) -> Callable:
  """DIANA with the step size of the authors' code, larger than the proven."""
  return diana(
    design,
    lambda problem, design: gammas.gamma_diana_authors(
      problem.L_max, design.omega, problem.n
    ),
  )


def adiana(design: Callable) -> Callable:
  """ADIANA; the constants are not proven."""

  def method(problem, norm):
    made = design(problem, norm)
    parameters = gammas.adiana(
      L=problem.L,
      L_max=problem.L_max,
      calL_max=made.calL,
      omega=made.omega,
      mu=problem.mu,
      n=problem.n,
    )
    algorithm = functools.partial(algorithms.adiana, parameters=parameters)
    return _method(made, algorithm, 1.0)._replace(
      gamma=float('nan'),
      sequence=lambda x, state: state[0].y,
      points=lambda state: (state[0].w,),
      sent=lambda state: state[0].error.sent,
      messages=2,
    )

  return method


def _method(design, algorithm, gamma):
  def transform(row, key):
    quantizer = quantizer_of(design, row)
    slots = dict(axis_name=AXIS, key=key, keep=_ALL)
    return optax.chain(algorithm(quantizer, **slots), optax.sgd(gamma))

  sent = lambda state: state[0].error.sent[None]
  return Method(design, transform, gamma, sent=sent)


def quantizer_of(design: designs.Design, row=None) -> quantizers.Quantizer:
  """What the workers send: their own design each, known to all."""
  if isinstance(design.rows, tuple):
    return design.make(())
  return quantizers.per_worker(design.make, design.rows, AXIS, row)


def wire_bits(method: Method, problem: Problem) -> float:
  """Bits of what one worker sends in one step, packed, or in its short form."""
  if method.design is None:
    return 32.0 * (method.floats or problem.d)
  quantizer = quantizer_of(method.design)
  if quantizer.short is not None:
    return 8.0 * method.messages * quantizer.short.capacity(problem.d)
  x = jax.ShapeDtypeStruct((problem.d,), jnp.float32)
  encode = jax.vmap(
    quantizer.encode, (None, None), axis_name=AXIS, axis_size=problem.n
  )
  payloads = jax.eval_shape(encode, x, jax.random.key(0))
  return 8.0 * method.messages * wire.nbytes(payloads) / problem.n


METHODS = {
  'GD': lambda problem, norm: gd(problem),
  'COLA': lambda problem, norm: cola(problem),
  'DCGD': dcgd(designs.standard),
  'DIANA': diana(designs.standard),
  'DIANA, authors': diana_authors(designs.standard),
  'DIANA block, authors': diana_authors(designs.standard_blocks),
  'ADIANA': adiana(designs.standard),
  'DCGD+ uniform': dcgd(designs.uniform_plus),
  'DCGD+ varying': dcgd(designs.varying_dcgd_plus),
  'DCGD+ block': dcgd(designs.block_dcgd_plus),
  'DIANA+ uniform': diana(designs.uniform_plus),
  'DIANA+ varying': diana(designs.varying_diana_plus),
  'DIANA+ varying, exact': diana(designs.varying_diana_plus_exact),
  'DIANA+ varying, 16-bit norm': diana(designs.varying_diana_plus_short_norm),
  'DIANA+ block, one step': diana(designs.block_uniform_plus),
  'DIANA+ block': diana(designs.block_diana_plus),
  'DIANA+ block, 8-bit norms': diana(designs.block_diana_plus_short_norms),
  'DIANA+ sparse': diana(designs.sparse_plus),
  'DIANA+ sparse, authors': diana(designs.sparse_plus_authors),
  'ADIANA+ varying': adiana(designs.varying_diana_plus),
}
