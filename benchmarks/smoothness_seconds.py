"""Distance to the optimum against seconds on slow links, by calculation.

  python -m benchmarks.smoothness_seconds results/smoothness

From the runs that the folder keeps: an iteration takes a worker's share of the
measured time, and its link the time of the messages, which all workers send to
all (gradient descent: a ring all-reduce). A message has the fewer of its coded
and its packed bits, and 66 bytes for each packet of 1448. Writes seconds.md and
seconds.png there.
"""

import argparse
import functools
import operator
import pathlib
import re

import matplotlib.lines
import numpy as np

from benchmarks import smoothness
from moniqua_jax import command_line, plots
from moniqua_jax.laboratory.report import geometric
from moniqua_jax.plots import tables

RATES = 1, 10, 100  # Mbit/s
PACKET, HEADERS = 1448, 66  # bytes of TCP's payload, and of what is around it
PROBLEMS = 'breast_cancer, 5', 'german.numer_scale, 20', 'a8a, 20'
METHODS = (
  'GD',
  'DIANA, authors',
  'DIANA block, authors',
  'ADIANA',
  'DIANA+ sparse',
  'DIANA+ uniform',
  'DIANA+ varying',
  'DIANA+ varying, 16-bit norm',
  'DIANA+ block, 8-bit norms',
  'ADIANA+ varying',
)
TARGET = '1e-06'


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  folder = parser.parse_args().folder
  found = smoothness.columns(smoothness.loaded(folder))
  if lacking := [name for name in PROBLEMS if name not in found]:
    parser.error(f'{folder} has no run of {", ".join(lacking)}')
  runs = {name: found[name] for name in PROBLEMS}
  (folder / 'seconds.md').write_text(page(runs))
  draw(runs, folder / 'seconds')
  print(page(runs))


def page(runs) -> str:
  parts = [f'## {name}\n\n{table(own)}' for name, own in runs.items()]
  return '\n'.join(parts) + NOTE


NOTE = f"""
To {float(TARGET):g} of the distance at the start, geometric means of five
seeds. **Bold**: the least of a column. Calculated, not run: iterations and
coded bits are measured, and so is the time of an iteration of all workers on
one machine, of which each has its share (between runs it differs by what else
the machine did). The matrices' upload is in it. Mbit: into each worker. *Bits
alone*: seconds at 1 Mbit/s without the {HEADERS} bytes of headers of each
packet, as papers count.
"""


def sent(bits, messages, headers=HEADERS):
  """Bits on a link for so many messages of so many bits, headers and all."""
  size = np.ceil(np.asarray(bits) / 8)
  return 8 * messages * (size + headers * np.ceil(size / PACKET))


def traffic(method, entry, coded, iterations, size, headers=HEADERS):
  """Bits into a worker in so many iterations, and before the first.

  `coded` counts those of all workers in them; `size` is (workers, parameters).
  """
  n, d = size
  coded, iterations = np.asarray(coded), np.asarray(iterations)
  own = np.minimum(coded / np.maximum(iterations, 1), entry['packed_bits']) / n
  before = sent(entry['upload_bits'] / n, n - 1, headers)
  if method == 'GD':
    return iterations * sent(32 * d / n, 2 * (n - 1), headers)
  return before + iterations * sent(own, n - 1, headers)


def seconds(method, entry, coded, iterations, size, rate, headers=HEADERS):
  """How long so many iterations take on links of so many Mbit/s."""
  bits = traffic(method, entry, coded, iterations, size, headers)
  return bits / rate / 1e6 + np.asarray(iterations) * entry['seconds'] / size[0]


def table(runs) -> str:
  """A row a method: iterations, Mbit, seconds at each rate."""
  size, entries = size_of(runs), results(runs)
  rows = {}
  for name in METHODS:
    entry = entries.get(name)
    if entry and entry['reached'][TARGET]:
      at = entry['reached'][TARGET]
      rows[name] = cells(name, entry, at['coded_bits'], at['iterations'], size)
  least = np.min(list(rows.values()), axis=0)
  text = lambda value: f'{value:.4g}' if value < 1000 else f'{value:.0f}'
  lines = [
    [
      name,
      *(
        f'**{text(value)}**' if value == best else text(value)
        for value, best in zip(row, least, strict=True)
      ),
    ]
    for name, row in rows.items()
  ]
  rates = [f's at {rate} Mbit/s' for rate in RATES]
  return tables.markdown(
    ['method', 'iterations', 'Mbit', *rates, 'bits alone'], lines
  )


def cells(name, entry, coded, iterations, size):
  take = functools.partial(seconds, name, entry, coded, iterations, size)
  mbit = traffic(name, entry, coded, iterations, size) / 1e6
  columns = [iterations, mbit, *map(take, RATES), take(RATES[0], headers=0)]
  return [geometric(column) for column in columns]


def results(runs) -> dict:
  return functools.reduce(operator.or_, (run.results for run in runs))


def size_of(runs) -> tuple[int, int]:
  """Workers and parameters, of a problem's title."""
  n, d = re.search(r'n = (\d+).* d = (\d+)', runs[0].title).groups()
  return int(n), int(d)


def draw(problems, path):
  """A row for each rate, a column for each problem."""
  with plots.drawing(11, 8) as figure:
    grid = figure.subplots(len(RATES), len(problems), squeeze=False)
    for line, rate in zip(grid, RATES, strict=True):
      for axes, (name, runs) in zip(line, problems.items(), strict=True):
        panel(axes, runs, rate)
        axes.set_title(f'{name} workers, {rate} Mbit/s', fontsize=9)
    for axes in grid[-1]:
      axes.set_xlabel('seconds (calculated)')
    for line in grid:
      line[0].set_ylabel(r'$|x - x^*|^2 / |x_0 - x^*|^2$')
    lines = [matplotlib.lines.Line2D([], [], **style(m)) for m in METHODS]
    figure.legend(lines, METHODS, loc='outside lower center', ncols=4)
  plots.save(figure, path, dpi=110)


def panel(axes, runs, rate):
  size, entries, curves = size_of(runs), results(runs), smoothness.curves(runs)
  for name in filter(curves.__contains__, METHODS):
    rows = curves[name]
    at = lambda key, rows=rows: np.array([row[key] for row in rows], float)
    x = seconds(
      name, entries[name], at('coded_bits'), at('iteration'), size, rate
    )
    axes.plot(x[1:], at('distance')[1:], markevery=0.15, **style(name))
  axes.set(xscale='log', yscale='log', ylim=(1e-10, 3))


def style(method):
  return plots.line_style(METHODS.index(method)) | {'markersize': 4}


if __name__ == '__main__':
  main()
