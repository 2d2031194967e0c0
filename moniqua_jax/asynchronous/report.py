"""The table of asynchronous runs, from what the runs wrote down.

python -m moniqua_jax.asynchronous.report runs/* --out=report
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from moniqua_jax.plots import tables
from moniqua_jax.training import metrics

# Column -> name in the last row of a worker's metrics, factor, format.
COLUMNS = {
  'steps': ('step', 1, '.0f'),
  'steps/s': ('pace/steps_per_second', 1, '.1f'),
  'averagings': ('pace/averagings', 1, '.0f'),
  'declined': ('pace/declined', 1, '.0f'),
  'unreadable': ('pace/unreadable', 1, '.0f'),
  'staleness': ('pace/staleness', 1, '.0f'),
  'MB sent': ('wire/bytes_sent', 1e-6, '.2f'),
  'test %': ('test/accuracy', 100, '.2f'),
}
NOTES = """\
steps/s: while training. averagings: with a neighbour, asked for by either;
unreadable: those of no use; declined: asked for while the neighbour was busy.
staleness: the most averagings that overtook one gradient. MB sent: headers and
pings included. test %: of the worker's own model."""


def workers_table(folder: pathlib.Path) -> str:
  """A row for each worker of a run, in markdown."""
  folders = sorted(folder.glob('worker*'), key=lambda f: int(f.name[6:]))
  if not folders:
    raise ValueError(f'{folder} holds no asynchronous run: no worker0.')
  lines = [['worker', *COLUMNS], ['---:'] * (1 + len(COLUMNS))]
  for own in folders:
    row = metrics.read(own)[-1]
    cells = [
      format(factor * row.get(name, float('nan')), spec)
      for name, factor, spec in COLUMNS.values()
    ]
    lines.append([own.name[6:], *cells])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def write(runs: Sequence, out) -> str:
  """Writes out/table.md of some runs."""
  runs, out = [pathlib.Path(run) for run in runs], pathlib.Path(out)
  each = [f'{run.name}:\n\n{workers_table(run)}' for run in runs]
  text = '\n'.join([tables.table(runs), *each])
  sources = '\n'.join(map(tables.source, tables.loaded(runs)))
  out.mkdir(parents=True, exist_ok=True)
  explained = f'{text}\n{tables.NOTES}\n\n{NOTES}\n\n{sources}\n'
  (out / 'table.md').write_text(explained)
  return text


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: prints the tables and writes them."""
  parser = argparse.ArgumentParser(
    prog='python -m moniqua_jax.asynchronous.report',
    description='Prints tables of asynchronous runs, and writes them.',
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='work directory')
  parser.add_argument('--out', required=True, help='folder to write into')
  args = parser.parse_args(argv)
  try:
    print(write(args.runs, args.out), end='')
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
