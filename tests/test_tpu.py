"""The step compiled ahead of time for a TPU: bytes travel there, too.

`make test-tpu` installs libtpu in a folder of its own and runs this.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from moniqua_jax import wire

ROOT = pathlib.Path(__file__).parents[1]
D = 1_000_003


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu is not installed; `make test-tpu` does it',
)
@pytest.mark.parametrize('bits', [1, 4, 8])
def test_on_a_tpu_only_packed_bytes_travel(bits):
  result = subprocess.run(
    [sys.executable, 'tests/tpu_program.py', f'moniqua{bits}', str(D)],
    cwd=ROOT,
    env={**os.environ, 'TPU_SKIP_MDS_QUERY': '1', 'PYTHONPATH': _path()},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  program = json.loads(result.stdout.splitlines()[-1])
  bulk = [c for c in program['collectives'] if c[2] > 64]
  # Asynchronous: an operation that starts has its operand and its result.
  assert len(bulk) == 2 * 2
  for kind, dtype, nbytes in bulk:
    assert (kind, dtype) == ('collective-permute', 'u8')
    assert nbytes == wire.packed_size(D, bits) + 12


def _path():
  return os.pathsep.join([str(ROOT), *filter(None, sys.path)])
