"""The entries of a config, all compared with what they may be: one function.

It needs no data, no model and no device; it comes first, before anything is
written.
"""

import difflib
import functools
from typing import Any

from moniqua_jax import command_line
from moniqua_jax.configs import digits, smoothness  # type: ignore
from moniqua_jax.training import entries
from moniqua_jax.training.dependences import DEPENDENCES


def validate(config) -> None:
  """Raises a `ValueError` of one line: entry, value, what is allowed, a way."""
  values = check_entries(config)
  for refused in (row.refused(values) for row in DEPENDENCES):
    if refused:
      raise ValueError(refused)


def check_entries(config) -> dict[str, Any]:
  """Checks each entry by itself; returns the values by dotted names."""
  if not hasattr(config, 'items'):
    raise ValueError(
      f'config={_shown(config)}; it must be an ml_collections.ConfigDict, as '
      'digits.default() of moniqua_jax.configs makes one.'
    )
  table, values = entries.of(config), dict(command_line.leaves(config))
  _check_names(table, values)
  # Arguments of what is not ours are for it to check.
  foreign = tuple(
    name.removesuffix('name')
    for name, value in values.items()
    if name.endswith('.name') and ':' in str(value)
  )
  for entry in table:
    name = entry.name
    if name in values and (
      name.endswith('.name') or not name.startswith(foreign)
    ):
      _check(entry, values[name], config)
  return values


def described(config) -> dict[str, str]:
  """What each entry of such a config may be, and what it is for."""
  return {
    entry.name: f'{entry.purpose} ({entry.allowed.says})'
    for entry in entries.of(config)
  }


def _check(entry, value, config):
  if entry.allowed.holds(value):
    return
  default = _defaults('laboratory' in config)[entry.name]
  raise ValueError(
    f'config.{entry.name}={_shown(value)}; it must be {entry.allowed.says} '
    f'({entry.purpose}). By default --config.{entry.name}={_short(default)}.'
  )


def _check_names(table, values):
  """Refuses entries that there are not, and names those that lack."""
  known = [entry.name for entry in table]
  parents = {name.partition('.')[0] for name in known if '.' in name}
  for name in sorted(parents & values.keys()):
    raise ValueError(
      f'config.{name}={_shown(values[name])}; it has parts, such as '
      f'--config.{name}.{_parts(known, name)[0]}.'
    )
  open_ = {name.removesuffix('.name') for name in known if '.name' in name}
  inside = lambda name: name.partition('.')[0] in open_
  for name in sorted(values.keys() - {*known}):
    # A factory says which arguments it has.
    if not inside(name):
      raise ValueError(f'config has no {name!r}; {_near(name, known)}.')
  wanted = {
    entry.name
    for entry in table
    if not (inside(entry.name) and entry.allowed.holds(None))
  }
  for name in sorted(wanted - values.keys()):
    raise ValueError(
      f'config lacks {name!r}; begin with digits.default() of '
      'moniqua_jax.configs, and change what it returns.'
    )


def _parts(known, parent) -> list[str]:
  return [n.partition('.')[2] for n in known if n.startswith(f'{parent}.')]


def _near(name, known) -> str:
  found = difflib.get_close_matches(name, known, n=3)
  return f'did you mean {" or ".join(found)}' if found else '--help lists all'


@functools.cache
def _defaults(laboratory: bool) -> dict[str, Any]:
  default = smoothness.get_config() if laboratory else digits.default()
  return dict(command_line.leaves(default))


def _shown(value) -> str:
  """A value in one line, and not a long one."""
  return _short(repr(value))


def _short(value) -> str:
  text = ' '.join(str(value).split())
  return text if len(text) <= 60 else f'{text[:57]}...'
