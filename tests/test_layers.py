"""What is sent is sent in one file: no other calls a collective of JAX."""

import pathlib
import re

PACKAGE = pathlib.Path(__file__).parents[1] / 'moniqua_jax'
NAMES = (
  'psum|pmean|pmax|pmin|ppermute|psum_scatter|pshuffle|pswapaxes|pbroadcast|'
  'all_gather|all_gather_invariant|all_to_all|ragged_all_to_all'
)
# By the module, called or not; or imported by name and called.
COLLECTIVE = re.compile(rf'\blax\.({NAMES})\b|(?<![.\w])({NAMES})\(')


def collectives_of(path):
  return [a or b for a, b in COLLECTIVE.findall(path.read_text())]


def test_only_one_file_calls_collectives():
  callers = {
    path.relative_to(PACKAGE).as_posix(): found
    for path in sorted(PACKAGE.rglob('*.py'))
    if (found := collectives_of(path))
  }
  assert list(callers) == ['collectives.py'], callers
  expected = ['all_gather', 'all_to_all', 'pmax', 'pmean', 'ppermute']
  assert sorted(callers['collectives.py']) == expected
