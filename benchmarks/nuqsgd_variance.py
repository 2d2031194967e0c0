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
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.style
import numpy as np
import optax

import moniqua_jax as mj
from moniqua_jax import coding, data, gossip, models, plots, workdir
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.quantizers import base

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


class Net:
  """ResNet-20: parameters, statistics, and the gradients of both."""

  def __init__(self, dataset, norm, seed):
    model = models.resnet20(dataset.num_classes, norm=norm)
    image = jnp.zeros((1, *dataset.shape), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, image, train=False))(
      jax.random.key(seed)
    )
    self.params = variables['params']
    self.stats = variables.get('batch_stats', {})

    def loss(params, stats, batch):
      logits, new = model.apply(
        {'params': params, **({'batch_stats': stats} if stats else {})},
        batch['image'],
        train=True,
        mutable=['batch_stats'],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch['label']
      )
      return losses.mean(), new.get('batch_stats', {})

    self.grad = jax.value_and_grad(loss, has_aux=True)


# Which leaves are not quantized.
KEEP = {'small': large_leaves.small, 'none': lambda leaf: False}


def noise_of(name, tuned, bits):
  """(state, gradients f32[K, n, d], key) -> what the table has of it."""

  def measure(state, gradients, key):
    quantizer = tuned.quantizer(state, jnp.int32(0))

    def quantized(x, key):
      payload = gossip.sealed(quantizer.encode(x, key))
      coded = jnp.float32(jnp.nan)
      if quantizer.codes.zero is not None:
        coded = coding.coded_bits(quantizer, payload, x.size) / x.size
      return quantizer.decode(payload, x), coded

    draws, workers, d = gradients.shape
    flat = gradients.reshape(-1, d)
    x_hat, coded = jax.lax.map(
      lambda pair: quantized(*pair), (flat, jax.random.split(key, len(flat)))
    )
    error = jnp.sum((x_hat - flat) ** 2, axis=1) / jnp.sum(flat**2, axis=1)
    mean = x_hat.reshape(gradients.shape).mean(axis=1)
    return {
      'quantization variance': error.mean(),
      'coded bits': coded.mean(),
      **spread(mean),
    }

  return jax.jit(measure)


def spread(estimates):
  """Total and normalised variance of f32[K, d]."""
  draws, d = estimates.shape
  square = jnp.sum((estimates - estimates.mean(axis=0)) ** 2) / (draws - 1)
  size = jnp.sum(estimates**2) / draws
  return {'total variance': square / d, 'normalised variance': square / size}


def run(args, write):
  dataset = data.cifar10(data_dir=args.data_dir)
  shards = (np.arange(len(dataset.train.labels)),)
  stream = lambda seed: data.batches(
    dataset,
    shards,
    seed=seed,
    start=0,
    stop=10**6,
    batch_size=args.batch_size,
  )
  training, fresh = stream(args.seed), stream(args.seed + 1)
  net = Net(dataset, args.norm, args.seed)
  large = lambda grads: large_leaves.split(grads, KEEP[args.keep])[0]
  params, stats = net.params, net.stats
  tx = optax.chain(
    optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9)
  )
  opt_state = tx.init(params)
  methods = {k: base.tuned(q) for k, q in quantizers(args.bits).items()}
  states = {name: tuned.init() for name, tuned in methods.items()}
  measures = {k: noise_of(k, q, args.bits) for k, q in methods.items()}

  @jax.jit
  def step(params, stats, opt_state, states, batch):
    (loss, stats), grads = net.grad(params, stats, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    x = large(grads)
    states = {
      name: tuned.observe(states[name], gossip.no_news(1), x)
      for name, tuned in methods.items()
    }
    params = optax.apply_updates(params, updates)
    return params, stats, opt_state, states, loss

  fit = jax.jit(
    lambda states, x: {
      name: tuned.observe(states[name], gossip.no_news(1), x)
      for name, tuned in methods.items()
    }
  )
  gradient = jax.jit(lambda *args: large(net.grad(*args)[1]))

  for k, (_, batch) in enumerate(training):
    batch = {name: value[0] for name, value in batch.items()}
    if k in LOOKS:
      drawn = np.stack(
        [
          gradient(params, stats, {n: v[0] for n, v in next(fresh)[1].items()})
          for _ in range(args.draws * args.workers)
        ]
      ).reshape(args.draws, args.workers, -1)
      # At step 0 ALQ and AMQ have seen nothing yet: let them see.
      now = states if k else fit(states, drawn[0, 0])
      key = jax.random.fold_in(jax.random.key(args.seed), k)
      for name, measure in measures.items():
        write(step=k, method=name, **measure(now[name], drawn, key))
      write(step=k, method='SGD', **spread(drawn[:, 0]))
      write(step=k, method='Super-SGD', **spread(drawn.mean(axis=1)))
    if k >= args.steps:
      return
    params, stats, opt_state, states, loss = step(
      params, stats, opt_state, states, batch
    )
    if k % 50 == 0:
      print(f'step {k}, loss {loss:.3f}', flush=True)


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
    if 'quantization variance' not in at[name, marks[0]]:
      continue
    cells = []
    for mark in marks:
      row = at[name, mark]
      coded = row['coded bits']
      cells.append(
        f'{row["quantization variance"]:.3g}'
        + (f' ({coded:.2f})' if np.isfinite(coded) else '')
      )
    text += f'| {name} | {" | ".join(cells)} |\n'
  of = lambda name, mark: at[name, mark]['quantization variance']
  for over, under in (('QSGD', 'NUQSGD'), ('NUQSGD', 'QSGDinf')):
    ratios = [f'{of(over, m) / of(under, m):.2f}' for m in marks]
    text += f'| {over} / {under} | {" | ".join(ratios)} |\n'
  text += (
    '\nTotal variance, of the mean over workers, per value (with sampling '
    f'noise)\n\n| method | {" | ".join(head)} |\n|---|{"---:|" * len(marks)}\n'
  )
  for name in names:
    cells = [f'{at[name, mark]["total variance"]:.3g}' for mark in marks]
    text += f'| {name} | {" | ".join(cells)} |\n'
  return text


def figure(rows, path):
  names = list(dict.fromkeys(row['method'] for row in rows))
  panels = {
    'quantization variance': 'E|Q(g) − g|² / |g|²',
    'total variance': 'total variance per value',
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
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  began, rows = time.perf_counter(), []
  with (args.out / 'metrics.jsonl').open('w') as file:

    def write(**row):
      row = {k: float(v) if hasattr(v, 'dtype') else v for k, v in row.items()}
      rows.append(row)
      # Strict JSON has no NaN.
      row = {k: None if v != v else v for k, v in row.items()}
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
