"""One clear line, and exit status 2, for every mistake on a command line."""

import contextlib
import pathlib
import re
import runpy
import sys

from moniqua_jax import extras

DEFAULT = 'configs/digits.py'


@contextlib.contextmanager
def one_line_errors():
  """Turns a `ValueError` into one line on stderr and exit status 2.

  A missing extra as well.

  >>> with one_line_errors():
  ...   pass
  """
  try:
    yield
  except (ValueError, extras.MissingExtra) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


def parser(argv: list[str]) -> list[str]:
  """Parses flags for `absl.app.run(main, flags_parser=parser)`.

  A flag, a config or an entry of it that is unknown or ill-typed is one line on
  stderr and exit status 2.
  """
  from absl import flags

  # The config comes before the entries that change it.
  argv = re.sub(r'(^|\0)(--?config)\0', r'\1\2=', '\0'.join(argv)).split('\0')
  if not any(re.match(r'^--?config=', argument) for argument in argv):
    argv = [argv[0], f'--config={DEFAULT}', *argv[1:]]
  with one_line_errors():
    _check_config_file(argv)
    try:
      return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
      raise ValueError(_unknown_entry(argv)) from error
    except (flags.Error, OSError, TypeError, ValueError) as error:
      raise ValueError(_last_cause(str(error))) from error


def config(text: str):
  """Reads the config of `PATH` or `PATH:METHOD`.

  >>> config('configs/digits.py:moniqua4').workers
  8
  """
  path, *method = text.split(':', 1)
  _check_path(path)
  return runpy.run_path(path)['get_config'](*method)


def _check_config_file(argv):
  _check_path(_config_of(argv)[0])


def _check_path(path):
  if path == DEFAULT and not pathlib.Path(path).is_file():
    raise ValueError(
      f'--config is not given, and {DEFAULT} is not below this folder: config '
      'files are in the repository of moniqua_jax, not in the installed '
      'package. Run this in a clone, or give --config=PATH.'
    )
  if not pathlib.Path(path).is_file():
    there = sorted(str(file) for file in pathlib.Path(path).parent.glob('*.py'))
    raise ValueError(f'--config={path}: no such file; there are {there}.')


def _config_of(argv) -> list[str]:
  """Splits what --config names: the path, and the argument if there is one."""
  named = [a.split('=', 1)[1] for a in argv if re.match(r'^--?config=', a)]
  return named[-1].split(':', 1)


def _unknown_entry(argv) -> str:
  """Names the first --config.ENTRY that the config does not have."""
  whole = config(':'.join(_config_of(argv)))
  for argument in argv:
    if not re.match(r'^--?config\.', argument):
      continue
    node, keys = whole, argument.split('=')[0].split('.')[1:]
    for depth, key in enumerate(keys):
      entries = sorted(getattr(node, 'keys', list)())
      if key not in entries:
        parent = '.'.join(['config', *keys[:depth]])
        return f'{argument}: {parent} has no {key!r}; it has {entries}.'
      node = node[key]
  return 'the config has no such entry.'


def _last_cause(text: str) -> str:
  """Finds the reason at the end of a report that quotes a whole traceback."""
  causes = re.findall(r'^\s*ValueError: (.*)$', text, flags=re.MULTILINE)
  return causes[-1] if causes else ' '.join(text.split())
