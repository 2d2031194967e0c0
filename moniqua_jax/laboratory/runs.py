"""Runs methods on a problem: all iterations in `lax.scan`, all seeds at once.

All methods take their gradients in one pass through the data, at x of every
method and seed side by side: one product of matrices instead of many with a
vector each. The workers are those of the library, simulated; every message is
encoded to bytes and decoded from them.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import reduce
from moniqua_jax.laboratory.methods import AXIS, Method
from moniqua_jax.laboratory.problems import Problem

Array = jax.Array


class Trace(NamedTuple):
  """What was measured of some methods, seeds and iterations.

  Attributes:
    distance: f64[M, S, K], |x - x*|^2 / |x_0 - x*|^2 before each iteration.
    coded: f32[M, S, K], bits that a worker sends in each iteration, coded, the
      mean over workers.
  """

  distance: Array
  coded: Array


def start(problem: Problem, methods: Sequence[Method], keys: Array):
  """The carry of all methods before the first iteration, x_0 = 0.

  Args:
    problem: what is solved.
    methods: M of them.
    keys: [S], one a seed.

  Returns:
    A list of (x, state) whose leaves have axes [S, n, ...].
  """

  def worker(own, key):
    carry = []
    for method, row in zip(methods, own, strict=True):
      x = jnp.zeros(problem.d, jnp.float64)
      carry.append((x, method.transform(row, key).init(x)))
    return carry

  mapped = jax.vmap(worker, (0, None), axis_name=AXIS, axis_size=problem.n)
  mapped = jax.vmap(mapped, (None, 0))
  return jax.jit(mapped)(_own(methods), keys)


def advance(
  problem: Problem, methods: Sequence[Method], length: int
) -> Callable:
  """The compiled function that does some iterations of all methods.

  Args:
    problem: what is solved.
    methods: M of them.
    length: K, iterations.

  Returns:
    (carry, keys [S], first: i64[]) -> (carry, `Trace`).
  """
  optimum = jnp.asarray(problem.optimum)
  square = jnp.sum(optimum**2)

  def worker(features, targets, own, carry, key, first):
    transforms = [
      method.transform(row, key)
      for method, row in zip(methods, own, strict=True)
    ]
    gradient = functools.partial(problem.gradient, features, targets)

    def step(carry, k):
      points = [
        (x, *method.points(state))
        for method, (x, state) in zip(methods, carry, strict=True)
      ]
      # All workers hold the same x: the first one's serves for all.
      common = [reduce.gathered(p, AXIS)[0] for own in points for p in own]
      gradients = iter(jax.vmap(gradient)(jnp.stack(common)))
      moved, distances, bits = [], [], []
      for method, tx, (x, state) in zip(
        methods, transforms, carry, strict=True
      ):
        apart = method.sequence(x, state) - optimum
        distances.append(jnp.sum(apart**2) / square)
        at_x, *others = (next(gradients) for _ in (x, *method.points(state)))
        updates, state = tx.update(
          at_x, state, x, step=k, grad_fn=lambda w, others=others: others[0]
        )
        bits.append(_coded_bits(method, state, problem.d))
        moved.append((x + updates, state))
      seen = reduce.gathered(jnp.stack(distances), AXIS)[0]
      return moved, (seen, reduce.exact(jnp.stack(bits), AXIS))

    ks = first + jnp.arange(length)
    carry, rows = lax.scan(step, carry, ks)
    return carry, Trace(*(jnp.moveaxis(row, 0, 1) for row in rows))

  over_workers = jax.vmap(
    worker,
    (0, 0, 0, 0, None, None),
    out_axes=(0, None),
    axis_name=AXIS,
    axis_size=problem.n,
  )
  over_seeds = jax.vmap(
    over_workers, (None, None, None, 0, 0, None), out_axes=(0, 1)
  )
  compiled = jax.jit(over_seeds, donate_argnums=3)
  data = jnp.asarray(problem.features), jnp.asarray(problem.targets)
  return functools.partial(compiled, *data, _own(methods))


def _own(methods):
  """What each worker has of its own, one entry a method."""
  return [method.design.rows if method.design else () for method in methods]


def _coded_bits(method, state, d):
  if method.design is None:
    return jnp.float32(32 * d)
  return jnp.sum(jax.vmap(method.design.coded)(method.sent(state)))
