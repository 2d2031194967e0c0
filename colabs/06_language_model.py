# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A language model over slow links
#
# Eight workers train one decoder of text. After each step they could take the
# mean of their gradients, 56 bits sent for each parameter. Here each trains alone
# for ten steps, tells *one* other where it stands in 4 bits, and makes a step of
# Nesterov's momentum along what it moved, messages and all: DiLoCo by gossip, for
# a 140th of the bytes.
#
# On Colab, run the next cell first, in a checkout: what was measured is in the
# repository (`results/language_model`), not in the package. Locally:
# `pip install '.[notebooks]'`, then
# `jupyter execute colabs/06_language_model.ipynb`.

# %%
try:
  import moniqua_jax
except ImportError:
  from pathlib import Path

  # REPOSITORY: the address from which moniqua_jax can be cloned.
  source = '..' if Path('../pyproject.toml').exists() else './clone'
  # !test -d {source} || git clone --quiet REPOSITORY {source}
  # %pip install --quiet '{source}[all]'
  import moniqua_jax

# %%
# %matplotlib inline
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import moniqua_jax as mj
from moniqua_jax import bytes_sent, data, plots, theory
from moniqua_jax.models import transformer
from moniqua_jax.plan import choice
from moniqua_jax.plots import kept
from moniqua_jax.quantizers import base

# %% [markdown]
# ## The text
#
# Nothing to download: it is what Python's `help` knows of its topics. The last
# tenth of each topic is held out; compressors see that part alone.

# %%
WINDOW = 64
dataset = data.text(window=WINDOW)
packed = dataset.text.packed()
print(f'{len(dataset.train.labels):,} windows of {WINDOW} bytes to learn from, '
      f'{len(dataset.test.labels):,} held out')
print('bits a character, held out:',
      ', '.join(f'{name} {bits:.2f}' for name, bits in packed.items()))
counts = np.bincount(np.frombuffer(dataset.text.held_out.encode(), np.uint8))
shares = counts[counts > 0] / counts.sum()
ENTROPY = float(-(shares * np.log2(shares)).sum())
print(f'of single symbols {ENTROPY:.2f}')
print('a window:', repr(dataset.text.shown(
  dataset.preprocess(dataset.test.read(np.array([3]))[0])[0])))
assert packed['lzma'] < packed['zlib'] < ENTROPY

# %% [markdown]
# ## One loop, three ways to talk
#
# A decoder that is small enough for a minute, AdamW with clipping, and last in
# the chain what talks. `outer` takes any mean, or `dpsgd`, inside, and any
# optimizer of optax for the step along what was moved.

# %%
N, B, STEPS, H = 8, 4, 200, 10
model = transformer(num_classes=256, width=32, layers=1, heads=2)
variables = model.init(jax.random.key(0), None)
SIZE = sum(leaf.size for leaf in jax.tree.leaves(variables))
SLOTS = dict(axis_name='workers', key=jax.random.key(1))
PAIRS, FOUR = mj.one_peer_hypercube(N), mj.rotated(mj.fitted_theta(bits=4))
NESTEROV = optax.sgd(0.7, momentum=0.5, nesterov=True)


def adamw():
  rate = optax.warmup_cosine_decay_schedule(0, 1e-2, 20, STEPS)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99))


WAYS = {
  'all-reduce': optax.chain(mj.allreduce(axis_name='workers'), adamw()),
  'DiLoCo, 32 bits': optax.chain(
    adamw(), mj.outer(mj.allreduce(axis_name='workers'), NESTEROV, H)
  ),
  'DiLoCo by pairs, 4 bits': optax.chain(
    adamw(), mj.outer(mj.dpsgd(PAIRS, FOUR, **SLOTS), NESTEROV, H)
  ),
}

# %%
shards = data.iid(dataset.train.labels, N, seed=0)


def loss_fn(params, text):
  logits = model.apply({'params': params}, text[:, :-1])
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])
  return losses.mean()


def trained(tx):
  """Nats a symbol by step, and the parameters of all workers at the end."""

  def step(params, state, text, k):
    loss, grads = jax.value_and_grad(loss_fn)(params, text)
    updates, state = tx.update(grads, state, params, step=k)
    return optax.apply_updates(params, updates), state, loss

  step = mj.simulated(step, (0, 0, 0, None))
  alike = lambda leaf: np.broadcast_to(leaf, (N, *leaf.shape))
  params = jax.tree.map(alike, jax.device_get(variables['params']))
  state, losses = mj.simulated(tx.init, (0,))(params), []
  stream = data.batches(
    dataset, shards, seed=0, start=0, stop=STEPS, batch_size=B
  )
  for k, batch in stream:
    params, state, loss = step(params, state, batch['text'], np.int32(k))
    losses.append(float(loss.mean()))
  return losses, params, state


runs = {name: trained(tx) for name, tx in WAYS.items()}

# %% [markdown]
# What counts is the mean model on what is held out. `mj.check` raises if the
# workers did not really talk.

# %%
held_out = dataset.preprocess(dataset.test.read(np.arange(256))[0])
evaluate = jax.jit(loss_fn)


def sent(name):
  """Bits that a worker sends for each parameter and step."""
  if name == 'all-reduce':
    return 8 * bytes_sent.of_exact(variables, N).exact / SIZE
  if '32' in name:
    return 8 * bytes_sent.of_exact(variables, N).exact / SIZE / H
  of = bytes_sent.of_gossip(PAIRS, base.tuned(FOUR), SIZE)
  return 8 * of.gossip.mean() / SIZE / H


bits = {}
print(f'{SIZE:,} parameters; bits a character, held out:')
for name, (_, params, state) in runs.items():
  mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), params)
  bits[name] = float(evaluate(mean, held_out)) / np.log(2) * dataset.text.per_character
  print(f'{name:26s} {sent(name):7.3f} bits sent   {bits[name]:.3f}')
*_, state = runs['DiLoCo by pairs, 4 bits']
assert mj.check(state) == ''
assert all(value < ENTROPY for value in bits.values())
gossip = bits['DiLoCo by pairs, 4 bits']
assert gossip < 1.1 * bits['DiLoCo, 32 bits']
assert sent('DiLoCo by pairs, 4 bits') < sent('all-reduce') / 130

# %%
S, L = 'step', 'nats a symbol'
plots.compare(
  {
    name: [{S: k, L: loss} for k, loss in enumerate(losses)]
    for name, (losses, *_) in runs.items()
  },
  [(S, L)],
)

# %% [markdown]
# ## Why it holds
#
# $W$ keeps the mean, and Nesterov's momentum is linear: so the mean of the workers
# goes as DiLoCo's, at any number of bits. Rounding moves workers apart and nothing
# else. The same updates, with messages of 32, 4 and 2 bits:

# %%
rng = np.random.default_rng(0)
moves = 0.02 * rng.normal(size=(3 * H, N, 256)).astype(np.float32)
begin = np.broadcast_to(rng.normal(size=256).astype(np.float32), (N, 256))


def gone(quantizer):
  gossip = mj.dpsgd(mj.lazy(mj.ring(N), 0.5), quantizer, **SLOTS)
  tx = mj.outer(gossip, NESTEROV, H)
  step = mj.simulated(lambda x, u, s, k: tx.update(u, s, x, step=k), (0, 0, 0, None))
  x, state = begin, mj.simulated(tx.init, (0,))(begin)
  for k, u in enumerate(moves):
    moved, state = step(x, u, state, np.int32(k))
    x = x + np.asarray(moved)
  return x


full = gone(mj.full_precision())
for number in (4, 2):
  few = gone(mj.moniqua(theta=1.0, bits=number))
  off = np.abs(few.mean(0) - full.mean(0)).max()
  apart = few.std(0).mean() / full.std(0).mean()
  print(f'{number} bits: the mean is off by {off:.1e}, workers {apart:.1f} times '
        'as far apart')
  assert off < 1e-5 and apart > 1

# %% [markdown]
# How far they stay apart shrinks from message to message by a radius that the
# graph, the outer rate and momentum give. On small graphs less momentum is better;
# on large ones that mix slowly more of it:

# %%
M, R = 'outer momentum', 'radius'
radius = lambda n, mu: theory.outer_radius(mj.ring(n), 0.7, float(mu))
plots.compare(
  {
    f'ring of {n}': [{M: mu, R: radius(n, mu)} for mu in np.linspace(0, 0.95, 20)]
    for n in (8, 16, 32)
  },
  [(M, R)],
)

# %%
assert radius(8, 0.5) < radius(8, 0.9)
assert radius(32, 0.9) < radius(32, 0.5)

# %% [markdown]
# ## What was measured
#
# `train.py --config=configs/text.py:METHOD` trains 626,560 parameters for 15
# passes. Its runs are in `results/language_model`.

# %%
FOLDER = pathlib.Path('../results/language_model')
assert FOLDER.exists(), 'open this notebook in a checkout: the runs are there'
found = {}
for run in kept.loaded([FOLDER]):
  steps, d = run.end['step'], 626_560
  each = 8 * run.end['wire/bytes_sent'] / steps / d
  found[run.name] = each, run.end['test/bits_per_character']
  print(f'{run.name:18s} {each:7.3f} bits sent   {found[run.name][1]:.3f} bits a '
        'character')
few, all_ = found['gossip10_4bits'], found['allreduce']
assert few[0] < all_[0] / 130 and few[1] < 1.1 * all_[1]
assert few[1] < packed['lzma'] < packed['zlib']

# %% [markdown]
# ## Your link
#
# How often may workers talk? As often as leaves 95 % of the time to gradients.
# The bytes are exact; put in your own numbers.

# %%
from moniqua_jax.configs import text as texts

COMPUTE, LATENCY = '350ms', '20ms'
config = texts.get_config()
net = transformer(num_classes=256, **{
  key: config.model[key] for key in ('width', 'layers', 'heads')
})
shapes = jax.eval_shape(functools.partial(net.init, inputs=None), jax.random.key(0))
seldom = []
for link in ('10Gbit', '1Gbit', '100Mbit', '10Mbit', '1Mbit'):
  spec = dict(bits=None, link=link, latency=LATENCY, compute=COMPUTE)
  budget = choice.budget(spec)
  rows = choice.of_config(config, shapes['params'], budget)
  best = choice.best(rows, budget)
  seldom.append(best.way.order[0])
  print(f'{link:>8s}: all-reduce computes {rows[0].computes:4.0%} of the time; '
        f'{best.way.name}: {best.computes:.1%}, {best.bits:.3f} bits sent')
  assert best.computes >= 0.95
assert seldom == sorted(seldom)
