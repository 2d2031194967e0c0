"""Pods: each worker of the gossip is many devices with fast links inside.

A mesh of three axes. Gossip goes across 'workers', the slow links; inside a pod
gradients are averaged over 'data', exactly or quantized, and over 'fsdp', over
which the parameters are cut as well. A device is one row of every array of the
train state, whatever the mesh; it gossips its own 1 / (data fsdp) of the model,
so that a link between pods carries each parameter once.
"""

from moniqua_jax.pods.gathering import late
from moniqua_jax.pods.held import (
  Held,
  cut,
  hold,
  joined,
  of_device,
  on_own_part,
  uncut,
)
from moniqua_jax.pods.pod import (
  DATA,
  FSDP,
  INSIDE,
  Pod,
  mesh,
  of,
  of_links,
  of_pod,
  split,
)

__all__ = [
  'DATA',
  'FSDP',
  'INSIDE',
  'Held',
  'Pod',
  'cut',
  'hold',
  'joined',
  'late',
  'mesh',
  'of',
  'of_device',
  'of_links',
  'of_pod',
  'on_own_part',
  'split',
  'uncut',
]
