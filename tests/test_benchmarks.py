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
  tune,
)
from benchmarks.accelerator import __main__ as accelerator
from benchmarks.accelerator import codecs, steps
from benchmarks.accelerator import rows as turns
from benchmarks.mutants import __main__ as mutants
from benchmarks.mutants import changes, trials
from benchmarks.network import __main__ as network
from benchmarks.network import training
from configs import nuqsgd_cifar10_cpu
import moniqua_jax as mj
from moniqua_jax.plots import kept
from moniqua_jax.quantizers import base
from moniqua_jax.training import workdir

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
  assert path.name == 'cpu-codec-round-simulated.md'
  assert text == capsys.readouterr().out
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
    ('seeds', ['--methods=dpsgd,choko4'], 'choko4 is unknown; choose from'),
    ('smoothness', ['no/such/run'], 'no results.json in no/such/run'),
    ('smoothness', [], 'keeps no runs; give their work directories'),
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
  'accelerator.__main__': [],
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
      '--rates=100mbit --methods=dpsgd --model=mlp5m --batch_size=2'.split(),
      ['mlp5m-n8.md', 'mlp5m-n8.png'],
    ),
    (
      training.main,
      '--rates=10mbit --methods=choco4,moniqua4leaf --target=2'.split(),
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
  """One that was interrupted is made again; a table has all that are kept."""
  made = []

  def run(config, folder):
    made.append(folder.name)
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 0.5}\n')
    (folder / 'config.json').write_text(config.to_json())
    (folder / 'run.json').write_text('{"command": "seeds"}')
    if len(made) == 2:
      raise KeyboardInterrupt
    workdir.note(folder, seconds=1.0)

  monkeypatch.setattr(seeds, 'run', run)
  args = types.SimpleNamespace(
    out=tmp_path / 'kept', runs=tmp_path / 'runs', seeds=2, data_dir=None
  )
  args.methods = 'dpsgd'
  with pytest.raises(KeyboardInterrupt):
    seeds.run_all('digits', args)
  for args.methods in ('dpsgd', 'moniqua4'):
    names, runs = seeds.run_all('digits', args)
  ones = [f'{name}_seed{seed}' for name in names for seed in (0, 1)]
  assert names == ['dpsgd', 'moniqua4'] and list(runs) == ones
  assert made == [ones[0], ones[1], *ones[1:]]
  assert [run.config['seed'] for run in runs.values()] == [0, 1, 0, 1]


def test_a_choice_is_tried_once_for_each_question(
  tmp_path, monkeypatch, capsys
):
  asked = []

  def trial(config, loss):
    asked.append((config.epochs, config.learning_rate.peak, loss))
    return {'score': 0.0 if loss else config.learning_rate.peak}

  monkeypatch.setattr(tune, 'trial', trial)
  said = []
  for flags in ([], [], ['--epochs=2'], ['--loss=.1'], ['--loss=.1']):
    own = ['tune', '--methods=dpsgd', f'--out={tmp_path}', *flags]
    monkeypatch.setattr(sys, 'argv', own)
    tune.main()
    said.append(capsys.readouterr().out.splitlines()[-1])
  assert len(asked) == len({*asked}) == 3 * 6
  assert said[0] == said[1] == "  'dpsgd': {'learning_rate.peak': 0.5},"
  assert said[-1].endswith(',  # no run got there')


def test_costs_are_those_of_the_iterations_that_were_needed(monkeypatch):
  monkeypatch.setattr(smoothness_cost, 'KAPPA', 4.0)
  diagonal = smoothness_cost.diagonals(2, 16)
  plan = smoothness_cost.plans(diagonal)['varying +']
  gamma = smoothness_cost.gamma_of(diagonal, plan)
  runs = []
  for chunk in (10, 1000):
    monkeypatch.setattr(smoothness_cost, 'CHUNK', chunk)
    runs.append(smoothness_cost.run(diagonal, gamma, plan))
  assert runs[0] == pytest.approx(runs[1], rel=1e-6)


def test_no_mutant_is_tried_where_tests_fail_without_it(tmp_path, monkeypatch):
  monkeypatch.setattr(trials, 'tried', lambda *_: ('killed', 'any'))
  mutant = changes.every('wire/payloads.py')[0]
  said = 'wire/payloads.py: .* fail without a change'
  with pytest.raises(SystemExit, match=said):
    trials.Trials(tmp_path).verdict(mutant)


def test_the_test_that_noticed_a_mutant_is_asked_first(tmp_path, monkeypatch):
  asked = []

  def tried(folder, module, text, *tests):
    asked.append(tests)
    changed = text != trials.source(module)
    return ('killed', 'a') if changed and tests == ('a',) else ('survived', '')

  monkeypatch.setattr(trials, 'tried', tried)
  mutant = changes.every('wire/payloads.py')[0]
  assert trials.Trials(tmp_path).verdict(mutant, 'a') == ('killed', 'a')
  assert asked == [('a',), ('a',)]  # without the change, and with it
  assert trials.Trials(tmp_path).verdict(mutant, 'b') == ('survived', '')
  assert len(asked) == 2 + 4


def test_a_verdict_stays_where_lines_have_moved(tmp_path, monkeypatch):
  monkeypatch.setattr(mutants, 'KEPT', tmp_path / 'mutants.jsonl')
  there = changes.every('quantizers/qsgd.py')
  parts = [mutant[3:] for mutant in there]
  once = next(m for m in there if parts.count(m[3:]) == 1)
  twice = next(m for m in there if parts.count(m[3:]) > 1)
  row = dict(verdict='killed', by='a', seconds=1)
  moved = [m._replace(line=m.line + 1000) for m in (once, twice)]
  mutants.keep({mutant: row for mutant in [*moved, there[-1]]})
  known = mutants.kept()
  assert known == {once: row, there[-1]: row}
  assert known.keys() <= {*changes.drawn(known)}
