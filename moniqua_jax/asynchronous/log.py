"""What one worker writes down of its own steps."""

import pathlib
import time

import numpy as np

from moniqua_jax import gossip
from moniqua_jax.training import metrics, whole


class Log:
  """Rows of metrics.jsonl, and how fast the worker was.

  `before` is the last row, where the run is resumed.
  """

  def __init__(
    self, folder: pathlib.Path, built, worker, averaging, network, before
  ):
    folder.mkdir(parents=True, exist_ok=True)
    whole.clear(folder)
    self._experiment, self._worker = built.experiment, worker
    self._averaging, self._network = averaging, network
    self._writer = metrics.Writer(folder, built.config.tensorboard)
    self._before = before
    self._first, self._began = worker.steps, time.monotonic()
    self._seconds, self._printed = 0.0, 0.0
    self._reports, self._staleness = [], 0

  def take(self, report: dict, late: int) -> None:
    """The metrics of one step, and how many averagings its update was late."""
    self._reports.append(report)
    self._staleness = max(self._staleness, late)
    self._seconds = time.monotonic() - self._began

  def write(self, **more) -> dict:
    """Writes one row of all that came since the last, and returns it."""
    steps, clock = self._worker.steps, self._network.clock()
    counters = {  # which go on where a run is resumed
      'seconds': self._seconds,
      'wire/bytes_sent': self._network.bytes_sent,
      'pace/averagings': self._averaging.concluded,
      'pace/unreadable': self._averaging.unreadable,
      'pace/declined': self._averaging.declined,
    }
    row = {
      'step': steps,
      'epoch': steps / self._experiment.pace.steps_per_epoch,
      'train/learning_rate': self._experiment.pace.learning_rate(clock),
      'pace/clock': clock,
      'pace/steps_per_second': (steps - self._first) / (self._seconds or 1),
      'pace/staleness': self._staleness,
      **{k: v + self._before.get(k, 0) for k, v in counters.items()},
      **self._summary(),
      **more,
    }
    self._writer.write(row)
    self._print(row)
    return row

  def _print(self, row):
    """A line on worker 0, every ten seconds at most."""
    if self._network.rank or time.monotonic() - self._printed < 10:
      return
    self._printed = time.monotonic()
    print(
      f'step {row["pace/clock"]} of {self._experiment.pace.steps}, loss of '
      f'worker 0 {row.get("train/loss", np.nan):.3g}, its pace '
      f'{row["pace/steps_per_second"]:.3g} steps/s, sent '
      f'{row["wire/bytes_sent"] / 1e6:.1f} MB',
      flush=True,
    )

  def _summary(self) -> dict:
    if not self._reports:
      return {}
    reports, self._reports = self._reports, []
    one = {k: np.array([r[k] for r in reports]) for k in ('loss', 'accuracy')}
    seen = self._averaging.take_seen() or gossip.no_news(0)
    return metrics.summarise([one | {'seen': seen}])
