"""Loss against seconds, from what runs of training.py wrote down."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import seeds
from benchmarks.network import namespaces
from moniqua_jax.plots import kept, tables

SMOOTH = 5  # rows of metrics.jsonl
MONIQUA = ('moniqua', 'auto_theta', 'fitted_theta')
NOTES = """
{n} processes, on a ring if no other graph is named. Training loss: the mean of
the last {smooth} rows of {log_every} steps each; seconds, without evaluations,
from the first row, when all programs are compiled, to the first such mean of at
most {target:g}; in brackets the runs that came there, if not all did. Times
D-PSGD: its seconds on the same link over this. ms per step: the median over
rows. A run ends with its last step or after so many seconds: {seconds}. MB of
each worker, as the software claims. Of several seeds the mean and the standard
deviation. A delay is that of each packet on its way from worker to worker; a
process beside theirs holds it back, and TCP does not start slowly again after
the link was idle.

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
  """One method on one link, of one seed.

  Attributes:
    link: its rate, and its delay if there is one.
    method: of the config file.
    title: of the method, for people.
    rows: metrics.jsonl.
    config: config.json.
    note: of the network: how it `ended`, after at most how many `seconds`.
  """

  link: str
  method: str
  title: str
  rows: list[dict]
  config: dict
  note: dict


def loaded(folder, methods: Sequence[str]) -> list[Run]:
  """The runs of a kept folder, by link, by the order of `methods`, by seed."""
  runs = []
  for run in kept.loaded([folder]):
    if run.rows and (note := run.source.get('network')):
      title = tables.method(run.config | {'variant': ''})
      about = _link(note), note['method'], title
      if any('train/loss' not in row for row in run.rows):
        raise ValueError(
          f'{folder} has means of several rows of {run.name}; take it out of '
          'its files, and it is made again.'
        )
      runs.append(Run(*about, run.rows, run.config, note))

  def order(run):
    bits = namespaces.parse_rate(run.note['rate']) or np.inf
    rank = methods.index(run.method), run.config['seed']
    return -bits, _delay(run.note), *rank

  return sorted(runs, key=order)


def _link(note):
  return ', '.join([note['rate'], *([note['delay']] if _delay(note) else [])])


def _delay(note):
  return namespaces.parse_delay(note.get('delay', '0ms'))


def grouped(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
  """The seeds of each link and method."""
  groups = {}
  for run in runs:
    groups.setdefault((run.link, run.method), []).append(run)
  return groups


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


def arrivals(group: Sequence[Run], target: float) -> list[float]:
  """Seconds to a loss, of those seeds that come there."""
  times = [seconds_to(curve(run.rows), target) for run in group]
  return [seconds for seconds in times if seconds is not None]


def reached_by_all(runs: Sequence[Run]) -> float:
  """A loss that every method reaches on some link, to two digits."""
  best = {}
  for run in runs:
    lowest = np.nanmin(curve(run.rows).loss)
    best[run.method] = min(lowest, best.get(run.method, np.inf))
  return float(np.ceil(100 * max(best.values())) / 100)


def table(runs: Sequence[Run], target: float) -> str:
  """A row a method and link, and who was first on each, in markdown."""
  groups = grouped(runs)
  times = {key: arrivals(group, target) for key, group in groups.items()}
  titles = ['link', 'method', 'seeds', 'steps', 'ms per step', 'MB sent']
  titles += ['training loss', 'test accuracy %']
  titles += [f'seconds to loss {target:g}', 'times D-PSGD']
  rows = [_row(group, times) for group in groups.values()]
  text = tables.markdown(titles, rows, words=2)
  config = runs[0].config
  limits = {run.note['seconds'] for run in runs}
  text += NOTES.format(
    n=config['workers'],
    smooth=SMOOTH,
    log_every=config['log_every'],
    target=target,
    seconds=', '.join(f'{s:g}' for s in sorted(limits)),
  )
  links = dict.fromkeys(run.link for run in runs)
  return text + ''.join(_first(link, groups, times) for link in links)


def _row(group, times):
  run, ends = group[0], [run.rows[-1] for run in group]
  lines = [curve(run.rows) for run in group]
  own, full = times[run.link, run.method], times.get((run.link, 'dpsgd'))
  stopped = any(run.note['ended'] != 'done' for run in group)
  some = 0 < len(own) < len(group)
  return [
    run.link,
    f'{run.title} (`{run.method}`)',
    str(len(group)),
    str(min(end['step'] for end in ends)) + (', stopped' if stopped else ''),
    _both([1e3 * each for each in map(_per_step, group) if each], '.0f'),
    f'{1e-6 * np.mean([end["wire/bytes_sent"] for end in ends]):.2f}',
    _both([line.loss[-1] for line in lines], '.3f'),
    _both([100 * a[-1] for a in map(_accuracy, group) if a.size], '.1f'),
    _both(own, '.1f') + (f' ({len(own)})' if some else ''),
    _both([np.mean(full) / np.mean(own)] if full and own else [], '.2f'),
  ]


def _both(values, digits):
  return seeds.both(values, digits) if values else tables.DASH


def _per_step(run):
  """Seconds; None of a single row."""
  steps = np.diff(kept.values(run.rows, 'step'))
  took = np.diff(curve(run.rows).seconds)
  return np.median(took / steps) if steps.size else None


def _accuracy(run):
  return kept.values(run.rows, 'test/accuracy')


def _first(link, groups, times):
  """Who was first on a link; those of whom some seed did not come are not."""
  all_there = {
    method: np.mean(times[place, method])
    for (place, method), group in groups.items()
    if place == link and len(times[place, method]) == len(group)
  }
  order = sorted(all_there, key=all_there.get)
  if not order:
    return f'{link}: nobody reached it.\n'
  said = ', '.join(f'{name} {all_there[name]:.1f} s' for name in order[:3])
  ours = groups[link, order[0]][0].config['quantizer']['name'] in MONIQUA
  return f'{link}: {said}{"" if ours else "; not Moniqua first"}.\n'
