"""Batches as a function of (seed, step, worker): there is no iterator to save.

Worker w walks an endless row of permutations of its own shard. At step t it
stands at positions p = t * B + 0, ..., t * B + B - 1, and the image there is

  shard[permutation(seed, w, p // len(shard))[p % len(shard)]]

so that each pass visits each image once and a run that resumes at step t sees
what it would have seen (under one version of NumPy, whose streams may change).
n workers, B images per worker, H x W x C each.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any

import numpy as np

from moniqua_jax import extras
from moniqua_jax.data.base import Dataset

Batch = dict[str, np.ndarray]

_SHUFFLE, _AUGMENT = 0, 1  # two families of random streams under one seed


def worker_batch(
  dataset: Dataset,
  shards: Sequence[np.ndarray],
  *,
  worker: int,
  seed: int,
  step: int,
  batch_size: int,
) -> Batch:
  """One worker's {'image': f32[B, H, W, C], 'label': i32[B]} at one step."""
  _check_batch_size(shards, batch_size)
  return _worker_batch(dataset, shards[worker], worker, seed, step, batch_size)


def batch(
  dataset: Dataset,
  shards: Sequence[np.ndarray],
  *,
  seed: int,
  step: int,
  batch_size: int,
  workers: Sequence[int] | None = None,
) -> Batch:
  """The batches of all workers at one step, a pure function of its arguments.

  Returns {'image': f32[n, B, H, W, C], 'label': i32[n, B]}.

  >>> from moniqua_jax.data import iid, synthetic
  >>> dataset = synthetic(60, 20, shape=(8, 8, 1), num_classes=3, seed=0)
  >>> shards = iid(dataset.train.labels, n=4, seed=0)
  >>> batch(dataset, shards, seed=0, step=7, batch_size=5)['image'].shape
  (4, 5, 8, 8, 1)
  """
  _check_batch_size(shards, batch_size)
  rows = [
    _worker_batch(dataset, shards[worker], worker, seed, step, batch_size)
    for worker in (range(len(shards)) if workers is None else workers)
  ]
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def batches(
  dataset: Dataset,
  shards: Sequence[np.ndarray],
  *,
  seed: int,
  start: int,
  stop: int,
  batch_size: int,
  threads: int = 4,
  workers: Sequence[int] | None = None,
) -> Iterator[tuple[int, Batch]]:
  """`(step, batch(..., step=step))` for start <= step < stop, made ahead."""
  _check_batch_size(shards, batch_size)
  made = functools.partial(
    batch,
    dataset,
    shards,
    seed=seed,
    batch_size=batch_size,
    workers=workers,
  )
  at = lambda step: (step, made(step=step))
  return prefetch(at, start, stop, threads)


def test_batches(
  dataset: Dataset, batch_size: int, threads: int = 4
) -> Iterator[Batch]:
  """The whole test split in order, in batches of one shape, with a mask f32[B].

  The last batch is filled up with copies of the last image under mask 0, so a
  mean over the split is sum(mask * x) / sum(mask).

  >>> from moniqua_jax.data import synthetic
  >>> dataset = synthetic(60, 20, shape=(8, 8, 1), num_classes=3, seed=0)
  >>> [b['mask'].sum().item() for b in test_batches(dataset, 8)]
  [8.0, 8.0, 4.0]
  """
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size} must be at least 1.')
  size = len(dataset.test.labels)

  def at(number):
    indices = number * batch_size + np.arange(batch_size)
    images, labels = dataset.test.read(np.minimum(indices, size - 1))
    return {
      dataset.field: dataset.preprocess(images),
      'label': labels,
      'mask': (indices < size).astype(np.float32),
    }

  return prefetch(at, 0, -(-size // batch_size), threads)


def prefetch(
  at: Callable[[int], Any], start: int, stop: int, threads: int = 4
) -> Iterator[Any]:
  """`map(at, range(start, stop))`, in order, made ahead in threads by grain."""
  with extras.needed('train'):
    import grain  # half a second, which `import moniqua_jax` should not cost

  # Its default of 500 results would be gigabytes of batches.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )
  steps = grain.MapDataset.range(start, stop)
  return iter(steps.map(at).to_iter_dataset(options))


def _worker_batch(dataset, shard, worker, seed, step, batch_size):
  epoch, offset = divmod(step * batch_size, len(shard))
  order = _permutation(seed, worker, epoch, len(shard))
  chosen = order[offset : offset + batch_size]
  if missing := batch_size - len(chosen):  # the pass ends inside this batch
    order = _permutation(seed, worker, epoch + 1, len(shard))
    chosen = np.concatenate([chosen, order[:missing]])
  images, labels = dataset.train.read(shard[chosen])
  rng = _generator(seed, _AUGMENT, worker, step)
  return {dataset.field: dataset.augment(rng, images), 'label': labels}


# 64 permutations serve 32 workers at the border of two passes; with more
# workers the shards are short and drawing again costs less than augmenting.
@functools.lru_cache(maxsize=64)
def _permutation(seed, worker, epoch, size):
  order = np.arange(size, dtype=np.int32)
  _generator(seed, _SHUFFLE, worker, epoch).shuffle(order)
  order.setflags(write=False)  # shared by all who ask
  return order


def _generator(seed, *stream):
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def _check_batch_size(shards, batch_size):
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size} must be at least 1.')
  worker = min(range(len(shards)), key=lambda w: len(shards[w]))
  size = len(shards[worker])
  if size < batch_size:
    raise ValueError(
      f'batch_size={batch_size} is larger than the shard of worker {worker} '
      f'({size} images); use at most {size} or fewer workers.'
    )
