"""Loss against seconds, from what runs of training.py wrote down."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.network import namespaces
from moniqua_jax.plots import kept, tables

SMOOTH = 5  # rows of metrics.jsonl
NOTES = """
{n} processes, on a ring if no other graph is named. Training loss: the mean of
the last {smooth} rows of {log_every} steps each; seconds, without evaluations,
from the first row, when all programs are compiled, to the first such mean of at
most {target:g}. Times D-PSGD: its seconds at the same rate over this. ms per
step: the median over rows. A run ends with its last step or after so many
seconds: {seconds}. MB of each worker, as the software claims.

"""


class Curve(NamedTuple):
  """Loss against seconds.

  Attributes:
    seconds: f64[k], since the first row.
    loss: f64[k], running mean.
  """

  seconds: np.ndarray
  loss: np.ndarray


class Run(NamedTuple):
  """One method at one rate.

  Attributes:
    rate: of the links.
    method: of the config file.
    title: of the method, for people.
    rows: metrics.jsonl.
    config: config.json.
    note: of the network: how it `ended`, after at most how many `seconds`.
  """

  rate: str
  method: str
  title: str
  rows: list[dict]
  config: dict
  note: dict


def loaded(folder, methods: Sequence[str]) -> list[Run]:
  """The runs of a kept folder, by rate and then in the order of `methods`."""
  runs = []
  for run in kept.loaded([folder]):
    if run.rows and (note := run.source.get('network')):
      title = tables.method(run.config | {'variant': ''})
      about = note['rate'], note['method'], title
      runs.append(Run(*about, run.rows, run.config, note))
  speed = lambda run: namespaces.parse_rate(run.rate) or np.inf
  return sorted(runs, key=lambda r: (-speed(r), methods.index(r.method)))


def curve(rows: Sequence[dict], smooth: int = SMOOTH) -> Curve:
  """The running mean of the training loss over the last `smooth` rows.

  Evaluations are taken out of the seconds: a row with one counts as many
  seconds a step as the median of the others.

  >>> rows = [{'step': i, 'seconds': 9.0 + i, 'train/loss': 2.0 - i}
  ...         for i in range(2)]
  >>> curve(rows).loss
  array([2. , 1.5])
  """
  step, seconds, loss = (
    kept.values(rows, key) for key in ('step', 'seconds', 'train/loss')
  )
  steps, took = np.diff(step), np.diff(seconds)
  evaluated = np.array(['test/accuracy' in row for row in rows[1:]], bool)
  if evaluated.any() and not evaluated.all():
    typical = np.median((took / steps)[~evaluated])
    took = np.where(evaluated, typical * steps, took)
  means = [loss[max(0, i - smooth) : i].mean() for i in range(1, len(loss) + 1)]
  return Curve(np.append(0.0, np.cumsum(took)), np.array(means))


def seconds_to(curve: Curve, target: float) -> float | None:
  """Seconds until the loss is at most `target`; None if it never is."""
  there = np.flatnonzero(curve.loss <= target)
  return float(curve.seconds[there[0]]) if there.size else None


def reached_by_all(runs: Sequence[Run]) -> float:
  """A loss that every method reaches at some rate, to two digits."""
  best = {}
  for run in runs:
    lowest = np.nanmin(curve(run.rows).loss)
    best[run.method] = min(lowest, best.get(run.method, np.inf))
  return float(np.ceil(100 * max(best.values())) / 100)


def table(runs: Sequence[Run], target: float) -> str:
  """A row a run, and for each rate who was first, in markdown."""
  times = {(r.rate, r.method): seconds_to(curve(r.rows), target) for r in runs}
  titles = ['rate', 'method', 'steps', 'ms per step', 'MB sent']
  titles += ['training loss', 'test accuracy %']
  titles += [f'seconds to loss {target:g}', 'times D-PSGD']
  text = tables.markdown(titles, [_row(run, times) for run in runs], words=2)
  config = runs[0].config
  limits = {run.note['seconds'] for run in runs}
  text += NOTES.format(
    n=config['workers'],
    smooth=SMOOTH,
    log_every=config['log_every'],
    target=target,
    seconds=', '.join(f'{s:g}' for s in sorted(limits)),
  )
  rates = dict.fromkeys(run.rate for run in runs)
  return text + ''.join(_first(rate, runs, times) for rate in rates)


def _row(run, times):
  last, line = run.rows[-1], curve(run.rows)
  each = np.diff(line.seconds) / np.diff(kept.values(run.rows, 'step'))
  seconds, full = times[run.rate, run.method], times.get((run.rate, 'dpsgd'))
  accuracy = kept.values(run.rows, 'test/accuracy')
  number = lambda value, digits: (
    tables.DASH if value is None else format(value, digits)
  )
  return [
    run.rate,
    f'{run.title} (`{run.method}`)',
    str(last['step']) + ('' if run.note['ended'] == 'done' else ', stopped'),
    number(1e3 * np.median(each) if each.size else None, '.0f'),
    f'{1e-6 * last["wire/bytes_sent"]:.2f}',
    f'{line.loss[-1]:.3f}',
    number(100 * accuracy[-1] if accuracy.size else None, '.1f'),
    number(seconds, '.1f'),
    number(full / seconds if full and seconds else None, '.2f'),
  ]


def _first(rate, runs, times):
  """Who was first at a rate, and whether that is a form of Moniqua."""
  there = {r.method: times[rate, r.method] for r in runs if r.rate == rate}
  order = sorted((t, m) for m, t in there.items() if t is not None)
  if not order:
    return f'{rate}: nobody reached it.\n'
  said = ', '.join(f'{method} {seconds:.1f} s' for seconds, method in order[:3])
  ours = 'moniqua' in order[0][1]
  return f'{rate}: {said}{"" if ours else "; not Moniqua first"}.\n'
