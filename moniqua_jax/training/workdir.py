"""The folder of a run: its config, where it came from, its metrics so far."""

from collections.abc import Mapping
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import sys
import time
import types

import jax

from moniqua_jax.launch import multihost
from moniqua_jax.training import metrics, parts, progress, same_run, whole

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None  # type: ignore[assignment]

_OF_A_RUN = ('config.json', 'metrics.jsonl', 'run.json', 'checkpoints')
_NOTHING = types.MappingProxyType({})
_PUT_BACK = 'put it back, or begin again in another --workdir.'
PACKAGES = ['jax', 'jaxlib', 'flax', 'optax', 'numpy', 'moniqua_jax']


@contextlib.contextmanager
def opened(workdir, config, resume, data: Mapping[str, str] = _NOTHING):
  """Makes the folder, or checks that it holds the run to go on with.

  Each process opens its own: one folder for all, or one on a disk of each. It
  is locked meanwhile; the system unlocks it when a process ends. `data` has
  digests of what the run learns from, which must be as they were.
  """
  new = json.loads(config.to_json())
  # All look before one writes.
  held = multihost.by_all(lambda: _check(workdir, new, resume, data))
  with multihost.by_all(lambda: _locked(workdir)):
    multihost.by_all(lambda: _write(workdir, new))
    entries = provenance()
    if held is not None:
      changed = _changed(held, new)
      entries = {'resumed': {**entries, 'changed': changed}}
    if multihost.is_primary():
      note(workdir, data=dict(data), **entries)
    yield workdir


def _locked(workdir):
  """Locks the folder, for this process of a run; returns what holds the lock.

  The first process of a run does not lock out the second.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  file = (workdir / f'.lock{jax.process_index()}').open('a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    with file:
      file.seek(0)
      raise ValueError(
        f'--workdir={workdir}: {file.read() or "a process"} trains in it now; '
        'wait for its end, or take another folder.'
      ) from None
  except (OSError, AttributeError):  # a file system or a system without locks
    return file
  with whole.naming(file.name):
    file.truncate(0)
    file.write(f'process {os.getpid()} of {platform.node()}')
    file.flush()
  return file


def _check(workdir, new, resume, data) -> dict | None:
  """Returns the config of the run that a folder holds, and that may go on."""
  path = workdir / 'config.json'
  held = [name for name in _OF_A_RUN if (workdir / name).exists()]
  if workdir.is_file():
    raise ValueError(f'--workdir={workdir} is a file; name a folder.')
  require_plain('--workdir', workdir)
  if held and not resume:
    raise ValueError(
      f'--workdir={workdir} holds another run ({held[0]}); take another '
      'folder, or go on with it by --resume.'
    )
  if not resume:
    return None
  if not path.exists():
    raise ValueError(
      f'--resume: --workdir={workdir} holds no run: it has no {path.name}.'
    )
  checkpoints = workdir / 'checkpoints'
  states = [*parts.found(checkpoints), *workdir.glob('worker*/state.npz')]
  if 'metrics.jsonl' in held and not (states or checkpoints.is_dir()):
    raise ValueError(f'--resume: {checkpoints} is gone: {_PUT_BACK}')
  try:
    old = whole.read_json(path)
  except ValueError as error:
    raise ValueError(
      f'{error} Without it --resume does not know which run this is. The same '
      'command with another --workdir writes it anew: copy it from there.'
    ) from error
  same_run.check(old, new, workdir, saved=bool(states))
  if states:
    same_run.check_data(noted(workdir).get('data', {}), data)
  return old


def require_plain(flag: str, folder: pathlib.Path) -> None:
  """Refuses an address, and a name that orbax would take for a pattern."""
  # As a path gs://a/b is gs:/a/b.
  if re.match(r'[a-z]\w+:/', str(folder)):
    raise ValueError(
      f'{flag}={folder}: an address is no folder; take one of this machine, as '
      'where a bucket is mounted, or copy it afterwards.'
    )
  # As where HOME is not set.
  if str(folder).startswith('~'):
    raise ValueError(
      f'{flag}={folder}: there is no such home folder; give its path.'
    )
  if str(folder).encode(errors='replace') != os.fsencode(folder):
    raise ValueError(
      f'{flag}={str(folder)!r}: what saves checkpoints takes names in UTF-8 '
      'alone; take another.'
    )
  if set('[*?') & set(str(folder.absolute())):
    raise ValueError(
      f'{flag}={folder.absolute()}: for what saves checkpoints a path with '
      '[, * or ? is a pattern, and they would lack their arrays; take a name '
      'without, or a link without to that folder.'
    )


def _changed(old, new) -> dict:
  return {k: v for k, v in new.items() if old.get(k) != v}


def _write(workdir, new):
  text = json.dumps(new, indent=1, sort_keys=True)
  whole.write(workdir / 'config.json', text)


def rewind(workdir, start) -> float:
  """Drops rows after the checkpoint; returns the seconds until then."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return 0.0
  found = metrics.read(workdir)
  rows = [row for row in found if row['step'] <= start]
  dropped = len(found) - len(rows)
  if dropped:
    print(
      f'{path}: rows after step {start} are dropped ({dropped}); the run goes '
      'on from there.',
      file=sys.stderr,
    )
  if start and (not rows or rows[-1]['step'] < start):
    last = rows[-1]['step'] if rows else 0
    print(
      f'warning: {path} ends with step {last}, and the checkpoint is of step '
      f'{start}: the rows between are gone.',
      file=sys.stderr,
    )
  # Without half a line at the end, too.
  whole.write(path, ''.join(json.dumps(row) + '\n' for row in rows))
  return rows[-1]['seconds'] if rows else 0.0


def note(workdir, **entries):
  """Adds entries to run.json."""
  text = json.dumps(noted(workdir) | entries, indent=1)
  whole.write(workdir / 'run.json', text)


def require_saved(workdir, start) -> None:
  """Refuses to begin again where run.json knows of a checkpoint."""
  last = noted(workdir).get('saved', 0)
  if last and not start:
    raise ValueError(
      f'--resume: {workdir}/checkpoints has none, and that of step {last} was '
      f'written: {_PUT_BACK}'
    )
  if not start and any(workdir.glob('worker*/state.npz')):
    raise ValueError(
      f'--resume: {workdir} is of asynchronous workers: python -m '
      'moniqua_jax.asynchronous goes on with it.'
    )


def note_saved(workdir) -> None:
  """Notes in run.json the last checkpoint that is on the disk by now."""
  last = max(parts.found(workdir / 'checkpoints'), default=0)
  if multihost.is_primary() and last > noted(workdir).get('saved', 0):
    note(workdir, saved=last)


def noted(workdir) -> dict:
  """Returns what run.json has; {} if it cannot be read."""
  path = pathlib.Path(workdir) / 'run.json'
  try:
    return whole.read_json(path) if path.exists() else {}
  except ValueError as error:
    # Where a run came from is no reason not to go on with it.
    print(f'warning: {error} It begins anew.', file=sys.stderr)
    return {}


class Log:
  """Writes rows and shows progress, on one of the processes; keeps the time.

  Rows after step `start` are dropped: the run goes on from there.
  """

  def __init__(self, workdir, tensorboard: bool, steps: int, start: int):
    lead, self._workdir = multihost.is_primary(), workdir
    if lead:
      require_saved(workdir, start)
    self._seconds = rewind(workdir, start) if lead else 0.0
    self._writer = metrics.Writer(workdir, tensorboard) if lead else None
    self._progress = progress.make(steps, start) if lead else progress.silent()
    self._began = time.perf_counter() - self._seconds

  def write(self, row: dict) -> None:
    """Writes a row, with the seconds that the run took so far."""
    self._seconds = row['seconds'] = time.perf_counter() - self._began
    if self._writer:
      self._writer.write(row)
      note_saved(self._workdir)  # that of this step is still on its way
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
  return {
    'command': _command(),
    'date': datetime.date.today().isoformat(),
    'versions': {'python': platform.python_version()} | versions,
    'machine': f'{platform.machine()}, {os.cpu_count()} cores',
  }


def _command() -> str:
  """How this program was started, to be started so again."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  file, *flags = sys.argv
  program = [pathlib.Path(file).name]
  if spec:  # by -m
    program = ['python', '-m', spec.name.removesuffix('.__main__')]
  return shlex.join([*program, *flags])
