"""How fast is the laboratory next to the same method in NumPy?

  python -m benchmarks.laboratory --data=DATA/a8a --workers=100 \\
    --out=results/laboratory

Iterations per second of DIANA+ with varying steps, one seed: in NumPy, float64,
as one writes it down (no packing, bits counted from a table of Elias lengths);
in the laboratory alone; and in the laboratory beside nine other methods, all of
which take their gradients in one pass. Interleaved, medians of the rounds.
"""

import argparse
import os
import pathlib
import time

import jax
import numpy as np

from moniqua_jax import command_line
from moniqua_jax.coding import elias
from moniqua_jax.laboratory import libsvm, methods, problems, runs, splits
from moniqua_jax.plots import kept, tables
from moniqua_jax.theory import gammas, smoothness, steps
from moniqua_jax.training import workdir

NAME = 'DIANA+ varying'
TEN = (
  'GD',
  'DCGD',
  'DIANA, authors',
  'DIANA block, authors',
  'DCGD+ varying',
  'DCGD+ block',
  'DIANA+ uniform',
  NAME,
  'DIANA+ block',
  'DIANA+ sparse',
)

TITLES = (
  'way',
  'iterations/s',
  'iterations of a method/s',
  'next to NumPy',
  '10,000 iterations of it, min',
)


def oracle(problem):
  """A generator: each next() is one iteration of DIANA+ in NumPy."""
  n, d, rng = problem.n, problem.d, np.random.default_rng(0)
  values, vectors = np.linalg.eigh(problem.matrices)
  power = lambda p: vectors * values[:, None] ** p @ vectors.transpose(0, 2, 1)
  half, inverse = power(0.5), power(-0.5)
  h = steps.varying_diana(problem.diagonals, d / n, n, problem.mu)
  calL = smoothness.calL(h, problem.diagonals).max()
  gamma = gammas.gamma_diana(problem.L, calL, n)
  alpha = gammas.alpha_diana(smoothness.omega(h).max())
  lengths = np.append(0, elias.omega_length(np.arange(1, 256)))
  x, shifts, bits = np.zeros(d), np.zeros((n, d)), 0
  mean = np.zeros(d)
  features, targets = problem.features, problem.targets
  while True:
    z = features @ x
    r = -targets * 0.5 * (1 - np.tanh(0.5 * targets * z))
    g = np.matmul(r[:, None], features)[:, 0] / problem.m + problem.lam * x
    y = np.matmul(inverse, (g - shifts)[:, :, None])[:, :, 0]
    norm = np.linalg.norm(y, axis=1, keepdims=True)
    u = np.abs(y) / norm / h
    level = np.floor(u + rng.random(u.shape))
    sent = np.matmul(half, (norm * np.sign(y) * h * level)[:, :, None])[:, :, 0]
    rows, places = np.nonzero(level)
    before = np.where(np.diff(rows, prepend=-1) == 0, np.roll(places, 1), -1)
    levels = level[rows, places].astype(int)
    bits += (lengths[places - before] + 1 + lengths[levels]).sum() + 32 * n
    x = x - gamma * (mean + sent.mean(0))
    shifts, mean = shifts + alpha * sent, mean + alpha * sent.mean(0)
    yield np.sum((x - problem.optimum) ** 2) / np.sum(problem.optimum**2)


def laboratory(problem, names, length):
  """A function that does `length` iterations of some methods, one seed."""
  chosen = [methods.METHODS[name](problem, 'l2') for name in names]
  keys = jax.random.split(jax.random.key(0), 1)
  state = {'carry': runs.start(problem, chosen, keys), 'k': 0}
  advance = runs.advance(problem, chosen, length)

  def go():
    state['carry'], trace = advance(state['carry'], keys, np.int64(state['k']))
    state['k'] += length
    return float(jax.block_until_ready(trace.distance)[0, -1, -1])

  return go


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', required=True)
  parser.add_argument('--workers', type=int, default=100)
  parser.add_argument('--length', type=int, default=50)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  jax.config.update('jax_enable_x64', True)
  features, labels = libsvm.read(args.data)
  parts = splits.by_norm(splits.row_scaled(features), labels, args.workers)
  problem = problems.logistic_regression(
    *parts, name=pathlib.Path(args.data).name
  )
  numpy = oracle(problem)
  ways = {
    'NumPy, one method': lambda: [next(numpy) for _ in range(args.length)],
    'laboratory, one method': laboratory(problem, [NAME], args.length),
    'laboratory, ten methods': laboratory(problem, TEN, args.length),
  }
  seconds = {name: [] for name in ways}
  for way in ways.values():
    way()  # compiles
  for _ in range(args.rounds):
    for name, way in ways.items():
      began = time.perf_counter()
      way()
      seconds[name].append((time.perf_counter() - began) / args.length)
  text = report(problem, seconds)
  (args.out / 'table.md').write_text(text)
  rows = [{'way': way, 'seconds': own} for way, own in seconds.items()]
  source = workdir.provenance() | {'load': os.getloadavg()}
  kept.write_measured(args.out, rows, source)
  print(text)


def report(problem, seconds) -> str:
  """A row for each way, next to NumPy."""
  per = {name: float(np.median(times)) for name, times in seconds.items()}
  base, rows = per['NumPy, one method'], []
  for name, took in per.items():
    rate = (10 if 'ten' in name else 1) / took
    numbers = 1 / took, rate, rate * base, 1e4 * took / 60
    specs = '.1f', '.1f', '.2f', '.1f'
    rows.append([name, *map(format, numbers, specs)])
  load = os.getloadavg()[0]
  text = f'{problem.name}, {problem.n} workers; load {load:.1f}\n\n'
  return text + tables.markdown(TITLES, rows)


if __name__ == '__main__':
  main()
