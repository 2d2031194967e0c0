"""Changes the library in one place at a time, and sees whether a test notices.

  python -m benchmarks.mutants --minutes=60
  python -m benchmarks.mutants --again --only=quantizers/qsgd.py

Mutants are drawn with a fixed seed, as many of each module as `MODULES` says;
those of `FIRST` come before the others. Each is written into a copy of the
repository, where the fast tests that concern its module run until one fails;
first they must pass without a change.
Verdicts are kept, so a run goes on where the last one ended; `--again` runs
those once more that survived, and keeps a `why` that was written by hand.

results/trust/mutants.jsonl has a line for each, mutants.md all as tables.
"""

import argparse
import ast
from collections.abc import Iterator
import contextlib
import copy
import json
import os
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEPT = ROOT / 'results' / 'trust' / 'mutants.jsonl'
COMPILED = '.pytest_cache/jax'
SECONDS = 300  # of a CPU, for a mutant: who takes longer hangs


class Module(NamedTuple):
  """How many mutants of a module are drawn, and what should notice them."""

  count: int
  tests: str  # tests/test_NAME.py, in this order
  only: str = ''  # which of their tests, as for `pytest -k`


_BATTERIES = 'quantizers properties edge_values'
_OF_MONIQUA = (
  'quantizers fitted_theta properties edge_values moniqua gossip',
  'moniqua and (round_the_same or no_sender or properties or edge or digest'
  ' or 1-dithered or 4-stochastic or 3-nearest or refuse or one_pass)'
  ' or recomputes or mixing and 1-dithered or equals_are or square_is',
)
MODULES = {
  'wire.py': Module(18, 'wire'),
  'quantizers/moniqua.py': Module(18, *_OF_MONIQUA),
  'quantizers/circle.py': Module(8, *_OF_MONIQUA),
  'quantizers/digest.py': Module(4, 'moniqua', 'digest or turn or wrap'),
  'quantizers/buckets.py': Module(
    10,
    _BATTERIES,
    'round_the_same or qsgd or terngrad or level or quotient or norm'
    ' or message_is',
  ),
  'quantizers/qsgd.py': Module(
    8, f'{_BATTERIES} variance', 'qsgd or terngrad or level_is or two_levels'
  ),
  'quantizers/nuqsgd.py': Module(
    10, _BATTERIES, 'nuqsgd or natural or level_is or two_levels'
  ),
  'quantizers/leveled.py': Module(8, _BATTERIES, 'level'),
  'gossip.py': Module(15, 'gossip check'),
  'quantized_mean.py': Module(11, 'reduce sparse smooth_algorithms'),
  'topologies/base.py': Module(6, 'topologies'),
  'topologies/named.py': Module(6, 'topologies'),
  'topologies/given.py': Module(4, 'topologies'),
  'topologies/finite_time.py': Module(2, 'topologies'),
  'topologies/agreement.py': Module(2, 'topologies agreement'),
  'algorithms/fragments.py': Module(7, 'streaming'),
  'algorithms/dpsgd.py': Module(2, 'algorithms decentralized', 'dpsgd'),
  'algorithms/d2.py': Module(2, 'decentralized', 'd2'),
  'algorithms/choco.py': Module(2, 'lost_steps decentralized', 'choco'),
  'algorithms/dcd.py': Module(2, 'lost_steps decentralized', 'dcd'),
  'algorithms/deepsqueeze.py': Module(
    2, 'lost_steps decentralized', 'deepsqueeze'
  ),
  'algorithms/push_sum.py': Module(3, 'decentralized push_sum', 'push_sum'),
  'algorithms/error_feedback.py': Module(2, 'reduce'),
  'algorithms/diana.py': Module(2, 'smooth_algorithms', 'diana'),
}
# Parts of changes that were not noticed once, before there were tests for them.
FIRST = ('optimization_barrier(', 'rounded(', 'clip(', 'small', 'isfinite(')
COMPARED = {
  **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
  **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
}
COMPUTED = {
  **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
  **{ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult},
  **{ast.LShift: ast.RShift, ast.RShift: ast.LShift},
  **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr},
}
# Functions and methods that are left out: their first argument stays.
LEFT_OUT = {
  *('optimization_barrier', 'rounded', 'clip', 'minimum', 'maximum', 'rint'),
  *('floor', 'abs', 'sealed', '_as_vector', 'compute_once', '_replace'),
  *('sendable', 'known', 'finite', 'sorted'),
}
MODULE_NAMES = ('jnp', 'np', 'lax', 'jax', 'base', 'edge', 'digest', 'buckets')


class Mutant(NamedTuple):
  """One change: `before`, which starts at (line, column), becomes `after`."""

  module: str
  line: int
  column: int
  kind: str
  before: str
  after: str

  def text(self) -> str:
    """The module with the change."""
    lines = _source(self.module).splitlines(keepends=True)
    at = sum(map(len, lines[: self.line - 1])) + self.column
    before, after = ''.join(lines)[:at], ''.join(lines)[at:]
    assert after.startswith(self.before)
    return before + self.after + after[len(self.before) :]


def _source(module: str) -> str:
  return (ROOT / 'moniqua_jax' / module).read_text()


# --------------------------------------------------------------------- changes


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
  """Yields (kind, what is replaced, by what) of a node."""
  match node:
    case ast.Compare(ops=[op]) if type(op) in COMPARED:
      yield 'comparison', node, _with(node, ops=[COMPARED[type(op)]()])
    case ast.BinOp(op=op) if type(op) in COMPUTED:
      yield 'arithmetic', node, _with(node, op=COMPUTED[type(op)]())
    case ast.AugAssign(op=op) if type(op) in COMPUTED:
      yield 'arithmetic', node, _with(node, op=COMPUTED[type(op)]())
      yield 'left out', node, ast.Pass()
    case ast.Constant(value=bool(value)):
      yield 'constant', node, ast.Constant(not value)
    case ast.Constant(value=int(value) | float(value)):
      yield 'constant', node, ast.Constant(value + 1)
    case ast.UnaryOp(op=ast.Invert() | ast.Not(), operand=operand):
      yield 'negated', node, operand
    case ast.If(test=test) | ast.IfExp(test=test):
      yield 'negated', test, ast.UnaryOp(ast.Not(), test)
    case ast.BoolOp(op=op):
      other = ast.Or() if isinstance(op, ast.And) else ast.And()
      yield 'negated', node, _with(node, op=other)
    case ast.Call(func=func, args=args):
      yield from _of_call(node, func, args)


def _of_call(node, func, args):
  name = getattr(func, 'attr', getattr(func, 'id', ''))
  own = getattr(func, 'value', None)
  of_module = isinstance(own, ast.Name) and own.id in MODULE_NAMES
  given = args if own is None or of_module else [own, *args]
  if name in LEFT_OUT and given:
    yield 'left out', node, given[0]
  if name == 'where' and len(args) == 3:
    yield 'left out', node, args[1]
  if len(args) > 1 and not any(isinstance(arg, ast.Starred) for arg in args):
    yield 'swapped', node, _with(node, args=[args[1], args[0], *args[2:]])


def _with(node, **fields) -> ast.AST:
  changed = copy.copy(node)
  for name, value in fields.items():
    setattr(changed, name, value)
  return changed


def _computing(node: ast.AST) -> Iterator[ast.AST]:
  """Walks over what computes: not annotations, and not what errors say."""
  if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
    return
  yield node
  for name, value in ast.iter_fields(node):
    for child in value if isinstance(value, list) else [value]:
      if isinstance(child, ast.AST) and name not in ('annotation', 'returns'):
        yield from _computing(child)


def every(module: str) -> list[Mutant]:
  """All mutants of a module, in the order of its lines."""
  source, found = _source(module), []
  for node in _computing(ast.parse(source)):
    for kind, old, new in changes(node):
      before = ast.get_source_segment(source, old)
      after = ast.unparse(ast.fix_missing_locations(new))
      if isinstance(new, ast.expr):
        after = f'({after})'
      place = module, old.lineno, old.col_offset
      found.append(Mutant(*place, kind, before, after))
  return sorted(set(found))


def drawn() -> list[Mutant]:
  """The mutants that are tried: those of `FIRST`, and then the others."""
  first, others = [], []
  for module, (count, *_) in MODULES.items():
    there = every(module)
    random.Random(module).shuffle(there)
    known = [m for m in there if any(part in m.before for part in FIRST)]
    known = [m for m in known if m.kind in ('left out', 'comparison')][:count]
    first += known
    # Most swaps change types, which any test notices: one in six at most.
    swaps = [m for m in there if m.kind == 'swapped'][count // 6 :]
    rest = [m for m in there if m not in known and m not in swaps]
    others += rest[: count - len(known)]
  return first + others


# ------------------------------------------------------------------------ runs


class Recorder:
  """A plugin of pytest that remembers the first test that failed."""

  failed = ''

  def pytest_runtest_logreport(self, report):
    if report.failed and not self.failed:
      self.failed = report.nodeid

  pytest_collectreport = pytest_runtest_logreport


def tried(folder: pathlib.Path, module: str, text: str) -> tuple[str, str]:
  """Runs the tests on a changed module: (verdict, by which test)."""
  path = folder / 'moniqua_jax' / module
  path.write_text(text)
  came, goes = os.pipe()
  child = os.fork()
  if not child:
    try:
      os.write(goes, _pytest(folder, MODULES[module]).encode())
    except BaseException as error:
      os.write(goes, f'broken {error!r}'.encode())
    os._exit(0)  # whatever happens: this is a copy of the one that goes on
  os.close(goes)
  with os.fdopen(came) as pipe:
    said = pipe.read()
  os.waitpid(child, 0)
  path.write_text(_source(module))
  verdict, _, by = said.partition(' ')
  if verdict == 'broken':
    raise RuntimeError(by)
  return verdict or 'hangs', by  # or ended by a signal


def _pytest(folder, module: Module) -> str:
  import pytest

  resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
  os.environ['MONIQUA_NATIVE'] = '0'  # what is changed are the jnp forms
  os.chdir(folder)
  with open('pytest.out', 'w') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  sys.path.insert(0, str(folder))
  sys.dont_write_bytecode = True  # two changes in one second look the same
  recorder = Recorder()
  files = [f'tests/test_{name}.py' for name in module.tests.split()]
  plain = ['-x', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist']
  status = pytest.main([*plain, '-k', module.only, *files], [recorder])
  if status == pytest.ExitCode.OK:
    return 'survived'
  return f'killed {recorder.failed or status.name}'


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
    passed = set()
    for mutant in todo:
      if time.monotonic() > until:
        return
      if mutant.module not in passed:
        verdict, by = tried(copied, mutant.module, _source(mutant.module))
        if verdict != 'survived':
          sys.exit(f'error: {mutant.module} without a change: {verdict} {by}')
        passed.add(mutant.module)
      began = time.monotonic()
      verdict, by = tried(copied, mutant.module, mutant.text())
      seconds = round(time.monotonic() - began)
      row = dict(verdict=verdict, by=by, seconds=seconds)
      known = done.get(mutant, {}) if verdict == 'survived' else {}
      done[mutant] = known | row
      print(f'{verdict} {mutant.module}:{mutant.line} {by} {seconds} s')
      keep(done)


# --------------------------------------------------------------------- verdicts


def kept() -> dict[Mutant, dict]:
  """What is known of mutants that were tried, and are still drawn."""
  if not KEPT.exists():
    return {}
  rows = map(json.loads, KEPT.read_text().splitlines())
  known = {Mutant(*(row.pop(f) for f in Mutant._fields)): row for row in rows}
  return {mutant: known[mutant] for mutant in drawn() if mutant in known}


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
  parser.add_argument('--again', action='store_true', help='who survived')
  parser.add_argument('--list', action='store_true', help='run nothing')
  args = parser.parse_args()
  done = kept()
  asked = [m for m in drawn() if args.only in m.module]
  todo = [
    m
    for m in asked
    if (done[m]['verdict'] == 'survived' if m in done else not args.again)
    and (args.again or m not in done)
  ]
  if args.list:
    print('\n'.join(f'{m.module}:{m.line} {m.before!r}' for m in todo))
    return
  run(todo, done, args.minutes)


if __name__ == '__main__':
  main()
