"""Numbers stand in their columns, figures show what they were given."""

import functools
import json
import os
from pathlib import Path
import subprocess
import sys
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.text
import numpy as np
from PIL import Image
import pytest

import moniqua_jax as mj
from moniqua_jax import plots, theory, wire
from moniqua_jax.plots import budget, kept, tables
from moniqua_jax.plots import runs as runs_lib
from moniqua_jax.training import metrics

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
    'noise %': '–',
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
    (
      {'momentum_kind': {'name': 'quasi_global'}},
      'D-PSGD, quasi-global momentum',
    ),
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
  groups = tables.by_seed([kept.load(run) for run in [*runs, other]])
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
  assert tables.source(kept.load(baseline)).endswith(
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
    assert image.size == (1350, 810)
  assert [matplotlib.rcParams[name] for name in names] == before


def test_a_long_legend_stands_below_and_leaves_the_panels_their_height(
  tmp_path,
):
  heights = []
  for count in (3, 20):
    runs = [
      write(tmp_path / f'{count}_{i}', [row(1), row(2)], gamma=0.01 + 0.02 * i)
      for i in range(count)
    ]
    plots.figure(runs, tmp_path / f'of_{count}')
    with Image.open(tmp_path / f'of_{count}.png') as image:
      heights.append(image.height / round(image.info['dpi'][0]))  # inches
  assert heights[0] == 5.4
  assert heights[1] > 5.4 + 20 * 0.2 / 3


@pytest.fixture
def drawn_runs(tmp_path, monkeypatch):
  """Draws a figure of runs, and keeps it from being saved."""
  kept_figures = []
  monkeypatch.setattr(
    runs_lib.look, 'save', lambda fig, path, dpi: kept_figures.append(fig)
  )

  def draw(runs):
    plots.figure(runs, tmp_path / 'figure')
    return kept_figures.pop()

  return draw


def of_seeds(folder, **changes):
  rows = lambda seed: [
    row(10 * s, **evaluated(0.5 + 0.1 * s + 0.1 * seed, 0.1)) for s in (1, 2)
  ]
  return [write(folder(s), rows(s), seed=s, **changes) for s in range(3)]


def test_a_budget_buys_an_accuracy(tmp_path, baseline, capsys):
  seeds = of_seeds(lambda seed: tmp_path / f's{seed}', gamma=0.5)
  fig = budget.budget({'ours': seeds}, ('all', [baseline]), parameters=2000)
  (axes,) = fig.axes
  ours, across = axes.lines
  np.testing.assert_allclose(ours.get_xydata(), [[4, 80]])  # 8 * 1000 / 2000
  (bar,) = axes.collections[0].get_segments()
  np.testing.assert_allclose(bar, [[4, 70], [4, 90]])
  np.testing.assert_allclose(across.get_ydata(), 91.25)

  ask = lambda *args: budget.main(
    ['--parameters=2000', f'--out={tmp_path}', *args]
  )
  assert ask(f'ours={tmp_path}/{{s0,s1}}', f'--line=all={baseline}') == 0
  assert (tmp_path / 'budget.png').exists()
  assert ask(str(baseline)) == 2
  assert 'is not LABEL=RUN' in capsys.readouterr().err
  assert ask(f'$x_$={baseline}', f'$x_$={baseline}') == 2
  assert 'each LABEL=RUN has a label of its own' in capsys.readouterr().err
  assert ask(f'$x_$={baseline}', f'--line=$_$={baseline}') == 0
  with pytest.raises(SystemExit):
    ask(f'a={baseline}', '--parameters=0')
  assert '--parameters=0; it must be 1 or more' in capsys.readouterr().err
  write(tmp_path / 'short', [row(1)])
  assert ask(f'ours={tmp_path}/short') == 2
  assert 'short has no test/accuracy' in capsys.readouterr().err


def test_seeds_are_their_mean_in_a_band(tmp_path, drawn_runs):
  fig = drawn_runs(of_seeds(lambda seed: tmp_path / f's{seed}'))
  axes = fig.axes[1]
  (line,), (band,) = axes.lines, axes.collections
  np.testing.assert_allclose(line.get_ydata(), [70, 80])
  (outline,) = band.get_paths()
  assert {60, 70, 80, 90} == set(outline.vertices[:, 1].round(6))


def test_a_seed_that_stopped_early_cuts_the_others_short():
  rows = [row(step) for step in range(1, 201)]
  lines = []
  for other in (rows, rows[:100]):
    fig = plots.compare({'a': [other, rows[:100]]}, [('step', 'train/loss')])
    lines.append(fig.axes[0].lines[0].get_xydata())
  np.testing.assert_array_equal(*lines)


def test_many_lines_have_numbers_and_nothing_is_clipped(tmp_path, drawn_runs):
  runs = []
  for i in range(12):
    rows = [row(10 * s, **evaluated(0.5 + 0.001 * i, 0.1)) for s in (1, 2)]
    more = dict(gamma=0.5, learning_rate=dict(peak=0.01 * (i + 1)))
    runs.append(write(tmp_path / f'raw_name_{i}', rows, **more))
  diverging = [row(s, **evaluated(0.1, 0.1)) for s in (10, 20)]
  diverging[-1]['train/loss'] = 1e12
  runs.append(write(tmp_path / 'raw_name_12', diverging, gamma=0.1))
  fig = drawn_runs(runs)
  texts = [text.get_text() for text in fig.findobj(matplotlib.text.Text)]
  assert not any('raw_name' in text for text in texts)
  label = '1  D-PSGD, gamma .5,\nlearning rate .01'
  assert label.replace('g r', 'g\xa0r').replace('e .', 'e\xa0.') in texts
  assert any('13' in text and 'diverges' in text for text in texts)
  assert fig.axes[0].get_ylim()[1] < 1
  for axes in fig.axes[:2]:
    # Without the line that leads to it.
    place = matplotlib.text.Text.get_window_extent
    ends = sorted(place(text).y0 for text in axes.texts)
    assert len(ends) >= 12 and np.diff(ends).min() > 5
  _assert_none_is_clipped(fig)


def test_a_panel_of_single_points_is_left_out(tmp_path, drawn_runs):
  runs = of_seeds(lambda seed: tmp_path / f's{seed}')[:1]
  lines = (runs[0] / 'metrics.jsonl').read_text().splitlines()
  first = {k: v for k, v in json.loads(lines[0]).items() if k[0] not in 'tg'}
  first |= {'train/loss': 1.0}
  (runs[0] / 'metrics.jsonl').write_text(f'{json.dumps(first)}\n{lines[1]}\n')
  labels = {axes.get_ylabel() for axes in drawn_runs(runs).axes if axes.lines}
  assert labels == {'training loss'}


def test_panels_of_ones_own(tmp_path, capsys, baseline, moniqua):
  out = ['--out', str(tmp_path)]
  runs = [str(baseline), str(moniqua)]
  ask = lambda panels: plots.main([*runs, f'--panels={panels}', *out])
  assert ask('wire/bytes_sent:test/accuracy,epoch:train/loss') == 0
  assert {'panels.png', 'panels.svg'} <= {p.name for p in tmp_path.iterdir()}
  assert ask('epoch') == 2
  assert 'give X:Y' in capsys.readouterr().err
  assert ask('epoch:loss') == 2
  assert "no run has 'loss'; they have [" in capsys.readouterr().err


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


def test_words_of_ones_own_are_no_bar_no_line_and_no_formula(
  tmp_path, baseline
):
  mine = write(tmp_path / 'mine', [row(10)], variant='a | b\n$c_$')
  _, cells = parse(plots.report([baseline, mine], tmp_path))
  assert cells['method'] == r'D-PSGD, (a \| b $c_$ variant)'
  assert cells['MB sent'] == '0.01' and (tmp_path / 'figure.png').exists()


def test_missing_numbers_are_a_dash(tmp_path):
  (cells,) = parse(tables.table([write(tmp_path / 'run', [])]))
  columns = [name for name in tables.COLUMNS if name not in tables.OF_TEXT]
  assert {cells[column] for column in columns} == {'–'}
  assert cells['run'] == 'run (unfinished)'


def test_text_has_a_column_of_bits_and_only_text(tmp_path, baseline):
  text = write(tmp_path / 'text', [row(10, test__bits_per_character=1.868)])
  rows = parse(tables.table([baseline, text]))
  assert [cells['bits/character'] for cells in rows] == ['–', '1.868']
  assert 'bits/character' not in parse(tables.table([baseline]))[0]


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
  groups = tables.by_seed([kept.load(run) for run in runs])
  assert list(runs_lib._labels(groups)) == [
    'D-PSGD, epochs\N{NO-BREAK SPACE}2',
    'D-PSGD, epochs\N{NO-BREAK SPACE}3',
    'all-reduce (distance 0)',
    'Moniqua 4 bits, 2\N{NO-BREAK SPACE}seeds',
  ]


def test_labels_that_are_alike_have_the_names_of_the_runs(tmp_path, baseline):
  """As where an entry is one of later versions; else one line hides another."""
  later = write(tmp_path / 'later', [row(20)], nesterov=True)
  groups = tables.by_seed([kept.load(run) for run in (baseline, later)])
  assert list(runs_lib._labels(groups)) == ['D-PSGD, base', 'D-PSGD, later']


def test_labels_name_a_net_first():
  net = lambda name, epochs: {'epochs': epochs, 'model': {'name': name}}
  configs = [net('resnet20', 24.0), net('resnet110', 2.0)]
  assert runs_lib._apart(configs[1], configs) == [
    'resnet110',
    'epochs\N{NO-BREAK SPACE}2',
  ]


def test_without_runs_there_is_an_error():
  with pytest.raises(ValueError, match='no runs'):
    tables.table([])


def test_a_folder_without_config_is_named(baseline):
  (baseline / 'config.json').unlink()
  with pytest.raises(OSError, match='base.*config.json'):
    kept.load(baseline)


@pytest.mark.parametrize(
  'args, out',
  [
    (['a'], 'a'),
    (['a', 'b'], 'report'),
    (['a', '--out=c'], 'c'),
    (['--out=c', 'a', 'b'], 'c'),
    (['a', '--out=~/c'], '/home/of/c'),
  ],
)
def test_command_line_chooses_the_folder(monkeypatch, capsys, args, out):
  monkeypatch.setattr(runs_lib, 'report', lambda runs, out: f'{runs} {out}')
  monkeypatch.setenv('HOME', '/home/of')
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
  assert run.stdout == plots.shown(tables.table([baseline]))
  assert 'matplotlib.figure' in run.stderr
  assert 'matplotlib.pyplot' not in run.stderr
  assert set(FILES) <= set(os.listdir(baseline))


# ------------------------------------------------------- figures by function


@functools.cache
def gossip_rows(theta, steps=6):
  """Rows of workers that gossip, 4 bits on a ring, and do nothing else."""
  algorithm = mj.dpsgd(
    mj.ring(8),
    mj.moniqua(theta, bits=4),
    axis_name='workers',
    key=jax.random.key(0),
  )

  def one_round(x, state, step):
    moved, state = algorithm.update(jnp.zeros_like(x), state, x, step=step)
    return x + moved, state

  x = np.random.default_rng(1).normal(size=(8, 50)).astype(np.float32)
  state = mj.simulated(algorithm.init, (0,))(x)
  one_round = mj.simulated(one_round, (0, 0, None))
  rows = []
  for step in range(steps):
    x, state = one_round(x, state, np.int32(step))
    zero = np.zeros(8)
    seen = {'loss': zero, 'accuracy': zero, 'seen': state.heard.seen}
    rows.append({'step': step} | metrics.summarise([jax.device_get(seen)]))
    rows[-1]['gossip/consensus_rms'] = float(np.asarray(x).std(axis=0).mean())
  return rows


MONIQUA_ENDS = [('theta', 4), ('seed', 4), ('digest', 4)]


def noise_by_bits():
  v = np.random.default_rng(0).normal(size=512)
  levels = lambda bits: [0, *2.0 ** -np.arange(2 ** (bits - 1) - 2, -1, -1)]
  return {'NUQSGD': {b: theory.exact_variance(v, levels(b)) for b in (3, 4, 5)}}


def bound_by_bits():
  s = lambda bits: 2 ** (bits - 1) - 2
  return {'NUQSGD': {b: theory.nuqsgd_variance(s(b), 512) for b in (3, 4, 5)}}


def drawn():
  with plots.drawing(4, 3) as fig:
    axes = fig.subplots()
    axes.plot([1, 2], [3, 4], label='a line', **plots.line_style(0))
    axes.set(xlabel='x', ylabel='y')
    axes.legend()
  return fig


FIGURES = {
  'compare': lambda: plots.compare(
    {'wide': gossip_rows(8.0), 'of a long name that takes space': [row(3)]},
    [('step', 'gossip/consensus_rms'), ('wire/bytes_sent', 'train/loss')],
  ),
  'compare, one panel': lambda: plots.compare(
    {f'a method with a long name, number {i}': [row(3)] for i in range(9)},
    [('epoch', 'train/loss')],
  ),
  'margin': lambda: plots.margin(
    {'theta 8': gossip_rows(8.0), 'theta .1': gossip_rows(0.1)}
  ),
  'variance': lambda: plots.variance(noise_by_bits(), bound_by_bits()),
  'topology': lambda: plots.topology(mj.ring(8)),
  'topology, directed': lambda: plots.topology(mj.exponential(8)),
  'topology, large': lambda: plots.topology(mj.torus(4, 6)),
  'message': lambda: plots.message(mj.moniqua(1.0, bits=3), 12, MONIQUA_ENDS),
  'sizes': lambda: plots.sizes(
    {
      '32 bits': mj.full_precision(),
      '1 bit': mj.moniqua(1.0, bits=1),
      'NUQSGD, 4 bits': mj.nuqsgd(4, bucket_size=64),
    },
    9472,
  ),
  'drawing': drawn,
}


@pytest.fixture(scope='module')
def figures():
  made = {}
  return lambda name: made.setdefault(name, FIGURES[name]())


every_figure = pytest.mark.parametrize('name', FIGURES)


# Of lines, of arrows and an image, of patches.
@pytest.mark.parametrize('name', ['compare, one panel', 'topology', 'message'])
def test_a_figure_is_saved_twice_with_the_same_bytes(name, figures, tmp_path):
  fig = figures(name)
  for copy in 'ab':
    plots.save(fig, tmp_path / copy, dpi=100)
  for suffix in ('.svg', '.png'):
    first, second = (tmp_path / f'{copy}{suffix}' for copy in 'ab')
    assert first.read_bytes() == second.read_bytes()
  ET.parse(tmp_path / 'a.svg')
  with Image.open(tmp_path / 'a.png') as image:
    np.testing.assert_allclose(image.size, 100 * fig.get_size_inches(), atol=1)


@every_figure
def test_a_figure_has_labels_and_a_legend(name, figures):
  fig = figures(name)
  legends = [*fig.legends, *filter(None, (a.get_legend() for a in fig.axes))]
  assert legends and all(legend.get_texts() for legend in legends)
  for axes in fig.axes:
    # Panels of a grid that share an axis label it once, at the edge.
    shared_x, shared_y = (
      len(group.get_siblings(axes)) > 1
      for group in (axes.get_shared_x_axes(), axes.get_shared_y_axes())
    )
    assert axes.get_xlabel() or shared_x
    assert axes.get_ylabel() or shared_y or name.startswith('topology')


@every_figure
def test_no_text_is_clipped(name, figures):
  _assert_none_is_clipped(figures(name))


def _assert_none_is_clipped(fig):
  page = fig.bbox
  for text in fig.findobj(matplotlib.text.Text):
    box = text.get_window_extent()
    # Ticks beyond the view are there, and not drawn.
    if not text.get_text() or box.width == 0 or _is_hidden_tick(text, fig):
      continue
    assert box.x0 > -1 and box.y0 > -1, text
    assert box.x1 < page.x1 + 1 and box.y1 < page.y1 + 1, text


def _is_hidden_tick(text, fig):
  ticks = [
    (axis, tick)
    for axes in fig.axes
    for axis in (axes.xaxis, axes.yaxis)
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
    if text in (tick.label1, tick.label2)
  ]
  for axis, tick in ticks:
    low, high = sorted(axis.get_view_interval())
    return not (text.get_visible() and low <= tick.get_loc() <= high)
  return False


def test_twelve_lines_differ_without_their_colours():
  looks = [plots.line_style(i) for i in range(12)]
  assert len({(look['linestyle'], look['marker']) for look in looks}) == 12


def test_lines_show_the_numbers_in_the_units_of_their_axis():
  rows = [row(s) for s in (1, 2)] + [{'step': 3}]  # without the other keys
  fig = plots.compare({'a': rows}, [('wire/bytes_sent', 'train/loss')])
  xs, ys = fig.axes[0].lines[0].get_xydata().T
  np.testing.assert_allclose(xs, [0.001, 0.002])  # MB
  np.testing.assert_allclose(ys, [2.0, 1.0])


def test_a_quantity_of_ones_own_has_its_scale():
  rows = [{'step': s, 'noise': 10.0**s} for s in range(100)]
  about = {'noise': ('noise of mine', 2.0, 'log')}
  pair = [('step', 'noise')]
  fig = plots.compare({'a': rows}, pair, points=100, quantities=about)
  assert fig.axes[0].get_yscale() == 'log'
  assert fig.axes[0].get_ylabel() == 'noise of mine'
  ys = fig.axes[0].lines[0].get_ydata()
  np.testing.assert_allclose(ys, [2 * 10.0**s for s in range(100)])


def test_margin_shows_theta_and_what_is_lost(figures):
  above, below = figures('margin').axes[1::2]  # of theta .1
  theta, _ = above.lines
  np.testing.assert_allclose(theta.get_ydata(), 0.1, rtol=1e-6)
  (shape,) = below.collections
  assert shape.get_datalim(below.transData).y1 == 100  # all are too far apart


@pytest.mark.parametrize('graph', [mj.ring(5), mj.exponential(6), mj.star(4)])
def test_topology_has_an_arrow_for_each_message(graph):
  w = mj.matrix(graph)
  left, right = plots.topology(graph).axes
  arrows = [text for text in left.texts if getattr(text, 'arrow_patch', None)]
  both_ways = np.allclose(w, w.T)
  assert len(arrows) == np.count_nonzero(w - np.diag(np.diag(w))) / (
    1 + both_ways
  )
  np.testing.assert_array_equal(right.images[0].get_array(), w)


@pytest.mark.parametrize('bits', [1, 3, 4, 8])
def test_message_says_where_each_bit_stands(bits):
  d = 11
  fig = plots.message(mj.moniqua(1.0, bits), d, MONIQUA_ENDS)
  owner = {}
  for text in fig.axes[0].texts:
    if text.get_text().isdigit():
      x, y = text.get_position()
      owner[int(x), int(y)] = int(text.get_text())
  assert sorted(owner.values()) == sorted([*range(d)] * bits)
  codes = np.random.default_rng(0).integers(2**bits, size=d).astype(np.uint8)
  packed = np.asarray(wire.pack(jnp.asarray(codes), bits))
  ones = [
    sum(int(packed[x] >> y & 1) for (x, y), j in owner.items() if j == value)
    for value in range(d)
  ]
  assert ones == [int(code).bit_count() for code in codes]


def test_message_refuses_a_header_of_another_size():
  with pytest.raises(ValueError, match='12 bytes that follow'):
    plots.message(mj.moniqua(1.0, bits=4), 10, [('theta', 4)])
  with pytest.raises(ValueError, match='no codes'):
    plots.message(mj.full_precision(), 10)


def test_bars_are_as_long_as_the_messages():
  quantizers = {'a': mj.full_precision(), 'b': mj.nuqsgd(4, bucket_size=64)}
  (axes,) = plots.sizes(quantizers, 1000).axes
  ends = [0, 0]
  for bars in axes.containers:
    for i, bar in enumerate(bars):
      assert bar.get_x() == ends[i]
      ends[i] += bar.get_width()
  assert ends == [4000, 500 + 4 * 16]
