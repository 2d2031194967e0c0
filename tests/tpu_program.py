"""Compiles for TPUs that are not there, and prints what the programs do.

Run in a process of its own by test_tpu.py: libtpu must not be loaded by the
other tests, nor by two processes at once, since it holds a lock that the whole
machine shares. One line of JSON for each program; status 3 if libtpu is taken.
"""

import functools
import json
import sys

import jax
from jax.experimental import topologies as tpus
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from configs import digits
import moniqua_jax as mj
from moniqua_jax import gossip, models
from moniqua_jax.training import experiment as experiment_lib
from moniqua_jax.training import step as step_lib
from moniqua_jax.workers import AXIS
from tests import hlo

TAKEN = 3
LONG = 100_000_000  # values of a flat vector
STEP = jax.ShapeDtypeStruct((), jnp.int32)


def main(what, topology, *wanted):
  """Compiles all programs of a kind, or the wanted ones."""
  try:
    tpu = tpus.get_topology_desc(platform='tpu', topology_name=topology)
  except jax.errors.JaxRuntimeError as error:
    if 'lockfile' not in str(error):
      raise
    sys.exit(TAKEN)
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.Mesh(np.array(tpu.devices), (AXIS,), axis_types)
  for name, compiled_now, d in PROGRAMS[what](mesh):
    if wanted and name not in wanted:
      continue
    compiled = compiled_now()
    program = {
      'name': name,
      'd': d,
      'collectives': list(hlo.collectives(compiled.as_text())),
      'between': hlo.between_messages(compiled.as_text()),
      'bytes': compiled.cost_analysis()['bytes accessed'] / (4 * d),
      'memory': hlo.through_memory(compiled.as_text()) / (4 * d),
      'temporary': compiled.memory_analysis().temp_size_in_bytes / (4 * d),
    }
    print(json.dumps(program), flush=True)


def gossip_alone(mesh, quantizer, metrics):
  """One worker: x + sum_j W_ij (x_hat_j - x_hat_i) on a ring."""

  def mix(x, step):
    mixed, seen = gossip.mixed(
      x,
      jax.random.fold_in(jax.random.key(0), step),
      topology=mj.ring(mesh.size),
      quantizer=quantizer,
      axis_name=AXIS,
    )
    return mixed, seen if metrics else ()

  return mix


def long_vector(mesh):
  """Of a flat, donated f32[d] on each device."""
  x = jax.ShapeDtypeStruct((mesh.size * LONG,), jnp.float32)

  def compiled(quantizer, metrics):
    run = jax.shard_map(
      gossip_alone(mesh, quantizer, metrics),
      mesh=mesh,
      in_specs=(P(AXIS), P()),
      out_specs=P(AXIS),
      check_vma=False,
    )
    return jax.jit(run, donate_argnums=0).lower(x, STEP).compile()

  later = functools.partial
  yield 'full_precision', later(compiled, mj.full_precision(), True), LONG
  for bits in (1, 4, 8):
    for digest in (False, True):
      quantizer = mj.moniqua(1.0, bits, digest=digest)
      # What is seen on the edges takes the pass that a digest takes.
      name = f'{bits} bits{", digest" if digest else ""}'
      yield name, later(compiled, quantizer, metrics=digest), LONG


def update(mesh):
  """Of what users run: `tx.update` of a chain and `optax.apply_updates`.

  x and g are flat, f32[d] on each device, x is donated, and messages end with a
  digest.
  """
  x = jax.ShapeDtypeStruct((mesh.size * LONG,), jnp.float32)
  rows = jax.ShapeDtypeStruct((mesh.size, 1), jnp.float32)

  def compiled(quantizer):
    algorithm = mj.dpsgd(
      mj.ring(mesh.size),
      quantizer,
      axis_name=AXIS,
      key=jax.random.key(0),
      on_unreadable='ignore',
    )
    tx = optax.chain(optax.sgd(0.1), algorithm)

    def step(x, g, state, step):
      own = jax.tree.map(lambda v: v[0], state)
      updates, own = tx.update(g, own, x, step=step)
      x = optax.apply_updates(x, updates)
      return x, jax.tree.map(lambda v: v[None], own)

    run = jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(P(AXIS), P(AXIS), P(AXIS), P()),
      out_specs=P(AXIS),
      check_vma=False,
    )
    state = jax.eval_shape(jax.vmap(tx.init), rows)
    return (
      jax.jit(run, donate_argnums=(0, 2)).lower(x, x, state, STEP).compile()
    )

  for name, quantizer in CHAINS:
    yield name, functools.partial(compiled, quantizer), LONG


CHAINS = (
  ('full_precision', mj.full_precision()),
  *((f'{bits} bits', mj.moniqua(1.0, bits)) for bits in (1, 4, 8)),
)


def resnet50(mesh):
  """Of the flat parameters, donated, as a runner and the loop have them."""
  model = models.resnet50(num_classes=1000)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  init = lambda key, image: model.init(key, image, train=False)
  params = jax.eval_shape(init, jax.random.key(0), image)['params']
  d = sum(leaf.size for leaf in jax.tree.leaves(params))
  for name, quantizer in CHAINS:
    mix = gossip_alone(mesh, quantizer, metrics=True)
    run = mj.sharded(mix, (0, None), mesh, donate_argnums=0)
    x = jax.ShapeDtypeStruct((mesh.size, d), jnp.float32)
    yield name, run.lower(x, STEP).compile, d


def train_step(mesh):
  """The step of `train.py`, of a convolution net on images of CIFAR's shape."""
  n, config = mesh.size, digits.get_config('moniqua4')
  config.workers = n
  config.model.name = 'cnn'
  config.data.update(name='synthetic', num_train=16 * n, num_test=16, seed=0)
  config.data.update(shape=(32, 32, 3), num_classes=10)
  experiment = experiment_lib.from_config(config)
  init, step, _ = step_lib.make_steps(experiment)
  rows = experiment.model.held.rows(list(range(n)))
  state = jax.eval_shape(jax.vmap(init), rows)
  batch = {
    'image': jax.ShapeDtypeStruct((n, 16, 32, 32, 3), jnp.float32),
    'label': jax.ShapeDtypeStruct((n, 16), jnp.int32),
  }
  run = mj.sharded(step, (0, 0, None), mesh, donate_argnums=0)
  yield (
    'moniqua4',
    run.lower(state, batch, STEP).compile,
    state.params.shape[1],
  )


PROGRAMS = {
  'long_vector': long_vector,
  'resnet50': resnet50,
  'train_step': train_step,
  'update': update,
}

if __name__ == '__main__':
  main(*sys.argv[1:])
