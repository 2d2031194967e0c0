"""Does a theta that finds itself find the right one? Against constants.

  python -m benchmarks.theta --out=results/theta

Digits sorted by label, 2,000 steps at a constant learning rate, for each number
of bits with the gamma of its config. The best constant theta is the smallest of
a grid (factor 1.25) with which every message was readable: a larger one only
adds noise. auto_theta should stay within a quarter and four times of it, and
end at its accuracy. One row is added to DIR/rows.jsonl for each run.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np

from configs import digits_sorted
from moniqua_jax import data, evaluation, experiment, guard, loop
from moniqua_jax.workdir import provenance

STEPS, START, GRID = 2_000, 1.0, 1.25 ** np.arange(-12, 16)
CASES = {8: 1.0, 4: 1.0, 2: 0.5, 1: 0.2}  # bits -> gamma


def configured(bits, gamma, seed, **quantizer):
  config = digits_sorted.base()
  config.seed, config.gamma = seed, gamma
  config.learning_rate = dict(name='constant', peak=0.05, warmup_epochs=1.0)
  config.quantizer.update(bits=bits, **quantizer)
  steps_per_epoch = 1437 // (config.workers * config.batch_size)
  config.epochs = STEPS / steps_per_epoch
  return config


def run(config) -> dict:
  """The thetas of all steps, the accuracy, or the step at which it stopped."""
  built = experiment.from_config(config)
  init, train_step, eval_step = loop.make_steps(built)
  state = built.run(init, (0,))(np.arange(config.workers))
  train = built.run(train_step, (0, 0, None), donate_argnums=0)
  watch = guard.Guard(built.schedule, built.patience, 1, 'DIR')
  thetas, wraps = [], 0
  batches = data.batches(
    built.dataset,
    built.shards,
    seed=config.seed,
    start=0,
    stop=built.steps,
    batch_size=config.batch_size,
  )
  for step, batch in batches:
    state, report = train(state, batch, np.int32(step))
    try:
      seen = watch.check(step, report)['seen']
    except guard.Stopped as stopped:
      return {'stopped': step, 'why': str(stopped).split('. The last')[0]}
    thetas.append([float(seen.theta.min()), float(seen.theta.max())])
    wraps += int((~seen.readable).sum())
  row = evaluation.make(built, eval_step, config)(state, True)
  low, high = np.array(thetas).T
  return {
    'wraps': wraps,
    'smallest theta': low.min(),
    'largest theta': high.max(),
    'median theta': float(np.median(high)),
    'test': float(row['test/accuracy']),
    'worst': float(row['test/worst_worker']),
  }


def smallest_constant(bits, gamma, seed, write) -> dict:
  """The smallest theta of the grid that never wraps, by halving the grid."""
  low, high, best = 0, len(GRID) - 1, None
  while low <= high:
    middle = (low + high) // 2
    theta = float(GRID[middle])
    row = run(configured(bits, gamma, seed, name='moniqua', theta=theta))
    write(bits=bits, gamma=gamma, seed=seed, theta=theta, **row)
    if 'stopped' in row:
      low = middle + 1
    else:
      high, best = middle - 1, {'theta': theta, **row}
  return best


def line(bits, gamma, pairs) -> str:
  mean = lambda rows, key: 100 * np.mean([row[key] for row in rows])
  constants, autos = zip(*pairs, strict=True)
  best = np.mean([row['theta'] for row in constants])
  smallest = min(row['smallest theta'] for row in autos) / best
  largest = max(row['largest theta'] for row in autos) / best
  cells = [
    f'{bits}',
    f'{gamma:g}',
    f'{best:.2f}',
    f'{smallest:.2f} to {largest:.2f}',
    f'{sum(row["wraps"] for row in autos)}',
    f'{mean(constants, "test"):.2f} / {mean(constants, "worst"):.2f}',
    f'{mean(autos, "test"):.2f} / {mean(autos, "worst"):.2f}',
  ]
  return f'| {" | ".join(cells)} |\n'


TITLE = """\
| bits | gamma | best constant theta | auto theta over it | messages lost | \
constant: mean model / worst worker % | auto: the same |
|---|---|---|---|---|---|---|
"""


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=2)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  began, text = time.perf_counter(), TITLE
  with (args.out / 'rows.jsonl').open('w') as file:

    def write(**row):
      print(row, flush=True)
      file.write(json.dumps(row) + '\n')

    for bits, gamma in CASES.items():
      pairs = []
      for seed in range(args.seeds):
        best = smallest_constant(bits, gamma, seed, write)
        auto = run(
          configured(bits, gamma, seed, name='auto_theta', start=START)
        )
        write(bits=bits, gamma=gamma, seed=seed, theta='auto', **auto)
        pairs.append((best, auto))
      text += line(bits, gamma, pairs)
  print(text)
  (args.out / 'table.md').write_text(text + f'\n{args.seeds} seeds.\n')
  seconds = {'seconds': time.perf_counter() - began}
  run_json = json.dumps(provenance() | seconds, indent=1)
  (args.out / 'run.json').write_text(run_json)


if __name__ == '__main__':
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  main()
