"""Names of `moniqua_jax` have docstrings in one form; the reference shows all.

A docstring has one line; then, where they apply, `Args:` or `Attributes:`,
`Returns:`, `Raises:`; a doctest; and `Source:` in the packages that implement
papers. Everything else has one line, which ruff asks for. docs/reference must
show all that the packages export. Read from the text of the files: nothing is
imported.
"""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = [
  path.parent
  for path in sorted((ROOT / 'moniqua_jax').rglob('__init__.py'))
  if '\n__all__ = ' in path.read_text()
]
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
OF_PAPERS = ('algorithms', 'coding', 'quantizers', 'topologies')


@functools.cache
def tree(path):
  return ast.parse(path.read_text())


def module_file(dotted):
  path = ROOT.joinpath(*dotted.split('.'))
  return path / '__init__.py' if path.is_dir() else path.with_suffix('.py')


def text_of(node):
  if isinstance(node, DEFINITIONS):
    return ast.get_docstring(node) or ''
  if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
    return str(node.value.value)
  return ''


def definitions(path):
  """name -> node; an assignment stands with the string that follows it."""
  found, body = {}, tree(path).body
  for node, after in zip(body, [*body[1:], None], strict=True):
    if isinstance(node, DEFINITIONS):
      found[node.name] = node
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      is_text = isinstance(after, ast.Expr) and text_of(after)
      found[node.targets[0].id] = after if is_text else node
  return found


def exports(package):
  return ast.literal_eval(
    next(
      node.value
      for node in tree(package / '__init__.py').body
      if isinstance(node, ast.Assign) and node.targets[0].id == '__all__'
    )
  )


def origin(module, name):
  """Where an exported name is defined: module and name, or a module alone."""
  for node in ast.walk(tree(module_file(module))):
    if isinstance(node, ast.ImportFrom):
      if any((alias.asname or alias.name) == name for alias in node.names):
        inner = f'{node.module}.{name}'
        if node.module == module:
          return inner  # a module
        return origin(node.module, name)
  return f'{module}.{name}'


def directives():
  pages = (ROOT / 'docs/reference').glob('*.md')
  text = '\n'.join(page.read_text() for page in pages)
  return re.findall(r'^::: (\S+)$', text, flags=re.MULTILINE)


def shown():
  """(dotted name, node) of all that the reference shows."""
  for dotted in directives():
    if module_file(dotted).is_file():
      for name, node in definitions(module_file(dotted)).items():
        if isinstance(node, DEFINITIONS) and not name.startswith('_'):
          yield f'{dotted}.{name}', node
    else:
      module, name = dotted.rsplit('.', 1)
      yield dotted, definitions(module_file(module))[name]


SHOWN = dict(shown())
EXPORTED = {
  origin('.'.join(package.relative_to(ROOT).parts), name)
  for package in PACKAGES
  for name in exports(package)
}


def of_function(node, kind):
  """Nodes of a kind in a function's own body, not in functions within it."""
  waiting = list(node.body)
  while waiting:
    inner = waiting.pop()
    if isinstance(inner, kind):
      yield inner
    if not isinstance(inner, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
      waiting.extend(ast.iter_child_nodes(inner))


def section(text, name):
  found = re.search(rf'^{name}:\n((?:[ ]+.*\n|\n(?=[ ]))*)', text + '\n', re.M)
  return found[1] if found else ''


def missing_sections(dotted, node):
  text = text_of(node)
  summary, *rest = text.split('\n')
  if not summary or (rest and rest[0]):
    yield 'a summary of one line'
  if not isinstance(node, DEFINITIONS):
    return
  is_class = isinstance(node, ast.ClassDef)
  if '>>> ' not in text:
    yield 'a doctest'
  if is_class:
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    if fields and not section(text, 'Attributes') + section(text, 'Args'):
      yield 'Attributes:'
    return
  args = [*node.args.args, *node.args.kwonlyargs, node.args.kwarg]
  described = section(text, 'Args')
  for arg in filter(None, args):
    if not re.search(rf'^ +[\w*, ]*\b{arg.arg}\b[\w, ]*:', described, re.M):
      yield f'Args: {arg.arg}'
  if any(n.value for n in of_function(node, ast.Return)):
    if not section(text, 'Returns'):
      yield 'Returns:'
  if any(n.exc for n in of_function(node, ast.Raise)):
    if not section(text, 'Raises'):
      yield 'Raises:'
  if dotted.split('.')[1] in OF_PAPERS and not is_class:
    if not re.search(r'^Source: ', text, re.M):
      yield 'Source:'


def test_a_docstring_has_its_sections():
  names = {origin('moniqua_jax', n) for n in exports(ROOT / 'moniqua_jax')}
  missing = {name: list(missing_sections(name, SHOWN[name])) for name in names}
  assert {name: what for name, what in missing.items() if what} == {}


def test_the_reference_shows_all_that_packages_export():
  modules = {d for d in directives() if module_file(d).is_file()}
  packages = {'.'.join(p.relative_to(ROOT).parts) for p in PACKAGES}
  constants = {
    dotted
    for dotted in EXPORTED
    if dotted.rsplit('.', 1)[1].isupper() and dotted not in SHOWN
  }
  assert EXPORTED - set(SHOWN) - modules - packages - constants == set()


def test_nothing_is_shown_twice():
  names = directives()
  assert sorted(set(names)) == sorted(names)
