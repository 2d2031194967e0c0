"""Normalisation layers by name, and the statistics of the mean model."""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp


def _group(train: bool) -> Callable:
  del train  # The same in training and evaluation; no statistics to combine.
  return functools.partial(nn.GroupNorm, num_groups=8)


def _batch(train: bool) -> Callable:
  return functools.partial(
    nn.BatchNorm, use_running_average=not train, momentum=0.9
  )


NORMS = {'group': _group, 'batch': _batch}


def make(norm: str, train: bool) -> Callable:
  """The layer class of a normalisation, ready to be called in a module."""
  if norm not in NORMS:
    raise ValueError(f'norm={norm!r}; choose from {sorted(NORMS)}.')
  return NORMS[norm](train)


def combine(batch_stats):
  """Running statistics of all workers as of one: the exact pooled moments.

    mean = mean_i mean_i,  var = mean_i (var_i + mean_i^2) - mean^2

  Returns the same tree with leaves f32[C].
  """
  is_pair = lambda node: isinstance(node, dict) and 'var' in node

  def pooled(pair):
    mean = jnp.mean(pair['mean'], axis=0)
    # mean_i mean_i^2 - mean^2, without the cancellation.
    apart = jnp.mean((pair['mean'] - mean[None]) ** 2, axis=0)
    return {'mean': mean, 'var': jnp.mean(pair['var'], axis=0) + apart}

  return jax.tree.map(pooled, batch_stats, is_leaf=is_pair)
