"""What `pip install` brings: the wheel and the source archive, built here.

The wheel is unpacked and used from an empty folder, as if the packages of the
extras were not installed; nothing is downloaded.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import moniqua_jax
from moniqua_jax import native
from tests.fresh import ROOT, WITHOUT_EXTRAS, python

pytestmark = pytest.mark.slow

BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # a build has arguments of its own
build_meta.build_wheel(folder)
build_meta.build_sdist(folder)
"""

# A clone has more than that, but none of it is of a package.
CLONE = (
  *('benchmarks', 'configs', 'docs', 'moniqua_jax', 'tests'),
  *('CHANGELOG.md', 'LICENSE', 'MANIFEST.in', 'Makefile', 'README.md'),
  *('constraints.txt', 'pyproject.toml', 'train.py'),
)


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """The folder with the wheel and the source archive."""
  clone, dist = tmp_path_factory.mktemp('clone'), tmp_path_factory.mktemp('d')
  for name in CLONE:
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, clone / name)
  build = [sys.executable, '-c', BUILD, dist]
  subprocess.run(build, cwd=clone, check=True, capture_output=True)
  return dist


@pytest.fixture(scope='module')
def site(built, tmp_path_factory):
  """A folder with the wheel's files, as in site-packages."""
  folder = tmp_path_factory.mktemp('site')
  with zipfile.ZipFile(next(built.glob('*.whl'))) as wheel:
    wheel.extractall(folder)
  return folder


def test_the_wheel_holds_the_package_alone(site):
  version = moniqua_jax.__version__
  info = site / f'moniqua_jax-{version}.dist-info'
  assert {path.name for path in site.iterdir()} == {'moniqua_jax', info.name}
  code = {path.relative_to(site) for path in site.rglob('*.py')}
  ours = {
    path.relative_to(ROOT) for path in (ROOT / 'moniqua_jax').rglob('*.py')
  }
  configs = pathlib.Path('moniqua_jax', 'configs')
  named = {configs / path.name for path in (ROOT / 'configs').glob('*.py')}
  # In a clone __init__.py says where configs/ is.
  assert code == ours - {configs / '__init__.py'} | named
  assert (site / 'moniqua_jax' / 'py.typed').exists()
  for source in native.SOURCES:
    assert (site / 'moniqua_jax' / 'native' / source.name).exists()
  assert f'\nVersion: {version}\n' in (info / 'METADATA').read_text()
  scripts = re.findall(
    r'^moniqua-(\w+) = ([\w.]+):(\w+)$',
    (info / 'entry_points.txt').read_text(),
    flags=re.MULTILINE,
  )
  names = ['launch', 'plan', 'plots', 'theory', 'train']
  assert [name for name, *_ in scripts] == names
  for _, module, function in scripts:
    lines = f'from {module} import {function}\nassert callable({function})'
    python(lines, site, site)


def test_the_source_archive_holds_the_program_too(built):
  with tarfile.open(next(built.glob('*.tar.gz'))) as archive:
    names = [
      pathlib.PurePath(*pathlib.PurePath(name).parts[1:])
      for name in archive.getnames()
    ]
  folders = {name.parts[0] for name in names if len(name.parts) > 1}
  assert {'configs', 'docs', 'moniqua_jax'} <= folders
  assert not {'benchmarks', 'results', 'tests'} & folders
  assert pathlib.PurePath('train.py') in names


def test_the_seven_lines_run_on_jax_numpy_and_optax_alone(site, tmp_path):
  readme = (ROOT / 'README.md').read_text()
  blocks = re.findall(r'^```python\n(.*?)^```', readme, re.M | re.S)
  lines = next(block for block in blocks if 'optax.chain' in block)
  where = 'import moniqua_jax\nprint(moniqua_jax.__file__)\n'
  said = python(WITHOUT_EXTRAS + lines + where, tmp_path, site).stdout
  assert said.endswith(f'{site}/moniqua_jax/__init__.py\n')


TRAIN = """
import sys
sys.argv[1:] = {}
from moniqua_jax.training import __main__ as main
main.run()
"""


def test_it_trains_by_the_name_of_a_config(site, tmp_path):
  flags = ['--config=digits:moniqua4', '--workdir=run', '--config.epochs=0.2']
  flags += ['--config.learning_rate.warmup_epochs=0.1']
  said = python(TRAIN.format(flags), tmp_path, site).stdout
  assert 'Moniqua 4 bits' in said
  assert (tmp_path / 'run' / 'figure.png').stat().st_size > 0


def test_the_source_archive_makes_the_same_wheel(built, site, tmp_path):
  with tarfile.open(next(built.glob('*.tar.gz'))) as archive:
    archive.extractall(tmp_path, filter='data')
  (clone,) = tmp_path.iterdir()
  build = 'from setuptools import build_meta; build_meta.build_wheel("dist")'
  command = [sys.executable, '-c', build]
  subprocess.run(command, cwd=clone, check=True, capture_output=True)
  with zipfile.ZipFile(next(clone.glob('dist/*.whl'))) as wheel:
    again = {name for name in wheel.namelist() if name.endswith('.py')}
  assert again == {
    path.relative_to(site).as_posix() for path in site.rglob('*.py')
  }


def test_the_path_of_a_config_can_be_given(site, tmp_path):
  flags = [f'--config={ROOT}/configs/digits.py:moniqua4', '--dry_run']
  assert (
    '9,610 parameters' in python(TRAIN.format(flags), tmp_path, site).stdout
  )
