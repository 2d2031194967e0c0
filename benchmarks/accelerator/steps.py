"""Steps of many workers on one device, or of a worker on each."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import codec
from benchmarks.accelerator.rows import compiled, medians, normal, table
import moniqua_jax as mj
from moniqua_jax import gossip, models
from moniqua_jax.workers import AXIS

PARAMETERS, WORKERS = 271_314, (8, 64, 256, 1024)
BATCH = 16  # images of a worker
NETS = {
  'ResNet-20': models.resnet20(),
  'an MLP': models.mlp(hidden=(88,)),
}


def training(tx, gradient, x, batch, runner=mj.simulated):
  """The step of all workers, and its first arguments."""

  def worker(x, state, batch, step):
    updates, state = tx.update(gradient(x, batch), state, x, step=step)
    return optax.apply_updates(x, updates), state

  step = runner(worker, (0, 0, 0, None), donate_argnums=(0, 1))
  state = runner(tx.init, (0,))(x)
  return step, (jnp.array(x), state, batch, np.int32(0))


def onward(step, x, state, batch, first):
  """A row of steps, each from where the last one ended."""
  count, ended = itertools.count(first), (x, state)

  def run(calls):
    nonlocal ended
    for _ in range(calls):
      ended = step(*ended, batch, np.int32(next(count)))
    return ended

  return run


def ring_of(n, quantizer):
  """SGD, and D-PSGD on a ring behind it."""
  key = jax.random.key(0)
  return optax.chain(
    optax.sgd(1e-3), mj.dpsgd(mj.ring(n), quantizer, axis_name=AXIS, key=key)
  )


def well(run, gossips: bool) -> None:
  """Asserts that parameters are numbers, and that messages could be read."""
  x, state = run(0)
  assert np.isfinite(jnp.abs(x).max())
  if gossips:
    mj.check(state)


def simulated_part(size: int) -> str:
  """Steps of workers on one device whose gradients are given."""
  d, made = min(size, PARAMETERS), {}
  kinds = {
    'D-PSGD, 32 bits': mj.full_precision(),
    'Moniqua, 4 bits': mj.moniqua(codec.THETA, 4),
  }
  for n, (name, q) in itertools.product(WORKERS, kinds.items()):
    g = normal(n, d)
    # Neighbours start within theta, and their steps of 1e-6 g keep them there.
    x = normal(1, d) + codec.THETA / 10 * g
    made[name, n] = training(ring_of(n, q), lambda x, g: g, x, 1e-3 * g)
  steps = compiled(made)
  runs = {name: onward(steps[name], *made[name][1]) for name in made}
  ms = medians(runs)
  for run in runs.values():
    well(run, True)
  first, least = next(iter(kinds)), WORKERS[0]
  cells = (
    (name, str(n), ms[name, n], 1e3 * ms[name, n] / n)
    + (ms[name, n] / n / (ms[name, least] / least), ms[name, n] / ms[first, n])
    for name, n in runs
  )
  head = (
    f'method, workers, ms a step, us a worker, / that of {least}, / 32 bits'
  )
  return f'### Simulated workers, {d:,} parameters\n\n{table(head, cells)}\n'


def step_part(size: int) -> str:
  """Whole steps of eight workers: on eight devices, or all on one."""
  del size
  return ''.join(_steps_of(name, net) for name, net in NETS.items())


def _steps_of(title, net) -> str:
  one_each = jax.device_count() == 8
  runner = mj.sharded if one_each else mj.simulated
  gradient, x, batch = _problem(net)
  runs, seconds = {}, {}
  for name, tx in _chains().items():
    made = training(tx, gradient, jnp.tile(x, (8, 1)), batch, runner)
    began = time.perf_counter()
    step = compiled({name: made})[name]
    seconds[name] = time.perf_counter() - began
    runs[name] = onward(step, *made[1])
  ms = medians(runs)
  for name, run in runs.items():
    well(run, 'all-reduce' not in name)
  first = next(iter(runs))
  cells = (
    (name, ms[name], f'{8e3 * BATCH / ms[name]:,.0f}', ms[name] / ms[first])
    + (seconds[name],)
    for name in runs
  )
  head = 'method, ms a step, images/s, / all-reduce, compile s'
  where = 'a device each' if one_each else 'one device'
  return (
    f'### Step of {title}, 8 workers of {BATCH} images, {where}, {x.size:,} '
    f'parameters\n\n{table(head, cells)}\n'
  )


def _problem(net):
  """The gradient of a net as one vector, that vector, and images."""
  images, key = normal(8, BATCH, 32, 32, 3), jax.random.key(0)
  labels = jnp.arange(8 * BATCH).reshape(8, BATCH) % 10
  x, unravel = gossip.flatten(jax.jit(net.init)(key, images[0]))

  def loss(params, batch):
    images, labels = batch
    losses = optax.softmax_cross_entropy_with_integer_labels
    return losses(net.apply(params, images), labels).mean()

  def gradient(x, batch):
    # As `train.py` does: that of x itself would be a concatenation.
    return gossip.flatten(jax.grad(loss)(unravel(x), batch))[0]

  return gradient, x, (images, labels)


def _chains():
  rest = {'axis_name': AXIS, 'key': jax.random.key(0)}
  quantized = mj.allreduce(
    mj.eden(4), 'scatter_reduce', **rest, keep=lambda leaf: False
  )
  means = {
    'all-reduce, 32 bits': mj.allreduce(axis_name=AXIS),
    'all-reduce, EDEN, 4 bits': quantized,
  }
  chains = {
    name: optax.chain(mean, optax.sgd(1e-3)) for name, mean in means.items()
  }
  chains['D-PSGD, 32 bits'] = ring_of(8, mj.full_precision())
  chains['Moniqua, 4 bits'] = ring_of(8, mj.moniqua(0.1, 4))
  return chains
