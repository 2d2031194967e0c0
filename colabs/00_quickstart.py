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
# # Quickstart: what travels between workers
#
# Eight workers train one model. After every step each tells its two neighbours
# on a ring where its parameters stand, in 32, 4 or 1 bits per parameter.
#
# On Colab, run the next cell first. Locally, from a checkout:
# `pip install '.[notebooks]'`, then `jupyter execute colabs/00_quickstart.ipynb`.

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
import re

import jax
import jax.numpy as jnp
import optax

import moniqua_jax as mj
from moniqua_jax import data, plots

# %% [markdown]
# ## One message
#
# A quantizer is three functions. `encode` makes the bytes, `decode` reads them
# with the receiver's own vector as reference, `inspect` says what was seen.

# %%
x = jax.random.normal(jax.random.key(0), (1000,))  # the sender's parameters
y = x + 0.1 * jax.random.uniform(jax.random.key(1), (1000,), minval=-1)

quantizer = mj.moniqua(theta=0.2, bits=4)
payload = quantizer.encode(x, jax.random.key(2))
print('payload', payload.dtype, payload.shape, '- 500 bytes of codes, 12 more')
x_hat = quantizer.decode(payload, y)
print('largest error', float(jnp.abs(x_hat - x).max()), '<=', 0.2 / 15)
print(quantizer.inspect(payload, y))

# %%
assert payload.dtype == jnp.uint8 and mj.nbytes(payload) == 512
assert jnp.abs(x_hat - x).max() <= 0.2 / 15 + 1e-6

# %% [markdown]
# The receiver's vector $y$ is within $\theta$ of $x$ in every coordinate, so the
# error is at most $\delta B_\theta = \theta / (2^b - 1)$. Where each value stands
# in the bytes, for a message of ten:

# %%
header = [('theta', 4), ('seed', 4), ('digest', 4)]
plots.message(quantizer, d=10, header=header)

# %% [markdown]
# If the workers are further apart than theta the receiver cannot know the turn.
# A digest in the message lets it see that, instead of a silent wrong answer.

# %%
too_far = y.at[7].add(1.0)
print('readable:', bool(quantizer.inspect(payload, too_far).readable))
assert not quantizer.inspect(payload, too_far).readable

# %% [markdown]
# ## One worker
#
# A model, a loss and an optax chain: nothing here knows of other workers. The
# step of a worker is written once, and `gossip` is the last link of the chain.

# %%
digits = data.digits()
WORKERS, BATCH, STEPS = 8, 16, 300


def logits(params, images):
  hidden = jax.nn.relu(images.reshape(len(images), -1) @ params['w'])
  return hidden @ params['v']


def init_params(key):
  one, two = jax.random.split(key)
  return {
    'w': jax.random.normal(one, (64, 128)) / 8,
    'v': jax.random.normal(two, (128, 10)) / 11,
  }


def make_step(tx):
  def step(params, opt_state, batch, step):
    def loss_fn(params):
      out = logits(params, batch['image'])
      loss = optax.softmax_cross_entropy_with_integer_labels
      return loss(out, batch['label']).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params, step=step)
    return optax.apply_updates(params, updates), opt_state, loss

  return step


def chain(gossip):
  schedule = optax.cosine_decay_schedule(0.1, STEPS)
  return optax.chain(optax.sgd(schedule, momentum=0.9), gossip)


@jax.jit
def accuracy(params):
  """Of the mean of the workers' models."""
  (test,) = data.test_batches(digits, len(digits.test.labels))
  mean = jax.tree.map(lambda leaf: leaf.mean(0), params)
  return jnp.mean(jnp.argmax(logits(mean, test['image']), -1) == test['label'])


def train(gossip, nbytes, workers=WORKERS):
  """Rows of loss and bytes by step, and of accuracy now and then."""
  tx = chain(gossip)
  one = init_params(jax.random.key(3))
  params = jax.tree.map(lambda leaf: jnp.stack([leaf] * workers), one)
  opt_state = mj.simulated(tx.init, (0,))(params)
  step_fn = mj.simulated(make_step(tx), (0, 0, 0, None))
  shards = data.iid(digits.train.labels, workers, seed=0)
  rows = []
  for step in range(STEPS):
    batch = data.batch(digits, shards, seed=0, step=step, batch_size=BATCH)
    params, opt_state, loss = step_fn(params, opt_state, batch, jnp.int32(step))
    row = {'step': step + 1, 'train/loss': float(loss.mean())}
    row['wire/bytes_sent'] = nbytes * (step + 1)
    if (step + 1) % 25 == 0:
      row['test/accuracy'] = float(accuracy(params))
    rows.append(row)
  return rows


alone = train(optax.identity(), nbytes=0, workers=1)
print(f'one worker: test accuracy {100 * alone[-1]["test/accuracy"]:.1f} %')

# %% [markdown]
# ## Eight workers on a ring
#
# A topology is a list of edges: who sends to whom, and with which weight. Worker
# $i$ moves towards what it heard, $x_i + \sum_j W_{ij} (\hat x_j - \hat x_i)$.

# %%
ring = mj.ring(WORKERS)
plots.topology(ring)

# %% [markdown]
# Three quantizers, and the bytes of one of their messages. With 1 bit the pull
# is damped: `lazy(ring, 0.2)` is the slack matrix $0.2\, W + 0.8\, I$.

# %%
d = sum(leaf.size for leaf in jax.tree.leaves(init_params(jax.random.key(3))))


def follow(theta):
  """Theta shrinks with the learning rate, but never to nothing."""
  rate = optax.cosine_decay_schedule(1.0, STEPS, alpha=0.02)
  return lambda step: theta * rate(step)


def moniqua(bits):
  return mj.scheduled(lambda theta: mj.moniqua(theta, bits), follow(1.0))


RUNS = {
  '32 bits': (ring, mj.full_precision()),
  '4 bits': (ring, moniqua(4)),
  '1 bit, gamma 0.2': (mj.lazy(ring, 0.2), moniqua(1)),
}
MESSAGES = {
  '32 bits': mj.full_precision(),
  '4 bits': mj.moniqua(1.0, bits=4),
  '1 bit, gamma 0.2': mj.moniqua(1.0, bits=1),
}
plots.sizes(MESSAGES, d)

# %% [markdown]
# ## What is on the wire
#
# JAX can say what a worker sends before anything runs. `ppermute` is the
# collective that carries a message along an edge of the topology.


# %%
def dpsgd(topology, quantizer):
  """D-PSGD; with the quantizer `moniqua` it is Moniqua."""
  key = jax.random.key(0)
  return mj.dpsgd(topology, quantizer, axis_name='workers', key=key)


def carried(gossip):
  """The types of all that one worker sends in a step."""
  tx, params = chain(gossip), init_params(jax.random.key(3))
  shards = data.iid(digits.train.labels, WORKERS, seed=0)
  batch = data.batch(digits, shards, seed=0, step=0, batch_size=BATCH)
  batch = jax.tree.map(lambda leaf: leaf[0], batch)
  traced = jax.make_jaxpr(make_step(tx), axis_env=[('workers', WORKERS)])
  jaxpr = traced(params, tx.init(params), batch, jnp.int32(0))
  text = jaxpr.pretty_print(use_color=False)
  return re.findall(r'\w+:(\w+\[\d*\]) = ppermute', text)


for name, (topology, quantizer) in RUNS.items():
  print(f'{name:18s} sends', carried(dpsgd(topology, quantizer)))

# %%
assert carried(dpsgd(*RUNS['32 bits'])) == [f'f32[{d}]'] * 2
assert carried(dpsgd(*RUNS['4 bits'])) == [f'u8[{d // 2 + 12}]'] * 2
assert carried(dpsgd(*RUNS['1 bit, gamma 0.2'])) == [f'u8[{d // 8 + 12}]'] * 2

# %% [markdown]
# ## The same loss, for a fraction of the bytes
#
# Each worker sends two messages a step, one to each neighbour.

# %%
results = {}
for name, (topology, quantizer) in RUNS.items():
  encode, key = MESSAGES[name].encode, jax.random.key(0)
  message = jax.eval_shape(encode, jax.ShapeDtypeStruct((d,), 'float32'), key)
  gossip = dpsgd(topology, quantizer)
  results[name] = train(gossip, nbytes=2 * mj.nbytes(message))
  last = results[name][-1]
  print(f'{name:18s} {last["wire/bytes_sent"] / 1e6:6.2f} MB sent, '
        f'test accuracy {100 * last["test/accuracy"]:.1f} %')

# %%
best = results['32 bits'][-1]['test/accuracy']
assert best > alone[-1]['test/accuracy'] - 0.01
for rows in results.values():
  assert rows[-1]['test/accuracy'] > best - 0.015

# %%
plots.compare(
  results,
  [
    ('step', 'train/loss'),
    ('wire/bytes_sent', 'train/loss'),
    ('wire/bytes_sent', 'test/accuracy'),
  ],
)

# %% [markdown]
# Next: [01_moniqua](01_moniqua.ipynb) takes the quantizer apart, and
# [04_your_own](04_your_own.ipynb) writes a new one. `train.py` runs the same with
# checkpoints, metrics and real images:
# `python train.py --config=configs/digits.py:moniqua1 --workdir=runs/moniqua1`.
