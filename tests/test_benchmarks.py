"""The benchmarks: each loads, and the codec's is checked before it is timed."""

import importlib
import pathlib
import re
import shutil
import sys
import types

import numpy as np
import pytest

import benchmarks
from benchmarks import (
  codec,
  coding,
  nuqsgd_training,
  nuqsgd_variance,
  peers,
  seeds,
  smoothness,
  smoothness_cost,
  table1,
  theta,
)
from benchmarks.accelerator import __main__ as accelerator
from benchmarks.accelerator import codecs, steps
from benchmarks.accelerator import rows as turns
from benchmarks.network import __main__ as network
from benchmarks.network import training
from configs import nuqsgd_cifar10_cpu
import moniqua_jax as mj
from moniqua_jax.plots import kept
from moniqua_jax.quantizers import base

RESULTS = pathlib.Path(__file__).parents[1] / 'results'

SCRIPTS = [
  path.stem for path in pathlib.Path(benchmarks.__path__[0]).glob('*.py')
]


def test_the_codec_is_the_one_of_the_reference():
  codec.check()


def test_a_peer_is_compared_with_x_before_it_is_timed():
  x = np.arange(1.0, 9.0, dtype=np.float32)
  halves = peers.Codec(lambda: x.astype(np.float16), lambda m: m, most=1e-3)
  assert peers.checked('halves', halves, x) == (16.0, 0.0)
  for bound in ({'most': 0.1}, {'rms': 0.1}):
    for factor in (1.25, np.nan):
      other = peers.Codec(lambda: x, lambda m, by=factor: by * m, **bound)
      with pytest.raises(ValueError, match='other decodes to something else'):
        peers.checked('other', other, x)


@pytest.fixture
def small_accelerator(monkeypatch):
  """What is timed, without the time."""
  monkeypatch.setattr(turns, 'LEAST', 0)
  monkeypatch.setattr(turns, 'TURNS', 1)
  monkeypatch.setattr(codecs, 'SMALL', 4096)
  monkeypatch.setattr(codecs, 'EDEN', {})
  monkeypatch.setattr(steps, 'WORKERS', (2,))
  names = 'full_precision', 'moniqua 4', 'moniqua 4, digest'
  few = lambda table: {n: q for n, q in table.items() if n in names}
  for module, table in ((codec, 'QUANTIZERS'), (codecs, 'ROUNDS')):
    monkeypatch.setattr(module, table, few(getattr(module, table)))


@pytest.mark.usefixtures('small_accelerator')
def test_an_accelerator_is_timed_and_told_of(tmp_path, capsys):
  only = '--only=codec,round,simulated'
  accelerator.main([only, '--size=8192', f'--out={tmp_path}'])
  (path,) = tmp_path.iterdir()
  text = path.read_text()
  assert path.name == 'cpu.md' and text == capsys.readouterr().out
  # Moniqua's codec at both sizes, and a round of it.
  assert text.count('| moniqua 4') == 3
  assert text.count('| D-PSGD') == 1
  assert 'nan' not in text and 'WRONG' not in text


@pytest.mark.slow
@pytest.mark.usefixtures('small_accelerator')
def test_steps_of_a_net_are_timed_with_a_device_for_each_worker(monkeypatch):
  monkeypatch.setattr(steps, 'NETS', {'an MLP': steps.NETS['an MLP']})
  text = steps.step_part(0)
  assert 'a device each, 271,314 parameters' in text and text.count('\n| ') == 6
  assert 'nan' not in text


@pytest.mark.usefixtures('small_accelerator')
def test_a_codec_of_other_values_is_not_timed(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(codecs, 'OTHERS', -1)
  accelerator.main(['--only=codec', '--size=4096', f'--out={tmp_path}'])
  said = capsys.readouterr().out
  assert "WRONG**, and not to be believed: ['full_precision'" in said
  assert said.count(' nan ') == 2 * 7


def test_thetas_are_watched_as_the_program_watches_them():
  watched = theta.Watched((mj.ring(2),), patience=0)
  report = lambda ok: {
    'loss': np.zeros(2),
    'seen': base.Seen(
      np.full((2, 1), ok),
      np.full((2, 1), 0.2),
      np.full((2, 1), 0.5),
      np.zeros((2, 1)),
    ),
  }
  assert watched.stopped(0, report(True)) == {}
  assert watched.thetas()['largest theta'] == 0.5
  assert watched.stopped(1, report(False))['stopped'] == 1


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
    ('theta', ['--tasks=digits,no'], "['no'] unknown; choose from"),
    ('faults.__main__', ['--only=flood'], "['flood'] unknown; choose from"),
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


# What each asks for besides --out, which is a file here.
WRITERS = {
  **dict.fromkeys(('coding', 'seeds', 'smoothness_cost'), []),
  **dict.fromkeys(('table1', 'theta', 'tune', 'faults.__main__'), []),
  **dict.fromkeys(('nuqsgd_training', 'nuqsgd_variance'), ['--data_dir=none']),
  **dict.fromkeys(('network.__main__', 'network.training'), []),
  'network.parts': [],
  'laboratory': ['--data=none'],
}


@pytest.mark.parametrize('name', WRITERS)
def test_a_folder_that_cannot_be_written_is_one_line_at_once(
  name, tmp_path, monkeypatch, capsys
):
  main = importlib.import_module(f'benchmarks.{name}').main
  there = tmp_path / 'file'
  there.write_text('')
  given = [name, f'--out={there}/results', *WRITERS[name]]
  monkeypatch.setattr(sys, 'argv', given)
  with pytest.raises(SystemExit) as ended:
    sys.exit(main())
  said = capsys.readouterr().err
  assert ended.value.code == 1 and said.count('\n') == 1
  assert (
    said.startswith(f'error: {there}') and 'in its place, then give' in said
  )
  assert there.read_text() == ''


# ------------------------------------ tables of results/, from what is kept
def rows(name):
  return kept.read_lines(RESULTS / name / 'rows.jsonl')


def methods_of(name):
  text = (RESULTS / name / 'methods.md').read_text()
  return re.findall(r'`(\S+)`\)', text)


def coding_table():
  text = ''
  for law in coding.LAWS:
    own = {r['quantizer']: r for r in rows('coding') if r['law'] == law}
    text += f'{law}\n\n{coding.table(own)}\n'
  return text


def seeds_table(name, count):
  found = seeds.found(RESULTS / name)
  return seeds.table(found, methods_of(name), count)


def nuqsgd_table():
  found = seeds.found(RESULTS / 'nuqsgd_cifar10_cpu')
  return nuqsgd_training.table(found, list(nuqsgd_cifar10_cpu.METHODS), 3)


def smoothness_table():
  runs = smoothness.collected(smoothness.loaded(RESULTS / 'smoothness'))
  title, of = next(iter(smoothness.TABLES.items()))
  return f'{title}\n\n{smoothness.table(runs, of)}'


TABLES = {
  'coding/table.md': coding_table,
  'digits_sorted/methods.md': lambda: seeds_table('digits_sorted', 5),
  'cifar10_sorted_cpu/methods.md': lambda: seeds_table('cifar10_sorted_cpu', 1),
  'nuqsgd_cifar10_cpu/table.md': nuqsgd_table,
  'nuqsgd_variance/table.md': lambda: nuqsgd_variance.table(
    rows('nuqsgd_variance'), 4
  ),
  'smoothness/table.md': smoothness_table,
  'smoothness_cost/table.md': lambda: smoothness_cost.table(
    rows('smoothness_cost')
  ),
  'table1/table.md': lambda: table1.table(rows('table1')) + table1.NOTE,
}


@pytest.mark.parametrize('path', TABLES)
def test_a_table_is_made_of_what_is_kept(path):
  assert (RESULTS / path).read_text().startswith(TABLES[path]())


@pytest.mark.parametrize(
  'main,arguments,files',
  [
    (
      network.main,
      ['--rates=100mbit', '--methods=dpsgd', '--model=mlp5m'],
      ['mlp5m-n8.md', 'mlp5m-n8.png'],
    ),
    (
      training.main,
      ['--rates=10mbit', '--methods=dpsgd,choco4', '--target=2'],
      ['training.md', 'training.png'],
    ),
  ],
  ids=['steps', 'training'],
)
def test_what_is_kept_is_not_run_again(main, arguments, files, tmp_path):
  for name in ('cells.jsonl', 'config.json', 'runs.jsonl', 'curves.jsonl'):
    shutil.copy(RESULTS / 'network' / name, tmp_path)
  assert main([f'--out={tmp_path}', *arguments]) == 0
  text, committed = (
    (folder / files[0]).read_text()
    for folder in (tmp_path, RESULTS / 'network')
  )
  assert text == committed
  assert (tmp_path / files[1]).stat().st_size > 0


def test_a_run_of_many_seeds_is_made_once_and_kept(tmp_path, monkeypatch):
  made = []

  def run(config, folder):
    made.append(folder)
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 0.5}\n')
    (folder / 'config.json').write_text(f'{{"seed": {config["seed"]}}}')
    (folder / 'run.json').write_text('{"command": "seeds"}')
    return 'done'

  monkeypatch.setattr(seeds, 'run', run)
  args = types.SimpleNamespace(out=tmp_path / 'kept', runs=tmp_path / 'runs')
  for seed in (0, 1, 0):
    seeds.run_once({'seed': seed}, f'dpsgd_seed{seed}', args)
  assert made == [args.runs / 'dpsgd_seed0', args.runs / 'dpsgd_seed1']
  found = seeds.found(args.out)
  assert {k: r.config for k, r in found.items()} == {
    'dpsgd_seed0': {'seed': 0},
    'dpsgd_seed1': {'seed': 1},
  }
