"""Builds the codec for CPUs: `python -m moniqua_jax.native`."""

import argparse
from collections.abc import Sequence
import os
import shlex
import subprocess
import sys
import tempfile

from jax import ffi

from moniqua_jax import native

# No fused multiply-adds: they round once where the jnp form rounds twice.
OPTIONS = '-std=c++17 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math'


def main(argv: Sequence[str] = ()) -> None:
  """Compiles into the package's folder; says in one line why if it cannot."""
  prog = 'python -m moniqua_jax.native'
  about = 'Builds the codec for CPUs, with the compiler that CXX names, or c++.'
  argparse.ArgumentParser(prog, description=about).parse_args(argv)
  target = native.built()
  try:
    compiler = shlex.split(os.environ.get('CXX') or 'c++')
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
      made, code = f'{folder}/codec.so', native.FOLDER.glob('*.cc')
      options = [*OPTIONS.split(), '-fPIC', '-shared', '-pthread', '-w']
      paths = ['-I', ffi.include_dir(), *map(str, sorted(code)), '-o', made]
      subprocess.run([*compiler, *options, *paths], check=True)
      os.replace(made, target)  # whole, whoever looks
  except (OSError, ValueError, subprocess.CalledProcessError) as error:
    sys.exit(
      f'Not built; the codec stays with XLA, with the same bytes: {error}'
    )
  for stale in target.parent.glob(native.built('*').name):
    if stale != target:
      stale.unlink()
  print(target)


if __name__ == '__main__':
  main(sys.argv[1:])
