"""Which method reaches a loss first, by the clock, on slow links?

  python -m benchmarks.network.training --data_dir=DATA --out=results/network
  python -m benchmarks.network.training --config=configs/text.py --out=DIR

On Linux as root. Runs `train.py` as n processes in n network namespaces, for
each method of a config file, each link and each seed, each in a work directory
RUNS/RATE-DELAY-METHOD-seedS, keeps them in DIR and writes DIR/training.md and a
figure. No delay and seed 0 are not in the name. A run that trains more than so
many seconds is stopped where it is; one that is there is not run again. With
JAX_COMPILATION_CACHE_DIR set, a method compiles once for all links and seeds.
"""

import argparse
import os
import pathlib
import runpy
import shutil
import sys

from benchmarks import seeds
from benchmarks.network import curves, figures, namespaces, parts, running
from moniqua_jax.plots import kept
from moniqua_jax.training import metrics, workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENDS = ('done', 'stopped')  # of runs that did not fail
PORT = 7000  # nobody else lives in the namespace
ROWS = 10_000  # of a run, all of them: its seconds are those of single rows


@running.command
def main(argv=None) -> int:
  args = parsed(argv)
  methods = tuple(runpy.run_path(str(args.config)).get('METHODS', ()))
  if not methods:
    raise ValueError(f'{args.config} has no METHODS.')
  args.methods = args.methods.split(',') if args.methods else methods
  for method in args.methods:
    if method not in methods:
      raise ValueError(f'method {method!r}; choose from {methods}.')
  links = {
    (rate, delay): namespaces.Link(
      namespaces.parse_rate(rate), namespaces.parse_delay(delay)
    )
    for rate in args.rates.split(',')
    for delay in args.delays.split(',')
  }
  args.out.mkdir(parents=True, exist_ok=True)
  failed = []
  for seed in range(args.seeds):  # if time is up, some of all
    for (rate, delay), link in links.items():
      failed += train_all(dict(rate=rate, delay=delay, seed=seed), link, args)
  if (args.out / 'runs.jsonl').exists():
    write(curves.loaded(args.out, methods), args.target, args.out)
  return 1 if failed else 0


def parsed(argv):
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.network.training',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  default = os.path.relpath(ROOT / 'configs/network_cifar10_cpu.py')
  add('--config', type=pathlib.Path, default=default, help='has METHODS')
  add('--data_dir', help='a TFDS directory with cifar10/3.0.2')
  add('--rates', default='100mbit,10mbit', help='a comma list')
  add('--delays', default='0ms', help="a comma list, as '0ms,20ms'")
  add('--methods', help='a comma list; all if not given')
  add('--seeds', type=int, default=1, help='of each method on each link')
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
  add('--runs', type=pathlib.Path, help='runs/network, and in it by config')
  args = parser.parse_args(argv)
  if odd := [entry for entry in args.set if '=' not in entry]:
    parser.error(f'--set={odd[0]}; give ENTRY=VALUE.')
  args.runs = args.runs or pathlib.Path('runs/network', args.config.stem)
  return args


def train_all(about, link, args) -> list[str]:
  """Makes the runs of one link and seed that are not there; who failed."""
  there = seeds.found(args.out)
  names = {method: name(method, **about) for method in args.methods}
  missing = {method: run for method, run in names.items() if run not in there}
  failed = []
  if not missing:
    return failed
  with namespaces.network(args.n, link) as network:
    for method, run in missing.items():
      folder = args.runs / run
      ended = train(method, about['seed'], network, folder, args)
      note = {**about, 'method': method, 'ended': ended}
      note |= {'seconds': args.seconds, 'load': os.getloadavg()}
      note |= {'bucket': namespaces.bucket(link), 'mtu': link.mtu}
      if (folder / 'metrics.jsonl').exists():  # also of one that failed
        workdir.note(folder, network=note)
        kept.write([kept.load(folder)], args.out, ROWS)
      print(f'{run}: {ended}', flush=True)
      failed += [run] if ended not in ENDS else []
  return failed


def name(method, rate, delay, seed) -> str:
  """Of a run.

  >>> name('dpsgd', '10mbit', '0ms', 0), name('dpsgd', '10mbit', '20ms', 1)
  ('10mbit-dpsgd', '10mbit-20ms-dpsgd-seed1')
  """
  late = [delay] if namespaces.parse_delay(delay) else []
  return '-'.join([rate, *late, method, *([f'seed{seed}'] if seed else [])])


def train(method, seed, network, folder, args) -> str:
  """Runs train.py in all namespaces; how it ended."""
  shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
  entries = {'workers': args.n, 'seed': seed}
  entries |= dict(entry.split('=', 1) for entry in args.set)
  if args.data_dir:
    entries['data.data_dir'] = args.data_dir
  commands = [
    command(f'{args.config}:{method}', i, network, folder, entries)
    for i in range(args.n)
  ]
  logs = folder.with_name(folder.name + '.logs')
  enough = lambda: trained(folder) > args.seconds
  try:
    done = running.run(network, commands, logs, args.limit, enough)
    ended = 'done' if done else 'stopped'
  except running.Failed as failed:
    ended = str(failed)
  if ended in ENDS:
    shutil.rmtree(logs)  # else they say more
  shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
  return ended


def trained(folder) -> float:
  """Seconds between the first and the last row of a run, so far."""
  if not (folder / 'metrics.jsonl').exists():
    return 0.0
  rows = metrics.read(folder)
  return rows[-1]['seconds'] - rows[0]['seconds'] if rows else 0.0


def command(config, i, network, folder, entries) -> list[str]:
  """The command of one process."""
  return [
    sys.executable,
    str(ROOT / 'train.py'),
    f'--config={config}',
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
  text = curves.table(runs, target) + parts.section(out)
  (out / 'training.md').write_text(text)
  figures.first(runs, target, out / 'training')
  print(text)


if __name__ == '__main__':
  sys.exit(main())
