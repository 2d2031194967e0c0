"""Which method reaches a loss first, by the clock, on slow links?

  python -m benchmarks.network.training --data_dir=DATA --out=results/network

On Linux as root. Runs `train.py` as n processes in n network namespaces, for
each method of configs/network_cifar10_cpu.py and each rate, each in a work
directory RUNS/RATE-METHOD, keeps them in DIR and writes DIR/training.md and a
figure. A run that trains more than so many seconds is stopped where it is; one
that is there is not run again. With JAX_COMPILATION_CACHE_DIR set, a method
compiles once for all rates.
"""

import argparse
import os
import pathlib
import shutil
import sys

from benchmarks import seeds
from benchmarks.network import curves, figures, namespaces, running
from configs import network_cifar10_cpu
from moniqua_jax.plots import kept
from moniqua_jax.training import metrics, workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
METHODS = tuple(network_cifar10_cpu.METHODS)
PORT = 7000  # nobody else lives in the namespace


def main(argv=None) -> int:
  args = parsed(argv)
  try:
    for method in args.methods.split(','):
      if method not in METHODS:
        raise ValueError(f'method {method!r}; choose from {METHODS}.')
    rates = args.rates.split(',')
    links = [namespaces.Link(namespaces.parse_rate(r)) for r in rates]
    for rate, link in zip(rates, links, strict=True):
      train_all(rate, link, args)
    if (args.out / 'runs.jsonl').exists():
      write(curves.loaded(args.out, METHODS), args.target, args.out)
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted; the namespaces are gone.', file=sys.stderr)
    return 130
  return 0


def parsed(argv):
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.network.training',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--data_dir', help='a TFDS directory with cifar10/3.0.2')
  add('--rates', default='100mbit,10mbit', help='a comma list')
  add('--methods', default=','.join(METHODS), help='a comma list')
  add('--n', type=int, default=8, help='workers')
  add('--seconds', type=float, default=300.0, help='of training, for a run')
  add('--limit', type=float, default=1200.0, help='seconds, with all it takes')
  add('--target', type=float, help='a loss; one that all reach if not given')
  add(
    '--set',
    action='append',
    default=[],
    metavar='ENTRY=VALUE',
    help='an entry of the config, for all methods',
  )
  add('--out', type=pathlib.Path, required=True)
  add('--runs', type=pathlib.Path, default=pathlib.Path('runs/network'))
  return parser.parse_args(argv)


def train_all(rate, link, args) -> None:
  """The runs of one rate that are not there."""
  there = seeds.found(args.out)
  folders = {
    method: args.runs / f'{rate}-{method}'
    for method in args.methods.split(',')
    if f'{rate}-{method}' not in there
  }
  if not folders:
    return
  with namespaces.network(args.n, link) as network:
    for method, folder in folders.items():
      ended = train(method, network, folder, args)
      note = {'rate': rate, 'method': method, 'ended': ended}
      note |= {'seconds': args.seconds, 'load': os.getloadavg()}
      note |= {'bucket': namespaces.bucket(link), 'mtu': link.mtu}
      if (folder / 'metrics.jsonl').exists():  # also of one that failed
        workdir.note(folder, network=note)
        kept.write([kept.load(folder)], args.out)
      print(f'{rate}, {method}: {ended}', flush=True)


def train(method, network, folder, args) -> str:
  """Runs train.py in all namespaces; how it ended."""
  shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
  entries = {'workers': args.n, **dict(e.split('=', 1) for e in args.set)}
  if args.data_dir:
    entries['data.data_dir'] = args.data_dir
  commands = [
    command(method, i, network, folder, entries) for i in range(args.n)
  ]
  logs = folder.with_name(folder.name + '.logs')
  enough = lambda: trained(folder) > args.seconds
  try:
    done = running.run(network, commands, logs, args.limit, enough)
    ended = 'done' if done else 'stopped'
  except running.Failed as failed:
    ended = str(failed)
  if ended in ('done', 'stopped'):
    shutil.rmtree(logs)  # else they say more
  shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
  return ended


def trained(folder) -> float:
  """Seconds between the first and the last row of a run, so far."""
  if not (folder / 'metrics.jsonl').exists():
    return 0.0
  rows = metrics.read(folder)
  return rows[-1]['seconds'] - rows[0]['seconds'] if rows else 0.0


def command(method, i, network, folder, entries) -> list[str]:
  """The command of one process."""
  return [
    sys.executable,
    str(ROOT / 'train.py'),
    f'--config={ROOT / network_cifar10_cpu.FILE}:{method}',
    *(f'--config.{name}={value}' for name, value in entries.items()),
    f'--workdir={pathlib.Path(folder).resolve()}',
    f'--coordinator_address={network.addresses[0]}:{PORT}',
    f'--num_processes={len(network.names)}',
    f'--process_id={i}',
  ]


def write(runs, target, out) -> None:
  """DIR/training.md, and DIR/training.svg and .png; prints the table."""
  if not runs:
    return
  target = target or curves.reached_by_all(runs)
  text = curves.table(runs, target)
  (out / 'training.md').write_text(text)
  figures.losses(runs, target, out / 'training')
  print(text)


if __name__ == '__main__':
  sys.exit(main())
