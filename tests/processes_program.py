"""One process of a run that test_processes.py starts; the lead prints JSON.

  python tests/processes_program.py round=NAMES --process_id=0 ...

round: SHA-256 of payload, x_hat and mixed x of each worker, per quantizer.
quadratic: the parameters after 100 steps.
"""

import argparse
import hashlib
import json

import jax
import numpy as np
import optax

import moniqua_jax as mj
from moniqua_jax import gossip
from moniqua_jax.gossip import edge
from moniqua_jax.launch import initialize, multihost
from moniqua_jax.workers import AXIS

N, D = 8, 500_000


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('tasks', nargs='+', metavar='TASK=NAMES')
  parser.add_argument('--coordinator_address')
  parser.add_argument('--num_processes', type=int)
  parser.add_argument('--process_id', type=int)
  args = parser.parse_args()
  three = args.coordinator_address, args.num_processes, args.process_id
  initialize.join(*three, workers=N)
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  with initialize.ended_together():
    tasks = dict(task.split('=') for task in args.tasks)
    found = {task: results(task, tasks[task].split(',')) for task in tasks}
    if multihost.is_primary():
      print(json.dumps(found))


def results(task, names) -> dict:
  """What comes of a task, for each quantizer."""
  # Its table computes, which fixes the devices: not before we have joined.
  from tests import helpers

  return {name: TASKS[task](helpers.QUANTIZERS[name][0]) for name in names}


def one_round(quantizer) -> list[str]:
  """Of each worker the hash of what it sends, decodes and mixes."""

  def worker(x, key):
    own_key = gossip.worker_key(key, 3, AXIS, quantizer.shared)
    payload = edge.sealed(quantizer.encode(x, own_key))
    pull, _ = gossip.correction(
      x, own_key, topology=mj.ring(N), quantizer=quantizer, axis_name=AXIS
    )
    return payload, quantizer.decode(payload, x), x + pull

  run = mj.sharded(worker, (0, None))
  own = multihost.own(N)
  x = vectors()[own]
  out = multihost.to_host(run(multihost.placed(x), jax.random.key(1)))
  digests = [digest([array[i] for array in out]) for i in range(len(own))]
  every = multihost.fetched(multihost.placed(np.stack(digests)))
  return [bytes(row).hex() for row in every]


def digest(arrays) -> np.ndarray:
  text = hashlib.sha256(b''.join(array.tobytes() for array in arrays)).digest()
  return np.frombuffer(text, np.uint8)


def vectors() -> np.ndarray:
  """f32[N, D]: closer to each other than helpers.THETA, and not small."""
  rng = np.random.default_rng(0)
  common = rng.normal(size=D)
  apart = rng.uniform(-0.2, 0.2, size=(N, D))
  return (common + apart).astype(np.float32)


def descend(quantizer) -> list:
  """x of all workers after 100 steps on |x - target_i|^2 / 2."""
  tx = optax.chain(
    optax.sgd(0.1),
    mj.dpsgd(mj.ring(N), quantizer, axis_name=AXIS, key=jax.random.key(0)),
  )

  def step(x, state, target, k):
    updates, state = tx.update(x - target, state, x, step=k)
    return optax.apply_updates(x, updates), state

  run, own = mj.sharded(step, (0, 0, 0, None)), multihost.own(N)
  target = np.random.default_rng(0).normal(size=(N, 50)).astype(np.float32)
  target = multihost.placed(0.2 * target[own])
  x = multihost.placed(np.zeros((len(own), 50), np.float32))
  state = mj.sharded(tx.init, (0,))(x)
  for k in range(100):
    x, state = run(x, state, target, np.int32(k))
    jax.block_until_ready(x)
  return multihost.fetched(x).tolist()


TASKS = {'round': one_round, 'quadratic': descend}

if __name__ == '__main__':
  main()
