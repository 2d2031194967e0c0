"""The folder of a run: its config, where it came from, its metrics so far."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time

from moniqua_jax.launch import multihost
from moniqua_jax.training import metrics, progress

PACKAGES = ['jax', 'jaxlib', 'flax', 'optax', 'numpy', 'moniqua_jax']

# What a checkpoint is a checkpoint of; the rest may change on --resume.
_FIXED = (
  'seed',
  'workers',
  'pod',
  'model',
  'partition',
  'batch_size',
  'momentum',
  'momentum_kind',
  'optimizer',
  'reduce',
  'gossip',
  'smoothness',
  # Of the laboratory.
  'seeds',
  'problem',
  'methods',
  'norm',
  'iterations',
)


def open_(workdir, config, resume) -> pathlib.Path:
  """Makes the folder, or checks that it holds the run to go on with.

  Each process opens its own: one folder for all, or one on a disk of each.
  """
  new = json.loads(config.to_json())
  # All look before one writes.
  held = multihost.by_all(lambda: _check(workdir, new, resume))
  multihost.by_all(lambda: _write(workdir, new))
  entries = provenance()
  if held is not None:
    changed = _changed(held, new)
    entries = {'resumed': {**entries, 'changed': changed}}
  if multihost.is_primary():
    note(workdir, **entries)
  return workdir


def _check(workdir, new, resume) -> dict | None:
  """Returns the config of the run that a folder holds, and that may go on."""
  path = workdir / 'config.json'
  held = path.exists()
  if workdir.is_file():
    raise ValueError(f'--workdir={workdir} is a file; name a folder.')
  if set('[*?') & set(str(workdir.absolute())):
    raise ValueError(
      f'--workdir={workdir.absolute()}: for what saves checkpoints a path with '
      '[, * or ? is a pattern, and they would lack their arrays; take a name '
      'without, or a link without to that folder.'
    )
  if held and not resume:
    raise ValueError(
      f'--workdir={workdir} holds another run; take another folder, or go on '
      'with it by --resume.'
    )
  if resume and not held:
    raise ValueError(f'--resume: --workdir={workdir} holds no run.')
  if not held:
    return None
  old = json.loads(path.read_text())
  # An entry that older versions did not have is not held against a run.
  for key in _changed(old, new).keys() & set(_FIXED) & set(old):
    raise ValueError(
      f'--resume: config.{key} was {old.get(key)} and is now {new[key]}; '
      'that would be another run. (A new one may begin at its mean model: '
      f'--start_from={workdir} with another --workdir.)'
    )
  return old


def _changed(old, new) -> dict:
  return {k: v for k, v in new.items() if old.get(k) != v}


def _write(workdir, new):
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(new, indent=1, sort_keys=True)
    (workdir / 'config.json').write_text(text)
  except OSError as error:
    raise ValueError(f'--workdir={workdir}: {error.strerror}.') from error


def rewind(workdir, start) -> float:
  """Drops rows after the checkpoint; returns the seconds until then."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return 0.0
  rows = [row for row in metrics.read(workdir) if row['step'] <= start]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return rows[-1]['seconds'] if rows else 0.0


def note(workdir, **entries):
  """Adds entries to run.json."""
  path = workdir / 'run.json'
  run = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(run | entries, indent=1))


class Log:
  """Writes rows and shows progress, on one of the processes; keeps the time.

  Rows after step `start` are dropped: the run goes on from there.
  """

  def __init__(self, workdir, tensorboard: bool, steps: int, start: int):
    lead, self._workdir = multihost.is_primary(), workdir
    self._seconds = rewind(workdir, start) if lead else 0.0
    self._writer = metrics.Writer(workdir, tensorboard) if lead else None
    self._progress = progress.make(steps, start) if lead else progress.silent()
    self._began = time.perf_counter() - self._seconds

  def write(self, row: dict) -> None:
    """Writes a row, with the seconds that the run took so far."""
    self._seconds = row['seconds'] = time.perf_counter() - self._began
    if self._writer:
      self._writer.write(row)
    self._progress.show(row)

  def note_seconds(self) -> None:
    """Adds the seconds of the whole run to run.json."""
    if self._writer:
      note(self._workdir, seconds=self._seconds)

  def close(self) -> None:
    """Closes the files."""
    self._progress.close()
    if self._writer:
      self._writer.close()


def provenance() -> dict:
  """Collects what a result needs to be repeated: command, versions, machine."""
  versions = {}
  for package in PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = 'not installed'
  command = ' '.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
  return {
    'command': command,
    'date': datetime.date.today().isoformat(),
    'versions': {'python': platform.python_version()} | versions,
    'machine': f'{platform.machine()}, {os.cpu_count()} cores',
  }
