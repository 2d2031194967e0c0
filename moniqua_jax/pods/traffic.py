"""Bytes of pods: on the slow links between them, on the fast ones inside."""

import jax

from moniqua_jax import bytes_sent as traffic_lib
from moniqua_jax.pods.pod import Pod


def of_links(gossip: traffic_lib.Traffic, pod: Pod) -> traffic_lib.Traffic:
  """What all devices of a pod send to other pods.

  Args:
    gossip: of one device.
    pod: size of it.

  Returns:
    `Traffic` of a worker.

  >>> import numpy as np
  >>> one = traffic_lib.NOTHING._replace(gossip=np.array([3.0]))
  >>> of_links(one, Pod(4, data=2)).gossip
  array([6.])
  """
  return gossip._replace(
    gossip=pod.size * gossip.gossip,
    gossip_short=pod.size * gossip.gossip_short,
  )


def of_pod(part, mean: traffic_lib.Traffic, pod: Pod) -> traffic_lib.Traffic:
  """What a device sends to the others of its pod.

    4 (3 (F - 1) D q + (D - 1) q)  and the mean over 'data'

  Each leaf is gathered in the forward and in the backward pass, its gradient
  goes back to where it belongs, and replicas tell what they gossiped. At most:
  the backward pass needs no bias, and no kernel of the first layer.

  Args:
    part: the tree of what a device gossips, q values together.
    mean: of the mean of the gradients over 'data'.
    pod: D and F of it.

  Returns:
    `Traffic` of a device.

  >>> import numpy as np
  >>> of_pod(np.zeros(10), traffic_lib.NOTHING, Pod(4, fsdp=2)).exact
  120.0
  """
  q = sum(leaf.size for leaf in jax.tree.leaves(part))
  shards = 3 * (pod.fsdp - 1) * pod.data * q
  told = (pod.data - 1) * q
  return mean._replace(exact=mean.exact + 4.0 * (shards + told))
