"""The table of asynchronous runs, from what the runs wrote down.

python -m moniqua_jax.asynchronous.report runs/* --out=report
"""

from collections.abc import Sequence
import pathlib
import sys

from moniqua_jax import command_line
from moniqua_jax.plots import kept, tables
from moniqua_jax.plots import runs as runs_lib
from moniqua_jax.training import whole

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


def workers_table(run: kept.Run) -> str:
  """A row for each worker of a run; ValueError if it was not asynchronous."""
  if not run.workers:
    raise ValueError(f'{run.name} holds no asynchronous run: no worker0.')
  rows = [
    [str(worker)]
    + [
      format(factor * row.get(name, float('nan')), spec)
      for name, factor, spec in COLUMNS.values()
    ]
    for worker, row in enumerate(run.workers)
  ]
  return tables.markdown(['worker', *COLUMNS], rows, words=0)


def write(runs: Sequence, out) -> str:
  """Writes out/table.md of work directories or kept folders; the tables."""
  found, out = kept.loaded(runs), pathlib.Path(out)
  each = [f'{run.name}:\n\n{workers_table(run)}' for run in found]
  text = '\n'.join([tables.table(runs), *each])
  sources = '\n'.join(map(tables.source, found))
  out.mkdir(parents=True, exist_ok=True)
  explained = f'{text}\n{tables.NOTES}\n\n{NOTES}\n\n{sources}\n'
  whole.write(out / 'table.md', explained)
  return text


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: prints the tables and writes them."""
  about = 'Prints tables of asynchronous runs, and writes them.'
  parser = runs_lib.of_runs('asynchronous.report', about)
  parser.add_argument('--out', required=True, help='folder to write into')
  args = parser.parse_args(command_line.at_home(argv))
  try:
    if args.keep:
      kept.write(kept.loaded(args.runs), args.out)
    print(write([args.out] if args.keep else args.runs, args.out), end='')
  except (OSError, ValueError) as error:
    return command_line.told(error)
  return 0


if __name__ == '__main__':
  with command_line.one_line_errors():
    sys.exit(main())
