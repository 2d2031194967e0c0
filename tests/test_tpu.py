"""Programs compiled ahead of time for TPUs that are not there.

`make test-tpu` installs libtpu in a folder of its own and runs this. The bytes
that a program moves and its temporaries are what the compiler says, in
multiples of the parameters in float32.
"""

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from moniqua_jax import wire
from tests import helpers
from tests.tpu_program import LONG, TAKEN

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu is not installed; `make test-tpu` does it',
)
SLOW = pytest.mark.slow


@functools.cache
def programs(what, topology='v5e:4x4', *wanted):
  """name -> what tpu_program.py printed of it."""
  # libtpu takes no flags that are meant for CPUs.
  ours = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  with _alone():
    result = subprocess.run(
      [sys.executable, '-m', 'tests.tpu_program', what, topology, *wanted],
      cwd=ROOT,
      env={**ours, 'TPU_SKIP_MDS_QUERY': '1', 'PYTHONPATH': _path()},
      capture_output=True,
      text=True,
    )
  if result.returncode == TAKEN:
    pytest.fail('another process has libtpu; try again later.', pytrace=False)
  assert result.returncode == 0, result.stderr
  found = map(json.loads, result.stdout.splitlines())
  return {program['name']: program for program in found}


@contextlib.contextmanager
def _alone():
  """One after the other, also under pytest-xdist and in two checkouts."""
  lock = pathlib.Path(tempfile.gettempdir(), 'moniqua_jax_libtpu.lock')
  with lock.open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _path():
  return os.pathsep.join([str(ROOT), *filter(None, sys.path)])


def check_messages(program, bits, header=12, operations=4):
  """Only u8 travels, in two pieces at most, and no more bytes than stated."""
  # An operation that starts has words for its own use beside its buffers.
  bulk = [c for c in program['collectives'] if c[2] > 4]
  # Asynchronous: an operation that starts has its operand and its result.
  assert len(bulk) <= 2 * operations
  for kind, dtype, _ in bulk:
    assert (kind, dtype) == ('collective-permute', 'u8')
  size = wire.packed_size(program['d'], bits) + header
  assert sum(nbytes for *_, nbytes in bulk) == operations * size


@pytest.mark.parametrize(
  'topology,operations',
  [('v5e:4x4', 4), pytest.param('v5e:16x16', 2, marks=SLOW)],
)
def test_a_train_step_sends_packed_bytes(topology, operations):
  program = programs('train_step', topology)['moniqua4']
  check_messages(program, bits=4, operations=operations)


SYNCHRONOUS = pytest.mark.xfail(
  strict=True,
  reason='this compiler makes the messages of a ring synchronous on 256 chips',
)


@pytest.mark.parametrize(
  'topology',
  ['v5e:4x4', pytest.param('v5e:16x16', marks=[SLOW, SYNCHRONOUS])],
)
def test_the_gradient_is_computed_while_messages_travel(topology):
  there, in_all = programs('train_step', topology)['moniqua4']['between']
  assert in_all > 6 and there == in_all


# Without a digest, too, all of a message is read before it counts.
LIMITS = [
  (f'{bits} bits{end}', bits, *limits)
  for end in ('', ', digest')
  for bits, *limits in ((1, 4.75, 0.01), (4, 5.65, 0.14), (8, 7.27, 0.51))
]


# Of three passes, and two messages that are sent and read twice, the compiler
# counts 5 + 13 bits / 32; and of 1 bit, which takes several, .3 more.
UPDATES = [('1 bits', 1, 5.75, 0.01), ('4 bits', 4, 6.65, 0.14)]
UPDATES += [('8 bits', 8, 8.27, 0.51)]


@pytest.mark.parametrize(
  'name,bits,moved,temporary', helpers.tiered(UPDATES, UPDATES[1:2])
)
def test_an_update_is_one_pass_behind_the_messages(
  name, bits, moved, temporary
):
  """x - lr g + pull: x, g and messages are read once, x is written once."""
  program = programs('update', 'v5e:4x4', name)[name]
  check_messages(program, bits)
  assert program['bytes'] <= moved
  assert program['temporary'] <= temporary


@SLOW
@pytest.mark.parametrize('name,bits,moved,temporary', LIMITS)
def test_gossip_of_a_long_vector_moves_few_bytes(name, bits, moved, temporary):
  program = programs('long_vector', 'v5e:4x4', name)[name]
  assert program['d'] == LONG
  check_messages(program, bits, header=12 if 'digest' in name else 8)
  assert program['bytes'] <= moved
  assert program['temporary'] <= temporary


@SLOW
def test_full_precision_is_mixed_in_one_pass():
  # x and what came in are read, x is written, and each message counts four
  # times: a send, a receive, and a copy at both ends.
  program = programs('long_vector', 'v5e:4x4', 'full_precision')[
    'full_precision'
  ]
  assert program['bytes'] <= 12.01 and program['temporary'] <= 2.01


@SLOW
@pytest.mark.parametrize('bits,memory', [(1, 4.01), (4, 4.76), (8, 6.26)])
def test_gossip_of_resnet50_is_leaner_than_in_full_precision(bits, memory):
  # Its 102 MB lie in the vector memory of a v5e, between the first reading and
  # the last writing; the compiler counts what happens there, too.
  found = programs('resnet50')
  program, full = found[f'{bits} bits'], found['full_precision']
  check_messages(program, bits)
  assert program['memory'] <= memory and full['memory'] >= 8.0
  assert program['bytes'] < full['bytes']
  assert program['temporary'] < full['temporary']
