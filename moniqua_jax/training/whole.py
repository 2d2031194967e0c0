"""Files that are whole or as they were: a full disk leaves no half of one."""

import contextlib
import json
import os
import pathlib
import secrets


@contextlib.contextmanager
def naming(path: pathlib.Path):
  """Gives an `OSError` the file that it is about."""
  try:
    yield
  except OSError as error:
    error.filename, error.filename2 = str(path), None
    raise


@contextlib.contextmanager
def written(path: pathlib.Path, mode: str = 'w'):
  """Opens a file that takes the place of another one when it is complete."""
  # Processes that share a folder write the same at the same time.
  partial = path.with_name(f'{path.name}.{secrets.token_hex(4)}.partial')
  encoding = None if 'b' in mode else 'utf-8'  # whatever the locale is
  try:
    with naming(path), partial.open(mode, encoding=encoding) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    with naming(path):
      partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)
    raise


def clear(folder: pathlib.Path) -> None:
  """Removes from a folder of one's own what writes that were killed left."""
  for rest in folder.glob('*.partial'):
    rest.unlink()


def write(path: pathlib.Path, text: str) -> None:
  """Writes a text file."""
  with written(path) as file:
    file.write(text)


def read_json(path: pathlib.Path) -> dict:
  """Reads the object of a JSON file; a `ValueError` names file and line."""
  return parsed(path.read_bytes(), path, 1)


def parsed(line: bytes, path: pathlib.Path, number: int) -> dict:
  """The object of a line, or of all lines from one on."""
  try:
    found = json.loads(line)
  except ValueError as error:
    number += getattr(error, 'lineno', 1) - 1
    said = getattr(error, 'msg', 'it is no text')
    raise ValueError(f'{path}, line {number}: {said}.') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path}, line {number}: it is no JSON object.')
  return found
