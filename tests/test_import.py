"""What `import moniqua_jax` costs, and what the library does without."""

import ast
import re
import tomllib

import pytest

from tests import helpers
from tests.fresh import ROOT, WITHOUT_EXTRAS, python

SLOW = ('scipy.optimize', 'scipy.sparse', 'scipy.special', 'scipy.stats')

LOADED = f"""
import sys
import jax, optax
before = set(sys.modules)
import moniqua_jax
new = set(sys.modules) - before
packages = lambda modules: {{name.partition('.')[0] for name in modules}}
print(sorted(packages(new) - packages(before) - set(sys.stdlib_module_names)))
print([name for name in {SLOW} if name in new])
"""

# CPU time: others use the machine, too.
TIMED = """
import time
start = time.process_time()
import jax, optax
middle = time.process_time()
import moniqua_jax
print((time.process_time() - start) / (middle - start))
"""

# What needs an extra, and the line that says which.
NEEDS = {
  'mj.from_graph(None)': ('networkx', 'graphs'),
  'coding.huffman([0.5, 0.5])': ('bitarray', 'coding'),
  'import moniqua_jax.models': ('flax', 'train'),
  'import moniqua_jax.plots': ('matplotlib', 'train'),
  'data.digits()': ('sklearn', 'train'),
  'stream.prefetch(abs, 0, 1)': ('grain', 'train'),
  'records.decode(b"")': ('PIL', 'train'),
  'records.open_records("", "cifar10", "3.0.2", "train")': (
    'tensorflow_datasets',
    'tfds',
  ),
  'metrics.Writer(pathlib.Path(), True)': ('tensorboardX', 'tensorboard'),
}

LEAN = f"""{WITHOUT_EXTRAS}
import os, pathlib, tempfile
import moniqua_jax as mj
from moniqua_jax import coding, data
from moniqua_jax.data import records, stream
from moniqua_jax.training import metrics

os.chdir(tempfile.mkdtemp())  # a Writer opens a file
for statement in {list(NEEDS)}:
  try:
    exec(statement)
    print('nothing is missing')
  except ImportError as error:
    print(error)
"""


def test_an_import_loads_jax_numpy_and_optax_alone():
  packages, slow = map(ast.literal_eval, python(LOADED).stdout.splitlines())
  assert packages == ['moniqua_jax'] and slow == []


def test_an_import_takes_little_longer_than_that_of_jax_and_optax(tmp_path):
  # Compiled once, as pip does, whatever PYTHONDONTWRITEBYTECODE says here.
  cache = {'PYTHONPYCACHEPREFIX': str(tmp_path), 'PYTHONDONTWRITEBYTECODE': ''}
  python('import moniqua_jax', **cache)
  ratios = [float(python(TIMED, **cache).stdout) for _ in range(3)]
  assert min(ratios) <= 1.2, ratios


def test_a_missing_extra_is_named_in_one_line():
  said = python(LEAN).stdout.splitlines()
  assert said == [
    f"No module named '{module}': pip install 'moniqua_jax[{extra}]'."
    for module, extra in NEEDS.values()
  ]


def test_the_program_says_in_one_line_what_it_misses():
  ended = python(
    WITHOUT_EXTRAS + 'import moniqua_jax.training.__main__', check=False
  )
  assert ended.returncode == 2
  assert ended.stderr == (
    "error: No module named 'ml_collections': "
    "pip install 'moniqua_jax[train]'.\n"
  )


# The programs of the library alone, as scripts start them.
PROGRAMS = {
  'theory.__main__ import main': (0, 'topology '),
  'launch.__main__ import main': (2, 'required: --n'),
  'command_line import plots as main': (2, "pip install 'moniqua_jax[train]'"),
  'plan.__main__ import run as main': (2, "pip install 'moniqua_jax[train]'"),
}


@pytest.mark.parametrize('program', helpers.tiered(PROGRAMS, [[*PROGRAMS][0]]))
def test_a_program_runs_or_says_in_one_line_what_it_misses(program):
  status, text = PROGRAMS[program]
  start = f'{WITHOUT_EXTRAS}\nfrom moniqua_jax.{program}\nmain()'
  ended = python(start, check=False)
  assert ended.returncode == status and text in ended.stdout + ended.stderr
  assert 'Traceback' not in ended.stderr


def test_the_extras_that_the_code_names_are_declared():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  declared = project['optional-dependencies']
  files = (ROOT / 'moniqua_jax').rglob('*.py')
  code = ''.join(path.read_text() for path in files)
  named = {*re.findall(r"extras\.needed\('(\w+)'\)", code), 'mpi'}
  (everything,) = declared['all']
  assert everything == f'moniqua_jax[{",".join(sorted(named))}]'
  assert named < {*declared}
