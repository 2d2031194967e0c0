"""Changes the library in one place at a time, and sees whether a test notices.

  python -m benchmarks.mutants --minutes=60
  python -m benchmarks.mutants --again --only=quantizers/qsgd.py

As many mutants of each module are drawn as `MODULES` says: those that have a
verdict, then those of `FIRST`, then others, in an order that other lines do not
change. Each is written into a copy of the repository, where the fast tests that
concern its module run until one fails; first they must pass without a change.
Verdicts are kept, so a run goes on where the last one ended; `--again` tries
all of them once more, beginning with the test that noticed a mutant last time,
and keeps a `why` that was written by hand.

results/trust/mutants.jsonl has a line for each, mutants.md all as tables.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import tempfile
import time

from benchmarks.mutants.changes import Mutant, drawn, every
from benchmarks.mutants.modules import MODULES, ROOT
from benchmarks.mutants.trials import Trials

KEPT = ROOT / 'results' / 'trust' / 'mutants.jsonl'
COMPILED = '.pytest_cache/jax'


def run(todo: list[Mutant], done: dict, minutes: float) -> None:
  """Tries mutants, and keeps each verdict as it comes."""
  import jax  # noqa: F401  what all children would import
  import optax  # noqa: F401
  import pytest  # noqa: F401

  until = time.monotonic() + 60 * minutes
  with tempfile.TemporaryDirectory() as folder:
    copied = pathlib.Path(folder, 'copy')
    leave = shutil.ignore_patterns('.*', 'runs', 'site', '__pycache__')
    shutil.copytree(ROOT, copied, ignore=leave)
    with contextlib.suppress(FileNotFoundError):  # what is compiled already
      shutil.copytree(ROOT / COMPILED, copied / COMPILED)
    trials = Trials(copied)
    for mutant in todo:
      if time.monotonic() > until:
        return
      began, known = time.monotonic(), done.get(mutant, {})
      verdict, by = trials.verdict(mutant, known.get('by', ''))
      seconds = round(time.monotonic() - began)
      row = dict(verdict=verdict, by=by, seconds=seconds)
      done[mutant] = (known if verdict == 'survived' else {}) | row
      print(f'{verdict} {mutant.module}:{mutant.line} {by} {seconds} s')
      keep(done)


def kept() -> dict[Mutant, dict]:
  """What is known of mutants that are still there, though lines have moved."""
  rows = KEPT.read_text().splitlines() if KEPT.exists() else []
  now = {module: every(module) for module in MODULES}
  known = {}
  for row in map(json.loads, rows):
    old = Mutant(*(row.pop(field) for field in Mutant._fields))
    same = [m for m in now.get(old.module, ()) if m[3:] == old[3:]]
    here = [m for m in same if m == old] or same
    if len(here) == 1:
      known[here[0]] = row
  return known


def keep(done: dict[Mutant, dict]) -> None:
  """Writes both files."""
  KEPT.parent.mkdir(exist_ok=True)
  lines = [json.dumps(m._asdict() | row) for m, row in sorted(done.items())]
  KEPT.write_text('\n'.join(lines) + '\n')
  KEPT.with_suffix('.md').write_text(report(done))


def report(done: dict[Mutant, dict]) -> str:
  """All mutants as tables: those that survived, then those that did not."""
  lived = {m: row for m, row in done.items() if row['verdict'] == 'survived'}
  equal = sum('why' in row for row in lived.values())
  lines = [
    '# Mutants',
    '',
    'Written by `python -m benchmarks.mutants`: each is one change of the '
    'library, tried with the fast tests that concern its module.',
    '',
    f'{len(done)} tried, {len(done) - len(lived)} noticed, {len(lived)} not; '
    f'of these {equal} change nothing that can be seen, for the reason given.',
  ]
  for title, rows in (('Not noticed', lived), ('Noticed', done)):
    lines += ['', f'## {title}', '', '| where | before | after | verdict |']
    lines += ['|---|---|---|---|']
    for m, row in sorted(rows.items()):
      if title == 'Not noticed' or m not in lived:
        lines.append(_row(m, row))
  return '\n'.join(lines) + '\n'


def _row(m: Mutant, row: dict) -> str:
  code = lambda text: '`' + ' '.join(text.split()).replace('|', '\\|') + '`'
  said = row.get('why') or f'{row["verdict"]} {row["by"]}'.strip()
  where = f'{m.module}:{m.line}'
  return f'| {where} | {code(m.before)} | {code(m.after)} | {said} |'


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--minutes', type=float, default=60)
  parser.add_argument('--only', default='', help='a part of a module')
  parser.add_argument('--again', action='store_true', help='all once more')
  parser.add_argument('--list', action='store_true', help='run nothing')
  args = parser.parse_args()
  done = kept()
  asked = [m for m in drawn(done) if args.only in m.module]
  todo = [m for m in asked if args.again or m not in done]
  if args.list:
    print('\n'.join(f'{m.module}:{m.line} {m.before!r}' for m in todo))
    return
  run(todo, done, args.minutes)


if __name__ == '__main__':
  main()
