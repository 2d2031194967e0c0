"""Compiles for eight H100s that are not there, and prints what a GPU would do.

Run by test_gpu.py in a process of its own, whose environment hides GPUs from
JAX and shows it the compiler. One line of JSON for each program. JAX says on
the way that its plugin is registered already, or finds no GPU; that is so.
"""

import json
import sys

import jax
import jax._src.xla_bridge as bridge
from jax.experimental import topologies as gpus
import numpy as np

from moniqua_jax.workers import AXIS
from tests import hlo, tpu_program

H100 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32
shared_memory_per_block: 49152 shared_memory_per_core: 233472
threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
registers_per_block_limit: 65536 } platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3" """


def eight_h100s():
  """A mesh of devices that can be compiled for, and no more."""
  known = bridge.canonicalize_platform

  def canonical(platform):
    try:
      return known(platform)
    except RuntimeError:  # no GPU is present
      return 'cuda'

  bridge.canonicalize_platform = canonical
  topology = gpus.get_topology_desc(
    topology_name='', platform='cuda', target_config=H100, topology='1x1x8'
  )
  axis_types = (jax.sharding.AxisType.Auto,)
  return jax.sharding.Mesh(np.array(topology.devices), (AXIS,), axis_types)


def main(what, *wanted):
  """Compiles all programs of a kind, or the wanted ones."""
  for name, compiled_now, d in tpu_program.PROGRAMS[what](eight_h100s()):
    if wanted and name not in wanted:
      continue
    compiled = compiled_now()
    launches = list(hlo.launches(compiled.as_text()))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    program = {
      'name': name,
      'd': d,
      'collectives': list(hlo.collectives(compiled.as_text())),
      'launches': sum('permute' not in operation for operation, _ in launches),
      'bytes': sum(moved for _, moved in launches) / (4 * d),
      'temporary': temporary / (4 * d),
    }
    print(json.dumps(program), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
