"""Notebooks run from a clean kernel, claims and all; what is kept is in order.

A notebook is a pair: NAME.py, which is edited, and NAME.ipynb, the same cells
executed. After an edit:

  jupytext --to ipynb --execute colabs/NAME.py
"""

import os
import pathlib
import re
import tomllib

import jupytext
from nbconvert.preprocessors import ExecutePreprocessor
import pytest

from tests import programs

COLABS = pathlib.Path(__file__).parents[1] / 'colabs'
NAMES = sorted(path.stem for path in COLABS.glob('*.py'))
LARGEST = 400_000  # bytes
SECONDS = 360  # for a notebook
PATHS = re.compile(r'(?<![\w.])/(work|tmp|root|home|Users|usr|opt)/[\w.]')
every_notebook = pytest.mark.parametrize('name', NAMES)
# One of them in each run of the tests; `-m slow` goes through the others.
QUICK = '00_quickstart'


@pytest.fixture
def clean(monkeypatch):
  """What a kernel inherits: how to compile, and no other packages."""
  for name in list(os.environ):
    if name.startswith(('JAX_', 'XLA_')) or name == 'PYTHONPATH':
      monkeypatch.delenv(name)
  for name, value in programs.ENVIRONMENT.items():
    monkeypatch.setenv(name, value)


def cells(name, suffix):
  return jupytext.read(COLABS / f'{name}{suffix}').cells


@pytest.mark.filterwarnings('ignore')  # of the kernel's own packages
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name == QUICK else pytest.mark.slow)
    for name in NAMES
  ],
)
def test_a_notebook_runs(name, clean):
  notebook = jupytext.read(COLABS / f'{name}.py')
  ExecutePreprocessor(timeout=SECONDS, kernel_name='python3').preprocess(
    notebook, {'metadata': {'path': str(COLABS)}}
  )


def test_every_notebook_is_a_pair():
  assert NAMES == sorted(path.stem for path in COLABS.glob('*.ipynb'))


@every_notebook
def test_the_pair_has_the_same_cells(name):
  plain, executed = (
    [(cell.cell_type, cell.source) for cell in cells(name, suffix)]
    for suffix in ('.py', '.ipynb')
  )
  assert executed == plain, 'execute it again'


@every_notebook
def test_outputs_are_kept_from_one_run_without_errors(name):
  code = [c for c in cells(name, '.ipynb') if c.cell_type == 'code']
  assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
  kinds = {out.output_type for cell in code for out in cell.outputs}
  assert 'display_data' in kinds or 'execute_result' in kinds
  assert 'error' not in kinds
  streams = [
    out.name
    for cell in code
    for out in cell.outputs
    if out.output_type == 'stream'
  ]
  assert 'stderr' not in streams


@every_notebook
def test_what_is_kept_is_small_and_names_no_machine(name):
  text = (COLABS / f'{name}.ipynb').read_text()
  assert len(text) < LARGEST
  assert not PATHS.search(text)


@every_notebook
def test_it_installs_itself_and_says_how_to_run_it_locally(name):
  words, install, *_ = cells(name, '.py')
  assert f'jupyter execute colabs/{name}.ipynb' in words.source
  assert '\n  %pip install' in install.source
  assert 'import moniqua_jax' in install.source
  # The name is not taken from an index; the address stands in pyproject.toml.
  project = tomllib.loads((COLABS.parent / 'pyproject.toml').read_text())
  address = project['project'].get('urls', {}).get('Repository', 'REPOSITORY')
  assert f'git clone --quiet {address} {{source}}\n' in install.source
  assert "install --quiet '{source}[all]'" in install.source
  assert "'..' if" in install.source and "else './clone'" in install.source


@every_notebook
def test_it_claims_something_and_imports_the_library_for_it(name):
  sources = [c.source for c in cells(name, '.py') if c.cell_type == 'code']
  assert sum('assert ' in source for source in sources) >= 3
  assert any('import moniqua_jax as mj' in source for source in sources)
