"""Tests that run on a changed module, in a copy of the repository."""

import os
import pathlib
import resource
import sys

from benchmarks.mutants.changes import Mutant
from benchmarks.mutants.modules import MODULES, asked_of, source

SECONDS = 300  # of a CPU, for a mutant: who takes longer hangs


class Recorder:
  """A plugin of pytest that remembers the first test that failed."""

  failed = ''

  def pytest_runtest_logreport(self, report):
    if report.failed and not self.failed:
      self.failed = report.nodeid

  pytest_collectreport = pytest_runtest_logreport


def tried(folder: pathlib.Path, module: str, text: str, *asked: str):
  """Runs tests on a changed module: (verdict, by which test)."""
  path = folder / 'moniqua_jax' / module
  path.write_text(text)
  came, goes = os.pipe()
  child = os.fork()
  if not child:
    try:
      os.write(goes, _pytest(folder, asked).encode())
    except BaseException as error:
      os.write(goes, f'broken {error!r}'.encode())
    os._exit(0)  # whatever happens: this is a copy of the one that goes on
  os.close(goes)
  with os.fdopen(came) as pipe:
    said = pipe.read()
  os.waitpid(child, 0)
  path.write_text(source(module))
  verdict, _, by = said.partition(' ')
  if verdict == 'broken':
    raise RuntimeError(by)
  return verdict or 'hangs', by  # or ended by a signal


def _pytest(folder, asked) -> str:
  import pytest

  resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
  os.environ['MONIQUA_NATIVE'] = '0'  # what is changed are the jnp forms
  os.chdir(folder)
  with open('pytest.out', 'w') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  sys.path.insert(0, str(folder))
  sys.dont_write_bytecode = True  # two changes in one second look the same
  recorder = Recorder()
  plain = ['-x', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist']
  status = pytest.main([*plain, *asked], [recorder])
  if status == pytest.ExitCode.OK:
    return 'survived'
  if status in (
    pytest.ExitCode.USAGE_ERROR,
    pytest.ExitCode.NO_TESTS_COLLECTED,
  ):
    return 'gone'  # the test of another day
  return f'killed {recorder.failed or status.name}'


class Trials:
  """Tries mutants in a copy of the repository, with tests that pass without."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._passed = folder, {}

  def passes(self, module: str, asked) -> bool:
    """Whether the tests pass without a change."""
    if (module, asked) not in self._passed:
      said = tried(self._folder, module, source(module), *asked)
      self._passed[module, asked] = said[0] == 'survived'
    return self._passed[module, asked]

  def verdict(self, mutant: Mutant, noticed_by: str = '') -> tuple[str, str]:
    """Runs the test that noticed it last time, then all of its module."""
    module, text = mutant.module, mutant.text()
    if noticed_by and self.passes(module, (noticed_by,)):
      said = tried(self._folder, module, text, noticed_by)
      if said[0] in ('killed', 'hangs'):
        return said
    every = asked_of(MODULES[module])
    if not self.passes(module, every):
      sys.exit(f'error: {module}: its tests fail without a change.')
    return tried(self._folder, module, text, *every)
