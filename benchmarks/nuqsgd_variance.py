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
gradients at steps 0, 100, 2000. Moniqua's messages are read beside the gradient
of another batch, as another worker would; its theta fits the largest rms of
their distances, as in `fitted_theta`. DATA is a TFDS directory with
cifar10/3.0.2.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import nuqsgd_resnet110
import moniqua_jax as mj
from moniqua_jax import command_line, data, gossip, plots
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.plots import kept, tables
from moniqua_jax.quantizers import base, fitted
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
    'EDEN': mj.eden(bits),
    'rotated uniform': mj.rotated(mj.uniform(bits, BUCKET)),
    'rotated Moniqua': mj.rotated(beside(bits)),
  }


def beside(bits: int) -> base.Tuned:
  """Moniqua with a theta that fits the distances seen last, and no others."""

  def observe(theta, seen, x):
    del theta
    return fitted.spread(x.size) * jnp.sqrt(seen.square.max())

  make = lambda theta, step: mj.moniqua(theta, bits)
  return base.Tuned(lambda: jnp.float32(1), make, observe)


# Which leaves are not quantized.
KEEP = {'small': large_leaves.small, 'none': lambda leaf: False}


def measured(tuned, state, gradients, key) -> dict:
  """Of f32[K, n, d], what the table has of a method."""
  quantizer = tuned.quantizer(state, jnp.int32(0))
  flat, n = gradients.reshape(-1, gradients.shape[-1]), gradients.shape[1]
  keys = jax.random.split(key, len(flat))
  if quantizer.shared:  # by the workers of a mean
    keys = keys[np.arange(len(flat)) // n]
  x_hat, row = jax.lax.map(
    lambda each: gradient_noise.of_one(quantizer, *each),
    (flat, jnp.roll(flat, 1, axis=0), keys),
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
    optimizer.local(config, built.pace.learning_rate, built.model.held),
  )
  large = lambda grads: large_leaves.split(unravel(grads), KEEP[args.keep])[0]
  opt_state, stats = tx.init(params), variables
  methods = {k: base.tuned(q) for k, q in quantizers(args.bits).items()}
  states = {name: tuned.init() for name, tuned in methods.items()}
  near = [name for name, q in methods.items() if base.needs_near(q)]
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
      now = now | {
        name: methods[name].observe(now[name], apart(drawn), drawn[0, 0])
        for name in near
      }
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


def apart(gradients) -> base.Seen:
  """What one learns of the distance of f32[K, n, d] from each to the next."""
  flat = gradients.reshape(-1, gradients.shape[-1])
  square = np.mean((flat - np.roll(flat, 1, axis=0)) ** 2, axis=1)
  return gossip.no_news(1)._replace(square=jnp.float32(square))


def spread(estimates) -> dict:
  return gradient_noise.spread(np.asarray(estimates, np.float64))


def table(rows, bits) -> str:
  """Quantization and total variance at some steps; a row a method."""
  at = {(row['method'], row['step']): row for row in rows}
  marks = [mark for mark in MARKS if ('SGD', mark) in at]
  names = list(dict.fromkeys(row['method'] for row in rows))
  titles = ['method', *(f'step {mark}' for mark in marks)]
  of = lambda name, mark: at[name, mark]['quantization_variance']
  noise = [
    [name, *(noise_cell(at.get((name, mark))) for mark in marks)]
    for name in names
    if 'quantization_variance' in at[name, marks[0]]
  ]
  for over, under in (('QSGD', 'NUQSGD'), ('NUQSGD', 'QSGDinf')):
    ratios = [f'{of(over, m) / of(under, m):.2f}' for m in marks]
    noise.append([f'{over} / {under}', *ratios])
  total = lambda name, mark: (
    f'{at[name, mark]["total_variance"]:.3g}'
    if (name, mark) in at
    else tables.DASH
  )
  totals = [[name, *(total(name, mark) for mark in marks)] for name in names]
  return (
    f'E|Q(g) - g|^2 / |g|^2 at {bits} bits, buckets of {BUCKET}; in brackets '
    f'coded bits per value\n\n{tables.markdown(titles, noise)}\n'
    'Total variance, of the mean over workers, per value (with sampling '
    f'noise)\n\n{tables.markdown(titles, totals)}'
  )


def noise_cell(row) -> str:
  """The noise, and the coded bits per value where there is a code."""
  if row is None:  # that run was shorter
    return tables.DASH
  coded = f' ({row["coded_bits"]:.2f})' if row.get('coded_bits') else ''
  return f'{row["quantization_variance"]:.3g}{coded}'


def figure(rows, path) -> None:
  """Both variances against the step, a line a method."""
  names = list(dict.fromkeys(row['method'] for row in rows))
  panels = {
    'quantization_variance': 'E|Q(g) − g|² / |g|²',
    'total_variance': 'total variance per value',
  }
  with plots.drawing(11, 4) as fig:
    for axes, (key, label) in zip(
      fig.subplots(1, 2), panels.items(), strict=True
    ):
      for i, name in enumerate(names):
        mine = [r for r in rows if r['method'] == name and key in r]
        if mine:
          line = [r['step'] for r in mine], [r[key] for r in mine]
          axes.plot(*line, label=name, **plots.line_style(i))
      axes.set(yscale='log', xlabel='step', ylabel=label)
    fig.legend(
      *axes.get_legend_handles_labels(),
      loc='outside right center',
      frameon=False,
      handlelength=3,
    )
  plots.save(fig, path)


@command_line.one_line_errors()
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

  def write(**row):
    row = {k: float(v) if hasattr(v, 'dtype') else v for k, v in row.items()}
    rows.append(row)
    kept.write_lines(args.out / 'rows.jsonl', rows)

  run(args, write)
  text = table(rows, args.bits)
  print(text)
  (args.out / 'table.md').write_text(text)
  figure(rows, args.out / 'figure')
  source = workdir.provenance() | {'seconds': time.perf_counter() - began}
  kept.write_measured(args.out, rows, source)


if __name__ == '__main__':
  main()
