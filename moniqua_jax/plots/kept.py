"""Reads runs, and keeps of many what tables and figures need.

A work directory holds all that a run wrote down. A kept folder, as those of
results/, holds of any number of runs:

  config.json   the entries of the config that all of them share
  runs.jsonl    a line a run: its other entries, its metrics at the end, and
                the command, date, versions and machine it came from
  curves.jsonl  a line a curve: some metric at 40 steps at most
"""

from collections.abc import Iterator, Sequence
import json
import pathlib
from typing import NamedTuple

import numpy as np

from moniqua_jax.training import metrics, whole

POINTS = 40  # of a curve at most
AXES = ('step', 'epoch', 'seconds', 'wire/bytes_sent')
CURVES = (
  'train/loss',
  'test/accuracy',
  'test/bits_per_character',
  'gossip/consensus_rms',
)
COUNTS = ('gossip/messages', 'gossip/unreadable')
SHARE = 'gossip/distance_over_theta'


class Run(NamedTuple):
  """What is known of a run."""

  name: str  # of the folder
  rows: list[dict]  # of metrics.jsonl, or what curves.jsonl has of them
  # the last value of each metric; of counts the sums over the run, and of
  # distance over theta the largest
  end: dict
  config: dict  # of config.json
  source: dict  # of run.json, and leaf_distance.json where there is one
  workers: Sequence[dict] = ()  # the last rows, of an asynchronous run


def load(workdir) -> Run:
  """Reads the run of a work directory; ValueError or OSError without one."""
  folder = pathlib.Path(workdir).resolve()
  rows = metrics.read(workdir)
  read = lambda name: whole.read_json(folder / name)
  config, source = read('config.json'), read('run.json')
  _require_net(workdir, config)
  if (folder / 'leaf_distance.json').exists():
    source['leaf_distance'] = read('leaf_distance.json')
  own = {each.name[6:]: each for each in folder.glob('worker*')}
  workers = [own[rank] for rank in sorted(filter(str.isdigit, own), key=int)]
  ends = [(metrics.read(own) or [{}])[-1] for own in workers]
  return Run(folder.name, rows, at_the_end(rows), config, source, ends)


def _require_net(folder, config) -> None:
  """Refuses a laboratory, whose rows are others: they would be dashes here."""
  if 'laboratory' in config:
    raise ValueError(
      f'{folder} is of a laboratory, which writes a table and a figure of its '
      'own; give runs of a net.'
    )


def loaded(folders: Sequence) -> list[Run]:
  """Reads the runs of work directories and of kept folders, in order.

  FOLDER/NAME is one run of a kept folder.
  """
  if not folders:
    raise ValueError('there are no runs; give their work directories.')
  return [run for each in map(pathlib.Path, folders) for run in _read(each)]


def is_one(run) -> bool:
  """Tells whether it is FOLDER/NAME, one run of a kept folder."""
  run = pathlib.Path(run)
  return not run.exists() and (run.parent / 'runs.jsonl').exists()


def _read(folder) -> list[Run]:
  """Reads a work directory, a kept folder, or one run of such a folder."""
  if (folder / 'runs.jsonl').exists():
    return _kept(folder)
  if not is_one(folder):
    return [load(folder)]
  runs = {run.name: run for run in _kept(folder.parent)}
  if folder.name not in runs:
    raise ValueError(
      f'{folder.parent} keeps no {folder.name}; it has {sorted(runs)}.'
    )
  return [runs[folder.name]]


def write(runs: Sequence[Run], out, points: int = POINTS) -> None:
  """Keeps runs in a folder, beside those of other names that it has.

  Their curves have so many points at most, as have those of runs kept before.
  """
  out, names = pathlib.Path(out), [run.name for run in runs]
  if twice := sorted(name for name in {*names} if names.count(name) > 1):
    raise ValueError(
      f'several of these runs are called {" and ".join(twice)}, and a folder '
      'keeps one of a name: rename their folders, or keep them in two.'
    )
  there = loaded([out]) if (out / 'runs.jsonl').exists() else []
  runs = list({run.name: run for run in (*there, *runs)}.values())
  out.mkdir(parents=True, exist_ok=True)
  common, others = shared([run.config for run in runs])
  whole.write(out / 'config.json', json.dumps(common, indent=1) + '\n')
  pairs = zip(runs, others, strict=True)
  write_lines(out / 'runs.jsonl', [_line(*pair) for pair in pairs])
  curves = [curve for run in runs for curve in _curves(run, points)]
  write_lines(out / 'curves.jsonl', curves)


def write_measured(out, rows: Sequence[dict], source: dict) -> None:
  """Keeps what one command measured: rows.jsonl, and its line of runs.jsonl."""
  write_lines(pathlib.Path(out) / 'rows.jsonl', rows)
  write_lines(pathlib.Path(out) / 'runs.jsonl', [source])


def at_the_end(rows: Sequence[dict]) -> dict:
  """Computes `Run.end` from the rows of metrics.jsonl."""
  end = {key: value for row in rows for key, value in row.items()}
  end |= {key: int(values(rows, key).sum()) for key in COUNTS if key in end}
  # Without a theta the share is written too, and is 0.
  modulo = [row for row in rows if 'gossip/theta' in row]
  share = np.fmax.reduce(values(modulo, SHARE), initial=np.nan)
  end.pop(SHARE, None)
  return end if np.isnan(share) else end | {SHARE: float(share)}


def values(rows: Sequence[dict], key: str) -> np.ndarray:
  """Lists what rows say of a key; null, in JSON not finite, is NaN."""
  return np.array([row[key] for row in rows if key in row], float)


def thin(values: np.ndarray, points: int = POINTS) -> np.ndarray:
  """Averages at most so many stretches."""
  parts = np.array_split(values, min(len(values), points) or 1)
  return np.array([part.mean() for part in parts if part.size])


def entries(config: dict, prefix: str = '') -> Iterator[tuple]:
  """Yields dotted names and values; null is no entry, an empty dict is one.

  >>> dict(entries({'seed': 0, 'model': {'name': 'mlp', 'width': None}}))
  {'seed': 0, 'model.name': 'mlp'}
  """
  for key, value in config.items():
    if isinstance(value, dict) and value:
      yield from entries(value, f'{prefix}{key}.')
    elif value is not None:
      yield prefix + key, value


def shared(configs: Sequence[dict]) -> tuple[dict, list[dict]]:
  """Finds the entries that configs share, and by dotted name the others.

  >>> shared([{'seed': 0, 'model': {'name': 'mlp', 'width': 8}},
  ...         {'seed': 1, 'model': {'name': 'mlp', 'width': 8}}])
  ({'model': {'name': 'mlp', 'width': 8}}, [{'seed': 0}, {'seed': 1}])
  """
  flat = [dict(entries(config)) for config in configs]
  of = lambda config: {(key, json.dumps(v)) for key, v in config.items()}
  common = set.intersection(*map(of, flat))
  alike = lambda item: (item[0], json.dumps(item[1])) in common
  first = dict(filter(alike, flat[0].items()))
  others = [{k: v for k, v in c.items() if k not in first} for c in flat]
  return merged(first), others


def merged(*parts: dict) -> dict:
  """Builds the config of entries, nested or by dotted name."""
  config = {}
  for name, value in (pair for part in parts for pair in entries(part)):
    *path, last = name.split('.')
    node = config
    for key in path:
      node = node.setdefault(key, {})
    node[last] = value
  return config


def write_lines(path, rows: Sequence[dict]) -> None:
  """Writes a file of JSON lines."""
  lines = [json.dumps(row, separators=(',', ':')) for row in rows]
  whole.write(pathlib.Path(path), ''.join(f'{line}\n' for line in lines))


def read_lines(path) -> list[dict]:
  """Reads a file of JSON lines; nothing if there is no file."""
  path = pathlib.Path(path)
  lines = path.read_bytes().splitlines() if path.exists() else []
  return [whole.parsed(line, path, k) for k, line in enumerate(lines, 1)]


def short(array) -> list:
  """Rounds to seven digits; null, as JSON wants it, if not finite."""
  return [
    json.loads(f'{value:.7g}') if np.isfinite(value) else None
    for value in array
  ]


def _kept(folder) -> list[Run]:
  """Reads the runs of a kept folder."""
  if not (folder / 'config.json').exists():
    raise ValueError(f'{folder} holds measurements but no runs.')
  common = whole.read_json(folder / 'config.json')
  _require_net(folder, common)
  rows = {}
  for curve in read_lines(folder / 'curves.jsonl'):
    points = rows.setdefault(curve.pop('run'), {})
    for point in zip(*curve.values(), strict=True):
      row = dict(zip(curve, point, strict=True))
      points.setdefault(row['step'], {}).update(row)
  runs = []
  for line in read_lines(folder / 'runs.jsonl'):
    name, config, end = (line.pop(key) for key in ('name', 'config', 'end'))
    workers, points = line.pop('workers', []), rows.get(name, {})
    of_run = [points[step] for step in sorted(points)]
    config = merged(common, config)
    runs.append(Run(name, of_run, end, config, line, workers))
  return runs


def _line(run, config) -> dict:
  """Makes the line of a run in runs.jsonl."""
  workers = {'workers': run.workers} if run.workers else {}
  own = {'name': run.name, 'config': config, 'end': run.end}
  return own | run.source | workers


def _curves(run, most) -> Iterator[dict]:
  """Makes the lines of a run in curves.jsonl."""
  there = dict.fromkeys(key for row in run.rows for key in row)
  for key in there:
    if key in CURVES or key.startswith('gradient/'):
      rows = [row for row in run.rows if key in row]
      columns = [axis for axis in (*AXES, key) if axis in rows[0]]
      points = {k: short(thin(values(rows, k), most)) for k in columns}
      yield {'run': run.name, **points}
