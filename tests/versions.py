"""Runs a quick part of the tests with the oldest and the newest versions.

  python tests/versions.py [oldest|newest]

The oldest are those that pyproject.toml allows, with the oldest Python; the
newest are what the package index has for the newest Python that is here. Each
has a virtual environment in .versions/NAME. What cannot be had is skipped, in a
line that says so; the exit status is 1 where a test fails.
"""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYENV = pathlib.Path(
  os.environ.get('PYENV_ROOT', pathlib.Path.home() / '.pyenv')
)
LIBRARY = ['wire', 'dither', 'topologies', 'properties', 'gossip', 'algorithms']
PROGRAM = ['workdir', 'program']
# name -> (Pythons, first the best; extras; tests; what stands for '>=')
ROWS = {
  'oldest': (['3.11'], ['coding', 'graphs'], LIBRARY, '=='),
  'newest': (
    ['3.14', '3.13', '3.12'],
    ['coding', 'graphs', 'train'],
    LIBRARY + PROGRAM,
    '>=',
  ),
}
TOOLS = ['hypothesis', 'pytest', 'pytest-xdist']


def interpreter(versions: list[str]) -> str | None:
  """The first of the Pythons that runs here."""
  for version in versions:
    own = sorted(PYENV.glob(f'versions/{version}.*/bin/python'))
    for path in [f'python{version}', *map(str, own)]:
      command = [path, '-c', 'import sys; print(sys.version)']
      try:
        said = subprocess.run(command, capture_output=True, text=True)
      except OSError:
        continue
      if said.stdout.startswith(f'{version}.'):
        return path
  return None


def wanted(extras: list[str], bound: str) -> list[str]:
  """The packages of pyproject.toml, with another bound than '>='."""
  with open(ROOT / 'pyproject.toml', 'rb') as file:
    project = tomllib.load(file)['project']
  listed = project['dependencies'] + [
    package
    for extra in extras
    for package in project['optional-dependencies'][extra]
  ]
  return [package.replace('>=', bound) for package in listed]


def checked(name: str) -> bool:
  """Whether the tests pass, or cannot run here."""
  pythons, extras, tests, bound = ROWS[name]
  python = interpreter(pythons)
  if python is None:
    print(f'{name}: skipped, there is no Python {" or ".join(pythons)} here.')
    return True
  folder = ROOT / '.versions' / name
  own = folder / 'bin' / 'python'
  pip = [own, '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet']
  if not own.exists():
    subprocess.run([python, '-m', 'venv', folder], check=True)
  packages = wanted(extras, bound)
  had = subprocess.run([*pip, '--upgrade', *packages, *TOOLS])
  if had.returncode:
    print(f'{name}: skipped, the index does not have {packages}.')
    return True
  frozen = subprocess.run([own, '-m', 'pip', 'freeze'], capture_output=True)
  versions = re.findall(
    r'^(?:jax|numpy|optax|flax)==.*', frozen.stdout.decode(), re.MULTILINE
  )
  print(f'{name}: {python}, {", ".join(versions)}', flush=True)
  files = [f'tests/test_{test}.py' for test in tests]
  return not subprocess.run(
    [own, '-m', 'pytest', '-q', '-n', '2', '-o', 'filterwarnings=', *files],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  ).returncode


if __name__ == '__main__':
  sys.exit(not all([checked(name) for name in sys.argv[1:] or ROWS]))
