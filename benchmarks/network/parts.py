"""Gradient, encode, send, decode: of what are the seconds of a step?

  python -m benchmarks.network.parts --out=results/network

On Linux as root. For each number of workers and each rate, processes in as many
network namespaces take turns with the parts of all METHODS (see worker.py), on
noise in the form of CIFAR-10 and the net that training.py trains. Each cell is
a line of DIR/cells.jsonl, and one that is there is not run again; the table is
the last section of DIR/training.md. With JAX_COMPILATION_CACHE_DIR set, and
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0, a method compiles once for all
rates.
"""

import argparse
import pathlib
import sys

from benchmarks.network import __main__ as laboratory
from benchmarks.network import namespaces, report, running, steps
from moniqua_jax.plots import kept, tables

MODEL = 'mlp395k'
# As in the papers; NUQSGD also in its recursive code.
METHODS = (
  'allreduce',
  'qsgd4',
  'qsgdinf4',
  'nuqsgd4',
  'nuqsgd4_recursive',
  'ef_sign',
  'moniqua4fixed',
)
HEADING = '\n## A step in parts\n\n'
TITLES = ('link', 'method', 'workers', 'ms per step', 'gradient', 'encode')
TITLES += ('send', 'decode and mean', 'rest', 'kB sent')
NOTES = """
`python -m benchmarks.network.parts --out=results/network`: milliseconds,
medians of {rounds} blocks of {steps} steps, of {local_steps} where nothing is
sent; blocks of all methods and parts take turns in the same processes, and the
slowest process counts. {size:,} parameters, batches of {batch_size}. Gradient:
and its step, with momentum. Encode: up to the first messages; a mean in two
passes encodes its own chunk once more, which is reckoned as 1/n of that. Send:
the same collectives with as many bytes, one after the other and nothing beside
them. Decode and mean: the rest of what is computed when every collective is a
copy. Rest: what these do not make up, as the wait for the slowest; below 0
where messages travel while something is computed. kB of each worker in a step,
as the kernel counts them.

Load of the machine {least:.1f} to {most:.1f}, of which the processes themselves
are up to {n}; {machine}.
"""


@running.command
def main(argv=None) -> int:
  args = parsed(argv)
  methods = args.methods.split(',')
  if unknown := [name for name in methods if name not in steps.METHODS]:
    raise ValueError(f'{unknown} unknown; choose from {steps.METHODS}.')
  rates = args.rates.split(',')
  links = {rate: laboratory.linked(rate, args) for rate in rates}
  args.out.mkdir(parents=True, exist_ok=True)
  for n in map(int, args.workers.split(',')):
    for rate, link in links.items():
      measure(methods, rate, link, argparse.Namespace(**vars(args), n=n))
  write(args.out)
  return 0


def parsed(argv):
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.network.parts',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--rates', default='100mbit,10mbit', help='a comma list')
  add('--methods', default=','.join(METHODS), help='a comma list')
  add('--workers', default='2,4,8', help='a comma list')
  add('--batch_size', type=int, default=16, help='images per worker')
  add('--steps', type=int, default=2, help='in a block')
  add('--local_steps', type=int, default=10, help='in one that sends nothing')
  add('--rounds', type=int, default=3, help='blocks of each part')
  add('--limit', type=float, default=900.0, help='seconds for a link')
  add('--out', type=pathlib.Path, required=True)
  parser.set_defaults(model=MODEL, beside=None, delay_ms=0.0)
  parser.set_defaults(mtu=namespaces.MTU)
  return parser.parse_args(argv)


def measure(methods, rate, link, args) -> None:
  """Runs the cells of one link and number of workers that are not there."""
  file = args.out / 'cells.jsonl'
  there = laboratory.methods_there(file, rate, link, args)
  missing = [method for method in methods if method not in there]
  if not missing:
    return
  with namespaces.network(args.n, link) as network:
    cells = laboratory.run(missing, rate, network, link, args)
  kept.write_lines(file, [*kept.read_lines(file), *cells])
  for cell in cells:
    print(f'{args.n} workers, {report.one_line(cell)}', flush=True)


def write(out) -> None:
  """Puts the section at the end of DIR/training.md; prints it."""
  path, text = out / 'training.md', section(out)
  before = path.read_text().split(HEADING)[0] if path.exists() else ''
  path.write_text(before + text)
  print(text)


def section(out) -> str:
  """The table of all cells that are there; nothing if there are none."""
  cells = kept.read_lines(out / 'cells.jsonl')
  own = sorted((c for c in cells if c['model'] == MODEL), key=lambda c: c['n'])
  if not own:
    return ''
  loads = [cell['largest_load'] for cell in own]
  about = own[-1] | dict(least=min(loads), most=max(loads))
  for name in ('rounds', 'steps', 'local_steps', 'batch_size'):
    found = sorted({cell[name] for cell in own})
    about[name] = ' or '.join(map(str, found))
  rows = [_row(cell) for cell in report.ordered(own, steps.METHODS)]
  text = tables.markdown(TITLES, rows, words=2)
  return HEADING + text + NOTES.format(**about)


def split(cell: dict) -> dict[str, float]:
  """Seconds of a step, and what they are made of, in order.

  >>> seconds = dict(full=9.0, compute=2.0, codec=4.0, encode=1.0, messages=2.5)
  >>> parts = {name: {'seconds': s} for name, s in seconds.items()}
  >>> split({'parts': parts, 'two_passes': True, 'n': 2})['encode']
  1.5
  """
  of = {name: part['seconds'] for name, part in cell['parts'].items()}
  encode = of['encode'] * (1 + cell['two_passes'] / cell['n'])
  made = {
    'gradient': of['compute'],
    'encode': encode,
    'send': of['messages'],
    'decode': of['codec'] - encode,
  }
  return {'step': of['full'], **made, 'rest': of['full'] - sum(made.values())}


def _row(cell):
  ms = [f'{1e3 * seconds:.1f}' for seconds in split(cell).values()]
  kb = f'{1e-3 * cell["parts"]["full"]["tx_bytes"]:.0f}'
  title = f'{cell["title"]} (`{cell["method"]}`)'
  return [cell['rate'], title, str(cell['n']), *ms, kb]


if __name__ == '__main__':
  sys.exit(main())
