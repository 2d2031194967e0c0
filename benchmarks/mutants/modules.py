"""The modules that are changed, and the tests that should notice it."""

import pathlib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Module(NamedTuple):
  """How many mutants of a module are drawn, and what should notice them."""

  count: int
  tests: str  # tests/test_NAME.py, in this order
  only: str = ''  # which of their tests, as for `pytest -k`


_BATTERIES = 'quantizers properties edge_values'
_OF_MONIQUA = (
  'quantizers fitted_theta properties edge_values moniqua gossip',
  'moniqua and (round_the_same or no_sender or properties or edge or digest'
  ' or 1-dithered or 4-stochastic or 3-nearest or refuse or one_pass)'
  ' or recomputes or mixing and 1-dithered or equals_are or square_is',
)
MODULES = {
  'wire/payloads.py': Module(4, 'wire'),
  'wire/stripes.py': Module(13, 'wire'),
  'wire/wide.py': Module(1, 'wire'),
  'quantizers/moniqua.py': Module(18, *_OF_MONIQUA),
  'quantizers/circle.py': Module(8, *_OF_MONIQUA),
  'quantizers/digest.py': Module(4, 'moniqua', 'digest or turn or wrap'),
  'quantizers/buckets.py': Module(
    10,
    _BATTERIES,
    'round_the_same or qsgd or terngrad or level or quotient or norm'
    ' or message_is',
  ),
  'quantizers/qsgd.py': Module(
    8, f'{_BATTERIES} variance', 'qsgd or terngrad or level_is or two_levels'
  ),
  'quantizers/nuqsgd.py': Module(
    10, _BATTERIES, 'nuqsgd or natural or level_is or two_levels'
  ),
  'quantizers/leveled.py': Module(8, _BATTERIES, 'level'),
  'gossip/rounds.py': Module(4, 'gossip check'),
  'gossip/one_round.py': Module(7, 'gossip check'),
  'gossip/vectors.py': Module(4, 'gossip check'),
  'quantized_mean.py': Module(11, 'reduce sparse smooth_algorithms'),
  'topologies/base.py': Module(4, 'topologies'),
  'topologies/requirements.py': Module(2, 'topologies'),
  'topologies/named.py': Module(6, 'topologies'),
  'topologies/given.py': Module(4, 'topologies'),
  'topologies/finite_time.py': Module(2, 'topologies'),
  'topologies/agreement.py': Module(2, 'topologies agreement'),
  'algorithms/fragments.py': Module(7, 'streaming'),
  'algorithms/dpsgd.py': Module(2, 'algorithms decentralized', 'dpsgd'),
  'algorithms/d2.py': Module(2, 'decentralized', 'd2'),
  'algorithms/choco.py': Module(2, 'lost_steps decentralized', 'choco'),
  'algorithms/dcd.py': Module(2, 'lost_steps decentralized', 'dcd'),
  'algorithms/deepsqueeze.py': Module(
    2, 'lost_steps decentralized', 'deepsqueeze'
  ),
  'algorithms/push_sum.py': Module(3, 'decentralized push_sum', 'push_sum'),
  'algorithms/error_feedback.py': Module(2, 'reduce'),
  'algorithms/diana.py': Module(2, 'smooth_algorithms', 'diana'),
}


def source(module: str) -> str:
  """The text of a module."""
  return (ROOT / 'moniqua_jax' / module).read_text()


def asked_of(module: Module) -> tuple[str, ...]:
  """All tests that concern a module, for pytest."""
  files = (f'tests/test_{name}.py' for name in module.tests.split())
  return '-k', module.only, *files
