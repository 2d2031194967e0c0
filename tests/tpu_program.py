"""Compiles a gossip step for a TPU that is not there, and prints what it does.

Run in a process of its own by test_tpu.py: libtpu holds a lock that the whole
machine shares, and must not be loaded by the other tests.
"""

import json
import sys

import jax
from jax.experimental import topologies as tpus
import jax.numpy as jnp
import numpy as np
import optax

import moniqua_jax as mj
from moniqua_jax.workers import AXIS
from tests import hlo

N = 8
QUANTIZERS = {
  'full_precision': mj.full_precision(),
  **{f'moniqua{bits}': mj.moniqua(1.0, bits) for bits in (1, 4, 8)},
}


def main(name, d):
  tpu = tpus.get_topology_desc(platform='tpu', topology_name='v5e:2x4')
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.Mesh(
    np.array(tpu.devices), (AXIS,), axis_types=axis_types
  )
  algorithm = mj.dpsgd(
    mj.ring(N), QUANTIZERS[name], axis_name=AXIS, key=jax.random.key(0)
  )

  def step(x, state, u, k):
    updates, state = algorithm.update(u, state, x, step=k)
    return optax.apply_updates(x, updates), state

  x = jax.ShapeDtypeStruct((N, d), jnp.float32)
  state = jax.eval_shape(jax.vmap(algorithm.init), x)
  run = mj.sharded(step, (0, 0, 0, None), mesh, donate_argnums=(0, 1))
  compiled = run.lower(
    x, state, x, jax.ShapeDtypeStruct((), jnp.int32)
  ).compile()
  print(
    json.dumps(
      {
        'collectives': list(hlo.collectives(compiled.as_text())),
        'bytes': compiled.cost_analysis()['bytes accessed'],
        'temporary': compiled.memory_analysis().temp_size_in_bytes,
      }
    )
  )


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]))
