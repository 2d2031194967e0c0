"""Figures and reports of runs, from what the runs wrote down.

  python -m moniqua_jax.plots runs/dpsgd runs/moniqua4 --out=report

writes a table and a figure of runs, which are given as work directories, as
folders that hold kept runs, or one by one as FOLDER/NAME. With --keep the
folder holds them afterwards: what tables and figures need, in three small files
(see kept.py).

  python -m moniqua_jax.plots runs/dpsgd runs/moniqua4 --out=report \\
    --panels=wire/bytes_sent:test/accuracy,seconds:train/loss

writes panels.svg and panels.png with what is asked for, X:Y by the keys of
metrics.jsonl.
"""

import argparse
from collections.abc import Sequence
import pathlib
import textwrap

from moniqua_jax import command_line
from moniqua_jax.plots import ends, kept, look, panels, tables, terminal
from moniqua_jax.training import whole

FREE_LINES = 14  # of a legend that fits into a panel
PANELS = [
  ('epoch', 'train/loss'),
  ('epoch', 'test/accuracy'),
  ('epoch', 'gossip/consensus_rms'),
  ('wire/bytes_sent', 'train/loss'),
  ('wire/bytes_sent', 'test/accuracy'),
]


def figure(runs: Sequence, path) -> None:
  """Loss, accuracy and consensus against epochs and bytes, as SVG and PNG.

  Runs that differ only in their seed are one line, their mean, in a band from
  the least to the most. A line has at most 40 points, 16 among many lines: of
  more rows, the means of as many stretches. A panel of single points is left
  out.
  """
  groups = tables.by_seed(kept.loaded(runs))
  pairs = [pair for pair in PANELS if _told(pair, groups)] or PANELS[:1]
  labels = panels.numbered(list(_labels(groups)))
  lines = sum(label.count('\n') + 1 for label in labels)
  below, columns = lines > FREE_LINES, list(dict.fromkeys(y for _, y in pairs))
  # The slot below the distances is free.
  beside = not below and PANELS[2] not in pairs
  size = 3 * (len(columns) + beside) + (len(columns) < 3), 5.4
  if below:
    size = size[0], size[1] + 0.5 + 0.2 * lines / len(columns)
  with look.drawing(*size) as fig:
    grid = fig.subplots(
      *(2, len(columns) + beside), sharex='row', sharey='col', squeeze=False
    )
    slots = {
      (x, y): axes
      for x, row in zip(('epoch', 'wire/bytes_sent'), grid, strict=True)
      for y, axes in zip((*columns, None), row, strict=False)
    }
    for pair, axes in slots.items():
      _draw_panel(axes, pair, groups) if pair in pairs else axes.axis('off')
    handles = panels.legend_handles(labels)
    plain = dict(handles=handles, frameon=False, handlelength=4)
    if below:
      fig.legend(loc='outside lower center', ncols=len(columns), **plain)
    else:
      grid[-1, -1].legend(loc='center', **plain)
    panels.number_many(fig, [slots[pair] for pair in pairs], len(groups))
  look.save(fig, path, dpi=120 if below else 150)


def _told(pair, groups) -> bool:
  """Tells whether a panel shows more than one point above another."""
  x, y = map(panels.quantity, pair)
  curves = [panels.points_of(x, y, group[0].rows)[0] for group in groups]
  first = {xs[0] for xs in curves if len(xs)}
  return len(first) > 1 or any(len(xs) > 1 for xs in curves)


def report(runs: Sequence, out) -> str:
  """Writes table.md, figure.svg and figure.png; returns the table.

  Below it stands the one of means, if runs differ only in their seed.
  """
  text, loaded = tables.table(runs), kept.loaded(runs)
  if len(tables.by_seed(loaded)) < len(loaded):
    means = 'Mean ± sample standard deviation over the seeds:'
    text += f'\n{means}\n\n{tables.seed_table(runs)}'
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  sources = '\n'.join(map(tables.source, loaded))
  whole.write(out / 'table.md', f'{text}\n{tables.NOTES}\n\n{sources}\n')
  figure(runs, out / 'figure')
  return text


def keep(runs: Sequence, out) -> str:
  """Writes what is worth keeping of runs, and the report of all that is kept.

  The folder gets config.json (what the configs share), runs.jsonl (a line a
  run) and curves.jsonl (40 points of each curve). What it has already stays; of
  two runs of one name, the new one is kept.
  """
  kept.write(kept.loaded(runs), out)
  return report([out], out)


def chosen(runs: Sequence, pairs: Sequence[tuple[str, str]], out) -> None:
  """Writes panels.svg and panels.png, a panel for each (key of x, key of y).

  Runs that differ only in their seed are one line, their mean, in a band.
  """
  groups, out = tables.by_seed(kept.loaded(runs)), pathlib.Path(out)
  rows = {
    label.replace('\n', ' '): [run.rows for run in group]
    for label, group in zip(_labels(groups), groups, strict=True)
  }
  all_rows = [row for group in groups for run in group for row in run.rows]
  there = {key for row in all_rows for key in row}
  for key in (key for pair in pairs for key in pair):
    if key not in there:
      raise ValueError(f'no run has {key!r}; they have {sorted(there)}.')
  out.mkdir(parents=True, exist_ok=True)
  look.save(panels.compare(rows, pairs), out / 'panels')


def of_runs(module: str, description: str) -> argparse.ArgumentParser:
  """A command line of runs, and whether to keep them."""
  prog = f'python -m moniqua_jax.{module}'
  parser = argparse.ArgumentParser(prog=prog, description=description)
  text = 'work directory, folder of kept runs, or FOLDER/NAME of one of them'
  parser.add_argument('runs', nargs='+', metavar='RUN', help=text)
  text = 'keep the runs in --out, too'
  parser.add_argument('--keep', action='store_true', help=text)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: prints the table and writes the report; the status."""
  parser = of_runs('plots', 'Prints a table of runs; writes it and a figure.')
  parser.add_argument(
    '--out', help="folder to write into; the only run's own, or ./report"
  )
  parser.add_argument(
    '--panels', metavar='X:Y,...', help='only a figure, with these panels'
  )
  args = parser.parse_args(command_line.at_home(argv))
  if args.keep and (args.panels or not args.out):
    parser.error('--keep wants --out=FOLDER, and no --panels.')
  own = len(args.runs) == 1 and not kept.is_one(args.runs[0])
  out = args.out or (args.runs[0] if own else 'report')
  try:
    if args.panels is None:
      text = (keep if args.keep else report)(args.runs, out)
      print(terminal.shown(text), end='')
    else:
      chosen(args.runs, _pairs(args.panels), out)
  except (OSError, ValueError) as error:
    return command_line.told(error)
  return 0


def _draw_panel(axes, pair, groups) -> None:
  """Draws a line for each group of seeds; one that diverges leaves the view."""
  x, y = map(panels.quantity, pair)
  most = ends.POINTS if len(groups) > ends.CROSSING else kept.POINTS
  for i, group in enumerate(groups):
    panels.draw_line(axes, x, y, [run.rows for run in group], i, most)
  panels.finish(axes, x, y)
  ends.keep_in_view(axes, [ends.diverged(group) for group in groups])
  if x.key == 'epoch':
    axes.set_xlim(left=0)
    axes.locator_params(axis='x', nbins=5)
  for axis in (axes.xaxis, axes.yaxis):
    look.number_log(axis)


def _pairs(text) -> list[tuple]:
  """Reads 'X:Y,X:Y' into pairs."""
  pairs = [tuple(pair.split(':')) for pair in text.split(',')]
  if any(len(pair) != 2 for pair in pairs):
    raise ValueError(f'--panels={text}; give X:Y or X:Y,X:Y, ...')
  return pairs


def _labels(groups):
  """Yields legend entries: the method, what else is not alike, or the name."""
  configs = [group[0].config for group in groups]
  if len({config.get('variant') for config in configs}) == 1:
    configs = [config | {'variant': ''} for config in configs]
  methods = [tables.method(config) for config in configs]
  said = [
    ', '.join([own, *_apart(group[0].config, _namesakes(own, groups, methods))])
    for group, own in zip(groups, methods, strict=True)
  ]
  for group, label in zip(groups, said, strict=True):
    if said.count(label) > 1:
      label += f', {tables.group_name(group)}'
    if len(group) > 1:
      label += f', {len(group)}\N{NO-BREAK SPACE}seeds'
    apart = kept.values(
      sum((run.rows for run in group), []), 'gossip/consensus_rms'
    )
    if apart.size and not apart.any():
      label += ' (distance 0)'
    if ends.diverged(group):
      label += ' (diverges)'
    yield textwrap.fill(look.words(label), 27)


def _namesakes(method, groups, methods) -> list[dict]:
  """Lists the configs of one method."""
  pairs = zip(groups, methods, strict=True)
  return [group[0].config for group, other in pairs if other == method]


def _apart(config, namesakes) -> list[str]:
  """Says the entries, two at most, that configs of one method differ in.

  Names first, a model's or a data set's; none that only later versions write.
  """
  _, others = kept.shared([each | {'seed': None} for each in namesakes])
  own = others[namesakes.index(config)]
  words = lambda key: key.removesuffix('.peak').replace('_', ' ')
  known = [key for key in sorted(own) if all(key in each for each in others)]
  known.sort(key=lambda key: not key.endswith('.name'))
  said = [
    _plain(own[key])
    if key.endswith('.name')
    else f'{words(key)} {_plain(own[key])}'
    for key in known[:2]
  ]
  return [text.replace(' ', '\N{NO-BREAK SPACE}') for text in said]


def _plain(value) -> str:
  """Writes .1 for 0.1, and words for names."""
  text = f'{value:g}' if isinstance(value, float) else str(value)
  return text.replace('_', ' ').removeprefix('0' if '.' in text else '')
