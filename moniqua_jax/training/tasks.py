"""What a model learns of a batch, and how good it is at it.

The loop knows none of it: a data set has its task, by the field of a batch that
the model sees, or one of its own as `Dataset.task`.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moniqua_jax.data import Dataset


class Task(NamedTuple):
  """How a model is called on a batch of B, and judged.

  Attributes:
    example: B -> a batch of zeros, without labels.
    inputs: batch -> what the model is called with.
    losses: (outputs, batch) -> (f32[B] in nats, f32[B] shares of hits).
    outputs: B -> the shape that outputs must have.
    measures: mean loss of a test -> what else a row says of it.
    sample: (apply, variables) -> what the model makes up, as text; '' if it
      makes up nothing.
  """

  example: Callable
  inputs: Callable
  losses: Callable
  outputs: Callable
  measures: Callable
  sample: Callable = lambda apply, variables: ''


def classification(dataset: Dataset) -> Task:
  """Images and their classes: cross-entropy, and the share that is right."""
  shape, classes = dataset.shape, dataset.num_classes
  return Task(
    lambda size: {'image': jnp.zeros((size, *shape), jnp.float32)},
    lambda batch: batch['image'],
    lambda logits, batch: _cross_entropy(logits, batch['label']),
    lambda size: (size, classes),
    lambda loss: {},
  )


def continuation(dataset: Dataset) -> Task:
  """Windows of text: each symbol but the first from those before it.

  A row says the perplexity of a symbol and, of a text, bits for a character.
  """
  (window,), symbols = dataset.shape, dataset.num_classes

  def losses(logits, batch):
    of_symbols = _cross_entropy(logits, batch['text'][:, 1:])
    return tuple(jnp.mean(value, axis=1) for value in of_symbols)

  return Task(
    lambda size: {'text': jnp.zeros((size, window + 1), jnp.int32)},
    lambda batch: batch['text'][:, :-1],
    losses,
    lambda size: (size, window, symbols),
    functools.partial(_measures, dataset.text),
    functools.partial(_continued, dataset),
  )


def _measures(text, loss: float) -> dict[str, float]:
  """Says what a mean loss of a symbol is; nobody knows a token's characters."""
  row = {'test/perplexity': math.exp(min(loss, 700.0))}
  if text is not None:
    bits = loss / math.log(2) * text.per_character
    row['test/bits_per_character'] = bits
  return row


def _continued(dataset, apply, variables, count: int = 400) -> str:
  """Goes on from the first held-out window, symbol by symbol."""
  if dataset.text is None:
    return ''
  start = dataset.preprocess(dataset.test.read(np.array([0]))[0])[:, 1:]

  @jax.jit
  def step(window, key):
    logits = apply(variables, window, train=False)[:, -1]
    new = jax.random.categorical(key, jnp.float32(logits)).astype(window.dtype)
    return jnp.concatenate([window[:, 1:], new[:, None]], axis=1), new[0]

  window, made = jnp.asarray(start), []
  for key in jax.random.split(jax.random.key(0), count):
    window, new = step(window, key)
    made.append(int(new))
  shown = dataset.text.shown
  return f'{shown(start[0])}[...]{shown(made)}\n'


def _cross_entropy(logits, labels):
  logits = jnp.float32(logits)  # whatever a model computes in
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses, (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


BY_FIELD = {'image': classification, 'text': continuation}


def of(dataset: Dataset) -> Task:
  """Returns the task of a data set."""
  if dataset.task is None and dataset.field not in BY_FIELD:
    raise ValueError(
      f'field={dataset.field!r}: a data set is of {sorted(BY_FIELD)}, or has a '
      'task of its own, Dataset(task=...)'
    )
  return dataset.task or BY_FIELD[dataset.field](dataset)
