"""Flags of the programs: configs by name, help, one clear line for a mistake.

All of it before flax, orbax or matplotlib are imported: help and mistakes cost
what `import jax, optax` costs.
"""

from collections.abc import Callable, Sequence
import functools
import importlib
import os
import re
import sys

from moniqua_jax import extras
from moniqua_jax.command_line import words
from moniqua_jax.command_line.endings import (
  failure,
  legible,
  one_line_errors,
  told,
)
from moniqua_jax.command_line.files import (
  config,
  given,
  leaves,
  methods,
  names,
  path,
)

DEFAULT = 'digits'
_HELP = {'-h', '-help', '--help', '--helpshort', '--helpfull'}
_LIST = {'-list', '--list'}


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


def read_flagfiles() -> None:
  """Puts the flags of each --flagfile=FILE in its place in sys.argv.

  DEFINE_config_file looks there, so this comes before it.
  """
  from absl import flags

  try:
    sys.argv[:] = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
  except flags.Error as error:
    raise ValueError(
      f'{str(error).removeprefix("ERROR:: ")}; --flagfile takes a file with a '
      '--NAME=VALUE in each line.'
    ) from error


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
      print('\n'.join(map(words.listed, names())))
      sys.exit()
    if _HELP.intersection(argv):
      print(
        f'{doc}\n{flags.FLAGS.main_module_help()}\n{words.help_of(argv, says)}'
      )
      sys.exit()
    argv = [_with_path(argument) for argument in at_home(argv)]
    try:
      left = parse(flags.FLAGS, argv)
    except (Exception, SystemExit) as error:  # of a file of the user's, too
      raise ValueError(words.why(argv, error, says)) from error
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


def _with_path(argument) -> str:
  """--config=NAME:METHOD with the path of the file in the place of a name."""
  flag, is_config, text = argument.partition('config=')
  if flag not in ('-', '--') or not is_config:
    return argument
  name, *method = text.split(':', 1)
  return f'{flag}config={":".join([path(name), *method])}'
