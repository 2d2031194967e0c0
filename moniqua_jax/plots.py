"""Tables and figures of runs, from what the runs wrote down.

  python -m moniqua_jax.plots runs/dpsgd runs/moniqua4 --out=report

Runs are given as work directories. The only file that imports matplotlib, and
without pyplot: a notebook that imports the library keeps its own backend.
"""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import sys
import textwrap
from typing import NamedTuple

import matplotlib.figure
import matplotlib.lines
import matplotlib.style
import matplotlib.ticker
import numpy as np

from moniqua_jax import metrics

DASH = '–'  # what was not measured

# Names that papers spell otherwise than Python does.
SPELLED = {
  'adpsgd': 'AD-PSGD',
  'allreduce': 'all-reduce',
  'd2': 'D²',
  'dpsgd': 'D-PSGD',
  'full_precision': '',
  'moniqua': 'Moniqua',
  'none': '',
  'nuqsgd': 'NUQSGD',
  'qsgd': 'QSGD',
}

# How the columns that `_measures` computes are written.
COLUMNS = {
  'epochs': '.3g',
  'MB sent': '.2f',
  'vs first': '.3f',
  'test %': '.2f',
  'worst %': '.2f',
  'unreadable %': '.3g',
  'distance/theta': '.3g',
  'consensus rms': '.2g',
  'minutes': '.2f',
}
NOTES = """\
MB sent: by each worker, 1 MB = 10^6 bytes. vs first: bytes per step, relative
to the first row. test %: accuracy of the mean model; worst %: of the worst
worker. unreadable %: of the messages. distance/theta: the largest of the run;
theta holds up to 1. consensus rms: of the workers from their mean, at the last
evaluation."""

# Of Okabe and Ito; three lists of different lengths, so lines rarely repeat.
COLOURS = '#000000 #0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9'.split()
DASHES = ['-', '--', '-.', ':']
MARKERS = 'os^Dvx'
STYLE = {
  'axes.grid': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'figure.constrained_layout.w_pad': 0.08,
  'font.size': 9,
  'grid.alpha': 0.3,
  'lines.linewidth': 1.3,
  'lines.markersize': 5,
  'svg.hashsalt': 'moniqua_jax',  # else the ids in the file are random
}


class Run(NamedTuple):
  """What a work directory holds."""

  name: str  # of the folder
  rows: list[dict]  # metrics.jsonl
  config: dict  # config.json
  source: dict  # run.json


# Label with the unit, factor and scale of an axis.
QUANTITIES = {
  'epoch': ('epochs', 1.0, 'linear'),
  'wire/bytes_sent': ('MB sent per worker', 1e-6, 'log'),
  'train/loss': ('training loss', 1.0, 'log'),
  'test/accuracy': ('test accuracy, mean model (%)', 100.0, 'linear'),
  'gossip/consensus_rms': ('consensus distance (rms)', 1.0, 'log'),
}
PANELS = [
  ('epoch', 'train/loss'),
  ('epoch', 'test/accuracy'),
  ('epoch', 'gossip/consensus_rms'),
  ('wire/bytes_sent', 'train/loss'),
  ('wire/bytes_sent', 'test/accuracy'),
]


def load(workdir) -> Run:
  """Reads one run.

  Args:
    workdir: of the run.

  Returns:
    A `Run`.

  Raises:
    ValueError: the folder does not hold a run.
    OSError: it lacks config.json or run.json.
  """
  folder = pathlib.Path(workdir).resolve()
  rows = metrics.read(workdir)
  read = lambda name: json.loads((folder / name).read_text())
  return Run(folder.name, rows, read('config.json'), read('run.json'))


def by_seed(runs: Sequence[Run]) -> list[list[Run]]:
  """Groups of runs whose configs are equal but for the seed, in order."""
  groups = {}
  for run in runs:
    key = json.dumps(run.config | {'seed': None}, sort_keys=True)
    groups.setdefault(key, []).append(run)
  return list(groups.values())


def method(config: dict) -> str:
  """What a config trains with; a quantizer on D-PSGD stands alone.

  Args:
    config: as in config.json.

  Returns:
    Reduce, gossip, quantizer and slack, where they say something.

  >>> moniqua = {'name': 'moniqua', 'bits': 4, 'theta': 1.0}
  >>> method({'gossip': {'name': 'd2'}, 'quantizer': moniqua, 'gamma': 0.2})
  'D², Moniqua 4 bits, gamma .2'
  """
  slots = ('reduce', 'gossip', 'quantizer')
  reduce, gossip, quantizer = (_spell(config.get(slot, {})) for slot in slots)
  if not gossip:
    return reduce or DASH
  gamma = config.get('gamma', 1.0)
  words = [
    reduce,
    '' if quantizer and gossip == SPELLED['dpsgd'] else gossip,
    quantizer,
    'theta per leaf' if config.get('scales_from') else '',
    f'gamma {gamma:g}'.replace(' 0.', ' .') if gamma != 1 else '',
  ]
  return ', '.join(filter(None, words))


def table(runs: Sequence) -> str:
  """A markdown table with a row a run, aligned to be read in a terminal.

  Args:
    runs: work directories.

  Returns:
    The table; an en dash is what was not measured.

  Raises:
    ValueError: there are no runs, or one of the folders does not hold one.
  """
  return _markdown([[run] for run in _load(runs)])


def seed_table(runs: Sequence) -> str:
  """The table with one row for all runs that differ only in their seed.

  Numbers are the mean ± the sample standard deviation; without ± where all
  seeds agree, and a dash where a seed lacks the number.

  Args:
    runs: work directories.

  Returns:
    The table.

  Raises:
    ValueError: as for `table`.
  """
  return _markdown(by_seed(_load(runs)))


def figure(runs: Sequence, path) -> None:
  """Loss, accuracy and consensus against epochs and bytes, as SVG and PNG.

  Runs that differ only in their seed share a line style and a legend entry. A
  line has at most 40 points: of more rows, the means of as many stretches.

  Args:
    runs: work directories.
    path: of the files; its suffix is replaced by .svg and .png.

  Raises:
    ValueError: as for `table`.
  """
  groups, path = by_seed(_load(runs)), pathlib.Path(path)
  with matplotlib.style.context(['default', STYLE]):
    fig = matplotlib.figure.Figure(figsize=(9, 5.4), layout='constrained')
    *panels, free = fig.subplots(2, 3, sharex='row', sharey='col').flat
    for axes, names in zip(panels, PANELS, strict=True):
      _draw(axes, *names, groups)
    panels[0].set_xlim(left=0)  # epochs; the panels of a row share it
    panels[0].locator_params(axis='x', nbins=5)
    for axis in (axis for axes in panels for axis in (axes.xaxis, axes.yaxis)):
      _number_log(axis)
    lines = [
      matplotlib.lines.Line2D([], [], label=label, **_style(i))
      for i, label in enumerate(_labels(groups))
    ]
    free.legend(handles=lines, loc='center', frameon=False, handlelength=4)
    free.axis('off')
    fig.savefig(path.with_suffix('.svg'), metadata={'Date': None})
    fig.set_layout_engine('none')  # keep it: to lay out takes half the time
    fig.savefig(path.with_suffix('.png'), dpi=200)


def report(runs: Sequence, out) -> str:
  """Writes table.md, figure.svg and figure.png.

  Args:
    runs: work directories.
    out: the folder to write into; made if it does not exist.

  Returns:
    The table, and below it the one of means if runs differ only in their seed.

  Raises:
    ValueError: as for `table`.
  """
  text, loaded = table(runs), _load(runs)
  if len(by_seed(loaded)) < len(loaded):
    means = 'Mean ± sample standard deviation over the seeds:'
    text += f'\n{means}\n\n{seed_table(runs)}'
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  sources = '\n'.join(map(_source, loaded))
  (out / 'table.md').write_text(f'{text}\n{NOTES}\n\n{sources}\n')
  figure(runs, out / 'figure')
  return text


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: prints the table and writes the report.

  Args:
    argv: arguments; those of the process if None.

  Returns:
    The exit status: 0, or 2 after an error.
  """
  parser = argparse.ArgumentParser(
    prog='python -m moniqua_jax.plots',
    description='Prints a table of runs; writes it and a figure.',
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='work directory')
  parser.add_argument(
    '--out', help="folder to write into; the only run's own, or ./report"
  )
  args = parser.parse_args(argv)
  default = args.runs[0] if len(args.runs) == 1 else 'report'
  try:
    print(report(args.runs, args.out or default), end='')
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def _load(runs):
  if not runs:
    raise ValueError('there are no runs; give their work directories.')
  return [load(run) for run in runs]


def _values(rows, key):
  """What the rows that have the key say; null, in JSON not finite, is NaN."""
  return np.array([row[key] for row in rows if key in row], float)


def _last(run, key):
  return np.append(np.nan, _values(run.rows, key))[-1]


def _bytes_a_step(run):
  return _last(run, 'wire/bytes_sent') / _last(run, 'step')


def _finished(run):
  steps_per_epoch = _last(run, 'step') / _last(run, 'epoch')
  epochs = run.config.get('epochs', 0.0)
  return _last(run, 'step') >= np.round(epochs * np.round(steps_per_epoch))


def _name(group):
  name = os.path.commonprefix([run.name for run in group])
  return name + '*' * (len(group) > 1)


def _spell(spec):
  """'Moniqua 4 bits' from {'name': 'moniqua', 'bits': 4, ...}."""
  name = spec.get('name', 'none')
  words = SPELLED.get(name, name.replace('_', ' '))
  bits = spec.get('bits')
  return f'{words} {bits} bit{"s" * (bits != 1)}' if bits else words


def _markdown(groups):
  title = ['run', 'method', 'seed', *COLUMNS]
  rows = [_cells(group, groups[0][0]) for group in groups]
  widths = [max(map(len, column)) for column in zip(title, *rows, strict=True)]
  words, *numbers = widths[:2], *widths[2:]  # at the left, at the right
  formats = [f'<{w}' for w in words] + [f'>{w}' for w in numbers]
  rule = ['-' * w for w in words] + ['-' * (w - 1) + ':' for w in numbers]
  lines = [map(format, line, formats) for line in (title, rule, *rows)]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _cells(group, first):
  name = _name(group).replace('|', r'\|')
  if not all(map(_finished, group)):
    name += ' (unfinished)'
  seeds = {run.config.get('seed', 0) for run in group}
  seed = f'n = {len(seeds)}' if len(group) > 1 else str(*seeds)
  rows = [_measures(run, first) for run in group]
  numbers = [_number([r[name] for r in rows], f) for name, f in COLUMNS.items()]
  return [name, method(group[0].config), seed, *numbers]


def _measures(run, first):
  """The numbers in a run's row by column; NaN where there is none."""
  last = lambda key: _last(run, key)
  messages = _values(run.rows, 'gossip/messages').sum() or np.nan
  unreadable = _values(run.rows, 'gossip/unreadable').sum()
  # Without a theta, distance/theta is written too, and is 0.
  modulo = [row for row in run.rows if 'gossip/theta' in row]
  share = _values(modulo, 'gossip/distance_over_theta')
  return {
    'epochs': last('epoch'),
    'MB sent': last('wire/bytes_sent') / 1e6,
    'vs first': _bytes_a_step(run) / (_bytes_a_step(first) or np.nan),
    'test %': 100 * last('test/accuracy'),
    'worst %': 100 * last('test/worst_worker'),
    'unreadable %': 100 * unreadable / messages,
    'distance/theta': np.fmax.reduce(share, initial=np.nan),
    'consensus rms': last('gossip/consensus_rms'),
    'minutes': last('seconds') / 60,
  }


def _number(values, spec):
  """'0.97', or '0.96 ± 0.01' of seeds that differ."""
  mean = np.mean(values)
  if np.isnan(mean):
    return DASH
  if np.ptp(values) == 0:
    return format(mean, spec)
  return f'{mean:{spec}} ± {np.std(values, ddof=1):{spec}}'


def _source(run):
  """One line of provenance."""
  source = {'command': DASH, 'date': DASH, 'machine': DASH} | run.source
  seconds = _number([_last(run, 'seconds')], '.0f')
  facts = [
    f'- {run.name}: `{source["command"]}`',
    source['date'],
    f'{seconds} s on {source["machine"]}',
    ', '.join(f'{k} {v}' for k, v in source.get('versions', {}).items()),
  ]
  if 'resumed' in source:
    facts.append(f'resumed: `{json.dumps(source["resumed"], sort_keys=True)}`')
  return '; '.join(filter(None, facts))


def _style(i):
  return {
    'color': COLOURS[i % len(COLOURS)],
    'linestyle': DASHES[i % len(DASHES)],
    'marker': MARKERS[i % len(MARKERS)],
    'fillstyle': 'none',  # lines that coincide are all seen
  }


def _draw(axes, x, y, groups):
  """One panel: rows[y] against rows[x], a line a run."""
  for i, run in ((i, run) for i, group in enumerate(groups) for run in group):
    rows = [row for row in run.rows if y in row]
    xs, ys = (_thin(_scaled(rows, key)) for key in (x, y))
    # At most 8 points have a marker, not the same ones on every line.
    every = 1 + len(xs) // 9
    axes.plot(xs, ys, **_style(i), markevery=(i % every, every))
  for axis, key in zip('xy', (x, y), strict=True):
    label, _, scale = QUANTITIES[key]
    axes.set(**{f'{axis}label': label, f'{axis}scale': scale})
  points = np.concatenate([line.get_xydata() for line in axes.lines])
  if not np.isfinite(points).all(axis=1).any():
    middle = dict(ha='center', transform=axes.transAxes)
    axes.text(0.5, 0.5, 'nothing to show', **middle)
    axes.tick_params(which='both', left=False, labelleft=False)
    axes.grid(False)


def _thin(values):
  """Means of at most 40 stretches, since single steps' losses are noise."""
  parts = np.array_split(values, min(len(values), 40) or 1)
  return np.array([part.mean() for part in parts if part.size])


def _scaled(rows, key):
  """The rows' values in the units of the axis; a log axis shows no zeros."""
  _, factor, scale = QUANTITIES[key]
  values = factor * _values(rows, key)
  return np.where((scale == 'log') & (values <= 0), np.nan, values)


def _number_log(axis):
  """Plain numbers at a few ticks, whatever share of a decade is in view."""
  if axis.get_scale() != 'log':
    return
  low, high = axis.get_view_interval()
  if high / low < 10:
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
  elif high / low < 1000:
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 3)))
  axis.set_major_formatter(matplotlib.ticker.StrMethodFormatter('{x:g}'))
  axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _labels(groups):
  """Legend entries: the method, and the name where that is not enough."""
  methods = [method(group[0].config) for group in groups]
  for group, label in zip(groups, methods, strict=True):
    if methods.count(label) > 1:
      label += f' ({_name(group)})'
    if len(group) > 1:
      label += f', {len(group)}\N{NO-BREAK SPACE}seeds'
    apart = _values(sum((r.rows for r in group), []), 'gossip/consensus_rms')
    if apart.size and not apart.any():
      label += ' (distance 0)'
    yield textwrap.fill(label, 30)


if __name__ == '__main__':
  sys.exit(main())
