"""Numbers stand in their columns, files are written, partial runs are shown."""

import json
import os
from pathlib import Path
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
from PIL import Image
import pytest

from moniqua_jax import plots, tables

FILES = ['figure.png', 'figure.svg', 'table.md']
MONIQUA = {'quantizer': {'name': 'moniqua', 'bits': 4, 'theta': 1.0}}
SOURCE = {
  'command': 'train.py --config=c.py',
  'date': '2026-01-02',
  'versions': {'python': '3.11', 'jax': '0.9'},
  'machine': 'toy, 2 cores',
}


def config(**changes):
  return {
    'seed': 0,
    'epochs': 2.0,
    'reduce': {'name': 'none'},
    'gossip': {'name': 'dpsgd'},
    'quantizer': {'name': 'full_precision'},
    'gamma': 1.0,
    'scales_from': '',
    **changes,
  }


def row(step, **more):
  """What the loop writes at a step; 10 steps an epoch, 1000 bytes a step."""
  return {
    'step': step,
    'epoch': step / 10,
    'seconds': 3.0 * step,
    'wire/bytes_sent': 1000.0 * step,
    'train/loss': 2.0 / step,
    'train/accuracy': 0.5,
    **{name.replace('__', '/'): value for name, value in more.items()},
  }


def gossip(unreadable=0, share=0.0, **more):
  return {
    'gossip__unreadable': unreadable,
    'gossip__messages': 100,
    'gossip__distance_over_theta': share,
    **more,
  }


def evaluated(accuracy, rms, **more):
  return {
    'test__loss': 1.0,
    'test__accuracy': accuracy,
    'gossip__consensus_rms': rms,
    'gossip__consensus_max': rms,
    **more,
  }


def write(workdir, rows, **changes):
  workdir.mkdir()
  lines = ''.join(json.dumps(r) + '\n' for r in rows)
  (workdir / 'metrics.jsonl').write_text(lines)
  (workdir / 'config.json').write_text(json.dumps(config(**changes)))
  (workdir / 'run.json').write_text(json.dumps(SOURCE))
  return workdir


@pytest.fixture
def baseline(tmp_path):
  rows = [
    row(10, **gossip(), **evaluated(0.5, 1e-2)),
    row(20, **gossip(), **evaluated(0.9125, 1e-3), test__worst_worker=0.905),
  ]
  return write(tmp_path / 'base', rows)


@pytest.fixture
def moniqua(tmp_path):
  rows = [
    row(10, **gossip(1, 0.75), **evaluated(0.5, 1e-2), gossip__theta=1.0),
    row(15, **gossip(0, None), gossip__theta=0.7),
    row(20, **gossip(2, 0.5), **evaluated(0.9, 2.5e-3), gossip__theta=0.5),
  ]
  rows[-1] |= {'wire/bytes_sent': 2500.0, 'test/worst_worker': 0.85}
  return write(tmp_path / 'm4', rows, **MONIQUA, gamma=0.2)


def seeds(tmp_path, accuracies, **changes):
  return [
    write(
      tmp_path / f'm4-s{seed}',
      [row(20, **gossip(), **evaluated(accuracy, 1e-3))],
      seed=seed,
      **changes,
    )
    for seed, accuracy in enumerate(accuracies)
  ]


def parse(text):
  """Rows of a markdown table as dicts by column."""
  title, _, *rows = (
    [cell.strip() for cell in line.strip('| ').split(' | ')]
    for line in text.splitlines()
  )
  return [dict(zip(title, row, strict=True)) for row in rows]


def test_every_number_stands_in_its_column(baseline, moniqua):
  first, second = parse(tables.table([baseline, str(moniqua)]))
  assert first == {
    'run': 'base',
    'method': 'D-PSGD',
    'seed': '0',
    'epochs': '2',
    'MB sent': '0.02',
    'vs first': '1.000',
    'test %': '91.25',
    'worst %': '90.50',
    'unreadable %': '0',
    'distance/theta': '–',  # there is no theta
    'consensus rms': '0.001',
    'minutes': '1.00',
  }
  assert second['method'] == 'Moniqua 4 bits, gamma .2'
  assert second['vs first'] == '0.125'
  assert second['unreadable %'] == '1'  # 3 of 300, over the whole run
  assert second['distance/theta'] == '0.75'  # the largest, not the last
  assert second['consensus rms'] == '0.0025'


def test_columns_are_aligned(baseline, moniqua):
  lines = tables.table([baseline, moniqua]).splitlines()
  bars = [[i for i, c in enumerate(line) if c == '|'] for line in lines]
  assert len(lines) == 4
  assert all(b == bars[0] for b in bars)


def test_vs_first_compares_steps_not_lengths(tmp_path, baseline):
  short = write(tmp_path / 'short', [row(10)], epochs=1.0)
  assert parse(tables.table([baseline, short]))[1]['vs first'] == '1.000'


@pytest.mark.parametrize(
  'changes, words',
  [
    ({}, 'D-PSGD'),
    ({'gamma': 0.5}, 'D-PSGD, gamma .5'),
    (MONIQUA, 'Moniqua 4 bits'),
    ({'quantizer': {'name': 'moniqua', 'bits': 1}}, 'Moniqua 1 bit'),
    ({'quantizer': {'name': 'random_k'}}, 'random k'),
    ({**MONIQUA, 'scales_from': 'x'}, 'Moniqua 4 bits, theta per leaf'),
    ({**MONIQUA, 'gossip': {'name': 'd2'}}, 'D², Moniqua 4 bits'),
    ({'reduce': {'name': 'allreduce'}}, 'all-reduce, D-PSGD'),
  ],
)
def test_method_is_named_by_its_config(changes, words):
  assert tables.method(config(**changes)) == words


def test_without_gossip_slack_does_not_count():
  slots = {'reduce': {'name': 'allreduce'}, 'gossip': {'name': 'none'}}
  assert tables.method(config(**slots, gamma=0.2)) == 'all-reduce'
  nuqsgd = {'name': 'nuqsgd', 'bits': 3, 'zero_level': False}
  name = tables.method(config(**slots, quantizer=nuqsgd, gamma=0.2))
  assert name == 'all-reduce, NUQSGD without zero 3 bits'


def test_seeds_become_one_row_of_means(tmp_path, baseline):
  runs = [baseline, *seeds(tmp_path, [0.8, 0.81, 0.82], **MONIQUA)]
  base, mean = parse(tables.seed_table(runs))
  assert base['seed'] == '0'
  assert base['test %'] == '91.25'
  assert mean['run'] == 'm4-s*'
  assert mean['seed'] == 'n = 3'
  assert mean['test %'] == '81.00 ± 1.00'
  assert mean['MB sent'] == '0.02'
  assert mean['worst %'] == '–'


def test_runs_group_only_if_all_but_the_seed_is_equal(tmp_path):
  runs = seeds(tmp_path, [0.8, 0.9])
  other = write(tmp_path / 'other', [row(20)], seed=2, gamma=0.5)
  groups = tables.by_seed([tables.load(run) for run in [*runs, other]])
  assert [[run.name for run in group] for group in groups] == [
    ['m4-s0', 'm4-s1'],
    ['other'],
  ]


def test_report_writes_all_files_and_where_they_come_from(
  tmp_path, baseline, moniqua
):
  out = tmp_path / 'deep' / 'out'
  text = plots.report([baseline, moniqua], out)
  assert text == tables.table([baseline, moniqua])
  assert sorted(p.name for p in out.iterdir()) == FILES
  written = (out / 'table.md').read_text()
  assert written.startswith(text)
  assert written.splitlines()[-1] == (
    '- m4: `train.py --config=c.py`; 2026-01-02; 60 s on toy, 2 cores; '
    'python 3.11, jax 0.9'
  )


def test_a_resumed_run_says_what_changed(baseline):
  resumed = {'date': '2026-01-03', 'changed': {'epochs': 2.0}}
  (baseline / 'run.json').write_text(json.dumps(SOURCE | {'resumed': resumed}))
  assert tables.source(tables.load(baseline)).endswith(
    '; resumed: `{"changed": {"epochs": 2.0}, "date": "2026-01-03"}`'
  )


def test_report_adds_the_means_over_seeds(tmp_path):
  runs = seeds(tmp_path, [0.8, 0.9])
  text = plots.report(runs, tmp_path / 'out')
  assert text.startswith(tables.table(runs))
  assert text.endswith(tables.seed_table(runs))
  assert 'standard deviation' in text


def test_figure_is_the_same_twice_and_opens(tmp_path, baseline, moniqua):
  # Only to read the backend would choose one, and import pyplot.
  names = [name for name in matplotlib.rcParams if name != 'backend']
  before = [matplotlib.rcParams[name] for name in names]
  for name in 'ab':
    plots.figure([baseline, moniqua], tmp_path / name)
  for suffix in ('.svg', '.png'):
    first, second = (tmp_path / f'{name}{suffix}' for name in 'ab')
    assert first.read_bytes() == second.read_bytes()
  ET.parse(tmp_path / 'a.svg')
  with Image.open(tmp_path / 'a.png') as image:
    assert image.size == (1800, 1080)
  assert [matplotlib.rcParams[name] for name in names] == before


@pytest.mark.parametrize(
  'rows, changes',
  [
    ([], {}),
    ([row(1)], MONIQUA),
    ([row(10, train__loss=None), row(20)], {}),
    ([row(20, **evaluated(None, 0.0), wire__bytes_sent=0.0)], {}),
    ([row(s, **evaluated(0.5, 1.0)) for s in range(1, 201)], {}),
  ],
  ids=['empty', 'one row', 'not finite', 'zeros', 'long'],
)
def test_partial_runs_are_reported(tmp_path, rows, changes):
  run = write(tmp_path / 'run', rows, **changes)
  (cells,) = parse(plots.report([run], run))
  assert set(FILES) <= {p.name for p in run.iterdir()}
  assert 'nan' not in str(cells)


def test_missing_numbers_are_a_dash(tmp_path):
  (cells,) = parse(tables.table([write(tmp_path / 'run', [])]))
  assert {cells[column] for column in tables.COLUMNS} == {'–'}
  assert cells['run'] == 'run (unfinished)'


def test_a_stopped_run_says_so(tmp_path, baseline):
  stopped = write(tmp_path / 'stopped', [row(10, **evaluated(0.5, 1.0))])
  names = [cells['run'] for cells in parse(tables.table([baseline, stopped]))]
  assert names == ['base', 'stopped (unfinished)']


def test_a_number_that_ended_not_finite_is_no_earlier_one(tmp_path):
  rows = [row(10, **evaluated(0.5, 1.0)), row(20, **evaluated(0.1, None))]
  (cells,) = parse(tables.table([write(tmp_path / 'run', rows)]))
  assert cells['consensus rms'] == '–'


def test_labels_tell_runs_apart(tmp_path, baseline):
  zero = {'reduce': {'name': 'allreduce'}, 'gossip': {'name': 'none'}}
  runs = [
    baseline,
    write(tmp_path / 'longer', [row(20)], epochs=3.0),
    write(tmp_path / 'reduce', [row(20, **evaluated(0.5, 0.0))], **zero),
    *seeds(tmp_path, [0.1, 0.2], **MONIQUA),
  ]
  groups = tables.by_seed([tables.load(run) for run in runs])
  assert list(plots._labels(groups)) == [
    'D-PSGD (base)',
    'D-PSGD (longer)',
    'all-reduce (distance 0)',
    'Moniqua 4 bits, 2\N{NO-BREAK SPACE}seeds',
  ]


def test_without_runs_there_is_an_error():
  with pytest.raises(ValueError, match='no runs'):
    tables.table([])


def test_a_folder_without_config_is_named(baseline):
  (baseline / 'config.json').unlink()
  with pytest.raises(OSError, match='base.*config.json'):
    tables.load(baseline)


@pytest.mark.parametrize(
  'args, out',
  [
    (['a'], 'a'),
    (['a', 'b'], 'report'),
    (['a', '--out=c'], 'c'),
    (['--out=c', 'a', 'b'], 'c'),
  ],
)
def test_command_line_chooses_the_folder(monkeypatch, capsys, args, out):
  monkeypatch.setattr(plots, 'report', lambda runs, out: f'{runs} {out}')
  assert plots.main(args) == 0
  runs = [arg for arg in args if arg in 'ab']
  assert capsys.readouterr().out == f'{runs} {out}'


def test_an_error_is_one_line(tmp_path, capsys, baseline):
  assert plots.main([str(baseline), str(tmp_path)]) == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert err.startswith(f'error: {tmp_path} holds no run')
  assert err.count('\n') == 1


def test_module_runs_without_pyplot(baseline):
  program = [sys.executable, '-X', 'importtime', '-m', 'moniqua_jax.plots']
  run = subprocess.run(
    [*program, baseline],
    capture_output=True,
    text=True,
    cwd=Path(__file__).parents[1],
  )
  assert run.returncode == 0
  assert run.stdout == tables.table([baseline])
  assert 'matplotlib.figure' in run.stderr
  assert 'matplotlib.pyplot' not in run.stderr
  assert set(FILES) <= set(os.listdir(baseline))
