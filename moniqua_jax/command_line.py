"""Flags of the programs: configs by name, help, one clear line for a mistake.

All of it before flax, orbax or matplotlib are imported: help and mistakes cost
what `import jax, optax` costs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import difflib
import errno
import functools
import importlib
import io
import json
import os
import pathlib
import re
import runpy
import sys
import textwrap
import traceback
from typing import Any

from moniqua_jax import configs, extras

DEFAULT = 'digits'
_HELP = {'-h', '-help', '--help', '--helpshort', '--helpfull'}
_LIST = {'-list', '--list'}
_ROOM, _LEAVE = 'Make room there', 'See that it may be read and written'
_FREE = 'Move away what is in its place'
_WAYS = {
  errno.ENOSPC: _ROOM,
  errno.EDQUOT: _ROOM,
  errno.EFBIG: _ROOM,
  errno.EROFS: _LEAVE,
  errno.EACCES: _LEAVE,
  errno.EPERM: _LEAVE,
  errno.ENOTDIR: _FREE,
  errno.EISDIR: _FREE,
  errno.EEXIST: _FREE,
  errno.EIO: 'Put back a copy that is whole',
}


@contextlib.contextmanager
def one_line_errors():
  """Turns a `ValueError` into one line on stderr and exit status 2.

  A missing extra as well; an `OSError`, which is no mistake, has status 1, and
  Ctrl-C 130.

  >>> with one_line_errors():
  ...   pass
  """
  legible()
  try:
    yield
  except (ValueError, extras.MissingExtra, OSError) as error:
    sys.exit(told(error))
  except KeyboardInterrupt:
    print('interrupted.', file=sys.stderr)
    sys.exit(130)


def told(error: Exception) -> int:
  """Prints a mistake or a failure as one line; returns the exit status."""
  if not isinstance(error, OSError):
    print('error:', ' '.join(str(error).splitlines()), file=sys.stderr)
    return 2
  again = 'then give the same command again.'
  print(f'error: {failure(error)}, {again}', file=sys.stderr)
  # A file that is not there was named by who gave the command.
  return 2 if isinstance(error, FileNotFoundError) else 1


def failure(error: OSError) -> str:
  """Says which file failed us, why, and what to do before it is tried again.

  >>> failure(OSError(errno.ENOSPC, 'No space left on device', 'runs/a'))
  'runs/a: No space left on device. Make room there'
  """
  where = f'{error.filename}: ' if error.filename else ''
  reason = error.strerror or str(error) or type(error).__name__
  way = _WAYS.get(error.errno or 0, 'See to that')
  return f'{where}{reason.rstrip(".")}. {way}'


def run(main: Callable, module: str, says: Callable = dict) -> None:
  """Runs `main(argv)` with the flags that `module` defines; never returns.

  `says(config)` tells --help what the entries of a config are.
  """
  with one_line_errors(), extras.needed('train'):
    from absl import app, flags

  for flag in flags.FLAGS.get_flags_for_module(module):
    # --help shows those of the file that was started.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  doc = sys.modules[module].__doc__ or ''
  app.run(main, flags_parser=functools.partial(parser, doc=doc, says=says))


def legible() -> None:
  """Makes stdout and stderr take all that is printed: no run ends by it.

  A letter that they have not is a ?. One that is closed leads nowhere: the next
  file that is opened would get its number, and what libraries print. So does
  one that nobody reads any more.
  """
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, 'w'))
    elif stream is getattr(sys, f'__{name}__'):
      setattr(sys, name, _unread(stream))
    elif isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='replace')


def _unread(stream) -> io.TextIOWrapper:
  """The same stream, which may lose its reader."""
  stream.flush()
  return io.TextIOWrapper(
    io.BufferedWriter(_Unread(stream.fileno(), 'w', closefd=False)),
    stream.encoding,
    errors='replace',
    line_buffering=stream.line_buffering or stream.write_through,
  )


class _Unread(io.FileIO):
  """A file that takes what nobody reads, as after | head or without a tty."""

  def write(self, data) -> int:
    try:
      return super().write(data)
    except OSError as error:
      if error.errno not in (errno.EPIPE, errno.EIO):
        raise
      return len(data)


def plots() -> None:
  """The console script `moniqua-plots`, where importing it may fail."""
  with one_line_errors():
    sys.exit(importlib.import_module('moniqua_jax.plots.runs').main())


def parser(
  argv: Sequence[str], doc: str = '', says: Callable = dict
) -> list[str]:
  """Parses flags for `absl.app.run(main, flags_parser=parser)`.

  A flag, a config or an entry of it that is unknown or ill-typed is one line on
  stderr and exit status 2. --help, which begins with `doc`, and --list print
  and exit with status 0. `--config.ENTRY=None` unsets an entry, and a ~ at the
  beginning of a value is the home folder.
  """
  from absl import flags, logging

  legible()
  # The config comes before the entries that change it.
  argv = joined(argv)
  if not any(re.match(r'^--?config=', argument) for argument in argv):
    argv = [argv[0], f'--config={DEFAULT}', *argv[1:]]
  with one_line_errors():
    if _LIST.intersection(argv):
      print('\n'.join(map(_listed, names())))
      sys.exit()
    if _HELP.intersection(argv):
      print(f'{doc}\n{flags.FLAGS.main_module_help()}\n{_help(argv, says)}')
      sys.exit()
    argv = [_with_path(argument) for argument in at_home(argv)]
    try:
      left = parse(flags.FLAGS, argv)
    except (Exception, SystemExit) as error:  # of a file of the user's, too
      raise ValueError(_why(argv, error, says)) from error
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # checkpoints are talkative
  return left


def at_home(argv: Sequence[str] | None = None) -> list[str]:
  """The home folder in the place of a ~ with which a flag's value begins.

  A shell leaves it there. Of what this program was given, if nothing is.

  >>> at_home(['--out=report', 'a=b'])
  ['--out=report', 'a=b']
  """
  parts = [a.partition('=') for a in (sys.argv[1:] if argv is None else argv)]
  return [f'{flag}{is_}{os.path.expanduser(to)}' for flag, is_, to in parts]


def only_flags(argv: Sequence[str]) -> None:
  """Refuses words that are no flags, such as a config without its --config=.

  >>> only_flags(['train.py'])
  """
  if argv[1:]:
    raise ValueError(
      f'{argv[1:]} are not flags; each is --NAME=VALUE, such as '
      f'--config={DEFAULT}, and --help lists them.'
    )


def joined(argv: Sequence[str]) -> list[str]:
  """Joins by = what a space keeps apart: a config, and an entry and its None.

  >>> joined(['train.py', '--config', 'digits', '--config.clip', 'None'])
  ['train.py', '--config=digits', '--config.clip=None']
  """
  text = re.sub(r'(^|\0)(--?config)\0', r'\1\2=', '\0'.join(argv))
  unset = r'(\0--?config\.[^\0=]+)\0(?=None(\0|$))'
  return re.sub(unset, r'\1=', text).split('\0')


def parse(values, argv: Sequence[str]) -> list[str]:
  """Parses flags; the last of an entry may be `--config.ENTRY=None`."""
  last = dict(argument.partition('=')[::2] for argument in argv)
  unset = [
    flag
    for flag, value in last.items()
    if value == 'None' and re.match(r'^--?config\.', flag)
  ]
  left = values([a for a in argv if a.partition('=')[0] not in unset])
  nothing = {flag.partition('config.')[2]: None for flag in unset}
  values['config'].value.update_from_flattened_dict(nothing)
  return left


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
  doc = runpy.run_path(path(name))['__doc__'] or ''  # none with -OO
  return f'{name}: {doc.partition(chr(10))[0]}\n{_indented(methods(name))}\n'


def _help(argv, says) -> str:
  """What a config brings: its methods, and its entries, which are flags."""
  text = _config_of(argv)
  name, whole = text.split(':')[0], config(text)
  said = says(whole)
  return '\n'.join(
    [
      f'Methods of {name}, --config={name}:METHOD:',
      _indented(methods(name)),
      '',
      f'Entries of {text}, each a flag, such as --config.batch_size=32 or',
      '--config.topology.name=ring; what has no value has the default of what',
      'is named beside it, and takes it again by --config.ENTRY=None.',
      *(_entry(key, value, said) for key, value in leaves(whole)),
      '',
      'Configs and their methods: --list.',
    ]
  )


def _entry(key, value, said) -> str:
  """Lines for an entry of a config, and what it is."""
  set_ = key if value is None else f'{key}={value!r}'
  words = f'{set_}: {said[key]}' if key in said else set_
  return textwrap.fill(
    words, 80, initial_indent='  ', subsequent_indent='      '
  )


def _indented(words) -> str:
  lines = textwrap.wrap(
    '  '.join(words),
    width=80,
    initial_indent='  ',
    subsequent_indent='  ',
    break_long_words=False,
    break_on_hyphens=False,
  )
  return '\n'.join(lines)


def _why(argv, error, says) -> str:
  """Says why flags could not be parsed: of the config, of an entry, of one."""
  whole = config(_config_of(argv))  # which may say that itself
  if type(whole).__name__ != 'ConfigDict':
    return (
      f'--config={_config_of(argv)}: get_config gives {whole!r:.40}, a '
      f'{type(whole).__name__}; it must be an ml_collections.ConfigDict.'
    )
  if isinstance(error, (AttributeError, KeyError)):
    return _unknown_entry(argv, whole)
  text = str(error)
  if 'before a value for --config' in text:
    return 'an entry of the config stands before --config; put --config first.'
  if spec := re.match(r'flag (\S+?)=(.*): Failed to parse .* ConfigDict', text):
    flag, value = spec.groups()
    parts = [
      name
      for name, _ in leaves(whole)
      if f'--config.{name}'.startswith(f'{flag}.')
    ]
    some = ', '.join(name.split('.')[-1] for name in parts)
    return (
      f'{flag}={value}: give one of its parts, {flag}.PART={value}: {some}.'
    )
  flag = re.match(r'flag --?config\.(\S+?)=', text)
  said = says(whole).get(flag[1]) if flag else None
  return _last_cause(text) + (f'; it is: {said}.' if said else '')


def _unknown_entry(argv, whole) -> str:
  """Names the first --config.ENTRY that the config does not have."""
  for argument in argv:
    if not re.match(r'^--?config\.', argument):
      continue
    node, keys = whole, argument.split('=')[0].split('.')[1:]
    for depth, key in enumerate(keys):
      entries = sorted(getattr(node, 'keys', list)())
      if key not in entries:
        parent = '.'.join(['config', *keys[:depth]])
        near = [name for name, _ in leaves(whole) if _alike(name, key)]
        within = '.'.join([*keys[:depth], ''])
        near = [name for name in near if name.startswith(within)] or near
        meant = f'did you mean {" or ".join(near)}?'
        there = f'it has {entries}.' if entries else f'it is {node!r}.'
        there = meant if near else there
        return f'{argument}: {parent} has no {key!r}; {there}'
      node = node[key]
  return 'the config has no such entry.'


def _alike(name, key) -> bool:
  """Whether a dotted name ends, almost, with a key."""
  return bool(
    difflib.get_close_matches(key, [name.split('.')[-1]], cutoff=0.75)
  )


def _last_cause(text: str) -> str:
  """Finds the reason at the end of a report that quotes a whole traceback."""
  causes = re.findall(r'^\s*ValueError: (.*)$', text, flags=re.MULTILINE)
  said = causes[-1] if causes else ' '.join(text.split())
  if said.startswith('Unknown command line flag'):
    said = (
      f'{said}; --help lists all, and an entry of the config is --config.ENTRY.'
    )
  return re.sub(r"\('([^']*)', '[^']*'\)", r'\1', said)  # a pair, of absl
