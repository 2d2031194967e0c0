"""Quantizing in other coordinates: `within`, and its uses.

`scaled` gives every parameter leaf a theta, `smooth` takes the shape of the
loss: Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524, Section 2.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax.quantizers import base, roots

Array = jax.Array


def within(
  quantizer: base.Either,
  to: Callable[[Array], Array],
  back: Callable[[Array], Array],
  same_size: bool = False,
) -> base.Either:
  """Quantizes to(x) instead of x: x_hat = back(q.decode(q.encode(to(x)))).

  The reference is mapped too, so that `moniqua` compares like with like; what
  `inspect` reports is in the new coordinates. A value that overflows only on
  the way back would take a pass over all to see; gossip leaves it out alone.

  Args:
    quantizer: a `Quantizer` or a `Tuned`.
    to: f32[d] -> f32[d'], the same on all workers.
    back: f32[d'] -> f32[d], its inverse.
    same_size: whether d' = d; then `codes` stay, and can be counted and coded.

  Returns:
    What was given: a `Quantizer` or a `Tuned`.

  >>> from moniqua_jax import full_precision
  >>> q = within(full_precision(), lambda x: 2 * x, lambda x: x / 2)
  >>> q.encode(jnp.ones(2), jax.random.key(0))
  Array([2., 2.], dtype=float32)

  Source: ours.
  """
  base.require_known(quantizer)
  if isinstance(quantizer, base.Tuned):
    return base.Tuned(
      quantizer.init,
      lambda state, step: within(
        quantizer.quantizer(state, step), to, back, same_size
      ),
      lambda state, seen, x: quantizer.observe(state, seen, to(x)),
      quantizer.answered,
    )
  return base.Quantizer(
    encode=lambda x, key: quantizer.encode(to(x), key),
    decode=lambda payload, y: back(quantizer.decode(payload, to(y))).astype(
      y.dtype
    ),
    inspect=lambda payload, y: quantizer.inspect(payload, to(y)),
    shared=quantizer.shared,
    codes=quantizer.codes if same_size else None,
    short=quantizer.short and shortened(quantizer.short, to),
    near=quantizer.near,
  )


def shortened(short: base.Short, to: Callable[[Array], Array]) -> base.Short:
  """Builds the short form for `to(x)`, which may be longer than x."""

  def size_of(size):
    x = jax.ShapeDtypeStruct((size,), jnp.float32)
    return jax.eval_shape(to, x).size

  return base.Short(
    lambda size: short.capacity(size_of(size)),
    lambda payload, size: short.shorten(payload, size_of(size)),
    lambda payload, size: short.restore(payload, size_of(size)),
  )


def scaled(quantizer: base.Either, scales: tuple) -> base.Either:
  """One scale per parameter leaf: theta_leaf = scale_leaf * theta.

  `moniqua` has one theta in its header; this quantizes x_leaf / scale_leaf, so
  that a leaf whose workers stay close together gets a fine grid. One global
  theta fails at 1 and 2 bits on convolution nets, where the last dense kernel
  moves ten times as far as the median leaf.

  Args:
    quantizer: a `Quantizer` or a `Tuned`.
    scales: ((size, scale), ...), one pair for each leaf in the order of the
      flat vector: the number of values, and a positive number. Static; the same
      on all workers.

  Returns:
    What was given: a `Quantizer` or a `Tuned`.

  Raises:
    ValueError: no pairs, or a size or scale that is not positive and finite;
      later, sizes that do not add up to the length of the vector.

  >>> from moniqua_jax import full_precision
  >>> q = scaled(full_precision(), ((2, 1.0), (1, 0.5)))
  >>> q.encode(jnp.ones(3), jax.random.key(0))
  Array([1., 1., 2.], dtype=float32)

  Source: ours.
  """
  is_pair = lambda v: isinstance(v, (tuple, list)) and len(v) == 2
  known = isinstance(scales, (tuple, list)) and scales
  if not known or not all(map(is_pair, scales)):
    raise ValueError(
      f'scales={scales!r:.60}; give a (size, scale) for every leaf.'
    )
  for index, (size, scale) in enumerate(scales):
    if not (size > 0 and 0 < scale < math.inf):
      raise ValueError(
        f'scales[{index}]=({size}, {scale}); the size and the scale of a '
        'leaf must be positive and finite.'
      )
  total = sum(size for size, _ in scales)

  def spread(values, x):
    if x.size != total:
      raise ValueError(
        f'scales are given for {total} values, the vector has {x.size}.'
      )
    leaves = zip(scales, values, strict=True)
    return jnp.concatenate([jnp.full(s, v, x.dtype) for (s, _), v in leaves])

  inverses = [1 / scale for _, scale in scales]
  originals = [scale for _, scale in scales]
  return within(
    quantizer,
    lambda x: x * spread(inverses, x),
    lambda x: x * spread(originals, x),
    same_size=True,
  )


def smooth(
  quantizer: base.Either, L, pseudo_inverse: bool = False
) -> base.Either:
  """Smoothness-aware: x_hat = L^{1/2} Q(L^{-1/2} x).

  L^{-1/2} times a gradient has no coordinate that is large because the loss is
  steep there; what Q loses is then lost where the loss hardly feels it. If Q is
  unbiased, so is this.

  Args:
    quantizer: Q, a `Quantizer` or a `Tuned`.
    L: the smoothness matrix, as for `roots.root`: full f[d, d], a diagonal
      f[d], a pair of Kronecker factors, or a list of blocks; or its
      `roots.Root`, which may be traced: a row of `per_worker`.
    pseudo_inverse: whether L may be singular, for x in its range.

  Returns:
    What was given: a `Quantizer` or a `Tuned`.

  Raises:
    ValueError: L is not finite, symmetric and positive definite.

  >>> from moniqua_jax import full_precision
  >>> q = smooth(full_precision(), [4.0, 0.25])
  >>> q.encode(jnp.ones(2), jax.random.key(0))
  Array([0.5, 2. ], dtype=float32)

  Source: Section 2 of arXiv:2106.03524.
  """
  if isinstance(L, list) and all(isinstance(v, (int, float)) for v in L):
    L = np.array(L)
  known = isinstance(L, roots.Root)
  half, inverse = L if known else roots.root(L, pseudo_inverse)
  return within(
    quantizer,
    lambda x: roots.times(inverse, x.astype(jnp.float32)),
    lambda y: roots.times(half, y.astype(jnp.float32)),
    same_size=True,
  )
