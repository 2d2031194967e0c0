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
import numpy as np

from moniqua_jax.laboratory import problems
from moniqua_jax.laboratory.methods import AXIS, Method
from moniqua_jax.laboratory.problems import Problem

Array = jax.Array


class Trace(NamedTuple):
  """What was measured of S seeds, M methods and K iterations."""

  distance: Array  # f64[S, M, K], |x - x*|^2 / |x_0 - x*|^2 before each
  coded: Array  # f32[S, M, K], bits that a worker sends, coded, in the mean


def start(problem: Problem, methods: Sequence[Method], keys: Array):
  """The carry of all methods before the first iteration, x_0 = 0."""

  def worker(own, key):
    carry = []
    for method, row in zip(methods, own, strict=True):
      x = jnp.zeros(problem.d, jnp.float64)
      carry.append((x, method.transform(row, key).init(x)))
    return carry

  mapped = jax.vmap(worker, (0, None), axis_name=AXIS, axis_size=problem.n)
  return jax.jit(jax.vmap(mapped, (None, 0)))(_own(methods), keys)


def advance(
  problem: Problem, methods: Sequence[Method], length: int
) -> Callable:
  """The compiled function that does some iterations of all methods.

  Returns (carry, keys [S], first: i64[]) -> (carry, `Trace`).
  """

  def step(features, targets, own, keys, carry, k):
    points, put_back = _points(methods, carry)
    gradients = problems.gradients(problem, features, targets, points)
    worker = functools.partial(_worker, problem, methods)
    worker = jax.vmap(
      worker, (0, 0, 0, None, None), axis_name=AXIS, axis_size=problem.n
    )
    worker = jax.vmap(worker, (None, 0, 0, 0, None))
    carry, seen = worker(own, carry, put_back(gradients), keys, k)
    # Workers are equal in the first and differ in the second.
    return carry, Trace(seen.distance[:, 0], jnp.mean(seen.coded, axis=1))

  def scanned(features, targets, own, carry, keys, first):
    body = functools.partial(step, features, targets, own, keys)
    carry, rows = lax.scan(body, carry, first + jnp.arange(length))
    return carry, Trace(*(jnp.moveaxis(row, 0, 2) for row in rows))

  compiled = jax.jit(scanned, donate_argnums=3)
  data = jnp.asarray(problem.features), jnp.asarray(problem.targets)
  return functools.partial(compiled, *data, _own(methods))


def _points(methods, carry):
  """Where gradients are needed, [C, d]; and these sorted by seed and method."""
  points = []
  for method, (x, state) in zip(methods, carry, strict=True):
    points.append([p[:, 0] for p in (x, *method.points(state))])
  rows = jnp.stack(sum(points, []))  # [P, S, d]; all workers hold the same

  def put_back(gradients):
    seeds = rows.shape[1]
    by_point = iter(gradients.reshape(-1, seeds, *gradients.shape[1:]))
    return [[next(by_point) for _ in own] for own in points]

  return rows.reshape(-1, rows.shape[-1]), put_back


def _worker(problem, methods, own, carry, gradients, key, k):
  """One iteration of one worker with all methods."""
  moved, distances, bits = [], [], []
  for method, row, (x, state), (at_x, *others) in zip(
    methods, own, carry, gradients, strict=True
  ):
    apart = method.sequence(x, state) - problem.optimum
    distances.append(jnp.sum(apart**2) / np.sum(problem.optimum**2))
    grad_fn = lambda w, others=others: others[0]
    tx = method.transform(row, key)
    updates, state = tx.update(at_x, state, x, step=k, grad_fn=grad_fn)
    bits.append(_coded_bits(method, state, problem.d))
    moved.append((x + updates, state))
  return moved, Trace(jnp.stack(distances), jnp.stack(bits))


def _own(methods):
  """What each worker has of its own, one entry a method."""
  return [method.design.rows if method.design else () for method in methods]


def _coded_bits(method, state, d):
  if method.design is None:
    return jnp.float32(32 * (method.floats or d))
  return jnp.sum(jax.vmap(method.design.coded)(method.sent(state)))
