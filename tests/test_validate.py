"""Every entry of a config is checked, by itself and beside the others."""

import contextlib
import functools
import itertools
import math
import textwrap

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from configs import digits, smoothness, smoothness_digits
from moniqua_jax import command_line
from moniqua_jax.training import (
  dependences,
  entries,
  loop,
  monitor,
  registry,
  resolve,
  validation,
)
from tests import helpers, programs

PAGE = programs.ROOT / 'docs' / 'configs.md'
NAMES = {
  'model': registry.MODELS,
  'data': registry.DATASETS,
  'partition': registry.PARTITIONS,
  'learning_rate': registry.LEARNING_RATES,
  'optimizer': registry.OPTIMIZERS,
  'momentum_kind': registry.MOMENTUM_KINDS,
  'reduce': registry.REDUCE,
  'gossip': registry.GOSSIP,
  'topology': registry.TOPOLOGIES,
  'quantizer': registry.QUANTIZERS,
  'reduce_quantizer': registry.QUANTIZERS,
  'code': registry.CODES,
  'smoothness': registry.SMOOTHNESS,
  'theta': registry.THETAS,
}
TABLES = {
  'training': (entries.TRAINING, digits.default()),
  'laboratory': (entries.LABORATORY, smoothness.get_config()),
}


def nested(values) -> dict:
  """A config from dotted names, in plain dicts."""
  whole = {}
  for name, value in values.items():
    *path, last = name.split('.')
    node = whole
    for key in path:
      node = node.setdefault(key, {})
    node[last] = value
  return whole


def refused(values) -> str | None:
  """What a config is refused with: one line, of a ValueError alone."""
  try:
    validation.validate(nested(values))
  except ValueError as error:
    assert '\n' not in str(error)
    return str(error)
  return None


# ------------------------------------------------------------------ the tables


def page() -> dict[str, str]:
  """The parts of docs/configs.md that the tables say, by their headings."""
  ways = '\n'.join(
    f'- {row.rule}: `{row.entry}` {row.why}.' for row in dependences.DEPENDENCES
  )
  training, laboratory = (_table(*TABLES[name]) for name in TABLES)
  return {
    'Training': training,
    'What goes together': ways,
    'The laboratory': laboratory,
  }


_short = functools.partial(textwrap.shorten, width=32, placeholder=' ...')


def _table(rows, default):
  values, lines = dict(command_line.leaves(default)), []
  for row in rows:
    if row.name.startswith('reduce_quantizer.') and 'name' not in row.name:
      continue
    value = values[row.name]
    shown = '' if value is None else f' `{_short(repr(value))}`'
    says = row.allowed.says.replace(', or None', '')
    if row.name.endswith('.name') and rows is entries.TRAINING:
      says = ', '.join(NAMES[row.name.removesuffix('.name')])
    lines.append(f'| `{row.name}` |{shown} | {says} | {row.purpose} |')
  head = '| entry | default | may be | what it is for |', '|---|---|---|---|'
  return '\n'.join([*head, *lines])


def test_the_page_says_what_the_tables_say():
  text = PAGE.read_text()
  for heading, part in page().items():
    assert part in text, f'docs/configs.md, under {heading}, should be:\n{part}'


@pytest.mark.parametrize('table', TABLES)
def test_every_entry_has_a_row_and_a_default_that_is_allowed(table):
  rows, default = TABLES[table]
  values = dict(command_line.leaves(default))
  assert sorted(values) == sorted(row.name for row in rows)
  assert refused(values) is None


def test_dependences_are_of_entries_and_name_a_way_that_is_one():
  known = {row.name for row in entries.TRAINING}
  for row in dependences.DEPENDENCES:
    assert {row.entry, row.other} <= known
    for flag in [word for word in row.way.split() if word.startswith('--')]:
      name = flag.removeprefix('--config.').partition('=')[0]
      assert name in (row.entry, row.other)


SLOW = [name for name in command_line.names() if 'digits' not in name]


@pytest.mark.parametrize('name', helpers.tiered(command_line.names(), SLOW[:1]))
def test_our_configs_are_allowed(name):
  for method in command_line.methods(name):
    validation.validate(command_line.config(f'{name}:{method}'))


NEVER = (
  10**400,
  math.nan,
  math.inf,
  -math.inf,
  -1,
  -0.5,
  np.int64(3),
  np.float32(0.5),
  [None],
  ((1,),),
  (1, 1, math.nan),
  object(),
  'line\nbreak',
  np.arange(9),
)


def test_what_no_entry_takes_is_refused_by_name_and_value():
  for rows, default in TABLES.values():
    values = dict(command_line.leaves(default))
    for row in rows:
      for value in NEVER:
        if isinstance(value, str) and row.allowed.holds('text'):
          continue
        if isinstance(value, (int, float)) and row.name == 'smoothness.power':
          continue
        said = refused(values | {row.name: value})
        assert said and said.startswith(f'config.{row.name}='), (row, value)
        assert row.purpose in said and row.allowed.says in said
        assert 'By default --config.' in said


BOUNDS = {
  'workers': ((1, 4096), (0, 4097, True, 8.0, '8')),
  'seed': ((0, 2**32 - 1), (2**32, 1.0)),
  'epochs': ((1e-3, 7), (0, 0.0, '7', True)),
  'batch_size': ((1, 10**6), (0, 1.5)),
  'momentum': ((0, 0.999), (1, 1.5)),
  'gamma': ((1, 1e-3), (0, 1.001)),
  'log_every': ((1,), (0,)),
  'eval_every': ((0.1, 1e12), (0, 1e308)),
  'patience': ((None, 0, 5), (1.0,)),
  'quantizer.bits': ((None, 1, 8), (0, 9, True, 4.0)),
  'quantizer.theta': ((None, 1e-18, 2), (0, 1e-30, 1e30)),
  'quantizer.digest': ((None, True, False), (1, 'yes')),
  'learning_rate.milestones': ((None, (), (0, 1.5, 3)), ((3, 1), (1, 1), 5)),
  'model.hidden': ((None, (), (7, 7)), ((0,), 64, (1.5,))),
  'gossip.delays': ((None, 0, 1000, (0, 3)), (-1, 10**8, (), (0, -1))),
  'rounds_from': (
    ((), ((5, 2), (9, 1000))),
    (5, ((9, 2), (5, 1)), ((0, 1),), ((5, 1001),)),
  ),
  'order': (('adapt_then_combine',), ('adapt', None, '')),
  'runner': (('sharded',), ('vmap', None)),
  'tensorboard': ((True,), (1, 'maybe', None)),
}


@pytest.mark.parametrize('name', BOUNDS)
def test_bounds(name):
  values = dict(command_line.leaves(digits.default()))
  allowed, wrong = BOUNDS[name]
  # Dependences may refuse a value that is allowed by itself.
  by_itself = lambda said: said and 'it must be' in said
  for value in allowed:
    assert not by_itself(refused(values | {name: value})), value
  for value in wrong:
    assert by_itself(refused(values | {name: value})), value


WRONG_NAMES = {
  'an unknown entry': (
    {'batch_sise': 3},
    "config has no 'batch_sise'; did you mean batch_size",
  ),
  'of a part': ({'outer.moment': 0.9}, "config has no 'outer.moment'; did you"),
  'nothing like it': ({'xyz': 0.9}, "config has no 'xyz'; --help lists all"),
}


@pytest.mark.parametrize('wrong', WRONG_NAMES)
def test_entries_that_there_are_not_are_named(wrong):
  more, message = WRONG_NAMES[wrong]
  values = dict(command_line.leaves(digits.default()))
  assert message in refused(values | more)


def test_what_is_missing_is_named_and_a_spec_is_no_name():
  values = dict(command_line.leaves(digits.default()))
  del values['eval_every']
  assert "config lacks 'eval_every'; begin with" in refused(values)
  values['eval_every'] = values.pop('learning_rate.peak')
  assert "config lacks 'learning_rate.peak'" in refused(values)
  whole = nested(values) | {'quantizer': 'qsgd'}
  with pytest.raises(ValueError, match="='qsgd'; .* --config.quantizer.name"):
    validation.validate(whole)
  with pytest.raises(ValueError, match='config=7; .*ConfigDict'):
    validation.validate(7)


def test_a_spec_may_lack_what_has_a_default():
  config = digits.default()
  config.quantizer = dict(name='fitted_theta')
  config.gossip, config.reduce = dict(name='dpsgd'), dict(name='none')
  assert resolve.resolve(config).spec['bits'] == 4


def test_arguments_of_ones_own_are_its_own():
  values = dict(command_line.leaves(digits.default()))
  own = {'model.name': 'mine:Net', 'model.norm': 3, 'model.width': 64}
  assert refused(values | own) is None
  assert 'config.model.norm=3' in refused(values | {'model.norm': 3})


PAIRS = {
  'warm-up': (
    {'learning_rate.warmup_epochs': 50.0},
    'warmup_epochs=50.0 is longer than the run; config.epochs=40.0 does not',
  ),
  'a probe without means': (
    {'gradient_probe_every': 5},
    "looks at mean gradients; config.reduce.name='none' does not go with it",
  ),
  'pods on one device': (
    {'pod.data': 2},
    "config.runner='simulated' does not go with it: take --config.runner=sha",
  ),
}


@pytest.mark.parametrize('pair', PAIRS)
def test_pairs_that_do_not_go_together(pair):
  more, message = PAIRS[pair]
  assert message in refused(dict(command_line.leaves(digits.default())) | more)


# ----------------------------------------------------------------- random walks

EDGES = (
  *(None, True, False, 0, 1, 2, 3, 4, 8, 9, -1, 1000, 10**6, 10**12),
  *(0.0, 0.1, 0.5, 1.0, 1.5, 3.0, 1e-30, 1e-18, 1e18, 1e300),
  *(math.nan, math.inf, '', 'none', 'nope', '1', 'l2', 'nearest', 'linf'),
  *('simulated', 'sharded', 'adapt_then_combine', 'batch', 'none', 16),
  *('scatter_reduce', 'unbiased', 'all_gather', 'math:nope', '10Mbit', '5ms'),
  *((), (1,), (0.5, 1.0), (3, 1), ((5, 2),), ((4, 2), (8, 1)), (8, 8, 1)),
)
METHODS = (
  *((digits, method) for method in digits.METHODS),
  *((smoothness_digits, m) for m in ('diagonal4', 'diana4', 'adiana4')),
  *((smoothness_digits, m) for m in ('choco_ring4', 'layer_moniqua_ring4')),
)
ENTRIES = {row.name: row.allowed for row in entries.TRAINING}


def _steps(name):
  """An entry and a value: two of three are allowed by themselves."""
  if name.endswith('.name'):
    values = [*NAMES[name.removesuffix('.name')], 'nope', 'math:sqrt', None]
    return st.tuples(st.just(name), st.sampled_from(values))
  fit = st.sampled_from([v for v in EDGES if ENTRIES[name].holds(v)])
  values = st.one_of(fit, fit, st.sampled_from(EDGES))
  return st.tuples(st.just(name), values)


# More often those on which others depend.
TIED = sorted({n for r in dependences.DEPENDENCES for n in (r.entry, r.other)})
TIED += [name for name in ENTRIES if name.startswith(('quantizer', 'topology'))]
STEP = st.sampled_from([*ENTRIES, *TIED, *TIED]).flatmap(_steps)
WALK = st.tuples(
  st.sampled_from(METHODS), st.lists(STEP, min_size=1, max_size=3)
)


def walked(walk):
  """The config at the end of a walk."""
  (module, method), steps = walk
  config = module.get_config(method)
  with config.unlocked(), config.ignore_type():
    config.update_from_flattened_dict(dict(steps))
  return config


def ends(make, walk):
  """What comes of a walk; None where it is refused in a line."""
  try:
    return make(walked(walk))
  except ValueError as error:
    said = str(error)
    assert '\n' not in said and len(said) > 20, said
    return None


def walks(examples):
  return hypothesis.settings(
    max_examples=examples,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


@walks(120)
@hypothesis.given(WALK)
def test_a_walk_ends_in_a_line_or_resolves(walk):
  ends(resolve.resolve, walk)


def two_steps(walk, workdir):
  config = walked(walk)
  config.epochs, config.learning_rate.warmup_epochs = 2 / 11, None
  config.runner, config.worker_test_images = 'simulated', 16
  with contextlib.suppress(monitor.Stopped):  # says so in a line of its own
    loop.train_and_evaluate(config, workdir)


@pytest.mark.slow
def test_a_walk_that_resolves_runs_two_steps(tmp_path):
  folders = map(str, itertools.count())

  @walks(24)
  @hypothesis.given(WALK)
  def walk_and_run(walk):
    if ends(resolve.resolve, walk) is not None:
      ends(lambda _: two_steps(walk, tmp_path / next(folders)), walk)

  walk_and_run()


@pytest.mark.slow
def test_long_walks_resolve_as_well():
  walks(3000)(hypothesis.given(WALK)(_ends))()


def _ends(walk):
  ends(resolve.resolve, walk)
