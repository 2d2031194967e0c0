"""Does a theta that finds itself find the right one? Against constants.

  python -m benchmarks.theta --out=results/theta

2,000 steps at a constant learning rate, for each number of bits with the gamma
of its config, on two tasks: `noise`, least squares with data of each worker's
own and noise in the gradients, where distances stay as they are; and `digits`
sorted by label, which are learnt by heart, so that distances shrink all the
time. The best constant theta is the smallest of a grid (factor 1.25) with which
every message was readable: a larger one only adds noise. auto_theta should stay
within a quarter and four times of it, and end as near. One row is added to
DIR/rows.jsonl for each run.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_sorted
import moniqua_jax as mj
from moniqua_jax import command_line, data
from moniqua_jax.algorithms import turns
from moniqua_jax.plots import kept, tables
from moniqua_jax.training import evaluation, experiment, monitor
from moniqua_jax.training import step as step_lib
from moniqua_jax.training.workdir import provenance
from moniqua_jax.workers import AXIS

STEPS, GRID = 2_000, 1.25 ** np.arange(-12, 16)
START = {'noise': 2.0, 'digits': 1.0}  # of auto_theta: a first guess
CASES = {8: 1.0, 4: 1.0, 2: 0.5, 1: 0.2}  # bits -> gamma


def digits(bits, gamma, seed, **quantizer) -> dict:
  """Accuracies, and the thetas of all steps; or where it stopped."""
  config = digits_sorted.base()
  config.seed, config.gamma = seed, gamma
  config.learning_rate = dict(name='constant', peak=0.05, warmup_epochs=1.0)
  config.quantizer.update(bits=bits, **quantizer)
  config.epochs = STEPS / (1437 // (config.workers * config.batch_size))
  built = experiment.from_config(config)
  init, train_step, eval_step = step_lib.make_steps(built)
  state = built.run(init, (0,))(np.arange(config.workers))
  train = built.run(train_step, (0, 0, None), donate_argnums=0)
  watched = Watched(built.setup.schedule, built.setup.patience)
  batches = data.batches(
    *built.data,
    seed=config.seed,
    start=0,
    stop=built.pace.steps,
    batch_size=config.batch_size,
  )
  for step, batch in batches:
    state, report = train(state, batch, np.int32(step))
    if stopped := watched.stopped(step, report):
      return stopped
  row = evaluation.make(built, eval_step)(state, True)
  ends = row['test/accuracy'], row['test/worst_worker']
  return {**watched.thetas(), 'mean model': ends[0], 'worst worker': ends[1]}


def noise(bits, gamma, seed, name, **quantizer) -> dict:
  """The same; errors are distances from the minimum over that of the start."""
  n, d, rng = 8, 2_000, np.random.default_rng(seed)
  centres = jnp.asarray(rng.standard_normal((n, d)), jnp.float32)
  schedule = (mj.lazy(mj.ring(n), gamma),)
  quantizer = getattr(mj, name)(bits=bits, **quantizer)
  algorithm = mj.dpsgd(
    schedule,
    quantizer,
    axis_name=AXIS,
    key=jax.random.key(seed),
    on_unreadable='ignore',  # `Watched` looks at each step
  )

  def train(x, state, centre, noise, step):
    u = -0.05 * (x - centre + noise)
    updates, state = algorithm.update(u, state, x, step=step)
    return x + updates, state

  x = jnp.zeros((n, d))
  state = mj.simulated(algorithm.init, (0,))(x)
  train = mj.simulated(train, (0, 0, 0, 0, None), donate_argnums=(0, 1))
  watched = Watched(schedule, monitor.PATIENCE if name == 'auto_theta' else 0)
  for step in range(STEPS):
    kicks = 0.5 * rng.standard_normal((n, d), np.float32)
    x, state = train(x, state, centres, kicks, np.int32(step))
    report = {'loss': np.zeros(n), 'seen': state.heard.seen}
    if stopped := watched.stopped(step, report):
      return stopped
  best = np.mean(centres, axis=0, keepdims=True)
  rms = lambda x: np.sqrt(np.mean((x - best) ** 2, axis=1) / np.mean(best**2))
  ends = rms(np.mean(x, axis=0, keepdims=True))[0], rms(np.asarray(x)).max()
  return {**watched.thetas(), 'mean model': ends[0], 'worst worker': ends[1]}


TASKS = {'noise': noise, 'digits': digits}


class Watched:
  """The thetas that were seen, and the guard of the training loop."""

  def __init__(self, schedule, patience):
    self._guard = monitor.Guard(
      schedule, patience, turns.every(1), 'DIR', range(schedule[0].n)
    )
    self._thetas, self._wraps = [], 0

  def stopped(self, step, report) -> dict:
    try:
      seen = self._guard.check(step, report)['seen']
    except monitor.Stopped as stopped:
      return {'stopped': step, 'why': str(stopped).split('. The last')[0]}
    self._thetas.append((seen.theta.min(), seen.theta.max()))
    self._wraps += int((~seen.readable).sum())
    return {}

  def thetas(self) -> dict:
    low, high = np.array(self._thetas, float).T
    return {
      'wraps': self._wraps,
      'smallest theta': low.min(),
      'largest theta': high.max(),
      'median theta': np.median(high),
    }


def smallest_constant(task, bits, gamma, seed, write) -> dict:
  """The smallest theta of the grid that never wraps, by halving the grid."""
  low, high, best = 0, len(GRID) - 1, None
  while low <= high:
    middle = (low + high) // 2
    theta = float(GRID[middle])
    row = TASKS[task](bits, gamma, seed, name='moniqua', theta=theta)
    write(task=task, bits=bits, gamma=gamma, seed=seed, theta=theta, **row)
    if 'stopped' in row:
      low = middle + 1
    else:
      high, best = middle - 1, {'theta': theta, **row}
  if best is None:
    raise ValueError(f'{task}, {bits} bits: theta={GRID[-1]:.3g} is too small.')
  return best


def line(task, bits, gamma, pairs) -> list[str]:
  """The row of a task and a number of bits."""
  mean = lambda rows, key: 100 * np.mean([row[key] for row in rows])
  both = lambda rows: (
    f'{mean(rows, "mean model"):.2f} / {mean(rows, "worst worker"):.2f}'
  )
  constants, autos = zip(*pairs, strict=True)
  over = lambda key, extreme: extreme(
    auto[key] / best['theta'] for best, auto in pairs
  )
  return [
    task,
    f'{bits}',
    f'{gamma:g}',
    f'{np.mean([row["theta"] for row in constants]):.2f}',
    f'{over("smallest theta", min):.2f} to {over("largest theta", max):.2f}',
    f'{over("median theta", min):.2f} to {over("median theta", max):.2f}',
    f'{sum(row["wraps"] for row in autos)}',
    both(constants),
    both(autos),
  ]


TITLES = (
  'task',
  'bits',
  'gamma',
  'best constant theta',
  'auto theta over it, all steps',
  'median',
  'messages lost',
  'constant: mean model / worst worker, %',
  'auto, %',
)
NOTE = """
{seeds} seeds. digits: accuracies; noise: distances from the minimum over that
of the start. auto_theta starts at {noise} and at {digits} (digits). A constant
smaller than the best stopped with the worker, the step and a theta to try:
rows.jsonl has the words.
"""


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=2)
  parser.add_argument('--tasks', default=','.join(TASKS))
  args = parser.parse_args()
  tasks = args.tasks.split(',')
  if unknown := sorted(set(tasks) - set(TASKS)):
    parser.error(f'--tasks: {unknown} unknown; choose from {[*TASKS]}')
  args.out.mkdir(parents=True, exist_ok=True)
  began, rows, lines = time.perf_counter(), [], []

  def write(**row):
    row = {k: float(v) if hasattr(v, 'dtype') else v for k, v in row.items()}
    print(row, flush=True)
    rows.append(row)
    kept.write_lines(args.out / 'rows.jsonl', rows)

  for task in tasks:
    for bits, gamma in CASES.items():
      pairs = []
      for seed in range(args.seeds):
        best = smallest_constant(task, bits, gamma, seed, write)
        auto = dict(name='auto_theta', start=START[task])
        auto = TASKS[task](bits, gamma, seed, **auto)
        write(task=task, bits=bits, gamma=gamma, seed=seed, **auto)
        if 'stopped' in auto:
          raise ValueError(f'auto_theta stopped: {auto["why"]}.')
        pairs.append((best, auto))
      lines.append(line(task, bits, gamma, pairs))
  text = tables.markdown(TITLES, lines)
  text += NOTE.format(seeds=args.seeds, **START)
  print(text)
  (args.out / 'table.md').write_text(text)
  source = provenance() | {'seconds': time.perf_counter() - began}
  kept.write_measured(args.out, rows, source)


if __name__ == '__main__':
  main()
