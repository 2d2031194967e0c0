"""The configs that there are, by name or path, and all that one says."""

from collections.abc import Iterable, Iterator
import contextlib
import json
import pathlib
import runpy
import textwrap
import traceback
from typing import Any

from moniqua_jax import configs


def config(text: str):
  """Reads the config of `NAME`, `NAME:METHOD`, `PATH` or `PATH:METHOD`.

  >>> config('digits:moniqua4').workers
  8
  """
  name, *method = text.split(':', 1)
  file = path(name)
  with _one_line(file):
    module = runpy.run_path(file)
    if 'get_config' in module:
      return module['get_config'](*method)
  raise ValueError(
    f'--config={name} defines no get_config; it is a function that returns an '
    'ml_collections.ConfigDict.'
  )


@contextlib.contextmanager
def _one_line(file: str):
  """Turns what goes wrong in a config into one line, with its own line."""
  try:
    yield
  except SyntaxError as error:
    at = f', line {error.lineno}' if error.lineno else ''
    raise ValueError(f'{file}{at}: {error.msg}.') from error
  except (Exception, SystemExit) as error:
    stack = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in stack if frame.filename == file]
    ours = pathlib.Path(stack[-1].filename).parent in map(
      pathlib.Path, configs.__path__
    )
    if isinstance(error, ValueError) and ours:
      raise  # it names what it does not know
    at = f', line {lines[-1]}' if lines else ''
    said = f'{type(error).__name__}: {" ".join(str(error).split())}'.rstrip(
      ': '
    )
    raise ValueError(
      f'{file}{at}: {textwrap.shorten(said, 160, placeholder=" ...")}'
    ) from error


def names() -> list[str]:
  """The names of the configs that come with the package.

  >>> 'digits' in names()
  True
  """
  (folder,) = configs.__path__
  return sorted(file.stem for file in pathlib.Path(folder).glob('[!_]*.py'))


def path(name: str) -> str:
  """The file of a config: `name` if it is one, else the package's own.

  >>> path('configs/digits.py').endswith('digits.py')
  True
  """
  if pathlib.Path(name).is_file():
    return name
  stem = name.removeprefix('configs/').removesuffix('.py')
  if stem in names():
    return str(pathlib.Path(*configs.__path__, f'{stem}.py'))
  beside = sorted(str(file) for file in pathlib.Path(name).parent.glob('*.py'))
  there = beside if name.endswith('.py') and beside else names()
  raise ValueError(f'--config={name}: no such file; there are {there}.')


def methods(name: str) -> list[str]:
  """What may stand after the colon of a config.

  >>> 'moniqua4' in methods('digits')
  True
  """
  module = runpy.run_path(path(name))
  return list(module.get('ARGUMENTS', module.get('METHODS', ())))


def leaves(config, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields all entries of a config by dotted names; of a spec first the name.

  >>> dict(leaves({'a': {'b': 1, 'name': 2}, 'c': 3}))
  {'a.name': 2, 'a.b': 1, 'c': 3}
  """
  for key, value in sorted(config.items(), key=lambda item: item[0] != 'name'):
    if hasattr(value, 'items'):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def given(config, flags: Iterable) -> dict[str, Any]:
  """Returns what a command says, in values of JSON: flags, and all entries."""
  entries = leaves(json.loads(config.to_json()))
  said = {f'--{flag.name}': flag.value for flag in flags}
  return said | {f'--config.{name}': value for name, value in entries}
