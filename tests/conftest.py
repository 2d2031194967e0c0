"""Every test runs near 8 CPU devices, with strict ranks and dtypes.

Compiling is most of what the tests cost. So XLA uses its quickest generator of
code (see `programs`), and LLVM optimizes nothing but tests marked `optimized`:
where bits, fusions or times are the subject. JAX_DISABLE_MOST_OPTIMIZATIONS=0
compiles everything as users do, JAX_PLATFORMS=cuda,cpu for a GPU. Programs that
took long are kept for the next run.
"""

import pathlib
import signal

import jax
import pytest

from tests import programs

MAPS = pathlib.Path('/proc/self/maps')
MOST_MAPS = 30_000

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
for name, value in programs.SETTINGS.items():
  jax.config.update(name, value)


def pytest_configure(config):
  config.addinivalue_line(
    'markers', "optimized: compiles as a user's program is compiled"
  )
  # A run that was killed may leave half an entry: it is compiled once more.
  config.addinivalue_line(
    'filterwarnings', 'ignore:Error .* persistent compilation cache'
  )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  quick = programs.QUICK and item.get_closest_marker('optimized') is None
  jax.config.update('jax_disable_most_optimizations', quick)
  return (yield)


@pytest.fixture(autouse=True, scope='module')
def few_maps():
  """Lets programs go: each has maps of memory, of which Linux gives 65530."""
  yield
  if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST_MAPS:
    jax.clear_caches()


@pytest.fixture
def heeding():
  """Signals do what they do to programs in the foreground."""
  before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGHUP)}
  programs.heed_signals()
  yield
  for number, handler in before.items():
    signal.signal(number, handler)
