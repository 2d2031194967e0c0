"""How many devices a pod has, where they stand, and what each reads."""

from typing import NamedTuple

import jax

from moniqua_jax import workers

DATA, FSDP = 'data', 'fsdp'
INSIDE = (DATA, FSDP)  # the axes whose links are fast


class Pod(NamedTuple):
  """A worker and its devices.

  Attributes:
    workers: n, the number of pods.
    data: devices that hold the same parameters and see other images.
    fsdp: devices over which the parameters are cut; they see other images, too.

  >>> Pod(4, data=2, fsdp=2).size, Pod(4, data=2, fsdp=2).devices
  (4, 16)
  """

  workers: int
  data: int = 1
  fsdp: int = 1

  @property
  def size(self) -> int:
    """Devices of a pod."""
    return self.data * self.fsdp

  @property
  def devices(self) -> int:
    """Of all pods: the rows of every array of the train state."""
    return self.workers * self.size


def of(config) -> Pod:
  """What config.workers and config.pod say; one device each without the latter.

  Args:
    config: a ConfigDict.

  Returns:
    A `Pod`.

  Raises:
    ValueError: an axis without a device.

  >>> import ml_collections
  >>> of(ml_collections.ConfigDict(dict(workers=4, pod=dict(fsdp=2)))).devices
  8
  """
  axes = dict(config.get('pod') or {})
  for name, count in axes.items():
    if type(count) is not int or count < 1:
      raise ValueError(f'config.pod.{name}={count!r}; it must be 1 or more.')
  return Pod(config.workers, **axes)


def mesh(pod: Pod) -> jax.sharding.Mesh:
  """The devices in their order, as pods x data x fsdp.

  Neighbours in the order of the devices stand in one pod, next to each other
  over 'fsdp', which talks most; pods are far apart.

  Args:
    pod: whose devices are all there are.

  Returns:
    A mesh.

  Raises:
    ValueError: there are more devices, or fewer.

  >>> dict(mesh(Pod(4, fsdp=2)).shape)
  {'workers': 4, 'data': 1, 'fsdp': 2}
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
  """The images of each device, of those of its pod.

  Args:
    pod: of `own`.
    batch: leaves [P, B, ...], of the pods to which the devices belong.
    own: devices, in order.

  Returns:
    Leaves [own, B / size, ...].

  >>> import numpy as np
  >>> split(Pod(2, data=2), {'label': np.arange(4).reshape(1, 4)}, [2, 3])
  {'label': array([[0, 1],
         [2, 3]])}
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
