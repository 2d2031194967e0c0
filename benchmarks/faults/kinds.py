"""The faults, one function each: it does one, and says what came of it."""

from collections.abc import Callable
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from typing import NamedTuple

from benchmarks.faults import runs
from moniqua_jax.training import checkpoint, parts

# What comes of a fault. Named: in one line, and nothing was written over it;
# what was damaged by hand must be put back by hand.
SURVIVED, NAMED, LOST, SILENT = OUTCOMES = (
  'survived',
  'named',
  'lost',
  'silent',
)


class Came(NamedTuple):
  """What came of one fault."""

  outcome: str
  where: str
  said: str = ''


class Place(NamedTuple):
  """Where faults are done."""

  whole: pathlib.Path  # the folder of the undisturbed run
  scratch: pathlib.Path  # a folder of one's own
  rng: random.Random
  share: float  # of the tries, which is done: 0 to 1


class Kind(NamedTuple):
  """A kind of fault."""

  what: str
  times: int
  once: Callable[[Place], Came]
  possible: Callable[[], bool] = lambda: True


def _end(place, folder, where, said='') -> Came:
  """Goes on with a run until its end, which is compared."""
  end = runs.resumed(folder)
  if end.status:
    return Came(LOST, where, end.said)
  other = runs.differs(place.whole, folder)
  if other:
    return Came(LOST if end.said else SILENT, where, f'not the same: {other}')
  return Came(SURVIVED, where, said)


# ------------------------------------------------------------ a run is killed


def killed(place: Place) -> Came:
  """SIGKILL at a random moment: as it starts, between steps, as it saves."""
  folder = place.scratch / 'run'
  process = runs.started(folder)
  if place.rng.random() < 0.8:
    runs.wait(process, lambda: runs.step_of(folder))
  time.sleep(place.rng.uniform(0, 3.0))
  alive, step = process.is_alive(), runs.step_of(folder)
  saving = list((folder / 'checkpoints').glob('*tmp*'))
  process.kill()
  process.join()
  where = f'step {step}' + (', saving' if saving else '') if alive else 'ended'
  return _end(place, folder, where, 'killed')


def asked(place: Place) -> Came:
  """SIGTERM, SIGHUP or Ctrl-C: it saves, and says how to go on."""
  folder, number = place.scratch / 'run', place.rng.choice([1, 2, 15])
  process = runs.started(folder)
  runs.wait(process, lambda: runs.step_of(folder))
  time.sleep(place.rng.uniform(0, 1.0))
  os.kill(process.pid, number)
  end = runs.ended(process)
  where = f'{signal.Signals(number).name}, step {runs.step_of(folder)}'
  over = runs.step_of(folder) == runs.step_of(place.whole)
  if not over and end.status != (130 if number == signal.SIGINT else 0):
    return Came(LOST, where, f'status {end.status}: {end.said}')
  return _end(place, folder, where, 'saved')


# ------------------------------------------------------ its files are damaged


def _stopped(place) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """A copy of the run, and the files of its newest checkpoint."""
  folder = place.scratch / 'run'
  shutil.copytree(place.whole, folder)
  steps = parts.found(folder / 'checkpoints')
  files = [f for f in steps[max(steps)][0].rglob('*') if f.is_file()]
  return folder, sorted(files)


def _read(place, folder, where) -> Came:
  """Reads what is damaged, and compares with what was saved."""
  said = place.scratch / 'said'
  try:
    with said.open('w') as file, contextlib.redirect_stderr(file):
      step, state = checkpoint.last(folder, runs.WORKERS)
  except ValueError as error:
    return Came(NAMED, where, str(error))
  saved = checkpoint.last(_only(place, step), runs.WORKERS)[1]
  if not runs.same(saved, state):
    return Came(SILENT, where)
  lines = said.read_text().split('\n')
  named = [line for line in lines if line.startswith('warning: ')]
  return Came(SURVIVED, where, ''.join(named[:1]))


def _only(place, step) -> pathlib.Path:
  """The undisturbed run, with no later checkpoint than that of a step."""
  folder = place.scratch / f'only{step}'
  if not folder.exists():
    shutil.copytree(place.whole, folder)
    for later in parts.found(folder / 'checkpoints'):
      if later > step:
        shutil.rmtree(folder / 'checkpoints' / str(later))
  return folder


def flipped(place: Place) -> Came:
  """One bit of the newest checkpoint: of its largest file, or of any."""
  folder, files = _stopped(place)
  files = [file for file in files if file.stat().st_size]
  file = max(files, key=lambda file: file.stat().st_size)
  if place.rng.random() < 0.5:
    file = place.rng.choice(files)
  data = bytearray(file.read_bytes())
  bit = place.rng.randrange(8 * len(data))
  data[bit // 8] ^= 1 << bit % 8
  file.write_bytes(data)
  where = f'{file.relative_to(folder / "checkpoints")}, bit {bit}'
  return _read(place, folder, where)


def broken(place: Place) -> Came:
  """A file of the newest checkpoint is gone, empty or cut."""
  folder, files = _stopped(place)
  file, how = place.rng.choice(files), place.rng.choice(sorted(BREAKS))
  BREAKS[how](file)
  where = f'{file.relative_to(folder / "checkpoints")} {how}'
  return _read(place, folder, where)


BREAKS = {
  'gone': lambda file: file.unlink(),
  'empty': lambda file: file.write_bytes(b''),
  'cut': lambda file: os.truncate(file, file.stat().st_size // 2),
}


def cut(place: Place) -> Came:
  """config.json, run.json or metrics.jsonl ends at a random place."""
  folder, _ = _stopped(place)
  # As of a run that was killed in its last step.
  last = max(parts.found(folder / 'checkpoints'))
  shutil.rmtree(folder / 'checkpoints' / str(last))
  names = 'config.json', 'run.json', 'metrics.jsonl'
  file = folder / place.rng.choice(names)
  size = place.rng.randrange(file.stat().st_size)
  os.truncate(file, size)
  end = runs.resumed(folder)
  where = f'{file.name} after {size} bytes'
  said = file.name in end.said
  if end.status:
    return Came(NAMED if said and end.lines == 1 else LOST, where, end.said)
  other = runs.differs(place.whole, folder)
  if not other:
    return Came(SURVIVED, where, end.said)
  return Came(NAMED if said else SILENT, where, end.said or other)


# ------------------------------------------------------------ its disk is full


@contextlib.contextmanager
def _disk(place, size):
  """A disk of its own, of so many bytes."""
  folder = place.scratch / 'disk'
  folder.mkdir()
  _mount('-t', 'tmpfs', '-o', f'size={size}', 'faults', folder)
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', folder], check=True)


def _mount(*words):
  subprocess.run(['mount', *words], check=True)


def _failed(place, run, process, where, mend) -> Came:
  """A disk ends a run, in one line; when it is mended the run goes on."""
  end = runs.ended(process)
  where = f'{where}, step {runs.step_of(run)}'
  mend()
  if end.status == 0:
    return _end(place, run, where, 'there was room')
  if end.status != 1 or end.lines != 1 or not end.said.startswith('error: '):
    said = f'status {end.status}, {end.lines} errors: {end.said}'
    return Came(LOST, where, said)
  return _end(place, run, where, end.said)


def full(place: Place) -> Came:
  """A disk that has room for some of the run."""
  size = 4096 * (1 + int(place.share * _pages(place.whole)))
  with _disk(place, size) as folder:
    process = runs.started(folder / 'run')
    grow = lambda: _mount('-o', 'remount,size=100m', folder)
    where = f'{size} bytes'
    return _failed(place, folder / 'run', process, where, grow)


def _pages(folder) -> int:
  """What the files of a run take on a disk, in pages."""
  sizes = [each.stat().st_size for each in folder.rglob('*')]
  return sum(-(-size // 4096) for size in sizes)


def read_only(place: Place) -> Came:
  """A disk that is read-only from some moment on, but for what is open."""
  with _disk(place, '100m') as folder:
    run = folder / 'run'
    process = runs.started(run)
    if place.rng.random() < 0.8:
      runs.wait(process, lambda: runs.step_of(run))
    time.sleep(place.rng.uniform(0, 1.0))
    _mount('--bind', folder, folder)
    command = ['mount', '-o', 'remount,bind,ro', folder]
    while subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
      time.sleep(0.01)  # a file was being written
    mend = lambda: subprocess.run(['umount', '-l', folder], check=True)
    return _failed(place, run, process, 'read-only', mend)


def _may_mount() -> bool:
  return (
    hasattr(os, 'geteuid') and os.geteuid() == 0 and bool(shutil.which('mount'))
  )


# ------------------------------------------------------------ a file in the way


def in_the_way(place: Place) -> Came:
  """A file where a folder belongs, or a folder where a file does."""
  folder = place.scratch / 'run'
  name = place.rng.choice(sorted(OBSTACLES))
  path = folder / name
  path.parent.mkdir(parents=True)
  OBSTACLES[name](path)
  end = runs.run(folder)
  said = f'status {end.status}: {end.said}'
  if end.status not in (1, 2) or end.lines != 1 or str(folder) not in end.said:
    return Came(LOST, name, said)
  return Came(NAMED, name, said)


OBSTACLES = {
  'config.json': pathlib.Path.mkdir,
  'run.json': pathlib.Path.mkdir,
  'metrics.jsonl': pathlib.Path.mkdir,
  'checkpoints': pathlib.Path.touch,
  'mean_model': pathlib.Path.touch,
  '.lock0': pathlib.Path.mkdir,
}


KINDS = {
  'kill': Kind('SIGKILL at a random moment', 50, killed),
  'signal': Kind('SIGTERM, SIGHUP or Ctrl-C', 9, asked),
  'flip': Kind('a bit of the newest checkpoint flipped', 200, flipped),
  'file': Kind('a file of it gone, empty or cut', 40, broken),
  'cut': Kind('config.json, run.json or metrics.jsonl cut', 12, cut),
  'full': Kind('a full disk', 40, full, _may_mount),
  'ro': Kind('a read-only disk', 6, read_only, _may_mount),
  'way': Kind('a file in the way', 6, in_the_way),
}
