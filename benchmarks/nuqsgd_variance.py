"""How much noise does each quantizer of the NUQSGD family add to gradients?

  python -m benchmarks.nuqsgd_variance --data_dir=DATA \\
    --out=results/nuqsgd_variance

Trains ResNet-20 on CIFAR-10 in full precision (one worker, batch 128, learning
rate 0.1, momentum 0.9, weight decay 1e-4) and stops at some steps to draw
gradients of fresh batches at the parameters of that moment. All methods are
measured on the same gradients, so that they differ in nothing else:

  quantization variance  E|Q(g) - g|^2 / |g|^2, the mean over the gradients
  total variance         E|a - E a|^2 / d, a the mean of Q(g) over --workers
                         gradients; the paper's, with the sampling noise in it;
                         SGD has one gradient in full precision, Super-SGD the
                         mean of --workers
  normalised variance    the same over E|a|^2 / d
  coded bits per value   of the recursive code, and the entropy of the levels

Buckets of 8192 values cross the leaves; leaves with less than 1024 values or of
one dimension are not quantized. ALQ and AMQ fit their levels to the training
gradients at steps 0, 100, 2000. DATA is a TFDS directory with cifar10/3.0.2.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.style
import numpy as np
import optax

from configs import nuqsgd_resnet110
import moniqua_jax as mj
from moniqua_jax import data, gossip, plots
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.quantizers import base
from moniqua_jax.training import (
  experiment,
  gradient_noise,
  optimizer,
  workdir,
)
from moniqua_jax.training import step as step_lib

LOOKS = (0, 10, 20, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
MARKS = (0, 100, 1000)  # of the table
BUCKET = 8192


def quantizers(bits: int) -> dict:
  """The rows: name -> Quantizer or Tuned."""
  return {
    'QSGD': mj.qsgd(bits, BUCKET),
    'QSGDinf': mj.qsgd(bits, BUCKET, 'linf'),
    'NUQSGD': mj.nuqsgd(bits, BUCKET),
    'NUQSGD, no zero': mj.nuqsgd(bits, BUCKET, zero_level=False),
    'TernGrad': mj.terngrad(BUCKET),
    'ALQ': mj.alq(bits, BUCKET),
    'AMQ': mj.amq(bits, BUCKET),
  }


# Which leaves are not quantized.
KEEP = {'small': large_leaves.small, 'none': lambda leaf: False}


def measured(tuned, state, gradients, key) -> dict:
  """Of f32[K, n, d], what the table has of a method."""
  quantizer = tuned.quantizer(state, jnp.int32(0))
  flat = gradients.reshape(-1, gradients.shape[-1])
  x_hat, row = jax.lax.map(
    lambda pair: gradient_noise.of_one(quantizer, *pair),
    (flat, jax.random.split(key, len(flat))),
  )
  row = {name: values.mean() for name, values in row.items()}
  return x_hat.reshape(gradients.shape).mean(axis=1), row


def configured(args):
  """One worker in full precision, with the settings of the paper."""
  config = nuqsgd_resnet110.default('resnet20')
  config.workers, config.runner, config.seed = 1, 'simulated', args.seed
  config.model.norm, config.batch_size = args.norm, args.batch_size
  config.data.update(name='cifar10', data_dir=args.data_dir)
  config.reduce.name = 'allreduce'
  config.epochs = 4.0
  config.learning_rate.update(
    name='cosine', peak=0.1, warmup_epochs=args.warmup, milestones=None
  )
  return config


def run(args, write):
  config = configured(args)
  built = experiment.from_config(config)
  stream = lambda seed: data.batches(
    *built.data,
    seed=seed,
    start=0,
    stop=10**6,
    batch_size=args.batch_size,
  )
  training, fresh = (
    ({name: value[0] for name, value in batch.items()} for _, batch in batches)
    for batches in (stream(args.seed), stream(args.seed + 1))
  )
  variables = dict(built.model.variables)
  params, unravel = gossip.flatten(variables.pop('params'))
  grad, tx = (
    step_lib.make_gradient(built),
    optimizer.local(config, built.pace.learning_rate),
  )
  large = lambda grads: large_leaves.split(unravel(grads), KEEP[args.keep])[0]
  opt_state, stats = tx.init(params), variables
  methods = {k: base.tuned(q) for k, q in quantizers(args.bits).items()}
  states = {name: tuned.init() for name, tuned in methods.items()}
  measures = {
    name: jax.jit(functools.partial(measured, tuned))
    for name, tuned in methods.items()
  }

  @jax.jit
  def seen(states, x):
    return {
      name: tuned.observe(states[name], gossip.no_news(1), x)
      for name, tuned in methods.items()
    }

  @jax.jit
  def step(params, stats, opt_state, states, batch):
    (loss, (_, stats)), grads = grad(params, stats, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    states = seen(states, large(grads))
    params = optax.apply_updates(params, updates)
    return params, stats, opt_state, states, loss

  gradient = jax.jit(lambda *args: large(grad(*args)[1]))

  for k, batch in enumerate(training):
    if k in LOOKS:
      draws = range(args.draws * args.workers)
      drawn = [gradient(params, stats, next(fresh)) for _ in draws]
      drawn = np.stack(drawn).reshape(args.draws, args.workers, -1)
      # At step 0 ALQ and AMQ have seen nothing yet: let them see.
      now = states if k else seen(states, drawn[0, 0])
      key = jax.random.fold_in(jax.random.key(args.seed), k)
      for name, measure in measures.items():
        mean, row = measure(now[name], drawn, key)
        write(step=k, method=name, **row, **spread(mean))
      write(step=k, method='SGD', **spread(drawn[:, 0]))
      write(step=k, method='Super-SGD', **spread(drawn.mean(axis=1)))
    if k >= args.steps:
      return
    params, stats, opt_state, states, loss = step(
      params, stats, opt_state, states, batch
    )
    if k % 50 == 0:
      print(f'step {k}, loss {loss:.3f}', flush=True)


def spread(estimates) -> dict:
  return gradient_noise.spread(np.asarray(estimates, np.float64))


def table(rows, bits) -> str:
  at = {(row['method'], row['step']): row for row in rows}
  marks = [mark for mark in MARKS if ('SGD', mark) in at]
  names = list(dict.fromkeys(row['method'] for row in rows))
  head = [f'step {mark}' for mark in marks]
  text = (
    f'E|Q(g) - g|^2 / |g|^2 at {bits} bits, buckets of {BUCKET}; in brackets '
    'coded bits per value\n\n'
    f'| method | {" | ".join(head)} |\n|---|{"---:|" * len(marks)}\n'
  )
  for name in names:
    if 'quantization_variance' not in at[name, marks[0]]:
      continue
    cells = []
    for mark in marks:
      row = at[name, mark]
      coded = row.get('coded_bits')
      cells.append(
        f'{row["quantization_variance"]:.3g}'
        + (f' ({coded:.2f})' if coded else '')
      )
    text += f'| {name} | {" | ".join(cells)} |\n'
  of = lambda name, mark: at[name, mark]['quantization_variance']
  for over, under in (('QSGD', 'NUQSGD'), ('NUQSGD', 'QSGDinf')):
    ratios = [f'{of(over, m) / of(under, m):.2f}' for m in marks]
    text += f'| {over} / {under} | {" | ".join(ratios)} |\n'
  text += (
    '\nTotal variance, of the mean over workers, per value (with sampling '
    f'noise)\n\n| method | {" | ".join(head)} |\n|---|{"---:|" * len(marks)}\n'
  )
  for name in names:
    cells = [f'{at[name, mark]["total_variance"]:.3g}' for mark in marks]
    text += f'| {name} | {" | ".join(cells)} |\n'
  return text


def figure(rows, path):
  names = list(dict.fromkeys(row['method'] for row in rows))
  panels = {
    'quantization_variance': 'E|Q(g) − g|² / |g|²',
    'total_variance': 'total variance per value',
  }
  with matplotlib.style.context(['default', plots.STYLE]):
    fig = matplotlib.figure.Figure(figsize=(10, 4), layout='constrained')
    axes = fig.subplots(1, 2)
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
      for index, name in enumerate(names):
        mine = [r for r in rows if r['method'] == name and key in r]
        if mine:
          axis.plot(
            [r['step'] for r in mine],
            [r[key] for r in mine],
            marker=plots.MARKERS[index % len(plots.MARKERS)],
            color=plots.COLOURS[index % len(plots.COLOURS)],
            linestyle=plots.DASHES[index % len(plots.DASHES)],
            label=name,
          )
      axis.set_yscale('log')
      axis.set_xlabel('step')
      axis.set_ylabel(label)
    axes[1].legend(fontsize=8, ncols=2)
    fig.savefig(path.with_suffix('.svg'), metadata={'Date': None})
    fig.savefig(path.with_suffix('.png'), dpi=200)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data_dir', required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--bits', type=int, default=4)
  parser.add_argument('--steps', type=int, default=1000)
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--workers', type=int, default=4)
  parser.add_argument('--norm', default='batch', choices=['batch', 'group'])
  parser.add_argument('--keep', default='small', choices=KEEP)
  parser.add_argument('--draws', type=int, default=10)
  parser.add_argument('--warmup', type=float, default=0.25, help='epochs')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  began, rows = time.perf_counter(), []
  with (args.out / 'metrics.jsonl').open('w') as file:

    def write(**row):
      row = {k: float(v) if hasattr(v, 'dtype') else v for k, v in row.items()}
      rows.append(row)
      file.write(json.dumps(row) + '\n')
      file.flush()

    run(args, write)
  text = table(rows, args.bits)
  print(text)
  (args.out / 'table.md').write_text(text)
  figure(rows, args.out / 'figure')
  source = workdir.provenance() | {'seconds': time.perf_counter() - began}
  (args.out / 'run.json').write_text(json.dumps(source, indent=1))


if __name__ == '__main__':
  main()
