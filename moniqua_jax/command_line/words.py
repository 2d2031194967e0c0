"""What --help and --list say of configs, and why flags could not be parsed."""

import difflib
import re
import runpy
import textwrap

from moniqua_jax.command_line import files


def config_of(argv) -> str:
  """What --config says: NAME or PATH, and :METHOD if there is one."""
  named = [a.split('=', 1)[1] for a in argv if re.match(r'^--?config=', a)]
  return named[-1]


def listed(name) -> str:
  """A config in --list: what it is, and its methods."""
  doc = runpy.run_path(files.path(name))['__doc__'] or ''  # none with -OO
  return (
    f'{name}: {doc.partition(chr(10))[0]}\n{_indented(files.methods(name))}\n'
  )


def help_of(argv, says) -> str:
  """What a config brings: its methods, and its entries, which are flags."""
  text = config_of(argv)
  name, whole = text.split(':')[0], files.config(text)
  said = says(whole)
  return '\n'.join(
    [
      f'Methods of {name}, --config={name}:METHOD:',
      _indented(files.methods(name)),
      '',
      f'Entries of {text}, each a flag, such as --config.batch_size=32 or',
      '--config.topology.name=ring; what has no value has the default of what',
      'is named beside it, and takes it again by --config.ENTRY=None.',
      *(_entry(key, value, said) for key, value in files.leaves(whole)),
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


def why(argv, error, says) -> str:
  """Says why flags could not be parsed: of the config, of an entry, of one."""
  whole = files.config(config_of(argv))  # which may say that itself
  if type(whole).__name__ != 'ConfigDict':
    return (
      f'--config={config_of(argv)}: get_config gives {whole!r:.40}, a '
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
      for name, _ in files.leaves(whole)
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
        near = [name for name, _ in files.leaves(whole) if _alike(name, key)]
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
