"""Programs compiled ahead of time for GPUs that are not there.

`make test-gpu` installs the compiler in a folder of its own and runs this. A
program of XLA for GPUs is a list of launches: how many there are, what they
move (a message counts twice) and its temporaries, in multiples of the
parameters in float32. A full-precision round moves 11.0.
"""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from moniqua_jax import wire
from tests.tpu_program import LONG

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ('nvidia/cuda_nvcc', 'nvidia/cu13')  # of ptxas, CUDA 12 and 13


def compiler():
  """The folder of ptxas beside JAX's plugin, or None."""
  plugins = importlib.util.find_spec('jax_plugins')
  for place in plugins.submodule_search_locations if plugins else ():
    for folder in FOLDERS:
      found = pathlib.Path(place).parent / folder
      if (found / 'bin' / 'ptxas').exists():
        return found
  return None


pytestmark = pytest.mark.skipif(
  compiler() is None,
  reason="CUDA's compiler is not installed; `make test-gpu` does it",
)


# Of the plugin only its compiler is wanted.
HIDDEN = {'CUDA_VISIBLE_DEVICES': '-1', 'JAX_PLATFORMS': 'cpu'}
# Nothing can be timed without a GPU; and launches are to be seen one by one.
FLAGS = '--xla_gpu_autotune_level=0 --xla_gpu_enable_command_buffer='


@functools.cache
def programs(what, *wanted):
  """name -> what gpu_program.py printed of it."""
  path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
  flags = f'{FLAGS} --xla_gpu_cuda_data_dir={compiler()}'
  result = subprocess.run(
    [sys.executable, '-m', 'tests.gpu_program', what, *wanted],
    cwd=ROOT,
    env={**os.environ, **HIDDEN, 'XLA_FLAGS': flags, 'PYTHONPATH': path},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  found = map(json.loads, result.stdout.splitlines())
  return {program['name']: program for program in found}


def check(program, bits, header, moved, temporary, launches):
  """Only u8 travels; few launches; no more bytes than that."""
  for kind, dtype, _ in program['collectives']:
    assert (kind, dtype) == ('collective-permute', 'u8')
  # In two pieces at most, to two neighbours; each counts twice: what it is sent
  # from, and what it comes into.
  travels = sum(nbytes for *_, nbytes in program['collectives'])
  assert len(program['collectives']) <= 2 * 4
  assert travels == 4 * (wire.packed_size(program['d'], bits) + header)
  assert program['launches'] <= launches
  assert program['bytes'] <= moved
  assert program['temporary'] <= temporary


# Each pass reads x once and each message once: 4 + 9 bits / 32, and some.
LIMITS = [(1, 4.35, 0.1), (4, 5.3, 0.4), (8, 6.4, 0.8)]


@pytest.mark.parametrize('digest', [False, True])
@pytest.mark.parametrize('bits,moved,temporary', LIMITS)
def test_gossip_of_a_long_vector_takes_three_passes(
  bits, moved, temporary, digest
):
  name = f'{bits} bits{", digest" if digest else ""}'
  program = programs('long_vector')[name]
  assert program['d'] == LONG
  # With a digest and metrics; without them 10.
  check(program, bits, 12 if digest else 8, moved, temporary, 12)


@pytest.mark.parametrize('bits,moved,temporary', LIMITS)
def test_gossip_of_resnet50_takes_three_passes(bits, moved, temporary):
  program = programs('resnet50')[f'{bits} bits']
  check(program, bits, 12, moved, temporary, 16)


def test_full_precision_is_mixed_in_two_passes():
  # One of them for what is seen on the edges.
  program = programs('long_vector')['full_precision']
  assert program['bytes'] <= 11.01 and program['launches'] <= 8
