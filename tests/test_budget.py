"""A budget chooses the way to talk: what it expects, and what a run does."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from configs import text as texts
from moniqua_jax import bytes_sent
from moniqua_jax.plan import candidates, choice, links, report
from moniqua_jax.training import bytes_sent as counted
from moniqua_jax.training import experiment, summary
from tests import helpers, programs

ROOT = pathlib.Path(__file__).parents[1]
CELLS = ROOT / 'results' / 'network' / 'cells.jsonl'
SHAPES = {'w': (64, 128), 'b': (128,), 'v': (128, 10), 'c': (10,)}
PARAMS = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}
RATES = [f'{rate}bit' for rate in '100k 1M 10M 30M 100M 300M 1G 10G'.split()]


@functools.cache
def weighed(n=8, of=digits, **spec):
  budget = choice.budget(dict.fromkeys(choice.ENTRIES) | spec)
  config = of.get_config()
  config.workers = n
  return choice.of_config(config, PARAMS, budget), budget


def named(rows, name):
  return next(row for row in rows if row.way.name == name)


# ------------------------------------------------------------ what is expected


def cells():
  """Steps of mlp270k at some rate, and of the same method without a link."""
  every = map(json.loads, CELLS.read_text().splitlines())
  small = [c for c in every if (c['model'], c['n']) == ('mlp270k', 8)]
  alone = {c['method']: c for c in small if c['rate'] == 'loopback'}
  return [
    (cell, alone[cell['method']])
    for cell in small
    if cell['rate'] in ('10mbit', '100mbit') and cell['method'] in alone
  ]


def test_steps_take_on_a_link_what_the_laboratory_measured():
  seconds = lambda cell: cell['parts']['full']['seconds']
  found = {}
  for cell, alone in cells():
    link = links.Link(cell['link']['rate'])
    expected = choice.seconds(link, cell['claimed'], 0, seconds(alone))
    found[cell['rate'], cell['method']] = expected / seconds(cell)
  assert len(found) == 24
  assert {k: v for k, v in found.items() if not 0.75 < v < 1.25} == {}


def test_messages_wait_for_each_other_and_some_go_beside_the_gradient():
  link = links.Link(rate=8e6, latency=0.02)
  sent = 2 * 0.02 + 1.5 * links.HEADERS
  numbers = dict(nbytes=1.5e6, messages=2, codec=0.1)
  apart = choice.seconds(link, compute=0.4, **numbers)
  assert apart == pytest.approx(0.1 + 0.4 + sent)
  for compute in (0.4, 4.0):
    beside = choice.seconds(link, compute=compute, beside=True, **numbers)
    assert beside == pytest.approx(0.1 + max(compute, sent))


# Which config, workers, and one of how many ways.
CASES = [(digits, 8, 12), (texts, 8, 25)]
CASES += [(digits, 8, 1), (digits, 6, 1), (texts, 8, 1), (texts, 6, 1)]


@pytest.mark.parametrize('of,n,some', helpers.tiered(CASES, CASES[:2]))
def test_what_is_sent_is_what_the_built_run_sends(of, n, some, monkeypatch):
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), PARAMS)
  variables = {'params': zeros}
  monkeypatch.setattr(experiment, '_variables', lambda *_: variables)
  config = of.get_config()
  config.workers, config.runner = n, 'simulated'
  rows, _ = weighed(n, of, link='1Mbit', compute='1s')
  assert len(rows) >= 45
  for row in rows[::some]:
    built = experiment.from_config(choice.applied(config, row))
    clock = built.turns
    # All fragments have been through all rounds of the graph.
    period = clock.longest * max(1, len(built.sent.by_worker.gossip))
    there = period + clock.late
    means = counted.means(built, there)
    sent = bytes_sent.total(built.sent.by_worker, means, clock.before(there))
    assert row.nbytes == pytest.approx(sent / period, rel=1e-9), row.way.name


def test_a_net_has_the_ways_that_suit_it():
  tiny = {'w': jax.ShapeDtypeStruct((12,), jnp.float32)}
  weigh = lambda way: choice.weighed(choice.Budget(64), tiny, way)
  # Small leaves stay as they are; and 12 values are no 16 fragments.
  assert weigh(candidates.means(8, 0.9, bits=2, fragments=1)) is None
  assert weigh(candidates.means(8, 0.9, bits=2, fragments=16)) is None
  assert weigh(candidates.gossip('ring', 8, 0.9, bits=None)).bits == 64


# -------------------------------------------------------------------- the rule


def test_steps_are_those_of_all_reduce_where_nothing_is_lost():
  assert choice.steps_to_loss() == 1
  for worse in (dict(apart=1), dict(noise=1)):
    assert choice.steps_to_loss(**worse) > 1
    (name,) = worse
    assert choice.steps_to_loss(**{name: 2}) > choice.steps_to_loss(**worse)


def test_the_best_is_the_least_score_of_those_that_fit():
  for spec in (dict(bits=1), dict(bits=3, link='1Mbit', compute='1ms')):
    rows, budget = weighed(**spec)
    best = choice.best(rows, budget)
    assert best.bits <= spec['bits']
    fitting = [row for row in rows if row.bits <= spec['bits']]
    assert best.score == min(row.score for row in fitting)


def test_a_larger_budget_never_expects_more_steps():
  chosen = [
    choice.best(*weighed(bits=bits)) for bits in (0.3, 0.5, 1, 2, 4, 8, 64)
  ]
  assert all(np.diff([row.steps for row in chosen]) <= 0)
  assert chosen[-1].way.name == 'all-reduce, 32 bits'


@pytest.mark.parametrize('latency', ['0s', '20ms'])
def test_a_slower_link_never_sends_more_to_a_loss(latency):
  """But for messages beside the gradient, which are free up to some rate."""
  sent = []
  for rate in RATES:
    rows, budget = weighed(link=rate, latency=latency, compute='20ms')
    best = choice.best([row for row in rows if not row.way.beside], budget)
    sent.append((best.bits * best.steps, best.bits))
  assert sent == sorted(sent)
  assert sent[0][1] < sent[-1][1]


# ------------------------------------------------------------- of language


def test_of_text_it_is_known_how_long_a_step_takes():
  """30 steps of 3 fragments: a tenth of the steps has messages beside it."""
  d, compute, h = 9610, 0.02, 30
  rows, _ = weighed(of=texts, link='1Mbit', latency='5ms', compute='20ms')
  for late, local in ((False, 30), (True, 10)):
    words = ', 3 fragments, beside a gradient' if late else ''
    row = named(rows, f'DiLoCo by pairs, 4 bits every {h} steps{words}')
    sent = 8 * row.nbytes * links.HEADERS / 1e6 + 2 * 0.005 / local
    waits = max(0, sent - late * compute / local)
    seconds = compute + waits + d * candidates.ROTATED / h
    assert row.seconds == pytest.approx(seconds)
    assert row.computes == pytest.approx(compute / seconds)
    assert row.bits == pytest.approx(4 / h, rel=0.1)
  lines = report.table(rows, row, report.columns(texts.get_config())[0])
  assert f'{1e6 * seconds / (8 * 8 * 128):.3g}' in lines


def test_of_text_the_choice_computes_and_talks_as_often_as_it_may():
  steps = []
  for rate in RATES:
    rows, budget = weighed(of=texts, link=rate, compute='20ms')
    best = choice.best(rows, budget)
    assert best.computes >= 0.95
    before = [r for r in rows if r.way.order < best.way.order]
    assert all(row.computes < 0.95 for row in before)
    steps.append(best.way.order[0])
  assert steps == sorted(steps, reverse=True) and steps[0] > steps[-1] == 1
  assert choice.best(*weighed(of=texts, bits=0.3)).bits <= 0.3
  with pytest.raises(ValueError, match='no way to talk leaves 95% of the time'):
    choice.best(*weighed(of=texts, link='1kbit', compute='1ms'))


# ----------------------------------------------------------- flags and configs


@pytest.mark.filterwarnings('ignore:the load_module')  # of ml_collections
@pytest.mark.parametrize('method', ['dpsgd', 'allreduce', 'moniqua4'])
def test_the_flags_make_the_config(method, monkeypatch):
  config = digits.get_config(method)
  for row in weighed(link='1Mbit', compute='1s')[0][::9]:
    given = choice.flags(config, row)
    file = f'--config={ROOT}/configs/digits.py:{method}'
    found = programs.parsed(monkeypatch, file, *given)
    assert found.to_dict() == choice.applied(config, row).to_dict()
    experiment.resolve(found)


ERRORS = [
  (
    dict(link='10MB', compute='1s'),
    'link=10MB: a link is a number above 0 and',
  ),
  (dict(link='0Mbit', compute='1s'), 'link=0Mbit: a link is a number above 0'),
  (dict(link='1.2.3Mbit', compute='1s'), 'link=1.2.3Mbit: a link'),
  (dict(link='1Mbit', compute='1 hour'), 'compute=1 hour: a time is a number'),
  (
    dict(link='1Mbit', latency='20', compute='1s'),
    'latency=20: a time is a number and us, ms or s, such as 20ms',
  ),
  (dict(link='1Mbit'), 'link=1Mbit wants config.budget.compute as well'),
  (dict(latency='20ms'), 'latency=20ms is of a link; give config.budget.link'),
  (dict(bits=-1.0), 'bits=-1.0: a budget is a number of bits above 0'),
]


@pytest.mark.parametrize('spec,words', ERRORS)
def test_budgets_that_are_none_are_named(spec, words):
  with pytest.raises(ValueError, match=f'config.budget.{words}'):
    choice.budget(dict.fromkeys(choice.ENTRIES) | spec)


def test_a_budget_of_the_plan_has_the_name_of_its_flag():
  with pytest.raises(ValueError, match='^--budget=-1.0: a budget is a number'):
    choice.budget(dict.fromkeys(choice.ENTRIES) | dict(bits=-1.0), '--')


def test_a_budget_that_nothing_fits_says_the_least_that_there_is():
  rows, budget = weighed(bits=0.01)
  with pytest.raises(
    ValueError, match=r'0.01 bits: nothing fits; the least is'
  ):
    choice.best(rows, budget)


@pytest.mark.parametrize(
  'change,words',
  [
    (dict(workers=1), 'config.workers=1: one worker sends nothing'),
    (
      dict(pod=dict(data=2)),
      r'config.pod is 2 \(data\) x 1 \(fsdp\); a budget',
    ),
  ],
)
def test_configs_without_a_choice_are_named(change, words):
  config = digits.get_config()
  config.update(change)
  with pytest.raises(ValueError, match=words):
    choice.of_config(config, PARAMS, choice.Budget(1.0))


def test_no_budget_changes_nothing():
  assert choice.budget(digits.get_config().budget) is None


# ----------------------------------------------------------------- the program


@pytest.mark.parametrize(
  'flag,words',
  helpers.tiered(
    [
      ('--link=10Mbit/min', 'error: --link=10Mbit/min: a link is'),
      ('--budget=.001', 'error: a budget of 0.001 bits: nothing fits'),
      (
        '--config.local_momentum=0.9',  # which the best way rules out
        'error: config.local_momentum=0.9 is of means of gradients',
      ),
      (
        '--config.model.name=mpl',
        "error: config.model.name='mpl'; choose from",
      ),
    ],
    [],
  ),
)
def test_a_mistake_is_one_line(flag, words, tmp_path):
  program = 'moniqua_jax/plan/__main__.py', '--budget=1', '--config=digits'
  status, out, err = programs.run(*program, flag, folder=tmp_path)
  assert status == 2 and out == ''
  assert err.startswith(words) and err.count('\n') == 1


@pytest.mark.slow
def test_the_program_measures_a_gradient_and_prints_the_flags(tmp_path):
  program = 'moniqua_jax/plan/__main__.py', '--config=digits', '--link=1Mbit'
  status, out, err = programs.run(*program, folder=tmp_path)
  assert (status, err) == (0, '')
  assert '1 Mbit/s; 0 ms a message; gradient' in out
  assert '3 of them timed, on noise in the form of digits' in out
  stars = [line for line in out.splitlines() if line.startswith('* ')]
  assert len(stars) == 1 and out.splitlines()[-1].startswith('--config.')


def test_an_experiment_takes_the_choice(monkeypatch):
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), PARAMS)
  monkeypatch.setattr(experiment, '_variables', lambda *_: {'params': zeros})
  config = digits.get_config()
  config.budget.bits = 1.0
  row = choice.best(*weighed(bits=1.0))
  for given in (config, choice.applied(config, row)):  # also of its own choice
    built = experiment.from_config(given)
    assert report.noted(built.setup.planned) == report.noted(row)
    assert built.setup.config == choice.applied(config, row)
    assert f'budget     {report.planned(row)}' in summary.describe(built)
  assert config.quantizer.name == 'full_precision'
  assert experiment.from_config(digits.get_config()).setup.planned is None


@pytest.mark.slow
def test_a_run_takes_the_choice_and_says_what_came(tmp_path):
  workdir = tmp_path / 'run'
  status, out, err = programs.run(
    'train.py',
    '--config=configs/digits.py:dpsgd',
    '--config.budget.bits=1',
    '--config.epochs=.728',  # 8 steps: whole turns
    f'--workdir={workdir}',
    folder=tmp_path,
  )
  assert status == 0, err
  config = json.loads((workdir / 'config.json').read_text())
  row = choice.best(*weighed(bits=1))
  assert config['fragments'] == row.way.specs['fragments']
  assert config['quantizer']['name'] == row.way.specs['quantizer']['name']
  assert config['budget']['bits'] == 1
  assert f'budget     {report.planned(row)}' in out
  line = out.splitlines()[-1]
  assert line.startswith(f'budget: {row.way.name}: {row.bits:.3g} bits sent')
  assert line.endswith(f'planned, {row.bits:.3g} sent')


def test_what_came_is_beside_what_was_planned():
  row = choice.best(*weighed(link='1Mbit', compute='40ms'))
  sent = lambda step: 2 * row.nbytes * step
  rows = [
    {'step': k, 'seconds': s, 'wire/bytes_sent': sent(k)}
    for k, s in ((10, 5.0), (20, 6.0), (30, 7.0), (40, 17.0))
  ]
  text = report.came(report.noted(row), rows)
  assert f'{row.bits:.3g} bits sent planned, {2 * row.bits:.3g} sent' in text
  assert text.endswith(f'{1e3 * row.seconds:,.0f} ms a step planned, 100 taken')


def test_pairs_exist_for_all_numbers_of_workers():
  names = [candidates.pairs_of(n) for n in (2, 8, 6, 12)]
  assert names == 2 * ['one_peer_hypercube'] + 2 * ['base_graph']
