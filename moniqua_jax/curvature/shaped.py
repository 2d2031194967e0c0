"""A quantizer in the coordinates of a smoothness matrix that moves.

`smooth` and `per_worker` take matrices that are known; those of a net are
estimated at its parameters, and again later. Here they are state: saved with
it, and replaced without a new compilation. Matrices are lists with one factor
for each leaf, as `curvature` estimates them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import workers
from moniqua_jax.curvature import moments
from moniqua_jax.quantizers import base, numerics, per_worker, roots, smooth


class Shape(NamedTuple):
  """The state of `shaped`."""

  inner: Any  # state of the quantizer, () where it does not move
  own: roots.Root  # of what this worker sends; lists, see `powers`
  tables: Any  # the halves of all workers [n, ...]; () if they share one matrix


def shaped(
  quantizer: base.Quantizer | base.Tuned,
  start: roots.Root,
  sizes: Sequence[int],
  n: int | None = None,
  axis_name: str = workers.AXIS,
) -> base.Tuned:
  """Builds x_hat = D^{1/2} Q(D^{-1/2} x), with the sender's D, from the state.

  Whoever has an estimate puts it into the state, by `replaced`; `start` is the
  first D^{1/2} and its inverse, see `blank`. With `n` and `axis_name` each
  worker has a D of its own; then Q must not look at the values of references,
  as `moniqua` does. `sizes` are of the leaves that make up x.

  Source: Section 2 of arXiv:2106.03524.
  """
  inner = base.tuned(quantizer)
  if n and base.needs_near(inner):
    raise ValueError(
      f'{n} workers with a D each: this quantizer (moniqua, or one made of it) '
      'decodes next to a reference in the coordinates of its sender, which no '
      'receiver has; take qsgd, nuqsgd or dithering, or one D for all.'
    )
  root = lambda half, inverse: roots.Root(
    spread(half, sizes), spread(inverse, sizes)
  )

  def init():
    tables = jax.tree.map(lambda v: jnp.stack([v] * n), start.half) if n else ()
    # Copies: whoever donates a state may make another.
    own = jax.tree.map(jnp.copy, start)
    return Shape(inner.init(), own, tables)

  def current(state, step):
    now, own = inner.quantizer(state.inner, step), root(*state.own)
    if not n:
      return smooth(now, own)
    # Only the size of a reference counts, so the half stands for the inverse,
    # which stays with its owner.
    rows = jax.vmap(lambda half: root(half, half))(state.tables)
    make = lambda row: smooth(now, row)
    return per_worker(make, rows, axis_name, own)

  def observe(state, seen, x):
    x = roots.times(root(*state.own).inverse, x)
    return state._replace(inner=inner.observe(state.inner, seen, x))

  return base.Tuned(init, current, observe, inner.answered)


def replaced(tree: Any, own: roots.Root, tables: Any = ()) -> Any:
  """Puts another D, and the tables of all, into every `Shape` in a tree.

  A D that is not finite is not taken, nor is one in the tables: whose it is
  keeps the one before, and so do all for it.

  >>> start = blank('layer', [jnp.ones(2)])
  >>> replaced([Shape((), start, ())], powers([jnp.float32(4)]))[0].own.half
  [Array(1., dtype=float32)]
  """
  is_shape = lambda node: isinstance(node, Shape)
  taken = lambda new, old: numerics.select(numerics.finite(new), new, old)

  def change(node):
    if not is_shape(node):
      return node
    rows = jax.vmap(taken)(tables, node.tables) if tables else ()
    return node._replace(own=taken(own, node.own), tables=rows)

  return jax.tree.map(change, tree, is_leaf=is_shape)


def blank(kind: str, leaves: list) -> roots.Root:
  """Builds the root that changes nothing, in the form `powers` will have."""
  estimate = lambda: [moments.KINDS[kind](jnp.ones(v.shape)) for v in leaves]

  def one(form):
    if isinstance(form, tuple):
      return roots.Kronecker(*(jnp.eye(side.shape[0]) for side in form))
    return jnp.ones(form.shape)

  forms = jax.eval_shape(estimate)
  return roots.Root([one(form) for form in forms], [one(f) for f in forms])


def powers(matrices: list, power: float = 1.0) -> roots.Root:
  """Computes (D^power)^{1/2} and its inverse, the first scaled to norm 1.

  A quantizer that sends norms does not see the scale. The theta of `moniqua` is
  then that of the coarsest coordinate, and all others are finer.
  """
  halves, inverses, norms = zip(
    *(_power(matrix, power / 2) for matrix in matrices), strict=True
  )
  norm = jnp.max(jnp.stack(norms))
  return roots.Root(
    [_scaled(half, 1 / norm) for half in halves],
    [_scaled(inverse, norm) for inverse in inverses],
  )


def spread(factors: list, sizes: Sequence[int]) -> list:
  """Repeats a factor that is a number over its leaf, for `roots.times`."""
  is_number = lambda v: not isinstance(v, tuple) and v.ndim == 0
  return [
    jnp.full(size, factor) if is_number(factor) else factor
    for factor, size in zip(factors, sizes, strict=True)
  ]


def _power(matrix, power):
  """Computes the power of a leaf's matrix, its inverse, and its norm."""
  if not isinstance(matrix, tuple):
    half = matrix**power
    return half, 1 / half, jnp.max(half)
  sides = [_eigen_power(side, power) for side in matrix]
  halves, inverses, norms = zip(*sides, strict=True)
  pair = roots.Kronecker(*halves), roots.Kronecker(*inverses)
  return *pair, norms[0] * norms[1]


def _eigen_power(side, power):
  values, vectors = jnp.linalg.eigh(side)
  # They are damped, and above 0 but for the rounding of float32.
  half = jnp.maximum(values, 1e-6 * jnp.max(values)) ** power
  back = lambda v: jnp.matmul(
    vectors * v[None], vectors.T, precision=lax.Precision.HIGHEST
  )
  return back(half), back(1 / half), jnp.max(half)


def _scaled(factor, by):
  if isinstance(factor, roots.Kronecker):
    return factor._replace(left=factor.left * by)
  return factor * by
