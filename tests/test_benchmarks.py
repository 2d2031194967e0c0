"""The benchmarks: each loads, and the codec's is checked before it is timed."""

import importlib
import pathlib
import sys

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


@pytest.mark.parametrize(
  'name,arguments,said',
  [
    ('tune', ['--methods=dpsgd,choko4'], "['choko4'] unknown; choose from"),
    ('smoothness', ['no/such/run'], 'no results.json in no/such/run'),
  ],
)
def test_a_slip_is_one_line_and_writes_nothing(
  name, arguments, said, tmp_path, monkeypatch, capsys
):
  main = importlib.import_module(f'benchmarks.{name}').main
  monkeypatch.setattr(sys, 'argv', [name, f'--out={tmp_path}', *arguments])
  with pytest.raises(SystemExit) as ended:
    main()
  assert ended.value.code == 2
  assert said in capsys.readouterr().err.splitlines()[-1]
  assert not list(tmp_path.iterdir())
