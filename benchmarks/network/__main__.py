"""How long does a step take on slow links, and what of it is communication?

  python -m benchmarks.network --out=results/network

On Linux as root. n processes in n network namespaces (see namespaces.py) take
steps of each method on noise in the form of CIFAR-10. Each cell, a method at a
rate, is a line of DIR/cells.jsonl, and one that is there is not run again;
DIR/MODEL-nN.md, .png and .svg show all that are there. With
JAX_COMPILATION_CACHE_DIR set, a method compiles once for all rates.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

from benchmarks.network import figures, namespaces, report, running, steps
from moniqua_jax.plots import kept, tables
from moniqua_jax.training import workdir

PORT = 7000  # nobody else lives in the namespace
RATES = 'loopback,1gbit,100mbit,10mbit'


@running.command
def main(argv=None) -> int:
  args = parsed(argv)
  for method in (*args.methods.split(','), args.beside or 'dpsgd'):
    if method not in steps.METHODS:
      raise ValueError(f'method {method!r}; choose from {steps.METHODS}.')
  links = {rate: linked(rate, args) for rate in args.rates.split(',')}
  failed = [measure(rate, link, args) for rate, link in links.items()]
  return 1 if any(failed) else 0


def parsed(argv):
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.network',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--rates', default=RATES, help=f'a comma list; {RATES}')
  add('--methods', default=','.join(steps.METHODS), help='a comma list')
  add('--beside', help='a method whose step takes turns with those of each')
  add('--model', choices=steps.MODELS, default='resnet20')
  add('--n', type=int, default=8, help='workers')
  add('--batch_size', type=int, default=16, help='images per worker')
  add('--steps', type=int, default=3, help='in a block')
  add('--local_steps', type=int, help='in a block that sends nothing')
  add('--rounds', type=int, default=5, help='blocks of each part')
  add('--mtu', type=int, default=namespaces.MTU, help='bytes of an IP packet')
  add('--delay_ms', type=float, default=0.0, help='from worker to worker')
  add('--limit', type=float, default=900.0, help='seconds for a cell')
  add('--out', type=pathlib.Path, required=True)
  args = parser.parse_args(argv)
  args.local_steps = args.local_steps or args.steps
  return args


def linked(rate, args) -> namespaces.Link:
  """The link of a rate; loopback has no packets to size and no delay."""
  bits = namespaces.parse_rate(rate)
  if bits is None:
    return namespaces.Link(None)
  return namespaces.Link(bits, 1e-3 * args.delay_ms, args.mtu)


def measure(rate, link, args) -> list[str]:
  """Runs the cells of one rate that are not there, and writes the table.

  Returns:
    The methods that failed or took too long.
  """
  file, failures = args.out / 'cells.jsonl', []
  args.out.mkdir(parents=True, exist_ok=True)
  there = methods_there(file, rate, link, args)
  asked = args.methods.split(',')
  missing = [method for method in asked if method not in there]
  if missing:
    with namespaces.network(args.n, link) as network:
      for method in missing:
        try:
          (cell,) = run([method], rate, network, link, args)
        except running.Failed as failed:
          print(f'{rate}, {method}: {failed}', flush=True)
          failures.append(method)
          continue
        kept.write_lines(file, [*kept.read_lines(file), cell])
        print(report.one_line(cell), flush=True)
  if cells := report.ordered(in_series(file, args), steps.METHODS):
    series = f'{args.model}-n{args.n}'
    (args.out / f'{series}.md').write_text(report.table(cells))
    figures.bars(cells, args.out / series)
  return failures


def methods_there(file, rate, link, args) -> set[str]:
  """The methods whose cell at a rate is there, measured as is asked now."""
  own = dict(delay=link.delay, mtu=link.mtu, batch_size=args.batch_size)
  there = {
    cell['method']: {key: (cell | cell['link'])[key] for key in own}
    for cell in in_series(file, args)
    if cell['rate'] == rate
  }
  for method in args.methods.split(','):
    if (held := there.get(method, own)) != own:
      raise ValueError(
        f'{file} has {method} at {rate} with {held}, not with {own}; take '
        'another --out.'
      )
  return set(there)


def in_series(file, args) -> list[dict]:
  """The cells that are there, of this model and number of workers."""
  own = (args.model, args.n)
  return [c for c in kept.read_lines(file) if (c['model'], c['n']) == own]


def run(methods, rate, network, link, args) -> list[dict]:
  """Cells: what all processes measured, and under which settings."""
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    commands = [
      worker(methods, i, network, folder, args) for i in range(args.n)
    ]
    running.run(network, commands, folder / 'logs', args.limit)
    reports = [
      json.loads((folder / f'{i}.json').read_text()) for i in range(args.n)
    ]
  return [
    {
      'rate': rate,
      **_about(method, link, args),
      **report.merged([r[method] for r in reports], network.interface == 'lo'),
      **workdir.provenance(),
      'load': os.getloadavg(),
    }
    for method in methods
  ]


def _about(method, link, args) -> dict:
  config = steps.configured(method, args.model, args.n, args.batch_size)
  config.variant = ''
  settings = ('model', 'n', 'batch_size', 'steps', 'local_steps', 'rounds')
  return {
    'method': method,
    'title': tables.method(json.loads(config.to_json())),
    'beside': args.beside,
    'two_passes': config.reduce.get('strategy') == 'scatter_reduce',
    **{name: getattr(args, name) for name in settings},
    'link': {**link._asdict(), 'bucket': namespaces.bucket(link)},
  }


def worker(methods, i, network, folder, args) -> list[str]:
  """The command of one process."""
  flags = {
    'methods': ','.join(methods),
    'model': args.model,
    'n': args.n,
    'process_id': i,
    'coordinator_address': f'{network.addresses[0]}:{PORT}',
    'interface': network.interface,
    'steps': args.steps,
    'local_steps': args.local_steps,
    'rounds': args.rounds,
    'batch_size': args.batch_size,
    'out': folder,
  }
  if args.beside:
    flags['beside'] = args.beside
  given = [f'--{name}={value}' for name, value in flags.items()]
  return [sys.executable, '-m', 'benchmarks.network.worker', *given]


if __name__ == '__main__':
  sys.exit(main())
