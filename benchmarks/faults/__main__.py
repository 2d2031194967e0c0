"""Which faults does a run survive? Every one of them is done to real runs.

  python -m benchmarks.faults --out=results/trust

Trains the digits with 4 bits, shortly and with a checkpoint every third step:
undisturbed once, then killed, on a full disk, with flipped bits, with files
that were damaged. What was stopped goes on with --resume. It survives if state
and metrics are those of the undisturbed run in the end, bit for bit; named is
what cannot be undone, was said in one line, and had nothing written over it;
lost is all else, and silent what differs without a word. A full disk is a tmpfs
that is too small, for which it must be root: else those rows are left out.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import sys
import tempfile

from benchmarks.faults import kinds, runs
from moniqua_jax import command_line
from moniqua_jax.plots import kept, tables
from moniqua_jax.training import workdir


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(
    'python -m benchmarks.faults',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument(
    '--only', default=','.join(kinds.KINDS), help='some kinds, as a comma list'
  )
  parser.add_argument('--times', type=int, help='of each kind, in their place')
  args = parser.parse_args()
  names = args.only.split(',')
  if unknown := sorted(set(names) - set(kinds.KINDS)):
    parser.error(f'--only: {unknown} unknown; choose from {[*kinds.KINDS]}')
  args.out.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    os.environ |= {'FAULTS_COMPILED': f'{folder}/jax', 'FAULTS_SAID': folder}
    whole = pathlib.Path(folder, 'whole')
    assert runs.run(whole).status == 0
    for name in names:
      if kinds.KINDS[name].possible():
        write(args.out, name, list(tried(name, whole, args.times)))
  print((args.out / 'table.md').read_text())


def tried(name, whole, times):
  """Does a fault again and again; yields a row each."""
  kind = kinds.KINDS[name]
  times = times or kind.times
  for number in range(times):
    rng = random.Random(f'{name} {number}')
    with tempfile.TemporaryDirectory() as scratch:
      place = kinds.Place(whole, pathlib.Path(scratch), rng, number / times)
      came = kind.once(place)
    said = came.said.replace(scratch, '...')[:400]
    row = {'fault': name, 'number': number, **came._asdict(), 'said': said}
    print(json.dumps(row), file=sys.stderr, flush=True)
    yield row


def write(out, name, rows) -> None:
  """Puts the rows of a kind in the place of older ones, and draws the table."""
  path = out / 'runs.jsonl'
  others = [row for row in kept.read_lines(path) if row['fault'] != name]
  rows = sorted(
    others + rows,
    key=lambda r: (list(kinds.KINDS).index(r['fault']), r['number']),
  )
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (out / 'table.md').write_text(table(rows))


def table(rows) -> str:
  """A row for each kind of fault, and where it comes from."""
  count = collections.Counter((row['fault'], row['outcome']) for row in rows)
  cells = [
    [kind.what, str(sum(each)), *map(str, each)]
    for name, kind in kinds.KINDS.items()
    if sum(each := [count[name, outcome] for outcome in kinds.OUTCOMES])
  ]
  text = tables.markdown(['fault', 'tried', *kinds.OUTCOMES], cells)
  made = workdir.provenance()
  versions = ', '.join(f'{k} {v}' for k, v in made['versions'].items())
  about = __doc__.split('\n\n')[2]
  return (
    f'{text}\n{about}\n\n`python -m benchmarks.faults`, {made["date"]}, '
    f'{made["machine"]}; {versions}. Flags: {" ".join(runs.FLAGS)}. '
    'Each try is a line of runs.jsonl.\n'
  )


if __name__ == '__main__':
  main()
