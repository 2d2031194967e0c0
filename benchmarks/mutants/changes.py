"""One change of the library at a time: what may be changed, and into what."""

import ast
from collections.abc import Container, Iterator
import copy
import random
from typing import NamedTuple

from benchmarks.mutants.modules import MODULES, source

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
  *('floor', 'abs', 'sealed', 'as_vector', 'compute_once', '_replace'),
  *('sendable', 'known', 'finite', 'sorted'),
}
MODULE_NAMES = (
  *('jnp', 'np', 'lax', 'jax', 'base', 'numerics', 'stripes', 'edge'),
  *('one_round', 'digest', 'buckets'),
)


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
    lines = source(self.module).splitlines(keepends=True)
    at = sum(map(len, lines[: self.line - 1])) + self.column
    before, after = ''.join(lines)[:at], ''.join(lines)[at:]
    assert after.startswith(self.before)
    return before + self.after + after[len(self.before) :]


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
  text, found = source(module), []
  for node in _computing(ast.parse(text)):
    for kind, old, new in changes(node):
      before = ast.get_source_segment(text, old)
      after = ast.unparse(ast.fix_missing_locations(new))
      if isinstance(new, ast.expr):
        after = f'({after})'
      place = module, old.lineno, old.col_offset
      found.append(Mutant(*place, kind, before, after))
  return sorted(set(found))


def drawn(done: Container[Mutant]) -> list[Mutant]:
  """The mutants that are tried: those of `done`, of `FIRST`, and others."""
  found: list[Mutant] = []
  # By what it becomes: so other lines do not change who is drawn.
  chance = lambda m: random.Random(f'{m.module} {m.after}').random()
  rank = lambda m: (m not in done, not _is_first(m), chance(m))
  for module, (count, *_) in MODULES.items():
    there = sorted(every(module), key=rank)
    # Most swaps change types, which any test notices: one in six at most.
    swaps = [m for m in there if m.kind == 'swapped'][count // 6 :]
    found += [m for m in there if m not in swaps][:count]
  return found


def _is_first(mutant: Mutant) -> bool:
  known = any(part in mutant.before for part in FIRST)
  return known and mutant.kind in ('left out', 'comparison')
