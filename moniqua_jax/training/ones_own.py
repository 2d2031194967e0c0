"""What is of one's own, tried before a run begins: each refusal is one line.

A model, a data set and its partition, an optimizer or its learning rate, named
as package.module:function.
"""

import contextlib
import functools
import pathlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moniqua_jax import data, workers
from moniqua_jax.training import tasks

A_MODEL = (
  'a model is a flax.linen.Module that is called as module(inputs, train=True) '
  'and draws nothing there, or has its two functions'
)
AN_OPTIMIZER = (
  'an optimizer is an optax.GradientTransformation of a vector, or takes '
  'by_leaf'
)
A_DATA_SET = 'a data set is a function that gives a moniqua_jax.data.Dataset'
A_PARTITION = 'a partition gives n arrays, of places in labels'
A_RATE = 'a learning rate is a function of the step, i32[] -> f32[]'

SOME = 16  # examples of a data set


@contextlib.contextmanager
def named(config, what: str, kind: str):
  """Names what is of one's own in whatever it raises, and its line."""
  try:
    yield
  except Exception as error:
    name, said = config[what].name, ' '.join(str(error).split())
    if ':' not in name or said.startswith(f'config.{what}'):
      raise
    said = said or type(error).__name__
    raise ValueError(
      f'config.{what}.name={name!r}: {said}{place(error)}; {kind}.'
    ) from error


def place(error) -> str:
  """Says the last line of a user's own file that an exception went through."""
  ours = str(pathlib.Path(__file__).parents[1])
  others = ours, 'site-packages', '<'
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not any(each in frame.filename for each in others)
  ]
  return f' ({frames[-1].filename}, line {frames[-1].lineno})' if frames else ''


def transformation(config, local, size: int) -> None:
  """Refuses an optimizer of one's own that does not move a vector f32[size]."""
  if ':' not in config.optimizer.name:
    return
  step = dict(step=jnp.int32(0), grad_fn=lambda x: x)

  def moved(x):
    tx = optax.with_extra_args_support(local)
    return tx.update(x, tx.init(x), x, **step)[0]

  n = config.workers
  x = jax.ShapeDtypeStruct((n, size), jnp.float32)
  with named(config, 'optimizer', AN_OPTIMIZER):
    found = jax.eval_shape(jax.vmap(moved, axis_name=workers.AXIS), x)
    if jax.tree.map(jnp.shape, found) != x.shape:
      raise TypeError(f'of a gradient f32[{size}] it makes {found}')


def learning_rate(config, rate) -> None:
  """Refuses a learning rate of one's own that is no number by step."""
  if ':' not in config.learning_rate.name:
    return
  with named(config, 'learning_rate', A_RATE):
    found = jax.eval_shape(rate, jax.ShapeDtypeStruct((), jnp.int32))
    if jax.tree.map(jnp.shape, found) != ():
      raise TypeError(f'of a step it makes {found}')


def dataset(config, read) -> None:
  """Refuses a data set of one's own that is none, lacks a part or a class."""
  if not isinstance(read, data.Dataset):
    raise ValueError(
      f'config.data.name={config.data.name!r} gives a {type(read).__name__}; '
      'it must give a moniqua_jax.data.Dataset, as data.in_memory makes one.'
    )
  if ':' not in config.data.name:
    return
  entry = f'config.data.name={config.data.name!r}'
  for name, split in (('training', read.train), ('test', read.test)):
    if not len(split.labels):
      raise ValueError(f'{entry} has nothing in its {name} part; give it some.')
  with named(config, 'data', A_DATA_SET):
    _examples(read)
  if read.task is None and read.field == 'image':
    labels = np.concatenate([read.train.labels, read.test.labels])
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= read.num_classes:
      raise ValueError(
        f'{entry} has labels from {low} to {high}; of num_classes='
        f'{read.num_classes} they are from 0 to {read.num_classes - 1}.'
      )


def _examples(read) -> None:
  """Refuses batches that are not of the task; it looks at some examples."""
  task, rng = tasks.of(read), np.random.default_rng(0)
  for part, split, made in (
    ('training', read.train, functools.partial(read.augment, rng)),
    ('test', read.test, read.preprocess),
  ):
    some = np.linspace(0, len(split.labels) - 1, SOME).astype(int)
    inputs, labels = split.read(some)
    batch = {read.field: made(inputs), 'label': labels}
    for name, like in task.example(SOME).items():
      found = np.shape(batch[name]) if name in batch else 'not there'
      if found != like.shape:
        raise ValueError(
          f'of {SOME} {part} examples {name} is {found}; of shape={read.shape} '
          f'it must be {like.shape}'
        )
    if read.task is None and read.field == 'text':
      _symbols(part, np.asarray(batch['text']), read.num_classes)


def _symbols(part, tokens, count) -> None:
  """Refuses what is no number of one of so many symbols."""
  low, high = tokens.min(), tokens.max()
  if tokens.dtype.kind not in 'iu' or low < 0 or high >= count:
    raise ValueError(
      f'{part} windows have symbols from {low} to {high}, {tokens.dtype}; of '
      f'num_classes={count} they are whole numbers from 0 to {count - 1}'
    )


def shards(config, made, size: int) -> tuple[np.ndarray, ...]:
  """Refuses shards of one's own that are not of all workers, and of `size`."""
  if ':' not in config.partition.name:
    return made
  with named(config, 'partition', A_PARTITION):
    made = tuple(map(np.asarray, made))
    if len(made) != config.workers:
      raise ValueError(f'it gives {len(made)}, and n={config.workers}')
    for shard in made:
      whole = shard.ndim == 1 and shard.dtype.kind in 'iu'
      if not whole or not (
        shard.size and 0 <= shard.min() <= shard.max() < size
      ):
        raise ValueError(
          f'of {size} labels it gives a worker {shard.dtype}{[*shard.shape]}, '
          f'{shard.min(initial=size)} to {shard.max(initial=0)}'
        )
  return made


def model(config, module, variables, read) -> None:
  """Refuses a model of one's own that cannot train, or gives no logits."""
  if ':' not in config.model.name:
    return
  task = tasks.of(read)
  inputs = task.inputs(task.example(2))
  kept = [name for name in variables if name != 'params']
  test = lambda variables: module.apply(variables, inputs, train=False)
  train = lambda variables: module.apply(
    variables, inputs, train=True, mutable=kept
  )
  with named(config, 'model', A_MODEL):
    if not jax.tree.leaves(variables.get('params')):
      raise TypeError('it has no parameters')
    outputs = jax.eval_shape(test, variables)
    jax.eval_shape(train, variables)
  shape = jax.tree.map(jnp.shape, outputs)
  if shape != task.outputs(2):
    raise ValueError(
      f'config.model.name={config.model.name!r} gives {shape} of a batch of 2; '
      f'it must give logits, {task.outputs(2)}.'
    )
