"""The methods that are compared: a design, an algorithm and its step size.

The step sizes are those of theory, or the authors' where the name says so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moniqua_jax import algorithms, quantizers, wire
from moniqua_jax.laboratory import designs
from moniqua_jax.laboratory.problems import Problem
from moniqua_jax.theory import gammas

Array = jax.Array
AXIS = 'workers'
_ALL = lambda leaf: False  # no leaf stays in full precision


class Method(NamedTuple):
  """One line of the figures.

  Attributes:
    design: what is sent; None for full precision.
    transform: (own row, key) -> the optax transformation of one worker.
    gamma: the step size; NaN for ADIANA, which has several.
    sequence: (x, state) -> what converges, x or a part of the state.
    points: (state) -> where, besides x, the gradient is needed.
    sent: (state) -> u8[k, m], the k messages of the last step.
    messages: k.
    most: iterations after which a method with a floor is stopped, or None.
  """

  design: designs.Design | None
  transform: Callable[[Any, Array], optax.GradientTransformationExtraArgs]
  gamma: float
  sequence: Callable = lambda x, state: x
  points: Callable = lambda state: ()
  sent: Callable = lambda state: None
  messages: int = 1
  most: int | None = None


def gd(problem: Problem) -> Method:
  """Gradient descent in full precision, gamma = 1 / L."""
  gamma = 1 / problem.L
  mean = lambda row, key: optax.chain(
    algorithms.allreduce(axis_name=AXIS), optax.sgd(gamma)
  )
  return Method(None, mean, gamma)


def dcgd(design: Callable, most: int = 12_000) -> Callable:
  """DCGD of a design, or DCGD+ of one with a plus; stops at its floor.

  Args:
    design: (problem, norm) -> `Design`.
    most: iterations after which it is at its floor.

  Returns:
    (problem, norm) -> `Method`.

  >>> import numpy as np
  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(dcgd(designs.standard)(problem, 'l2').gamma, 3)
  1.196
  """

  def method(problem, norm):
    made = design(problem, norm)
    gamma = gammas.gamma_dcgd(problem.L, made.calL, problem.n)
    of = lambda quantizer, slots: algorithms.dcgd(quantizer, **slots)
    sent = lambda state: state[0].error[None]
    return _method(made, of, gamma, sent)._replace(most=most)

  return method


def diana(design: Callable) -> Callable:
  """DIANA of a design, or DIANA+, with the step size that is proven.

  Args:
    design: (problem, norm) -> `Design`.

  Returns:
    (problem, norm) -> `Method`.

  >>> import numpy as np
  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> round(diana(designs.standard)(problem, 'l2').gamma, 3)
  0.443
  """

  def method(problem, norm):
    made = design(problem, norm)
    gamma = gammas.gamma_diana(problem.L, made.calL, problem.n)
    return _diana(made, gamma)

  return method


def diana_authors(design: Callable) -> Callable:
  """DIANA with the step size of the authors' code, larger than the proven."""

  def method(problem, norm):
    made = design(problem, norm)
    gamma = gammas.gamma_diana_authors(problem.L_max, made.omega, problem.n)
    return _diana(made, gamma)

  return method


def adiana(design: Callable) -> Callable:
  """ADIANA of a design, or ADIANA+; the constants are not proven.

  Args:
    design: (problem, norm) -> `Design`.

  Returns:
    (problem, norm) -> `Method`.

  >>> import numpy as np
  >>> from moniqua_jax.laboratory.problems import ridge_regression
  >>> problem = ridge_regression(np.eye(8).reshape(2, 4, 8), np.ones((2, 4)))
  >>> adiana(designs.standard)(problem, 'l2').messages
  2
  """

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
    of = lambda quantizer, slots: algorithms.adiana(
      quantizer, parameters, **slots
    )
    sent = lambda state: state[0].error.sent
    return _method(made, of, 1.0, sent)._replace(
      gamma=float('nan'),
      sequence=lambda x, state: state[0].y,
      points=lambda state: (state[0].w,),
      messages=2,
    )

  return method


def _diana(design, gamma):
  alpha = gammas.alpha_diana(design.omega)
  of = lambda quantizer, slots: algorithms.diana(quantizer, alpha, **slots)
  return _method(design, of, gamma, lambda state: state[0].error.sent[None])


def _method(design, algorithm, gamma, sent):
  def transform(row, key):
    slots = dict(axis_name=AXIS, key=key, keep=_ALL)
    return optax.chain(
      algorithm(quantizer_of(design, row), slots), optax.sgd(gamma)
    )

  return Method(design, transform, gamma, sent=sent)


def quantizer_of(design: designs.Design, row=None) -> quantizers.Quantizer:
  """What the workers send: their own design each, known to all."""
  if isinstance(design.rows, tuple):
    return design.make(())
  return quantizers.per_worker(design.make, design.rows, AXIS, row)


def wire_bits(method: Method, problem: Problem) -> float:
  """Bits of what one worker sends in one step, packed, or in its short form."""
  if method.design is None:
    return 32.0 * problem.d
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
