"""Flags of the programs: configs by name, help, one clear line for a mistake.

All of it before flax, orbax or matplotlib are imported: help and mistakes cost
what `import jax, optax` costs.
"""

from collections.abc import Callable, Sequence
import contextlib
import functools
import importlib
import pathlib
import re
import runpy
import sys
import textwrap

from moniqua_jax import configs, extras

DEFAULT = 'digits'
_HELP = {'-h', '-help', '--help', '--helpshort', '--helpfull'}
_LIST = {'-list', '--list'}


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


def run(main: Callable, module: str) -> None:
  """Runs `main(argv)` with the flags that `module` defines; never returns."""
  with one_line_errors(), extras.needed('train'):
    from absl import app, flags

  for flag in flags.FLAGS.get_flags_for_module(module):
    # --help shows those of the file that was started.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  doc = sys.modules[module].__doc__ or ''
  app.run(main, flags_parser=functools.partial(parser, doc=doc))


def plots() -> None:
  """The console script `moniqua-plots`, where importing it may fail."""
  with one_line_errors():
    runs = importlib.import_module('moniqua_jax.plots.runs')
  sys.exit(runs.main())


def parser(argv: Sequence[str], doc: str = '') -> list[str]:
  """Parses flags for `absl.app.run(main, flags_parser=parser)`.

  A flag, a config or an entry of it that is unknown or ill-typed is one line on
  stderr and exit status 2. --help, which begins with `doc`, and --list print
  and exit with status 0.
  """
  from absl import flags, logging

  # The config comes before the entries that change it.
  argv = re.sub(r'(^|\0)(--?config)\0', r'\1\2=', '\0'.join(argv)).split('\0')
  if not any(re.match(r'^--?config=', argument) for argument in argv):
    argv = [argv[0], f'--config={DEFAULT}', *argv[1:]]
  with one_line_errors():
    if _LIST.intersection(argv):
      print('\n'.join(map(_listed, names())))
      sys.exit()
    if _HELP.intersection(argv):
      print(f'{doc}\n{flags.FLAGS.main_module_help()}\n{_help(argv)}')
      sys.exit()
    argv = [_with_path(argument) for argument in argv]
    try:
      left = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
      raise ValueError(_unknown_entry(argv)) from error
    except (flags.Error, OSError, TypeError, ValueError) as error:
      raise ValueError(_last_cause(str(error))) from error
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # checkpoints are talkative
  return left


def config(text: str):
  """Reads the config of `NAME`, `NAME:METHOD`, `PATH` or `PATH:METHOD`.

  >>> config('digits:moniqua4').workers
  8
  """
  name, *method = text.split(':', 1)
  module = runpy.run_path(path(name))
  if 'get_config' not in module:
    raise ValueError(f'--config={name} defines no get_config.')
  return module['get_config'](*method)


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


def _with_path(argument) -> str:
  """--config=NAME:METHOD with the path of the file in the place of a name."""
  flag, is_config, text = argument.partition('config=')
  if flag not in ('-', '--') or not is_config:
    return argument
  name, *method = text.split(':', 1)
  return f'{flag}config={":".join([path(name), *method])}'


def _config_of(argv) -> str:
  """What --config says: NAME or PATH, and :METHOD if there is one."""
  named = [a.split('=', 1)[1] for a in argv if re.match(r'^--?config=', a)]
  return named[-1]


def _listed(name) -> str:
  """A config in --list: what it is, and its methods."""
  what = runpy.run_path(path(name))['__doc__'].splitlines()[0]
  return f'{name}: {what}\n{_indented(methods(name))}\n'


def _help(argv) -> str:
  """What a config brings: its methods, and its entries, which are flags."""
  text = _config_of(argv)
  name = text.split(':')[0]
  entries = [_entry(*item) for item in sorted(config(text).items())]
  return '\n'.join(
    [
      f'Methods of {name}, --config={name}:METHOD:',
      _indented(methods(name)),
      '',
      f'Entries of {text}, each a flag, such as --config.batch_size=32 or',
      '--config.topology.name=ring; a part without a value has its default.',
      *(line for entry in entries for line in entry),
      '',
      'Configs and their methods: --list.',
    ]
  )


def _entry(key, value) -> list[str]:
  """Lines for an entry of a config; a spec shows its parts."""
  if not hasattr(value, 'items'):
    return [f'  {key}={value!r}']
  ordered = sorted(value.items(), key=lambda item: (item[0] != 'name', item[0]))
  parts = [k if v is None else f'{k}={v!r}' for k, v in ordered]
  return [f'  {key}:', _indented(parts, '    ')]


def _indented(words, indent='  ') -> str:
  lines = textwrap.wrap(
    '  '.join(words),
    width=80,
    initial_indent=indent,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )
  return '\n'.join(lines)


def _unknown_entry(argv) -> str:
  """Names the first --config.ENTRY that the config does not have."""
  whole = config(_config_of(argv))
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
