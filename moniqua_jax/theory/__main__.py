"""Prints what the weights of a topology say about an algorithm.

python -m moniqua_jax.theory --topology=ring:8 --algorithm=dpsgd
"""

import argparse
import inspect

from moniqua_jax import command_line, topologies
from moniqua_jax.theory import laws
from moniqua_jax.theory.summary import report
from moniqua_jax.theory.text import table

# Of an argument; more takes minutes.
_MOST = dict.fromkeys(('n', 'rows', 'cols'), laws.LARGEST) | {'rounds': 10**4}


class _Parser(argparse.ArgumentParser):
  def error(self, message):  # in place of the usage and the exit
    raise ValueError(message)


def topology(spec: str):
  """The topology of `name:argument:argument`.

  >>> topology('ring:2').edges
  ((0.5, (1, 0)),)
  """
  name, *texts = spec.split(':')
  if name not in topologies.BY_NAME:
    raise ValueError(
      f'--topology={spec}: {name!r} is no topology; choose from '
      f'{sorted(topologies.BY_NAME)}, with its arguments after colons, as '
      'ring:8.'
    )
  accepted = inspect.signature(topologies.BY_NAME[name]).parameters.values()
  needed = [p for p in accepted if p.default is p.empty]
  if not len(needed) <= len(texts) <= len(accepted):
    form = ':'.join([name, *(p.name for p in accepted)])
    raise ValueError(
      f'--topology={spec}: {name} takes {len(needed)} to {len(accepted)} '
      f'arguments, {form}; got {len(texts)}.'
    )
  numbers = [
    _number(spec, p, text) for p, text in zip(accepted, texts, strict=False)
  ]
  try:
    return topologies.BY_NAME[name](*numbers)
  except ValueError as error:
    raise ValueError(f'--topology={spec}: {error}') from error


def _number(spec, parameter, text):
  kind = int if parameter.annotation is int else float
  try:
    number = kind(text)
  except ValueError as error:
    raise ValueError(
      f'--topology={spec}: {parameter.name}={text!r} is not '
      f'{"a whole number" if kind is int else "a number"}.'
    ) from error
  most = _MOST.get(parameter.name, number)
  if number > most:
    raise ValueError(
      f'--topology={spec}: {parameter.name}={number}; at most {most} can be '
      'computed.'
    )
  return number


def main(argv=None):
  """Prints what theory says of an algorithm on a topology."""
  parser = _Parser('python -m moniqua_jax.theory', allow_abbrev=False)
  add = parser.add_argument
  add('--topology', default='ring:8', help='name:argument:argument')
  add('--algorithm', default='dpsgd', help=', '.join(sorted(laws.LAWS)))
  add('--bits', type=int, help='1 to 8; all if not given')
  gamma = 'lazy(topology, gamma); of deepsqueeze gamma times eta'
  add('--gamma', type=float, default=1.0, help=gamma)
  add('--safety', type=float, default=1.5, help='theta over the distance seen')
  add('--size', type=int, help='parameters, for the memory in MiB')
  add('--delay', type=int, default=1, help='of adpsgd, in ticks')
  add('--rounds', type=int, default=1, dest='several', help='in one step')
  add('--local_steps', type=int, default=1, help='one of so many talks')
  add('--fragments', type=int, default=1, help='of which one talks at a time')
  with command_line.one_line_errors():
    flags = vars(parser.parse_args(argv))
    found = report(topology(flags.pop('topology')), **flags)
    print(table(found))


if __name__ == '__main__':
  main()
