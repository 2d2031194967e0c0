"""A pod: how many devices it has, where they stand, what they read and send."""

from typing import NamedTuple

import jax

from moniqua_jax import bytes_sent, workers

DATA, FSDP = 'data', 'fsdp'
INSIDE = (DATA, FSDP)  # the axes whose links are fast


class Pod(NamedTuple):
  """Sizes of the mesh: workers, and the devices of each."""

  workers: int  # n, the number of pods
  data: int = 1  # devices with the same parameters and other images
  fsdp: int = 1  # devices with other parameters and other images

  @property
  def size(self) -> int:
    """Devices of one pod."""
    return self.data * self.fsdp

  @property
  def devices(self) -> int:
    """Devices of all pods: the rows of every array of the train state."""
    return self.workers * self.size


def of(config) -> Pod:
  """Reads config.workers and config.pod; without a pod, one device each."""
  axes = dict(config.get('pod') or {})
  for name, count in axes.items():
    if type(count) is not int or count < 1:
      raise ValueError(f'config.pod.{name}={count!r}; it must be 1 or more.')
  return Pod(config.workers, **axes)


def mesh(pod: Pod) -> jax.sharding.Mesh:
  """Arranges all devices, in their order, as workers x data x fsdp.

  Neighbours in the order stand in one pod, next to each other over 'fsdp',
  which talks most; pods are far apart.
  """
  n, data, fsdp = pod
  if pod.devices != len(jax.devices()):
    raise ValueError(
      f'config.workers={n} pods of config.pod {data} (data) x {fsdp} (fsdp) '
      f'are {pod.devices} devices, but there are {len(jax.devices())}.'
    )
  devices = workers.device_mesh().devices.reshape(pod)
  axis_types = (jax.sharding.AxisType.Auto,) * 3
  return jax.sharding.Mesh(devices, (workers.AXIS, *INSIDE), axis_types)


def split(pod: Pod, batch: dict, own: list[int]) -> dict:
  """Deals the images of pods, [pods, B, ...], to `own` devices: [own, B/size].

  The batch holds exactly the pods to which the devices belong, in order.
  """
  if pod.size == 1:
    return batch
  theirs = sorted({device // pod.size for device in own})
  rows = [
    theirs.index(device // pod.size) * pod.size + device % pod.size
    for device in own
  ]

  def cut(leaf):
    images = leaf.shape[1] // pod.size
    return leaf.reshape(-1, images, *leaf.shape[2:])[rows]

  return {name: cut(leaf) for name, leaf in batch.items()}


def of_links(gossip: bytes_sent.Traffic, pod: Pod) -> bytes_sent.Traffic:
  """Bytes that all devices of a pod send to other pods, from those of one."""
  return gossip._replace(
    gossip=pod.size * gossip.gossip,
    gossip_short=pod.size * gossip.gossip_short,
  )


def of_pod(part, mean: bytes_sent.Traffic, pod: Pod) -> bytes_sent.Traffic:
  """Bytes that a device sends within its pod, at most.

    4 (3 (F - 1) D q + (D - 1) q)  and the mean of gradients over 'data'

  q values are in `part`. Each leaf is gathered in the forward and the backward
  pass (of which a bias needs none, nor the first layer's kernel), its gradient
  goes back, and replicas tell each other what they gossiped.
  """
  q = sum(leaf.size for leaf in jax.tree.leaves(part))
  shards = 3 * (pod.fsdp - 1) * pod.data * q
  told = (pod.data - 1) * q
  return mean._replace(exact=mean.exact + 4.0 * (shards + told))
