"""Programs in fresh processes, with and without the packages of the extras."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]

# What only an extra brings, by the names of its modules.
OPTIONAL = (
  *('PIL', 'array_record', 'bitarray', 'flax', 'grain', 'matplotlib'),
  *('ml_collections', 'mpi4py', 'networkx', 'orbax', 'sklearn', 'tabulate'),
  *('tensorboardX', 'tensorflow_datasets', 'tqdm'),
)

WITHOUT_EXTRAS = f"""
import sys

class Blocker:
  def find_spec(name, path=None, target=None):
    if name.partition('.')[0] in {OPTIONAL}:
      raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Blocker)
"""


def python(code, cwd=ROOT, site=ROOT, check=True, **environment):
  """Runs Python code on the CPU; `site` is where it finds the package."""
  default = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(site)}
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=cwd,
    env=os.environ | default | environment,
    capture_output=True,
    text=True,
    check=check,
  )
