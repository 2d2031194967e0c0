"""The notebooks run from a clean kernel, claims and all."""

import pathlib

import jupytext
from nbconvert.preprocessors import ExecutePreprocessor
import pytest

COLABS = pathlib.Path(__file__).parents[1] / 'colabs'


@pytest.mark.filterwarnings('ignore')  # of the kernel's own packages
@pytest.mark.parametrize('name', sorted(p.stem for p in COLABS.glob('*.py')))
def test_a_notebook_runs(name):
  notebook = jupytext.read(COLABS / f'{name}.py')
  ExecutePreprocessor(timeout=300, kernel_name='python3').preprocess(
    notebook, {'metadata': {'path': str(COLABS)}}
  )
  executed = jupytext.read(COLABS / f'{name}.ipynb')
  sources = lambda nb: [cell.source for cell in nb.cells]
  assert sources(executed) == sources(notebook), 'execute it again'
