"""What a run writes down: JSON lines always, TensorBoard events if wanted.

A row of metrics.jsonl has a `step`, the `epoch`, the `seconds` of training so
far, `wire/bytes_sent` per worker so far, and what was measured, under names
with a slash: train/, test/, gossip/.
"""

from collections.abc import Callable
import contextlib
import json
import math
import pathlib

import jax
import numpy as np

from moniqua_jax import extras
from moniqua_jax.launch import multihost
from moniqua_jax.training import whole


class Writer:
  """Appends rows to workdir/metrics.jsonl, and to TensorBoard event files."""

  def __init__(self, workdir: pathlib.Path, tensorboard: bool):
    self._path = workdir / 'metrics.jsonl'
    self._lines = self._path.open('a')
    self._events = events()(workdir) if tensorboard else None

  def write(self, row: dict) -> None:
    """Writes one row; `row['step']` is its place in time."""
    row = plain(row)
    with whole.naming(self._path):
      self._lines.write(json.dumps(row) + '\n')
      self._lines.flush()
    if self._events:
      for name, value in row.items():
        if '/' in name and value is not None:
          self._events.add_scalar(name, value, row['step'])

  def close(self) -> None:
    """Closes the files."""
    with whole.naming(self._path):
      self._lines.close()
    if self._events:
      self._events.close()


def plain(row: dict) -> dict:
  """Makes a row of JSON's numbers; null where there was no finite one."""
  row = {k: v if isinstance(v, int) else float(v) for k, v in row.items()}
  return {k: v if np.isfinite(v) else None for k, v in row.items()}


def events() -> Callable:
  """What writes events below a folder; a `MissingExtra` where it is missing."""
  with extras.needed('tensorboard'):
    import tensorboardX
  return tensorboardX.SummaryWriter


def read(workdir: pathlib.Path) -> list[dict]:
  """Reads the rows of workdir/metrics.jsonl, in order of step.

  A last line that was cut, as by a full disk, is left out; a `ValueError` names
  any other that is no row.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    raise ValueError(f'{workdir} holds no run: there is no {path.name}.')
  *lines, rest = path.read_bytes().split(b'\n')
  if rest:
    with contextlib.suppress(ValueError):
      json.loads(rest)
      lines.append(rest)
  return [
    whole.parsed(line, path, number) for number, line in enumerate(lines, 1)
  ]


def of_all(steps: list[dict]) -> list[dict]:
  """Gathers the metrics of all workers from those of this process; collective.

  >>> of_all([{'loss': np.ones(2)}])[0]['loss']
  array([1., 1.])
  """
  if jax.process_count() == 1:
    return steps
  stacked = jax.tree.map(lambda *rows: np.stack(rows, axis=1), *steps)
  every = at_once(stacked, multihost.gathered)
  at = lambda step: jax.tree.map(lambda rows: rows[:, step], every)
  return [at(step) for step in range(len(steps))]


def at_once(tree, gather: Callable):
  """Gathers the rows of all leaves in one message; each would take its time.

  `gather` takes u8[n, m] to the rows of all processes.

  >>> at_once({'a': np.ones((1, 2)), 'b': np.ones((8, 0), bool)}, lambda u: u)
  {'a': array([[1., 1.]]), 'b': array([], shape=(1, 0), dtype=bool)}
  """
  leaves, structure = jax.tree.flatten(tree)
  sizes = [leaf.itemsize * math.prod(leaf.shape[1:]) for leaf in leaves]
  # What holds nothing is whole on every device, and has the rows of all.
  as_bytes = [
    np.frombuffer(leaf.tobytes(), np.uint8).reshape(len(leaf), size)
    for leaf, size in zip(leaves, sizes, strict=True)
    if size
  ]
  every = np.asarray(gather(np.concatenate(as_bytes, axis=1)))
  parts = np.split(every, np.cumsum(sizes)[:-1], axis=1)
  rows = [
    np.frombuffer(part.tobytes(), leaf.dtype).reshape(-1, *leaf.shape[1:])
    if leaf.size
    else np.zeros((len(every), *leaf.shape[1:]), leaf.dtype)
    for part, leaf in zip(parts, leaves, strict=True)
  ]
  return structure.unflatten(rows)


def summarise(steps: list[dict], seen: list | None = None) -> dict:
  """Makes one row of several steps: means, the extremes of edges, counts.

  A step has `loss` and `accuracy` f32[n], `seen`, a `Seen` of [n, E], and, if
  that is counted, `lost` i32[n], the updates that were lost so far. `seen` has
  those of all rounds of these steps, if not one each.
  """
  row = {
    'train/loss': np.mean([s['loss'] for s in steps]),
    'train/accuracy': np.mean([s['accuracy'] for s in steps]),
  }
  if 'lost' in steps[-1]:
    row['train/lost'] = int(np.sum(steps[-1]['lost']))
  seen = [s['seen'] for s in steps] if seen is None else seen
  seen = [s for s in seen if s.readable.size]
  if seen:
    shares = [s.distance / s.theta for s in seen]
    thetas = [
      np.max(s.theta, where=np.isfinite(s.theta), initial=0) for s in seen
    ]
    row |= {
      'gossip/disagreement': np.nanmax([s.distance.max() for s in seen]),
      'gossip/distance_over_theta': np.nanmax([s.max() for s in shares]),
      'gossip/unreadable': int(sum((~s.readable).sum() for s in seen)),
      'gossip/messages': int(sum(s.readable.size for s in seen)),
    }
    if max(thetas) > 0:
      row['gossip/theta'] = max(thetas)
    squares = np.concatenate([np.where(s.readable, s.square, 0) for s in seen])
    if (squares > 0).any():
      row['gossip/distance_rms'] = np.sqrt(squares[squares > 0].mean())
  return row


def noise_share(config, row: dict) -> float:
  """Estimates how much of the workers' mean square distance the code made.

    sqrt(2 / pi) gamma theta / (2^b - 1) over the rms distance of a pair

  since the noise of a round is proportional to that distance; see
  `theory.noise`. A ring adds a tenth, d2 and deepsqueeze more. NaN without
  theta, or where theta is of other coordinates than the distance.

  >>> config = {'quantizer': {'bits': 4}, 'gamma': 1.0}
  >>> row = {'gossip/theta': 0.15, 'gossip/distance_rms': 0.02}
  >>> round(noise_share(config, row), 2)
  0.4
  """
  theta, bits = row.get('gossip/theta'), config['quantizer'].get('bits')
  apart = row.get('gossip/distance_rms')
  if not apart and not _in_other_coordinates(config):
    apart = math.sqrt(2) * (row.get('gossip/consensus_rms') or 0)
  if not (theta and bits and apart):
    return math.nan
  kept = math.sqrt(2 / math.pi) * config.get('gamma', 1.0) * theta
  return min(1.0, float(kept / (2**bits - 1) / apart))


def _in_other_coordinates(config) -> bool:
  shape = config.get('smoothness') or {}
  return bool(config.get('scales_from')) or shape.get('name', 'none') != 'none'
