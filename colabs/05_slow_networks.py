# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Slow networks: when do few bits pay?
#
# `benchmarks/network` put eight workers into eight network namespaces with slow
# links between them and measured each step, and its parts. This notebook reads
# what it wrote, checks a formula against it, and then asks the formula about a
# model of yours.
#
# On Colab, run the next cell first, in a checkout: the measurements are in the
# repository (`results/network`), not in the package. Locally:
# `pip install '.[notebooks]'`, then
# `jupyter execute colabs/05_slow_networks.ipynb`.

# %%
try:
  import moniqua_jax
except ImportError:
  from pathlib import Path

  # REPOSITORY: the address from which moniqua_jax can be cloned.
  source = '..' if Path('../pyproject.toml').exists() else './clone'
  # !test -d {source} || git clone --quiet REPOSITORY {source}
  # %pip install --quiet '{source}[all]'
  import moniqua_jax

# %%
# %matplotlib inline
import json
import pathlib
import sys

import numpy as np

import moniqua_jax as mj
from moniqua_jax import plots
from moniqua_jax.plan import chips

# %% [markdown]
# ## What was measured
#
# A cell is a method at a rate. Its step is *compute* (the same without talking),
# *codec* (encode, decode and mix, where every collective is a copy) and the
# *wire*, the rest. Eight processes shared two CPU cores, so compute and codec are
# those of a crowded machine.

# %%
FILE = pathlib.Path('../results/network/cells.jsonl')
assert FILE.exists(), 'open this notebook in a checkout: the measurements are there'
cells = [json.loads(line) for line in FILE.read_text().splitlines()]


def rate_of(cell):
  """Mbit/s; infinite on loopback."""
  rate = cell['link']['rate']
  return 1e-6 * rate if rate else np.inf


def split(cell):
  """Milliseconds of a step, and of its parts."""
  step, compute, codec = (
    1e3 * cell['parts'][part]['seconds'] for part in ('full', 'compute', 'codec')
  )
  return {
    'step': step,
    'compute': compute,
    'codec': codec,
    'wire': step - compute - codec,
  }


cells.sort(key=lambda cell: (cell['size'], -rate_of(cell), -cell['claimed']))
title = ('rate', 'method', 'kB a step', *(f'{key}, ms' for key in split(cells[0])))
widths = (9, 34, 10, 9, 12, 10, 9)
for i, cell in enumerate(cells):
  if i == 0 or cell['size'] != cells[i - 1]['size']:
    print(f'\n{cell["model"]}, {cell["size"]:,} parameters, {cell["n"]} workers, '
          f'{cell["machine"]}, {cell["date"]}')
    print(*(f'{text:>{w}s}' for text, w in zip(title, widths)))
  numbers = (cell['claimed'] / 1e3, *split(cell).values())
  print(f'{cell["rate"]:>9s} {cell["title"]:>34s}',
        *(f'{x:{w}.1f}' for x, w in zip(numbers, widths[2:])))

# %% [markdown]
# Where there is no link to wait for (*loopback*) few bits win nothing. The slower
# the link, the more a step is made of bytes. Of the small model:

# %%
SHOWN = ('dpsgd', 'moniqua8', 'moniqua4fixed', 'moniqua2', 'moniqua1fixed')
R, STEP = 'link (Mbit/s)', 'ms per step'
lines = {}
for cell in cells:
  small = cell['model'] == 'mlp270k' and np.isfinite(rate_of(cell))
  if small and cell['method'] in (*SHOWN, 'choco4', 'nuqsgd4'):
    row = {R: rate_of(cell), STEP: split(cell)['step']}
    lines.setdefault(cell['title'], []).append(row)
plots.compare(
  {name: sorted(rows, key=lambda row: row[R]) for name, rows in lines.items()},
  [(R, STEP)],
  quantities={key: (key, 1.0, 'log') for key in (R, STEP)},
)

# %%
for model in dict.fromkeys(cell['model'] for cell in cells):
  here = [cell for cell in cells if cell['model'] == model]
  slowest = min(map(rate_of, here))
  steps = {c['method']: split(c)['step'] for c in here if rate_of(c) == slowest}
  full = steps.get('dpsgd')
  for method, step in steps.items():
    if full and np.isfinite(slowest) and method.startswith('moniqua'):
      print(f'{model}, {slowest:g} Mbit/s, {method}: {full / step:.1f} times as '
            'fast as D-PSGD')
      assert step < full

# %% [markdown]
# ## A formula
#
# A worker that sends $m$ bytes over a link of $R$ bits per second needs at least
#
# $$T(R) = T_{\text{compute}} + T_{\text{codec}} + \frac{8 m}{R} .$$
#
# Against what was measured, D-PSGD and Moniqua on it. Below ten milliseconds the
# eight processes on two cores wait for each other, not for bytes:

# %%
P, M = '$8 m / R$ (ms)', 'wire, measured (ms)'
points, ratios = {}, []
for cell in cells:
  if np.isfinite(rate_of(cell)):
    row = {P: 8e-3 * cell['claimed'] / rate_of(cell), M: split(cell)['wire']}
    row['method'], row['step'] = cell['method'], split(cell)['step']
    points.setdefault(f'{cell["model"]}, {cell["rate"]}', []).append(row)
drawn = {
  name: sorted(
    (row for row in rows if row['method'] in SHOWN), key=lambda row: row[P]
  )
  for name, rows in points.items()
}
most = max(row[P] for rows in drawn.values() for row in rows)
plots.compare(
  {'equal': [{P: x, M: x} for x in np.geomspace(1, most, 9)]} | drawn,
  [(P, M)],
  quantities={key: (key, 1.0, 'log') for key in (P, M)},
)

# %%
for name, rows in points.items():
  for row in rows:
    assert row['step'] > 0.9 * row[P]  # bytes do not travel faster
    if row['method'] == 'dpsgd' and row[P] > 0.5 * row['step']:
      print(f'{name}: D-PSGD on the wire takes {row[M] / row[P]:.2f} times 8 m / R')
      assert row[M] < 1.5 * row[P]

# %% [markdown]
# Headers, answers and waiting for each other come on top, and weigh more the
# fewer the bytes are: $8 m / R$ is what can be hoped for.
#
# Two numbers of bits are equally fast where $T_1(R) = T_2(R)$. Against full
# precision $b$ bits break even at
#
# $$R^* = \frac{8 (m_{32} - m_b)}{T_{\text{codec}, b} - T_{\text{codec}, 32}} ;$$
#
# on slower links they win. With the codec as it was measured, on these two cores:

# %%
for cell in cells:
  full = next(
    (c for c in cells if c['method'] == 'dpsgd' and c['rate'] == cell['rate']
     and c['size'] == cell['size']),
    None,
  )
  if full and cell['method'].startswith('moniqua'):
    slower = split(cell)['codec'] - split(full)['codec']  # ms
    saved = 8e-3 * (full['claimed'] - cell['claimed'])
    even = saved / slower if slower > 0 else np.inf
    at = f'at {even:.0f} Mbit/s' if slower > 0 else 'never: its codec was no slower'
    print(f'{cell["model"]}, {cell["title"]}, measured at {cell["rate"]}: '
          f'breaks even {at}')
    if rate_of(cell) < min(even / 2, 200):
      assert split(cell)['step'] < split(full)['step']

# %% [markdown]
# ## Your own model
#
# `chips.rows` predicts this for any model: the bytes are exact, the codec is
# estimated from the bytes of memory that it moves and from what the maker of a
# chip says. That is the best a chip can do; the two crowded cores above took
# longer. Put in your own numbers.

# %%
PARAMETERS = 25_600_000
COMPUTE = 0.05  # seconds of a gradient
CHIP = 'v5e'  # of chips.CHIPS
TOPOLOGY = mj.ring(8)

rows = {
  name: chips.rows((TOPOLOGY,), PARAMETERS, COMPUTE, chips.CHIPS[name])
  for name in ('cpu', 'v5e', 'H100')
}
print('chip  bits  MB a step  codec, ms  pays below, Gbit/s')
for name, by_bits in rows.items():
  for row in by_bits[1:]:
    print(f'{name:5s} {row.bits:4d} {row.per_worker / 1e6:10.1f} '
          f'{1e3 * row.codec:10.3f} {row.pays_below / 1e9:19,.0f}')

# %% [markdown]
# What a step takes, and how many times faster it is than in full precision:

# %%
rates = np.geomspace(1, 1e6, 40)  # Mbit/s


def seconds(row, rate):
  """Of a step, at a rate in Mbit/s."""
  return COMPUTE + row.codec + 8e-6 * row.per_worker / rate


S, F = f'{CHIP}: seconds per step', f'{CHIP}: times as fast as 32 bits'
full = rows[CHIP][0]
predicted = {
  f'{row.bits} bit' + 's' * (row.bits > 1): [
    {R: r, S: seconds(row, r), F: seconds(full, r) / seconds(row, r)}
    for r in rates
  ]
  for row in rows[CHIP]
}
plots.compare(
  predicted,
  [(R, S), (R, F)],
  quantities={key: (key, 1.0, 'log') for key in (R, S, F)},
)

# %%
for name, (full, *few) in rows.items():
  for row in few:
    even = row.pays_below / 1e6
    assert np.isclose(seconds(row, even), seconds(full, even))
    assert seconds(row, even / 2) < seconds(full, even / 2)
    assert seconds(row, 2 * even) > seconds(full, 2 * even)
fastest = predicted['1 bit'][0][F]
print(f'at 1 Mbit/s 1 bit is {fastest:.1f} times as fast as full precision')
assert 16 < fastest < 32  # it cannot be more

# %% [markdown]
# ## Sooner to a loss?
#
# A quicker step is no use if more of them are needed. `train.py` ran on the same
# links, eight processes and a perceptron on CIFAR-10. Four runs on another
# seed chose the numbers of most methods; the rest have the rate of their kin.
# Seconds count from the first row, without evaluations; the loss is the mean of
# five rows.

# %%
sys.path.append('..')  # a checkout: benchmarks are not in the package
from benchmarks.network import curves
from configs import network_cifar10_cpu

LOSS = 2.0
DRAWN = ('dpsgd', 'choco4', 'nuqsgd4', 'deepsqueeze4', 'moniqua4leaf',
         'moniqua4leaf_peer', 'moniqua2leaf_peer')
lines, first = {}, {}
runs = curves.loaded('../results/network', list(network_cifar10_cpu.METHODS))
for run in runs:
  if run.config['seed'] or run.link not in ('100mbit', '10mbit'):
    continue  # more seeds, and links with a delay, are in training.md
  line = curves.curve(run.rows)
  if run.method in DRAWN:
    lines.setdefault(run.title, []).extend(
      {f'{run.link}: seconds': x, f'{run.link}: training loss': y}
      for x, y in zip(*line)
    )
  if (seconds := curves.seconds_to(line, LOSS)) is not None:
    first.setdefault(run.link, {})[run.method] = seconds
plots.compare(
  lines, [(f'{rate}: seconds', f'{rate}: training loss') for rate in first]
)

# %%
for rate, seconds_of in first.items():
  order = sorted(seconds_of, key=seconds_of.get)
  print(f'{rate}, seconds to {LOSS}:',
        ', '.join(f'{m} {seconds_of[m]:.1f}' for m in order))
  ours = ('moniqua', 'eden', 'sent')
  assert order[0].startswith(ours)

# %% [markdown]
# How much slack costs in accuracy is in [01_moniqua](01_moniqua.ipynb).
# `python -m moniqua_jax.plan` prints such a plan for a config.
