"""What came of a run of the laboratory: metrics, a table, a figure.

Bits are those of all workers together. Coded: each message in Elias' omega code
as arXiv:2106.03524 counts it; packed: 8 times the bytes that travel. Both
without what flows back from the server, which is full precision in the paper.
"""

import json
import os
import pathlib

import numpy as np

from moniqua_jax.laboratory import figures, methods, stopping
from moniqua_jax.plots import tables
from moniqua_jax.training import whole

POINTS = 200  # rows of metrics.jsonl for a method
COLUMNS = (
  'method',
  'gamma',
  'calL_max',
  'omega',
  'iterations to 1e-6',
  'to 1e-10',
  'coded Mbit to 1e-6',
  'to 1e-10',
  'the same without the upload',
  'packed Mbit to 1e-10',
  'end',
  'ms',
)
NOTES = """
1e-6, 1e-10: of |x - x*|^2 / |x_0 - x*|^2. Numbers are geometric means over
{seeds} seeds, '-' where a seed did not get there. Mbit: 10^6 bits of all
workers. Coded: 32 bits a norm (8 where it says so), Elias' omega code of
distances and levels, a sign, and once the upload of L_i^(1/2) and the steps,
which the next column leaves out. Packed: 8 times the bytes that travel, and the
upload. End: the distance after the last iteration, and why it was the last:
*floor*, a method that does not converge, stopped after {most:,}; *no hope*, a
straight line through the last half of the logarithm misses the next target by
half a decade at iteration {last:,}. ms: of one iteration alone, all workers on
this machine (load {load:.1f}), one seed.
"""


def one_line(name, method, problem) -> str:
  """A method in words: for --dry_run and the start of a run."""
  design = method.design
  shape = (
    f'omega {design.omega:.3g}, calL {design.calL:.3g}, ' if design else ''
  )
  upload = ''
  if design and design.upload:
    upload = f', {design.upload / 1e3:,.0f} kbit before'
  bits = methods.wire_bits(method, problem)
  return (
    f'{name:26s} gamma {method.gamma:.3g}, {shape}{bits:,.0f} bits packed, a '
    f'worker and iteration{upload}'
  )


def write(workdir, config, problem, named, record, clock) -> str:
  """Writes metrics.jsonl, results.json, table.md, figure.svg and figure.png."""
  workdir = pathlib.Path(workdir)
  clock = clock or [float('nan')] * len(named)
  entries, curves = {}, {}
  for i, (name, method) in enumerate(named.items()):
    done = min(int(record.done[i]), config.iterations)  # in whole chunks
    distance = record.distance[:, i, :done]
    each = record.coded[:, i, :done].astype(np.float64)
    sent = problem.n * (np.cumsum(each, axis=1) - each)  # before an iteration
    args = method, problem, distance, sent, clock[i]
    curves[name] = curve(*args)
    entries[name] = summary(*args, config.iterations)
  text = table(entries)
  title = (
    f'{problem.name}: n = {problem.n}, m = {problem.m}, d = {problem.d}, '
    f'L / mu = {problem.L / problem.mu:.0f}'
  )
  notes = NOTES.format(
    seeds=config.seeds,
    most=max((m.most or 0) for m in named.values()),
    last=config.iterations,
    load=os.getloadavg()[0],
  )
  whole.write(workdir / 'table.md', f'{title}\n\n{text}{notes}')
  lines = [
    json.dumps({'method': k, **row}) for k in curves for row in curves[k]
  ]
  whole.write(workdir / 'metrics.jsonl', '\n'.join(lines) + '\n')
  whole.write(workdir / 'results.json', json.dumps(entries, indent=1))
  figures.draw(curves, title, workdir / 'figure')
  return text


def table(entries: dict[str, dict]) -> str:
  """A row for each method, in markdown."""
  rows = [_cells(name, entry) for name, entry in entries.items()]
  return tables.markdown(COLUMNS, rows)


def curve(method, problem, distance, sent, seconds) -> list[dict]:
  """The rows of one method in metrics.jsonl."""
  k = distance.shape[1]
  at = np.unique(np.linspace(0, k - 1, POINTS).astype(int))
  upload = method.design.upload if method.design else 0.0
  packed = problem.n * methods.wire_bits(method, problem)
  logs = np.log10(np.maximum(distance[:, at], 1e-300))
  return [
    {
      'iteration': int(j),
      'distance': float(10 ** logs[:, p].mean()),
      'spread': float(logs[:, p].std()),
      'coded_bits': float(sent[:, j].mean()),
      'packed_bits': float(packed * j),
      'upload_bits': upload,
      'seconds': seconds * j if np.isfinite(seconds) else None,
    }
    for p, j in enumerate(at)
  ]


def summary(method, problem, distance, sent, seconds, last) -> dict:
  """The numbers of one method in the table: its entry in results.json."""
  design, reached = method.design, {}
  for target in stopping.TARGETS:
    at = stopping.hits(distance, target)
    bits = sent[np.arange(len(at)), at]
    pair = {'iterations': at.tolist(), 'coded_bits': bits.tolist()}
    reached[f'{target:g}'] = pair if (at >= 0).all() else None
  finite = lambda number: number if np.isfinite(number) else None
  return {
    'gamma': finite(method.gamma),
    'calL': design.calL if design else None,
    'omega': design.omega if design else None,
    'upload_bits': design.upload if design else 0.0,
    'packed_bits': problem.n * methods.wire_bits(method, problem),
    'reached': reached,
    'end': geometric(distance[:, -1]),
    'why': stopping.reason(distance, method.most, last),
    'seconds': finite(seconds),
  }


def geometric(values) -> float:
  """The geometric mean."""
  return float(np.exp(np.mean(np.log(np.maximum(values, 1e-300)))))


def _cells(name, entry):
  near, at = (entry['reached'][f'{t:g}'] for t in stopping.TARGETS[1:])
  upload, of = entry['upload_bits'], np.array
  coded = lambda pair: (of(pair['coded_bits']) + upload) / 1e6
  packed = lambda pair: (
    (entry['packed_bits'] * of(pair['iterations']) + upload) / 1e6
  )
  end = f'{entry["end"]:.1e}'
  return [
    name,
    *(_text(entry[key], '.3g') for key in ('gamma', 'calL', 'omega')),
    _mean(near, lambda pair: pair['iterations'], '.0f'),
    _mean(at, lambda pair: pair['iterations'], '.0f'),
    _mean(near, coded, '.4g'),
    _mean(at, coded, '.4g'),
    _mean(at, lambda pair: of(pair['coded_bits']) / 1e6, '.4g'),
    _mean(at, packed, '.4g'),
    end if entry['why'] == 'target' else f'{end}, {entry["why"]}',
    _text(entry['seconds'] and 1e3 * entry['seconds'], '.3g'),
  ]


def _mean(pair, of, spec) -> str:
  """The geometric mean over seeds, if all of them got there."""
  return '-' if pair is None else format(geometric(of(pair)), spec)


def _text(value, spec) -> str:
  return '-' if value is None else format(value, spec)
