"""Runs of the convex laboratory that were made apart stand in one table."""

import json
import pathlib

import pytest

from benchmarks import smoothness, smoothness_seconds, smoothness_workers


def reached(iterations):
  pair = {'iterations': [iterations] * 2, 'coded_bits': [1e6] * 2}
  return {
    'reached': {'0.01': pair, '1e-06': pair, '1e-10': pair},
    'upload_bits': 0.0,
    'packed_bits': 8.0,
    'gamma': 0.5,
    'calL': None,
    'omega': None,
    'end': 1e-11,
    'why': 'target',
    'seconds': 0.1,
  }


def write(folder, workers, path, results, points=3):
  """What the laboratory leaves in a work directory."""
  folder.mkdir()
  data = {'name': 'libsvm' if path else 'digits', 'path': path}
  files = {
    'config.json': {'workers': workers, 'data': data},
    'results.json': results,
    'run.json': {'command': 'train.py', 'date': 'today', 'machine': 'toy'},
  }
  for name, held in files.items():
    (folder / name).write_text(json.dumps(held))
  (folder / 'table.md').write_text('a problem: n = 2\n\n| method |\n')
  rows = [
    {
      'method': method,
      'iteration': k,
      'distance': 0.9**k,
      'spread': 0.0,
      'coded_bits': 8.0 * k,
      'upload_bits': 2.0,
      'seconds': 0.1 * k,
    }
    for method in results
    for k in range(points)
  ]
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(lines)


def kept(tmp_path, runs):
  """Runs, kept and read again."""
  for name, run in runs.items():
    write(tmp_path / name, *run)
  out = tmp_path / 'out'
  for name in runs:  # one after the other
    smoothness.keep([smoothness.load(tmp_path / name)], out)
  return smoothness.loaded(out)


RUNS = {
  'a8a_n5': (5, '../libsvm/a8a', {'GD': reached(1), 'DCGD': reached(2)}),
  'a8a_n5_more': (5, 'elsewhere/a8a', {'DIANA': reached(3)}),
  'a8a_n5_new': (5, '../libsvm/a8a', {'GD': reached(4)}),
  'digits_n8': (8, None, {'GD': reached(5)}),
}


def test_runs_of_one_problem_share_a_column(tmp_path):
  columns = smoothness.collected(kept(tmp_path, RUNS))
  assert list(columns) == ['a8a, 5', 'digits, 8']
  assert columns['a8a, 5'] == {
    'GD': reached(4),
    'DCGD': reached(2),
    'DIANA': reached(3),
  }


def test_a_figure_has_the_methods_of_all_runs_and_no_seconds(tmp_path):
  runs = kept(
    tmp_path,
    {
      'one': (2, 'a', {'DIANA': reached(1), 'GD': reached(2)}),
      'two': (2, 'a', {'DCGD': reached(3), 'GD': reached(4)}, 4),
    },
  )
  curves = smoothness.curves(runs)
  assert list(curves) == ['GD', 'DCGD', 'DIANA']  # as in METHODS
  assert len(curves['GD']) == 4 and len(curves['DIANA']) == 3
  assert curves['GD'][2] == {
    'iteration': 2,
    'distance': 0.81,
    'spread': 0,
    'coded_bits': 16,
    'upload_bits': 2.0,
    'seconds': None,
  }


def test_a_long_curve_keeps_its_ends_and_its_start(tmp_path):
  run = {'one': (2, 'a', {'GD': reached(1)}, 2000)}
  (run,) = kept(tmp_path, run)
  at = [row['iteration'] for row in run.curves['GD']]
  assert at[0] == 0 and at[-1] == 1999 and len(at) <= 60
  assert sum(k < 50 for k in at) >= 10
  smoothness.keep([], tmp_path / 'out')  # thinned once, not twice
  assert smoothness.loaded(tmp_path / 'out') == [run]


def test_kept_runs_are_drawn_again_without_their_folders(
  tmp_path, monkeypatch, capsys
):
  kept(tmp_path, RUNS)
  out = tmp_path / 'out'
  monkeypatch.setattr('sys.argv', ['smoothness', f'--out={out}'])
  smoothness.main()
  assert '| GD ' in capsys.readouterr().out
  assert {'table.md', 'runs.md', 'a8a_n5.png', 'digits_n8.png'} <= {
    file.name for file in out.iterdir()
  }
  assert '`train.py`' in (out / 'runs.md').read_text()


def test_seconds_on_a_link_are_those_of_bytes_headers_and_iterations():
  """Three workers, two messages in of 100 bits a worker: 13 bytes and 66."""
  entry = {'packed_bits': 600.0, 'upload_bits': 0.0, 'seconds': 0.3}
  of = lambda method, coded, **more: smoothness_seconds.seconds(
    method, entry, coded, 10, (3, 64), rate=1, **more
  )
  compute = 10 * 0.3 / 3
  assert of('DIANA', 3000) == pytest.approx(10 * 2 * 8 * 79 / 1e6 + compute)
  assert of('DIANA', 3000, headers=0) == pytest.approx(2080 / 1e6 + compute)
  # Coded in more bits than packed: it is sent packed, in 200 bits.
  assert of('DIANA', 9000) == pytest.approx(10 * 2 * 8 * 91 / 1e6 + compute)
  # The ring: 2 (n - 1) messages of a third of 64 numbers.
  ring = 10 * 4 * 8 * (86 + 66) / 1e6
  assert of('GD', 0) == pytest.approx(ring + compute)


def test_the_table_of_seconds_is_that_of_the_runs_kept():
  folder = pathlib.Path(__file__).parents[1] / 'results' / 'smoothness'
  found = smoothness.columns(smoothness.loaded(folder))
  runs = {name: found[name] for name in smoothness_seconds.PROBLEMS}
  assert (folder / 'seconds.md').read_text() == smoothness_seconds.page(runs)


def test_gains_are_those_of_theory_and_stand_on_the_page():
  root = pathlib.Path(__file__).parents[1]
  folders = (root / 'results' / f'smoothness{end}' for end in ('_cost', ''))
  regime, data = smoothness_workers.gains_of(*folders)
  text = smoothness_workers.table(regime, data)
  assert text in (root / 'docs' / 'smoothness.md').read_text()
  both = [
    gain.iterations
    for gains in (*regime.values(), *data.values())
    for gain in gains.values()
    if gain.iterations[1] > 0
  ]
  theory, measured = zip(*both, strict=True)
  assert len(both) >= 18
  assert measured == pytest.approx(theory, rel=0.05)
