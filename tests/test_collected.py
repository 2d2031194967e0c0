"""Runs of the convex laboratory that were made apart stand in one table."""

import json

from benchmarks import smoothness


def test_runs_of_one_problem_share_a_column(tmp_path):
  reached = lambda iterations: {'reached': {'1e-10': iterations}}
  runs = {
    'a8a_n5': (5, '../libsvm/a8a', {'GD': reached(1), 'DCGD': reached(2)}),
    'a8a_n5_more': (5, 'elsewhere/a8a', {'DIANA': reached(3)}),
    'a8a_n5_new': (5, '../libsvm/a8a', {'GD': reached(4)}),
    'digits_n8': (8, None, {'GD': reached(5)}),
  }
  for name, (workers, path, results) in runs.items():
    folder = tmp_path / name
    folder.mkdir()
    data = {'name': 'libsvm' if path else 'digits', 'path': path}
    config = {'workers': workers, 'data': data}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'results.json').write_text(json.dumps(results))
  (tmp_path / 'unfinished').mkdir()

  columns = smoothness.collected(sorted(tmp_path.iterdir()))

  assert list(columns) == ['a8a, 5', 'digits, 8']
  assert columns['a8a, 5'] == {
    'GD': reached(4),
    'DCGD': reached(2),
    'DIANA': reached(3),
  }


def test_a_figure_has_the_methods_of_all_runs_and_no_seconds(tmp_path):
  runs = {'one': {'DIANA': 1.0, 'GD': 2.0}, 'two': {'DCGD': 3.0, 'GD': 4.0}}
  for name, seconds in runs.items():
    (tmp_path / name).mkdir()
    rows = [{'method': m, 'step': 0, 'seconds': s} for m, s in seconds.items()]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (tmp_path / name / 'metrics.jsonl').write_text(lines)

  curves = smoothness.curves([tmp_path / name for name in runs])

  assert list(curves) == ['GD', 'DCGD', 'DIANA']  # as in METHODS
  rows = [{'method': m, 'step': 0, 'seconds': None} for m in curves]
  assert [[row] for row in rows] == list(curves.values())
