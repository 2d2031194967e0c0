"""Many processes, one run: who writes, and which rows are whose.

A process holds the rows of its own devices' workers; what a host needs to know
of the others it asks for here. With one process nothing of this does anything.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from moniqua_jax import collectives, workers
from moniqua_jax.launch import watch


def is_primary() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def by_all(fn: Callable):
  """Calls a function on every process; goes on when it has ended on all.

  Raises what it raises; where it ended well and elsewhere it did not, a
  `ValueError` that names the process.
  """
  found = failed = None
  try:
    found = fn()
  except Exception as error:
    failed = error
  bad = [i for i, (each,) in enumerate(table([failed is not None], 1)) if each]
  if failed is not None:
    raise failed
  if bad:
    time.sleep(3 * watch.BEAT)  # it says why, and the watch ends us with that
    raise ValueError(f'process {bad[0]} cannot go on, and says there why.')
  return found


def leaving(step: int, number: int) -> int:
  """The signal for which all processes end after this step, or 0.

  `number` is that of this one. Nothing is sent in a step: the watch agrees.
  """
  if jax.process_count() == 1:
    return number
  return watch.leaving(step, number)


def agreed(given: Mapping, workers: int) -> None:
  """Checks that all processes were given the same; names on all what is not.

  `given` has a value of JSON for each flag and entry; all share the workers.
  """
  n = jax.process_count()
  if n == 1:
    return
  all_given = [json.loads(t) for t in watch.exchanged(json.dumps(given))]
  if said := differences(all_given):
    raise ValueError(
      f'the processes were given different commands: {said}. All take the same '
      'but for --process_id.'
    )
  if workers % n:
    raise ValueError(
      f'{workers} workers cannot be shared equally by {n} processes; start as '
      'many processes as divide them.'
    )


def differences(all_given: Sequence[Mapping], who: str = 'process') -> str:
  """Says what was not given alike to all processes, and to which.

  >>> differences([{'--resume': False}, {'--resume': True}, {'--resume': True}])
  '--resume is False for process 0, True for 1 and 2'
  """
  names = dict.fromkeys(name for given in all_given for name in given)
  return '; '.join(
    _sorted_out(name, [given.get(name) for given in all_given], who)
    for name in names
    if any(given.get(name) != all_given[0].get(name) for given in all_given)
  )


def _sorted_out(name, values, who) -> str:
  """Names each value of an entry, with the processes that have it."""
  having = {}
  for i, value in enumerate(map(repr, values)):
    having.setdefault(value, []).append(str(i))
  first, *others = (
    (value, ' and '.join(numbers)) for value, numbers in having.items()
  )
  said = [f'{first[0]} for {who} {first[1]}']
  said += [f'{value} for {numbers}' for value, numbers in others]
  return f'{name} is {", ".join(said)}'


def table(numbers: Sequence[int], width: int) -> list[list[int]]:
  """What each process gives: up to `width` numbers of 0 or more. Collective."""
  if jax.process_count() == 1:
    return [list(numbers)]
  mine = np.full(width, -1, np.int32)
  mine[: len(numbers)] = numbers
  rows = multihost_utils.process_allgather(mine)
  return [[number for number in row if number >= 0] for row in rows.tolist()]


# --------------------------------------------------------------- rows of arrays


def own(n: int) -> list[int]:
  """The workers whose devices belong to this process."""
  if jax.process_count() == 1:
    return list(range(n))
  where: Any = _rows().addressable_devices_indices_map((n,))
  return sorted({i for (rows,) in where.values() for i in range(n)[rows]})


def placed(tree):
  """Global arrays of all workers, from this process's rows."""
  if jax.process_count() == 1:
    return tree
  place = jax.make_array_from_process_local_data
  return jax.tree.map(lambda rows: place(_rows(), np.asarray(rows)), tree)


def to_host(tree):
  """This process's rows of global arrays, on the host."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(_local, tree)


def _local(array):
  shards = {shard.index[0].start: shard for shard in array.addressable_shards}
  return np.concatenate([shards[i].data for i in sorted(shards)])


def fetched(tree):
  """All rows of global arrays, on the host of every process. Collective."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def gathered(rows: np.ndarray) -> np.ndarray:
  """All rows, of few bytes, from those of this process. Collective."""
  if jax.process_count() == 1:
    return rows
  return to_host(_to_each()(placed(rows)))[0]


@functools.cache
def _to_each():
  return workers.sharded(lambda row: collectives.told(row, workers.AXIS), (0,))


def _rows() -> NamedSharding:
  return NamedSharding(workers.device_mesh(), P(workers.AXIS))
