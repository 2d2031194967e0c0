"""The laboratory: what the paper's methods need on problems that are known.

The numbers that are held to are those of the NumPy prototype of the reference
(section 6.2): iterations and bits on breast_cancer and digits, p = 2.
"""

import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoothness as configs
from moniqua_jax import topologies
from moniqua_jax.laboratory import (
  designs,
  driver,
  libsvm,
  methods,
  problems,
  report,
  runs,
  splits,
  stopping,
)
from tests import oracles
from tests.helpers import tiered
from tests.trained import compiled_quickly

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def problem_of(name):
  features, labels = getattr(libsvm, name)()
  parts = splits.by_norm(
    splits.row_scaled(features), labels, configs.WORKERS[name]
  )
  return problems.logistic_regression(*parts, name=name)


@pytest.fixture(scope='module')
def cancer():
  return problem_of('breast_cancer')


def run(problem, names, iterations, seeds=2, length=500):
  """Distances and bits of all workers before each iteration, by method."""
  chosen = [methods.METHODS[name](problem, 'l2') for name in names]
  keys = jax.random.split(jax.random.key(1), seeds)
  carry, traces = runs.start(problem, chosen, keys), []
  advance = runs.advance(problem, chosen, length)
  with compiled_quickly(iterations < 1000):  # else they take longer
    for first in range(0, iterations, length):
      carry, trace = advance(carry, keys, np.int64(first))
      traces.append(jax.tree.map(np.asarray, trace))
  distance, coded = (
    np.concatenate(parts, axis=2) for parts in zip(*traces, strict=True)
  )
  coded = coded.astype(np.float64)
  sent = problem.n * (np.cumsum(coded, axis=2) - coded)
  return {
    name: (distance[:, i], sent[:, i] + upload(chosen[i]))
    for i, name in enumerate(names)
  }


def upload(method):
  return method.design.upload if method.design else 0.0


def reached(result, target):
  """Iterations and kilobits to a target, the median of the seeds."""
  distance, sent = result
  at = stopping.hits(distance, target)
  assert (at >= 0).all()
  return np.median(at), np.median(sent[np.arange(len(at)), at]) / 1e3


# Section 6.2: method -> iterations and kilobits to 1e-6, and to 1e-10.
CANCER = {
  'GD': ((1901, 9125), (3569, 17131)),
  'DIANA block, authors': ((4208, 4270), (7908, 7993)),
  'DIANA+ uniform': ((3511, 1115), (6590, 1979)),
  'DIANA+ varying': ((2387, 797), (4483, 1371)),
  'DIANA+ varying, exact': ((2019, 699), (3792, 1186)),
  'DIANA+ sparse': ((2094, 2151), (3930, 3906)),
  'DIANA+ sparse, authors': ((1940, 2004), (3713, 3702)),
  'ADIANA+ varying': ((2850, 1696), (5396, 3043)),
}
ORDER = [  # by bits to 1e-6
  'DIANA+ varying',
  'DIANA+ uniform',
  'DIANA+ sparse',
  'DIANA block, authors',
  'GD',
]


def check(results, expected, column):
  target = (1e-6, 1e-10)[column]
  for name, pairs in expected.items():
    iterations, kilobits = pairs[column]
    its, bits = reached(results[name], target)
    # ADIANA tosses a coin for w: seeds differ by more.
    within = 0.08 if 'ADIANA' in name else 0.05
    assert its == pytest.approx(iterations, rel=within), (name, target)
    assert bits == pytest.approx(kilobits, rel=within), (name, target)


@SLOW
def test_breast_cancer_needs_the_iterations_and_bits_of_the_reference(cancer):
  results = run(cancer, [*ORDER, 'DIANA+ block'], 4600, length=2300)
  check(results, {name: CANCER[name] for name in ORDER}, 0)
  bits = [reached(results[name], 1e-6)[1] for name in ORDER]
  assert bits == sorted(bits)
  # The rule for blocks that spends all its budget is no worse. The reference
  # has the authors' rule: 3386 iterations, 3124 kbit to 1e-6.
  iterations, kilobits = reached(results['DIANA+ block'], 1e-6)
  assert 0.95 * 3386 < iterations <= 3386
  assert 0.95 * 3124 < kilobits <= 3124


@SLOW
def test_breast_cancer_goes_on_to_the_last_target(cancer):
  results = run(cancer, [*CANCER, 'DIANA+ block'], 8000, length=2000)
  check(results, CANCER, 0)
  check(results, CANCER, 1)
  assert stopping.hits(results['DIANA+ block'][0], 1e-10).min() > 0


def test_dcgd_stops_at_its_floor_and_the_plus_lowers_it(cancer):
  names = ['DCGD', 'DCGD+ uniform', 'DCGD+ varying', 'DCGD+ block']
  results = run(cancer, names, 4000, length=2000)
  floors = {
    name: np.median(distance[:, -1000:])
    for name, (distance, _) in results.items()
  }
  reference = [9.2e-3, 2.3e-4, 4.1e-4, 2.5e-4]
  for name, floor in zip(names, reference, strict=True):
    assert floor / 2 < floors[name] < 2 * floor
    last = np.median(results[name][0][:, -2000:-1000])
    assert 0.5 < floors[name] / last < 2  # it does not move


@SLOW
def test_digits_reaches_its_target():
  results = run(problem_of('digits'), ['DIANA+ varying'], 26_000, length=2000)
  expected = {'DIANA+ varying': ((12566, 8338), (25529, 14282))}
  for column in (0, 1):
    check(results, expected, column)


def test_the_norm_of_the_authors_sends_more_bits(cancer):
  """p = inf: as many iterations, denser messages (section 6.3)."""
  make = methods.METHODS['DIANA+ varying']
  chosen = [make(cancer, norm) for norm in ('l2', 'linf')]
  keys = jax.random.split(jax.random.key(1), 2)
  carry = runs.start(cancer, chosen, keys)
  with compiled_quickly(False):
    _, trace = runs.advance(cancer, chosen, 3000)(carry, keys, 0)
  two, inf = np.asarray(trace.coded).mean((0, 2))
  assert np.asarray(trace.distance).min((0, 2)).max() < 1e-6
  assert 1.05 < inf / two < 1.2  # 59.6 / 54.5


def test_ridge_regression_converges_too():
  features, labels = libsvm.breast_cancer()
  parts = splits.iid(splits.row_scaled(features), labels, 4, seed=0)
  problem = problems.ridge_regression(*parts, lam=1e-2)
  result = run(problem, ['DIANA+ varying', 'GD'], 4000)
  for distance, _ in result.values():
    assert stopping.hits(distance, 1e-10).min() > 0


def test_seeds_differ_and_repeat_alone_and_beside_others(cancer):
  """In law; rounding in another product of matrices flips a coin some time."""
  alone, again = (
    run(cancer, ['DIANA+ varying'], 200, length=200)['DIANA+ varying'][0]
    for _ in range(2)
  )
  np.testing.assert_array_equal(alone, again)
  assert (alone[0, 5:] != alone[1, 5:]).all()
  three = ['GD', 'DIANA+ varying', 'ADIANA']
  beside = run(cancer, three, 200, length=200)
  beside = beside['DIANA+ varying'][0]
  np.testing.assert_allclose(beside[:, :20], alone[:, :20], rtol=1e-4)
  np.testing.assert_allclose(beside[:, -1], alone[:, -1], rtol=0.5)


def test_gradients_in_one_pass_are_the_gradients(cancer):
  x = jnp.asarray(np.random.default_rng(0).standard_normal((3, cancer.d)))
  parts = jnp.asarray(cancer.features), jnp.asarray(cancer.targets)
  each = jax.vmap(jax.vmap(cancer.gradient, (0, 0, None)), (None, None, 0))(
    *parts, x
  )
  together = problems.gradients(cancer, *parts, x)
  np.testing.assert_allclose(together, each, rtol=1e-12)


# One of each algorithm, each kind of quantizer and each format of norms.
ONE_EACH = [
  'GD',
  'ADIANA',
  'DIANA block, authors',
  'DCGD+ varying',
  'DIANA+ varying, 16-bit norm',
  'DIANA+ block, 8-bit norms',
  'DIANA+ sparse',
]


@pytest.fixture(scope='module')
def three_iterations(cancer):
  """names -> {name: its method, state and trace after three iterations}."""

  @functools.cache
  def of(names):
    with jax.enable_x64(True), compiled_quickly():
      chosen = [methods.METHODS[name](cancer, 'l2') for name in names]
      keys = jax.random.split(jax.random.key(0), 1)
      carry = runs.start(cancer, chosen, keys)
      carry, trace = runs.advance(cancer, chosen, 3)(carry, keys, 0)
    coded = np.moveaxis(np.asarray(trace.coded), 1, 0)
    states = [state for _, state in carry]
    rows = zip(chosen, states, coded, strict=True)
    return dict(zip(names, rows, strict=True))

  return of


@pytest.mark.parametrize('name', tiered(methods.METHODS, ONE_EACH))
def test_what_is_said_of_a_method_is_what_it_sends(
  cancer, three_iterations, name
):
  fast = name in ONE_EACH
  names = [each for each in methods.METHODS if (each in ONE_EACH) == fast]
  method, state, coded = three_iterations(tuple(names))[name]
  bits = methods.wire_bits(method, cancer)
  if method.design is None:
    assert bits == 32 * (method.floats or cancer.d)
    return
  sent = method.sent(state)
  quantizer = methods.quantizer_of(method.design)
  size = 8 * sent.shape[-1]
  if quantizer.short is not None:  # in its short form, all three times
    size = 8 * quantizer.short.capacity(cancer.d)
    assert (state[0].short == 3).all()
  assert bits == method.messages * size
  assert 0 < coded.mean() < 2 * bits


def test_more_workers_than_coordinates():
  features, labels = libsvm.breast_cancer()
  parts = splits.by_norm(splits.row_scaled(features), labels, 40)
  problem = problems.logistic_regression(*parts)
  assert designs.levels_of_standard(problem) == 1
  names = ['DIANA', 'DIANA+ varying', 'DIANA+ block', 'DIANA+ sparse']
  for distance, _ in run(problem, names, 200, length=200).values():
    assert (distance[:, -1] < distance[:, 0]).all()


# --------------------------------------------------------------------- COLA


def columns(kind, n=4, d=10):
  """A problem whose features are not of one size, 10 of them for 4 workers."""
  rng = np.random.default_rng(2)
  rows = rng.standard_normal((n, 12, d)) * np.linspace(0.5, 2, d)
  z = rows @ rng.standard_normal(d)
  make = getattr(problems, f'{kind}_regression')
  return make(rows, np.sign(z) if kind == 'logistic' else z, lam=0.05)


RESIDUALS = {
  'logistic': (lambda z, b: -b / (1 + np.exp(b * z)), 0.25),
  'ridge': (lambda z, b: z - b, 1.0),
}


@SLOW
@pytest.mark.parametrize('kind', RESIDUALS)
def test_cola_is_its_dense_form_and_reaches_the_optimum(kind):
  problem, (residual, c) = columns(kind), RESIDUALS[kind]
  a, b = problem.features.reshape(-1, 10), problem.targets.ravel()
  blocks = [a[:, :3], a[:, 3:6], a[:, 6:9], a[:, 9:]]
  w = topologies.matrix(topologies.ring(4))
  dense = lambda steps, sigma: oracles.cola(
    blocks, b, w, 0.05, c, residual, steps, sigma
  )
  method = methods.METHODS['COLA'](problem, 'l2')
  keys = jax.random.split(jax.random.key(0), 1)
  carry = runs.start(problem, [method], keys)
  ((x, state),), trace = runs.advance(problem, [method], 30)(carry, keys, 0)
  expected, v = dense(30, 4)
  np.testing.assert_allclose(x[0], np.tile(expected, (4, 1)), atol=1e-10)
  np.testing.assert_allclose(state.v[0], v, atol=1e-10)
  np.testing.assert_allclose(v.mean(axis=0), a @ expected, atol=1e-10)
  assert (trace.coded == 2 * 48 * 32).all()
  off = lambda x: np.sum((x - problem.optimum) ** 2)
  assert off(dense(4000, 4)[0]) < 1e-10 * off(0)
  # Theory wants sigma = n: of equal columns all would go the whole way.
  if kind == 'ridge':
    blocks = 4 * blocks[:1]
    assert np.abs(dense(60, 4)[0]).max() < 10 < np.abs(dense(60, 1)[0]).max()


# ----------------------------------------------------------------- stopping


def line(rate, k, level=1.0):
  return level * 10.0 ** (-rate * np.arange(k))[None]


@pytest.mark.parametrize(
  'distance,most,last,why',
  [
    (line(0.1, 200), None, 1000, 'target'),
    (line(0.01, 200), None, 200, 'end'),
    (line(0.0, 200), 200, 1000, 'floor'),
    (line(0.0, 200) * np.nan, None, 1000, 'diverged'),
    (line(-0.1, 200), None, 1000, 'diverged'),
    (line(0.001, 200), None, 60_000, None),
    (line(1e-5, 9000), None, 60_000, 'no hope'),
    (line(1.5e-4, 9000), None, 60_000, None),  # 1e-9: 1e-6 is still to come
    (line(1.5e-4, 42_000), None, 60_000, 'no hope'),  # 1e-10 is not
    (line(1.7e-4, 42_000), None, 60_000, None),
  ],
)
def test_why_a_method_stops(distance, most, last, why):
  assert stopping.reason(distance, most, last) == why


# ------------------------------------------------------------- from a config


def small(**entries):
  config = configs.get_config('breast_cancer')
  config.seeds, config.iterations, config.clock = 2, 500, False
  config.methods = ('GD', 'DIANA+ varying')
  with config.unlocked():
    config.update(entries)
  return config


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a finished run, and what it printed."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  with jax.enable_x64(True):
    return folder, driver.run(small(), folder)


def test_a_run_writes_what_came_of_it(whole, cancer):
  folder, text = whole
  for name in ('figure.png', 'figure.svg', 'config.json', 'run.json'):
    assert (folder / name).stat().st_size > 0
  entries = json.loads((folder / 'results.json').read_text())
  assert list(entries) == ['GD', 'DIANA+ varying']
  assert entries['GD']['why'] == 'end'
  assert entries['GD']['gamma'] == pytest.approx(1 / cancer.L)
  assert text in (folder / 'table.md').read_text()
  rows = (folder / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(row) for row in rows]
  assert {row['method'] for row in rows} == set(entries)
  gd = [row for row in rows if row['method'] == 'GD']
  assert gd[0]['distance'] == pytest.approx(1) and gd[0]['coded_bits'] == 0
  expected = gd[-1]['iteration'] * 32 * cancer.d * cancer.n
  assert gd[-1]['coded_bits'] == gd[-1]['packed_bits'] == expected


@pytest.mark.parametrize('how', ['killed', pytest.param('asked', marks=SLOW)])
def test_a_stopped_run_goes_on(tmp_path, monkeypatch, whole, how):
  # A checkpoint after each chunk, or none until the signal.
  monkeypatch.setattr(driver, 'MINUTES', 0 if how == 'killed' else 1000)
  original, calls = driver._note, []

  def killed(*args):
    original(*args)
    calls.append(1)
    if len(calls) == 2:
      if how == 'killed':
        raise KeyboardInterrupt
      signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(driver, '_note', killed)
  with pytest.raises(KeyboardInterrupt):
    driver.run(small(), tmp_path / 'stopped')
  monkeypatch.setattr(driver, '_note', original)
  assert driver.run(small(), tmp_path / 'stopped', resume=True) == whole[1]


def test_another_run_is_not_gone_on_with(tmp_path):
  (tmp_path / 'config.json').write_text(small().to_json())
  with pytest.raises(ValueError, match='config.methods was .* another run'):
    driver.run(small(methods=('GD',)), tmp_path, resume=True)


def test_no_more_iterations_count_than_were_asked_for(tmp_path):
  with compiled_quickly():
    driver.run(small(iterations=20, methods=('GD',), seeds=1), tmp_path)
  rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(rows[-1])['iteration'] == 19


def test_describe_says_what_would_run():
  text = driver.describe(small())
  assert '5 workers with 113 rows of 30' in text
  assert 'DIANA+ varying' in text and '160 bits packed' in text


@pytest.mark.parametrize(
  'entries,words',
  [
    (dict(methods=('GD', 'SGD')), r"config.methods: \['SGD'\] unknown"),
    (dict(norm='l1'), "norm='l1'"),
    (dict(seeds=0), 'config.seeds=0'),
    (dict(iterations=0), 'config.iterations=0'),
    (dict(iterations=10**8), 'config.iterations=1000.*GiB of records, above 4'),
    (dict(workers=570), 'config.workers=570; 569 rows make 1 to 569'),
    (dict(data=dict(name='libsvm')), 'config.data: libsvm needs data.path'),
    (dict(data=dict(name='mnist')), "config.data.name='mnist'; choose from"),
    (
      dict(problem=dict(name='logistic_regression', lam=0.0)),
      'config.problem.lam=0.0; .* positive .*singular',
    ),
    (dict(partition=dict(name='dirichlet')), 'config.partition.name='),
  ],
)
def test_one_clear_line_for_each_mistake(entries, words):
  with pytest.raises(ValueError, match=words):
    driver.describe(small(**entries))


def test_a_geometric_mean():
  assert report.geometric([1.0, 1e4]) == pytest.approx(100)
