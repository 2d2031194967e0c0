"""The seconds of a worker's gradient, measured here, on images made up."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from moniqua_jax.plan import chips

STEPS = 3


def measured(config) -> float:
  """Takes the median of three gradients, after one that is not counted.

  The time does not depend on what the images show, so it takes noise in their
  form.
  """
  gradient, (params, state, image, label) = chips.gradient(config)
  rng, compiled = np.random.default_rng(0), jax.jit(gradient)
  noise = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
  params, state, image = jax.tree.map(noise, (params, state, image))
  label = jnp.zeros(label.shape, label.dtype)
  taken = []
  for _ in range(1 + STEPS):
    began = time.perf_counter()
    jax.block_until_ready(compiled(params, state, image, label))
    taken.append(time.perf_counter() - began)
  return float(np.median(taken[1:]))
