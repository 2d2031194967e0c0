"""What does a digit of accuracy cost in values and in bits, as n and d grow?

  python -m benchmarks.smoothness_cost --out=results/smoothness_cost

The O(n) and O(min(n, d)) of arXiv:2106.03524, in the regime where they hold:
one worker dominates, a few coordinates dominate in each L_i, all workers agree
in the optimum (grad f_i(x*) = 0), and a message may hold about d / n values.
L_1 has the diagonal 1, 1/2, 1/4, ... down to 1 / kappa, shuffled; the other
workers have other shuffles of 1/n of it. DCGD(+) with the step of theory runs
from x = (1, ..., 1) until |x|^2 has fallen by 10^6; the cost is iterations
times what a message holds. Theory: the budget times (L + 2 calL / n) / mu,
in units of log 10^6 / 2. Sizes that the folder has are not run again.
"""

import argparse
import math
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import moniqua_jax as mj
from moniqua_jax import command_line, wire
from moniqua_jax.laboratory import counting
from moniqua_jax.plots import kept, tables
from moniqua_jax.quantizers import dithered, roots
from moniqua_jax.theory import block_steps, gammas, smoothness, steps
from moniqua_jax.training import workdir

AXIS, CHUNK, MOST = 'workers', 500, 400_000
KAPPA = 1000.0  # of L_1
SIZES = (
  *((2, 256), (2, 1024), (4, 256), (4, 1024)),
  *((8, 64), (8, 256), (8, 1024), (8, 4096)),
  *((16, 256), (16, 1024), (32, 256)),
)
NAMES = ('GD', 'standard', 'one block +', 'n blocks +', 'varying +')


def diagonals(n: int, d: int) -> np.ndarray:
  """f64[n, d], the diagonals of the L_i."""
  rng = np.random.default_rng(0)
  first = np.maximum(0.5 ** np.arange(d), 1 / KAPPA)
  return np.stack(
    [rng.permutation(first) * (1.0 if i == 0 else 1 / n) for i in range(n)]
  )


class Plan(NamedTuple):
  """What theory says of a method.

  Attributes:
    steps: h, a row for each worker, or s if it is blind to L_i.
    sizes: of the blocks; None if each coordinate has its step.
    calL: the largest, of the paper's bounds.
    budget: values in a message.
  """

  steps: np.ndarray | int
  sizes: tuple[int, ...] | None
  calL: float
  budget: float


def plans(diagonal) -> dict[str, Plan]:
  """The quantizers by name; a message has about d / n values."""
  n, d = diagonal.shape
  s = max(1, int(math.sqrt(d) // n))
  spent = s * (s + math.sqrt(d))
  omega, L_max = smoothness.dithering_omega(d, s), diagonal.max()
  sizes = block_steps.equal_blocks(d, n)
  one = block_steps.block_dcgd(diagonal, spent + 1, (d,))
  many = block_steps.block_dcgd(diagonal, d / n + n, sizes)
  # A code has 8 bits; only d / n above 127 levels is cut by this.
  varying = np.maximum(steps.varying_dcgd(diagonal, d / n), 1 / 127)
  return {
    'standard': Plan(s, (d,), omega * L_max, spent),
    'one block +': plus(diagonal, one, (d,), spent + 1),
    'n blocks +': plus(diagonal, many, sizes, d / n + n),
    'varying +': plus(diagonal, varying, None, d / n),
  }


def plus(diagonal, h, sizes, budget) -> Plan:
  each = h if sizes is None else np.repeat(h, sizes, axis=1)
  calL = float(smoothness.calL(each, diagonal, sizes).max())
  return Plan(h, sizes, calL, budget)


def compressor(diagonal, plan):
  """(row -> quantizer, rows, its largest code, its blocks)."""
  d = diagonal.shape[1]
  if isinstance(plan.steps, int):
    return mj.dithering(plan.steps), (), plan.steps, plan.sizes
  bits = (2 * dithered.levels_needed(plan.steps)).bit_length()
  table = {
    'h': jnp.float32(plan.steps),
    'root': roots.stacked([roots.root(row) for row in diagonal]),
  }
  inner = lambda h: (
    mj.varying_steps(h, bits=bits)
    if plan.sizes is None
    else mj.block(h, plan.sizes, bits=bits)
  )
  make = lambda row: mj.smooth(inner(row['h']), row['root'])
  return make, table, 2 ** (bits - 1) - 1, plan.sizes or (d,)


def run(diagonal, gamma, plan):
  """Iterations, values and coded bits of a message, packed bits."""
  n, d = diagonal.shape
  if plan is None:
    count = lambda sent: jnp.array([d, 32.0 * d, 32.0 * d])
    algorithm = lambda own: mj.allreduce(axis_name=AXIS)
    table, sent_of = (), lambda state: ()
  else:
    made, table, top, sizes = compressor(diagonal, plan)
    coded = counting.coded_bits_of(d, top, sizes)

    def algorithm(own):
      known = mj.per_worker(made, table, AXIS, own) if table else made
      slots = dict(axis_name=AXIS, key=jax.random.key(0))
      return mj.dcgd(known, keep=lambda leaf: False, **slots)

    sent_of = lambda state: state[0].error
    bits = (2 * top).bit_length()
    nonzeros = lambda sent: jnp.sum(wire.split(sent, bits, d)[0] != top)
    count = lambda sent: jnp.array(
      [nonzeros(sent), coded(sent), 8.0 * sent.size]
    )

  def worker(own, curve, x, state, first):
    tx = optax.chain(algorithm(own), optax.sgd(gamma))

    def step(carry, k):
      x, state = carry
      updates, state = tx.update(curve * x, state, x, step=k)
      return (x + updates, state), (jnp.sum(x**2) / d, count(sent_of(state)))

    carry, rows = jax.lax.scan(step, (x, state), first + jnp.arange(CHUNK))
    return *carry, *rows

  mapped = jax.jit(
    jax.vmap(worker, (0, 0, 0, 0, None), axis_name=AXIS), donate_argnums=(2, 3)
  )
  start = jax.vmap(
    lambda own, x: optax.chain(algorithm(own), optax.sgd(gamma)).init(x),
    axis_name=AXIS,
  )
  x = jnp.ones((n, d))
  state, curve, held = start(table, x), jnp.float32(diagonal), []
  for first in range(0, MOST, CHUNK):
    x, state, square, counts = mapped(table, curve, x, state, first)
    hit = np.flatnonzero(np.asarray(square[0]) <= 1e-6)
    needed = int(hit[0]) if hit.size else CHUNK
    held.append(np.asarray(counts, float)[:, :needed].mean(axis=0))
    if hit.size:
      return first + needed, *np.concatenate(held).mean(axis=0).tolist()
  raise RuntimeError(f'not there after {MOST} iterations')


def gamma_of(diagonal, plan: Plan | None) -> float:
  """The step of DCGD+ with these quantizers; of gradient descent without."""
  L, calL = diagonal.mean(0).max(), plan.calL if plan else 0.0
  return gammas.gamma_dcgd(L, calL, len(diagonal))


def costs(n, d):
  """A row for each method: theory and measured."""
  diagonal = diagonals(n, d)
  mu = diagonal.mean(0).min()
  nu = diagonal.max(1).sum() / diagonal.max()
  nu_1 = (diagonal.sum(1) / diagonal.max(1)).max()
  for name, plan in ({'GD': None} | plans(diagonal)).items():
    gamma, budget = gamma_of(diagonal, plan), plan.budget if plan else d
    iterations, values, coded, packed = run(diagonal, gamma, plan)
    unit = math.log(1e6) / 2 / mu
    yield {
      'n': n,
      'd': d,
      'nu': float(nu),
      'nu_1': float(nu_1),
      'method': name,
      'theory': float(budget * unit / gamma),
      'values': iterations * values,
      'coded_bits': iterations * coded,
      'packed_bits': iterations * packed,
      'iterations': iterations,
    }


NOTE = f"""
How many times less each costs than standard dithering (DCGD) to the same
accuracy. kappa of L_1: {KAPPA:g}; f32, one seed. Values: not zero in a message,
the mean over workers and iterations, times iterations; theory has the budget in
its place. Coded and packed as in results/smoothness, norms of 32 bits, no
upload.
"""
COSTS = {
  'theory': 'theory, values',
  'values': 'values',
  'coded_bits': 'bits, coded',
  'packed_bits': 'bits, packed',
}


def table(rows) -> str:
  """Costs of the others relative to standard dithering, theory and measured."""
  names, lines = [name for name in NAMES if name != 'standard'], []
  for n, d in SIZES:
    own = {r['method']: r for r in rows if (r['n'], r['d']) == (n, d)}
    if len(own) < len(NAMES):
      continue
    for key, label in COSTS.items():
      cells = [f'{own["standard"][key] / own[m][key]:.2f}' for m in names]
      lines.append([n, d, f'{own["GD"]["nu_1"]:.2f}', label, *cells])
  return tables.markdown(['n', 'd', 'nu_1', 'measured', *names], lines, words=4)


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  rows, sources = (
    kept.read_lines(args.out / name) for name in ('rows.jsonl', 'runs.jsonl')
  )
  began, there = time.perf_counter(), {(row['n'], row['d']) for row in rows}
  for size in (size for size in SIZES if size not in there):
    for row in costs(*size):
      rows.append(row)
      print(row, flush=True)
    source = workdir.provenance() | {'seconds': time.perf_counter() - began}
    kept.write_lines(args.out / 'rows.jsonl', rows)
    kept.write_lines(args.out / 'runs.jsonl', [*sources, source])
  (args.out / 'table.md').write_text(table(rows) + NOTE)
  print(table(rows))


if __name__ == '__main__':
  main()
