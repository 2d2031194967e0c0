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
# # Your own quantizer and topology, in your own loop
#
# A quantizer in twenty lines, a topology in ten, both held to the project's own
# tests, and then trained with, in a plain optax loop.
#
# On Colab, run the next cell first. Locally, from a checkout:
# `pip install '.[notebooks,test]'`, then
# `jupyter execute colabs/04_your_own.ipynb`. The tests are in the repository, not
# in the package: without a checkout their cells say so and do nothing.

# %%
try:
  import moniqua_jax
except ImportError:
  from pathlib import Path

  # REPOSITORY: the address from which moniqua_jax can be cloned.
  source = '..' if Path('../pyproject.toml').exists() else './clone'
  # !test -d {source} || git clone --quiet REPOSITORY {source}
  # %pip install --quiet '{source}[all]' pytest hypothesis
  import moniqua_jax

# %%
# %matplotlib inline
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import moniqua_jax as mj
from moniqua_jax import data, dither, plots, wire
from moniqua_jax.quantizers import base, numerics

# %% [markdown]
# ## A quantizer
#
# `encode` makes a payload of bytes, `decode` reads it next to the receiver's own
# vector, `inspect` says whether it was readable. This one rounds at random to
# points that are equally far apart on a range $[-c, c]$ that does not move:
#
# $$\hat x_j = \Delta \lfloor (x_j + c) / \Delta + u_j \rfloor - c, \qquad
# \Delta = \frac{2c}{2^b - 1}, \quad u_j \sim U[0, 1).$$


# %%
def fixed_range(bits, limit):
  top = 2**bits - 1
  step = 2 * limit / top

  def encode(x, key):
    u = dither.uniform(dither.seed(key), x.size)
    codes = jnp.clip(jnp.floor((x + limit) / step + u), 0, top)
    header = jnp.where(numerics.largest(x) <= limit, limit, jnp.nan)
    return wire.join(codes.astype(jnp.uint8), bits, header)

  def decode(payload, reference):
    codes, header = wire.split(payload, bits, reference.size)
    header = wire.from_bytes(header, jnp.float32)
    zero = jnp.minimum(header, 0)  # NaN, if x was out of range
    return numerics.rounded(codes * jnp.float32(step), zero) - limit

  codes = base.Codes(bits, top + 1, None, 8192)
  return mj.Quantizer(encode, decode, base.watched(decode), codes=codes)


# %% [markdown]
# - The payload is all that was sent. The four bytes after the codes say whether
#   the vector was in range: NaN if not. `base.watched` makes that *unreadable*, the
#   edge is left out and counted.
# - `numerics.rounded` keeps a product and the sum after it apart, so that both ends
#   compute the same bits, whatever the compiler fuses.
# - `dither` draws from a counter: `jax.random.uniform` would cost about twenty
#   times the encoder.
# - `codes` is optional: it says how the payload begins, for figures and coding.

# %%
quantizer = fixed_range(3, limit=4.0)
x = np.linspace(-4, 4, 201, dtype=np.float32)
draws = jax.vmap(lambda key: quantizer.decode(quantizer.encode(x, key), x))
many = np.asarray(draws(jax.random.split(jax.random.key(0), 500)))
plots.compare(
  {
    'one message': [{'x': a, r'$\hat x$': b} for a, b in zip(x, many[0])],
    'mean of 500': [{'x': a, r'$\hat x$': b} for a, b in zip(x, many.mean(0))],
  },
  [('x', r'$\hat x$')],
  points=len(x),
)

# %%
spacing = 8 / 7
assert np.abs(many - x).max() <= spacing + 1e-5
assert np.abs(many.mean(0) - x).max() < 5 * spacing / 2 / np.sqrt(500)  # unbiased

# %%
plots.message(quantizer, d=12, header=[('limit', 4)])

# %% [markdown]
# ## The battery
#
# Every quantizer of the library is a row of `tests/helpers.py`: the quantizer,
# its bits, the bytes of its header for d values, and a bound on its error. Ours
# goes through the same tests: the bound, the size, `jit` and `vmap`, the mean, and
# vectors that cannot be sent.

# %%
checkout = pathlib.Path('../tests/test_quantizers.py').exists()
if checkout:
  sys.path.insert(0, '..')
  from tests import helpers, test_quantizers as battery

  row = (fixed_range(4, limit=16.0), 4, lambda d: 4, lambda x: 2 * 16.0 / 15)
  helpers.QUANTIZERS['fixed_range'] = row
  for d in (1, 7, 1000, 4097):
    battery.test_it_is_within_its_bound_at_every_size('fixed_range', d)
    battery.test_payload_is_bytes_of_the_stated_number('fixed_range', d)
  battery.test_jit_changes_nothing('fixed_range')
  battery.test_vmap_is_the_loop('fixed_range')
  battery.test_the_mean_over_keys_is_x('fixed_range')
  battery.test_shared_says_that_workers_must_share_the_dither('fixed_range')
  print('the battery is through')
else:
  print('the battery is in the repository: open this notebook in a checkout.')

# %%
for bad in (jnp.nan, jnp.inf, 4.5):
  x = jnp.zeros(9).at[4].set(bad)
  payload = quantizer.encode(x, jax.random.key(0))
  assert not quantizer.inspect(payload, jnp.zeros(9)).readable

# %% [markdown]
# ## A topology
#
# Edges are permutations of the workers and a weight each; the constructor checks
# them. Here a ring whose workers also hear the one opposite:
# $W = I + \sum_k w_k (P_k - I)$.


# %%
def spokes(n):
  def ahead(hop):
    return tuple((i + hop) % n for i in range(n))

  return mj.Topology([(1 / 4, ahead(hop)) for hop in (1, -1, n // 2)])


plots.topology(spokes(8))

# %%
w = mj.matrix(spokes(8))
assert np.allclose(w, w.T) and np.allclose(w.sum(0), 1)
assert mj.spectral_gap(spokes(8)) > 2 * mj.spectral_gap(mj.ring(8))
if checkout:
  from tests import test_topologies as graphs

  row = graphs.Row(lambda: spokes(8), edges=3, symmetric=True)
  graphs.test_edges_are_full_permutations_and_static(row)
  graphs.test_weights_are_doubly_stochastic(row)
  graphs.test_symmetry_is_as_claimed(row)
  graphs.test_spectral_gap_is_the_closed_form(row)
  graphs.test_messages_equal_the_dense_product_and_keep_the_mean(row)
  graphs.test_no_message_is_sent_twice_or_for_nothing(row)
  print('the battery is through')

# %% [markdown]
# ## In your own loop
#
# An optax chain with Adam, a loss, a step for one worker. Three things are new:
# the algorithm at the end of the chain, `step=` in `update`, and
# `simulated` around the functions of one worker (on eight devices: `sharded`).

# %%
WORKERS, BATCH, STEPS = 8, 16, 200
digits = data.digits()
(test,) = data.test_batches(digits, len(digits.test.labels))


def logits(params, images):
  hidden = jax.nn.relu(images.reshape(len(images), -1) @ params['w'])
  return hidden @ params['v']


def train(gossip):
  rate = optax.cosine_decay_schedule(3e-3, STEPS)
  tx = optax.chain(optax.adam(rate), gossip)

  def one_step(params, opt_state, batch, step):
    def loss_fn(params):
      out = logits(params, batch['image'])
      loss = optax.softmax_cross_entropy_with_integer_labels
      return loss(out, batch['label']).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params, step=step)
    readable = optax.tree_utils.tree_get(opt_state, 'seen').readable
    return optax.apply_updates(params, updates), opt_state, loss, readable

  one, two = jax.random.split(jax.random.key(3))
  params = {
    'w': jax.random.normal(one, (WORKERS, 64, 128)) / 8,
    'v': jax.random.normal(two, (WORKERS, 128, 10)) / 11,
  }
  params = jax.tree.map(lambda leaf: 0 * leaf + leaf[:1], params)  # one start
  opt_state = mj.simulated(tx.init, (0,))(params)
  step_fn = mj.simulated(one_step, (0, 0, 0, None))
  shards = data.iid(digits.train.labels, WORKERS, seed=0)
  rows = []
  for step in range(STEPS):
    batch = data.batch(digits, shards, seed=0, step=step, batch_size=BATCH)
    params, opt_state, loss, readable = step_fn(
      params, opt_state, batch, jnp.int32(step)
    )
    rows.append({'step': step + 1, 'train/loss': float(loss.mean())})
    assert readable.all()
    if (step + 1) % 20 == 0:
      mean = jax.tree.map(lambda leaf: leaf.mean(0), params)
      hits = jnp.argmax(logits(mean, test['image']), -1) == test['label']
      apart = jnp.sqrt(jnp.mean((params['w'] - mean['w']) ** 2))
      rows[-1] |= {
        'test/accuracy': float(hits.mean()),
        'gossip/consensus_rms': float(apart),
      }
  return rows


def dpsgd(topology, quantizer):
  key = jax.random.key(0)
  return mj.dpsgd(topology, quantizer, axis_name='workers', key=key)


results = {
  'ring, 32 bits': train(dpsgd(mj.ring(8), mj.full_precision())),
  'spokes, 32 bits': train(dpsgd(spokes(8), mj.full_precision())),
  'spokes, fixed range, 8 bits': train(dpsgd(spokes(8), fixed_range(8, 4.0))),
  'spokes, fixed range, 4 bits': train(dpsgd(spokes(8), fixed_range(4, 4.0))),
  'spokes, Moniqua, 4 bits': train(dpsgd(spokes(8), mj.moniqua(0.3, bits=4))),
}
plots.compare(
  results,
  [
    ('step', 'train/loss'),
    ('step', 'test/accuracy'),
    ('step', 'gossip/consensus_rms'),
  ],
)

# %% [markdown]
# The new quantizer trains at 8 bits. At 4 its grid, as wide as the parameters may
# ever be, is too coarse; Moniqua's has only to be as wide as workers are apart.

# %%
end = {name: rows[-1] for name, rows in results.items()}
for name, row in end.items():
  print(f'{name:28s} {100 * row["test/accuracy"]:.1f} %, apart by '
        f'{row["gossip/consensus_rms"]:.4f}')
full = end['ring, 32 bits']['test/accuracy']
for name in ('spokes, 32 bits', 'spokes, fixed range, 8 bits',
             'spokes, Moniqua, 4 bits'):
  assert end[name]['test/accuracy'] > full - 0.02
apart = {name: row['gossip/consensus_rms'] for name, row in end.items()}
assert apart['spokes, fixed range, 4 bits'] > 5 * apart['spokes, Moniqua, 4 bits']

# %% [markdown]
# In a file mine.py, `train.py` takes it by its name, in a config of your own:
# `config.quantizer = dict(name='mine:fixed_range', bits=8, limit=4.0)`.
