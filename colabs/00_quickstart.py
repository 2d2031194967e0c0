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
# On Colab, install first; locally, `make demo` has already done it.

# %%
try:
  import moniqua_jax
except ImportError:
  # %pip install --quiet moniqua_jax
  import moniqua_jax

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import moniqua_jax as mj
from moniqua_jax import data

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
# If the workers are further apart than theta the receiver cannot know the turn.
# A digest in the message lets it see that, instead of a silent wrong answer.

# %%
too_far = y.at[7].add(1.0)
print('readable:', bool(quantizer.inspect(payload, too_far).readable))
assert not quantizer.inspect(payload, too_far).readable

# %% [markdown]
# ## One worker, then eight
#
# The step of a worker is written once, for one worker; the gossip is the last
# link of an optax chain.

# %%
digits = data.digits()
WORKERS, BATCH, STEPS = 8, 16, 400


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


def train(topology, quantizer):
  """Loss by step, and the accuracy of the mean model."""
  schedule = optax.cosine_decay_schedule(0.1, STEPS)
  gossip = mj.dpsgd(
    topology, quantizer, axis_name='workers', key=jax.random.key(0)
  )
  tx = optax.chain(optax.sgd(schedule, momentum=0.9), gossip)
  one = init_params(jax.random.key(3))
  params = jax.tree.map(lambda leaf: jnp.stack([leaf] * WORKERS), one)
  opt_state = mj.simulated(tx.init, (0,))(params)
  step_fn = mj.simulated(make_step(tx), (0, 0, 0, None))
  shards = data.iid(digits.train.labels, WORKERS, seed=0)
  losses = []
  for step in range(STEPS):
    batch = data.batch(digits, shards, seed=0, step=step, batch_size=BATCH)
    params, opt_state, loss = step_fn(params, opt_state, batch, jnp.int32(step))
    losses.append(float(loss.mean()))
  mean = jax.tree.map(lambda leaf: leaf.mean(0), params)
  (test,) = data.test_batches(digits, len(digits.test.labels))
  hits = jnp.argmax(logits(mean, test['image']), -1) == test['label']
  return np.array(losses), float(hits.mean())


def follow(theta):
  """Theta shrinks with the learning rate, but never to nothing."""
  rate = optax.cosine_decay_schedule(1.0, STEPS, alpha=0.02)
  return lambda step: theta * rate(step)


ring = mj.ring(WORKERS)
RUNS = {
  '32 bits': (ring, mj.full_precision(), 32),
  '4 bits': (
    ring,
    mj.scheduled(lambda theta: mj.moniqua(theta, bits=4), follow(1.0)),
    4,
  ),
  '1 bit, gamma 0.2': (
    mj.lazy(ring, 0.2),
    mj.scheduled(lambda theta: mj.moniqua(theta, bits=1), follow(1.0)),
    1,
  ),
}
results = {name: train(*run[:2]) for name, run in RUNS.items()}
for name, (_, accuracy) in results.items():
  print(f'{name:18s} test accuracy of the mean model {100 * accuracy:.1f} %')

# %%
best = results['32 bits'][1]
assert all(accuracy > best - 0.015 for _, accuracy in results.values())

# %% [markdown]
# The same loss, for a fraction of the bytes: two messages a step, of
# ceil(d b / 8) + 12 bytes each.

# %%
d = 64 * 128 + 128 * 10
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
styles = ['-', '--', '-.']
for (name, (losses, _)), style in zip(results.items(), styles, strict=True):
  bits = RUNS[name][2]
  nbytes = 2 * (4 * d if bits == 32 else -(-d * bits // 8) + 12)
  smooth = np.convolve(losses, np.ones(10) / 10, 'valid')
  left.semilogy(smooth, style, label=name)
  right.loglog(nbytes * np.arange(1, len(smooth) + 1) / 1e6, smooth, style)
left.set(xlabel='step', ylabel='training loss, mean of 10 steps')
right.set(xlabel='MB sent per worker')
left.legend()
figure.tight_layout()

# %% [markdown]
# Next: `train.py` runs the same with checkpoints, metrics and real images:
# `python train.py --config=configs/digits.py:moniqua1 --workdir=runs/moniqua1`.
