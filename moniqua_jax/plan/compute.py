"""The seconds of a worker's gradient, measured here, on data made up."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax.plan import chips

STEPS = 3


def measured(config) -> float:
  """Takes the median of three gradients, after one that is not counted.

  The time does not depend on what the data show, so it takes noise in their
  form.
  """
  gradient, shapes = chips.gradient(config)
  rng, compiled = np.random.default_rng(0), jax.jit(gradient)
  given = jax.tree.map(functools.partial(_made_up, rng), shapes)
  taken = []
  for _ in range(1 + STEPS):
    began = time.perf_counter()
    jax.block_until_ready(compiled(*given))
    taken.append(time.perf_counter() - began)
  return float(np.median(taken[1:]))


def _made_up(rng, leaf):
  """Noise; of classes and symbols the first, which there is in all data."""
  if leaf.dtype != jnp.float32:
    return jnp.zeros(leaf.shape, leaf.dtype)
  return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
