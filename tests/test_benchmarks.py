"""The benchmarks: each loads, and the codec's is checked before it is timed."""

import importlib
import pathlib

import pytest

import benchmarks
from benchmarks import codec

SCRIPTS = [
  path.stem for path in pathlib.Path(benchmarks.__path__[0]).glob('*.py')
]


def test_the_codec_is_the_one_of_the_reference():
  codec.check()


@pytest.mark.parametrize('name', sorted(SCRIPTS))
def test_a_script_loads_and_says_how_it_is_called(name):
  module = importlib.import_module(f'benchmarks.{name}')
  ways = f'benchmarks.{name} ', f'benchmarks/{name}.py '
  assert any(way in module.__doc__ for way in ways)
