"""Every test runs near 8 CPU devices, with strict ranks and dtypes.

Compiling is most of what the tests cost, so LLVM optimizes nothing here but in
tests marked `optimized`: where bits, fusions or times are the subject. With
JAX_DISABLE_MOST_OPTIMIZATIONS=0 it optimizes everywhere. Programs that took
long to compile are kept for the next run.
"""

import os
import pathlib

import jax
import pytest

CACHE = pathlib.Path(__file__).parents[1] / '.pytest_cache' / 'jax'
QUICK = os.environ.get('JAX_DISABLE_MOST_OPTIMIZATIONS', '1') != '0'

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


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
  quick = QUICK and item.get_closest_marker('optimized') is None
  jax.config.update('jax_disable_most_optimizations', quick)
  return (yield)
