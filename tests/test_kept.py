"""Kept runs tell the same as their work directories, and results/ is small."""

import json
import pathlib
import shutil
import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from moniqua_jax import plots
from moniqua_jax.plots import kept, tables
from moniqua_jax.plots import runs as runs_lib

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / 'results'
SOURCE = {'command': 'train.py', 'date': '2026-01-02', 'machine': 'toy'}


def write(workdir, seed=0, steps=100, **config):
  """A work directory of a run with an evaluation in every tenth row."""
  workdir.mkdir()
  rng, rows = np.random.default_rng(seed), []
  for step in range(1, steps + 1):
    row = {
      'step': step,
      'epoch': step / steps,
      'seconds': 0.1 * step,
      'wire/bytes_sent': 50.0 * step,
      'train/loss': rng.exponential(),
      'gossip/messages': 8,
      'gossip/unreadable': int(rng.integers(2)),
      'gossip/distance_over_theta': rng.random(),
      'gossip/theta': 1.0,
    }
    if step % 10 == 0:
      row |= {'test/accuracy': rng.random(), 'test/worst_worker': None}
      row |= {'gossip/consensus_rms': rng.random()}
    rows.append(row)
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (workdir / 'metrics.jsonl').write_text(lines)
  base = {'seed': seed, 'epochs': 1.0, 'gossip': {'name': 'dpsgd'}}
  (workdir / 'config.json').write_text(json.dumps(base | config))
  (workdir / 'run.json').write_text(json.dumps(SOURCE | {'seed': seed}))
  return workdir


@pytest.fixture
def runs(tmp_path):
  moniqua = {'quantizer': {'name': 'moniqua', 'bits': 4}, 'gamma': 0.5}
  return [
    write(tmp_path / 'a0'),
    write(tmp_path / 'a1', seed=1, steps=7),
    write(tmp_path / 'm', seed=2, **moniqua),
  ]


def test_a_kept_folder_gives_the_same_tables(tmp_path, runs):
  out = tmp_path / 'kept'
  text = plots.keep(runs, out)
  assert text.startswith(tables.table(runs))
  assert text.endswith(tables.seed_table(runs))
  assert {file.name for file in out.iterdir()} == {
    'config.json',
    'runs.jsonl',
    'curves.jsonl',
    'table.md',
    'figure.png',
    'figure.svg',
  }
  for run, again in zip(kept.loaded(runs), kept.loaded([out]), strict=True):
    same = ('name', 'end', 'config', 'source')
    assert all(getattr(run, key) == getattr(again, key) for key in same)


def test_a_kept_folder_gives_the_same_lines(tmp_path, runs):
  kept.write(kept.loaded(runs), tmp_path / 'kept')
  lines = []
  for folders in (runs, [tmp_path / 'kept']):
    rows = {run.name: run.rows for run in kept.loaded(folders)}
    pairs = [('epoch', key) for key in kept.CURVES]
    pairs += [('wire/bytes_sent', 'train/loss')]
    fig = plots.compare(rows, pairs)
    lines.append(
      [line.get_xydata() for axes in fig.axes for line in axes.lines]
    )
  assert len(lines[0]) == 15
  for first, second in zip(*lines, strict=True):
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_one_run_of_a_kept_folder_has_its_name(tmp_path, runs):
  out = tmp_path / 'kept'
  kept.write(kept.loaded(runs), out)
  names = [run.name for run in kept.loaded([out / 'm', out / 'a1'])]
  assert names == ['m', 'a1']
  with pytest.raises(ValueError, match=r"keeps no b; it has \['a0', 'a1', 'm'"):
    kept.loaded([out / 'b'])


def test_the_report_of_one_of_them_takes_no_place_in_the_folder(
  tmp_path, runs, monkeypatch, capsys
):
  kept.write(kept.loaded(runs), tmp_path / 'kept')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(runs_lib, 'figure', lambda runs, path: None)
  for _ in range(2):
    assert plots.main(['kept/m']) == 0, capsys.readouterr().err
  assert (tmp_path / 'report' / 'table.md').exists()


def test_what_a_folder_keeps_stays_and_a_new_run_takes_the_old_ones_name(
  tmp_path, runs
):
  out = tmp_path / 'kept'
  kept.write(kept.loaded(runs[:2]), out)
  other = tmp_path / 'elsewhere'
  other.mkdir()
  again = write(other / 'a1', seed=5, gamma=0.25)
  kept.write(kept.loaded([runs[2], again]), out)
  found = {run.name: run.config['seed'] for run in kept.loaded([out])}
  assert found == {'a0': 0, 'a1': 5, 'm': 2}
  assert kept.loaded([out])[1].config['gamma'] == 0.25


def test_two_of_one_name_are_not_kept_as_one(tmp_path, runs):
  (tmp_path / 'elsewhere').mkdir()
  namesake = write(tmp_path / 'elsewhere' / 'a0', seed=5)
  with pytest.raises(ValueError, match='several of these runs are called a0'):
    kept.write(kept.loaded([*runs, namesake]), tmp_path / 'kept')
  assert not (tmp_path / 'kept').exists()


def test_workers_are_numbered_and_may_have_no_row_yet(runs):
  for name in ('worker1', 'worker0', 'workers'):
    (runs[0] / name).mkdir()
  (runs[0] / 'worker1' / 'metrics.jsonl').write_text('{"step": 3}\n')
  (runs[0] / 'worker0' / 'metrics.jsonl').write_text('')
  assert kept.load(runs[0]).workers == [{}, {'step': 3}]


def test_the_end_of_a_run_is_its_last_values_and_totals(runs):
  run = kept.load(runs[0])
  of = lambda key: [row[key] for row in run.rows if key in row]
  assert run.end['train/loss'] == of('train/loss')[-1]
  assert run.end['test/worst_worker'] is None  # not an earlier one
  assert run.end['gossip/messages'] == 800
  assert run.end['gossip/unreadable'] == sum(of('gossip/unreadable'))
  assert run.end[kept.SHARE] == max(of(kept.SHARE))


CONFIGS = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(max_size=3),
  lambda inner: st.dictionaries(st.sampled_from('abc'), inner, max_size=3),
  max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from('xyz'), CONFIGS), min_size=1))
def test_a_config_is_what_it_shares_and_what_it_does_not(configs):
  common, others = kept.shared(configs)
  for config, own in zip(configs, others, strict=True):
    set_ = dict(kept.entries(config))
    assert dict(kept.entries(kept.merged(common, own))) == set_
    assert not set(own) & set(dict(kept.entries(common)))


def test_measurements_are_not_taken_for_runs(tmp_path):
  kept.write_measured(tmp_path, [{'bits': 4}], SOURCE)
  assert kept.read_lines(tmp_path / 'rows.jsonl') == [{'bits': 4}]
  with pytest.raises(ValueError, match='holds measurements but no runs'):
    kept.loaded([tmp_path])
  # A laboratory has a table.md of its own, over which none is written.
  for folder in (
    RESULTS / 'smoothness',
    write(tmp_path / 'a', laboratory=True),
  ):
    with pytest.raises(ValueError, match=f'{folder} is of a laboratory'):
      plots.report([folder], folder)


def test_keep_wants_a_folder(capsys):
  with pytest.raises(SystemExit):
    plots.main(['runs/one', '--keep'])
  assert '--keep wants --out=FOLDER' in capsys.readouterr().err


def test_the_command_line_keeps(tmp_path, runs, capsys, monkeypatch):
  monkeypatch.setattr(runs_lib, 'figure', lambda runs, path: None)
  out = tmp_path / 'kept'
  folders = list(map(str, runs))
  assert plots.main([*folders, '--keep', f'--out={out}']) == 0
  first = capsys.readouterr().out
  assert plots.main([str(out)]) == 0  # the only folder's own
  assert capsys.readouterr().out == first


# --------------------------------------------------------------- of results/
FILES = [file for file in RESULTS.rglob('*') if file.suffix != '.svg']
FILES = [file for file in FILES if file.is_file()]


def test_results_are_small():
  assert len(FILES) <= 120
  assert sum(file.stat().st_size for file in FILES) <= 6e6
  pictures = [file for file in FILES if file.suffix == '.png']
  assert max(file.stat().st_size for file in pictures) <= 150_000


def test_every_folder_has_its_commands_and_a_table():
  without = []
  for folder in filter(pathlib.Path.is_dir, RESULTS.iterdir()):
    lines = kept.read_lines(folder / 'runs.jsonl')
    told = all({'command', 'date', 'versions'} <= set(line) for line in lines)
    if not (told and list(folder.glob('*.md'))) or not lines:
      without.append(folder.name)
  # Their tables say how they were made.
  assert sorted(without) == ['codec', 'trust']


def test_the_tables_are_those_of_the_kept_runs():
  folders = [f for f in RESULTS.iterdir() if (f / 'curves.jsonl').exists()]
  tabled = 0
  for folder in folders:
    page = folder / 'table.md'
    if page.exists() and page.read_text().startswith('| run '):
      assert page.read_text().startswith(tables.table([folder])), folder
      tabled += 1
  assert tabled >= 6


def test_nothing_is_tracked_that_git_ignores():
  if not (ROOT / '.git').exists():
    pytest.skip('not a git checkout')
  listed = ['git', 'ls-files', '--ignored', '--cached', '--exclude-standard']
  found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
  assert found.returncode == 0 and not found.stdout


@pytest.mark.parametrize('name', ['config.json', 'runs.jsonl', 'curves.jsonl'])
def test_a_broken_file_is_named(name, tmp_path):
  shutil.copytree(RESULTS / 'digits', tmp_path / 'digits')
  path = tmp_path / 'digits' / name
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(ValueError, match=rf'{name}, line \d+: '):
    kept.loaded([tmp_path / 'digits'])
