"""Training with quantized means of gradients: the program and its configs."""

import numpy as np
import optax
import pytest

from configs import nuqsgd_cifar10_cpu, nuqsgd_imagenet, nuqsgd_resnet110
import moniqua_jax as mj
from moniqua_jax.training import loop, metrics, optimizer
from tests import helpers
from tests.trained import (
  assert_same_run,
  built,
  collectives_of_a_step,
  compiled_quickly,
  described,
  on_made_up_images,
  small,
  stop_after,
)

LARGE, KEPT = 64 * 128 + 128 * 10, 128 + 10  # values of the digits' net
EXACT = 2 * 7 / 8 * 4 * KEPT  # bytes of a step for what is not quantized


@pytest.fixture(autouse=True, scope='module')
def quickly():
  with compiled_quickly():
    yield


def reducing(name='allreduce', strategy='scatter_reduce', **entries):
  """The digits config with a quantized mean."""
  quantizer = dict(name='nuqsgd', bits=4, bucket_size=512)
  entries = dict(quantizer=quantizer) | entries
  config = small('allreduce', **entries)
  if name != 'double_squeeze':
    config.reduce.strategy = strategy
  config.reduce.name = name
  return config


SIGN = dict(name='sign', bucket_size=64, scale='two_mean')
ALQ = dict(name='alq', bits=3, bucket_size=512)
RUNS = {
  'all to all': reducing(strategy='all_gather'),
  'error feedback': reducing('error_feedback', quantizer=SIGN),
  'local momentum': reducing(
    'error_feedback', quantizer=SIGN, local_momentum=0.9, momentum=0.0
  ),
}
RESUMED = {
  'double squeeze': reducing('double_squeeze', quantizer=SIGN),
  'coded': reducing(strategy='all_gather', coded=3.9),
  'alq': reducing(quantizer=ALQ),
  'fragments': reducing(quantizer=dict(name='eden', bits=2), fragments=4),
}
SLOW = pytest.mark.slow


def check_learns(row, apart=1e-6):
  assert row['test/accuracy'] > 0.5
  assert row['gossip/consensus_max'] < apart  # by the mean's own rounding


@SLOW
@pytest.mark.parametrize('name', RUNS)
def test_it_learns(tmp_path, name):
  check_learns(loop.train_and_evaluate(RUNS[name], tmp_path))


@pytest.fixture(scope='module')
def nuqsgd(tmp_path_factory):
  """The folder of a run with a reduce-scatter, probed twice."""
  workdir = tmp_path_factory.mktemp('nuqsgd')
  config = reducing(gradient_probe_every=11, gradient_probe_draws=4)
  check_learns(loop.train_and_evaluate(config, workdir))
  return workdir


@pytest.mark.slow
def test_bytes_sent_are_those_of_the_payloads(nuqsgd):
  chunk = LARGE // 8
  message = chunk // 2 + 4 * -(-chunk // 512)
  sent = metrics.read(nuqsgd)[-1]['wire/bytes_sent']
  assert sent == 22 * (2 * 7 * message + EXACT)


@pytest.mark.parametrize('name', helpers.tiered(RESUMED, ['coded']))
def test_it_learns_and_resumes_with_the_same_bits(tmp_path, name):
  """With memories, levels and counts of short messages in the checkpoint."""
  config = RESUMED[name]
  row = loop.train_and_evaluate(config, tmp_path / 'one')
  # Of fragments three have gone on since their mean; the rate falls to 0.
  check_learns(row, apart=0.01 if name == 'fragments' else 1e-6)
  if name == 'coded':
    whole = 22 * (7 * (LARGE // 2 + 4 * -(-LARGE // 512)) + EXACT)
    # Some messages were short.
    assert 0.9 * whole < row['wire/bytes_sent'] < whole
  if name == 'fragments':
    fragment = -(-(LARGE + KEPT) // 4)
    message = helpers.QUANTIZERS['eden 2'][2](-(-fragment // 8))
    assert row['wire/bytes_sent'] == 22 * 2 * 7 * message
  stop_after(config, 11, tmp_path / 'two')
  loop.train_and_evaluate(config, tmp_path / 'two', resume=True)
  assert_same_run(tmp_path / 'one', tmp_path / 'two')


def test_the_step_sends_packed_bytes_and_the_small_leaves():
  found = collectives_of_a_step(reducing(runner='sharded'))
  chunk = LARGE // 8
  message = chunk // 2 + 4 * -(-chunk // 512)
  in_bytes = sum(nbytes for _, dtype, nbytes in found if dtype == 'u8')
  assert in_bytes == 2 * 8 * message
  rest = [(dtype, nbytes) for _, dtype, nbytes in found if dtype != 'u8']
  assert {dtype for dtype, _ in rest} == {'f32'}
  assert sum(nbytes for _, nbytes in rest) == 4 * KEPT


def test_local_momentum_is_that_of_each_worker():
  """Full precision: momentum before the mean or after it is the same."""
  rng = np.random.default_rng(0)
  grads = rng.standard_normal((5, 8, 40)).astype(np.float32)
  config = reducing('allreduce', quantizer=dict(name='full_precision'))
  config.reduce.strategy = 'exact'
  chains = []
  for local, after in ((0.9, 0.0), (0.0, 0.9)):
    with config.unlocked():
      config.local_momentum, config.momentum = local, after
    before = optax.trace(local) if local else optax.identity()
    mean = mj.allreduce(axis_name='workers')
    chains.append(optax.chain(before, mean, optimizer.local(config, 0.1, None)))
    assert len(built(config).optimizer.chain.init(np.zeros(9610, 'f4'))) == 4
  results = []
  for tx in chains:
    state = mj.simulated(tx.init, (0,))(grads[0])
    update = mj.simulated(tx.update, (0, 0, 0))
    for g in grads:
      updates, state = update(g, state, g)
    results.append(np.asarray(updates))
  np.testing.assert_allclose(*results, atol=1e-6)


def test_the_probe_sees_the_noise(tmp_path, nuqsgd):
  probed = lambda workdir: [
    row for row in metrics.read(workdir) if 'gradient/total_variance' in row
  ]
  assert [row['step'] for row in probed(nuqsgd)] == [11, 22]
  rows = {'nuqsgd': probed(nuqsgd)[0]}
  for name, strategy, quantizer in (
    ('exact', 'exact', dict(name='full_precision')),
    ('qsgd', 'all_gather', dict(name='qsgd', bits=3, bucket_size=8192)),
  ):
    config = reducing(
      strategy=strategy,
      quantizer=quantizer,
      epochs=1.0,
      gradient_probe_every=11,
      gradient_probe_draws=4,
    )
    loop.train_and_evaluate(config, tmp_path / name)
    (rows[name],) = probed(tmp_path / name)
  assert 'gradient/coded_bits' not in rows['exact']
  for name in ('nuqsgd', 'qsgd'):
    row = rows[name]
    assert 0 < row['gradient/entropy_bits'] <= row['gradient/coded_bits']
  variance = lambda name, key: rows[name][f'gradient/{key}_variance']
  assert variance('qsgd', 'quantization') > 5 * variance(
    'nuqsgd', 'quantization'
  )
  assert variance('qsgd', 'normalised') > variance('exact', 'normalised')


MISTAKES = {
  'a strategy': (
    dict(reduce=dict(strategy='ring')),
    "config.reduce: strategy='ring'; choose from",
  ),
  'no quantizer': (
    dict(quantizer=dict(name='full_precision', bits=None, bucket_size=None)),
    "config.reduce: strategy='scatter_reduce' needs a quantizer",
  ),
  'a quantizer with exact': (
    dict(reduce=dict(strategy='exact')),
    "config.reduce: strategy='exact' sends full precision; .* choose from",
  ),
  'nine bits': (
    dict(quantizer=dict(bits=9)),
    'quantizer.bits=9; .* to 8',
  ),
  'a norm': (
    dict(quantizer=dict(norm='l1')),
    "quantizer.norm='l1'; .* 'linf'",
  ),
  'capacity': (dict(coded=4.0), 'config.coded=4.0 by .*: capacity=4.0'),
  'a code of no codes': (
    dict(
      quantizer=dict(name='natural', bits=None, bucket_size=None), coded=2.0
    ),
    'config.coded=.*: This quantizer cannot be coded',
  ),
  'levels': (
    dict(quantizer=dict(name='leveled', bits=None, levels=(0.0, 0.5))),
    'config.quantizer: levels from -0.5 to 0.5',
  ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_named(mistake):
  entries, message = MISTAKES[mistake]
  config = reducing()
  with config.unlocked():
    config.update(entries)
  with pytest.raises(ValueError, match=message) as error:
    built(config)
  assert '\n' not in str(error.value)


def test_the_probe_needs_a_mean(tmp_path):
  with pytest.raises(ValueError, match='take --config.reduce.name=allreduce'):
    loop.train_and_evaluate(small(gradient_probe_every=5), tmp_path)
  config = reducing(gradient_probe_every=5, gradient_probe_draws=1)
  with pytest.raises(ValueError, match='gradient_probe_draws=1'):
    loop.train_and_evaluate(config, tmp_path / 'draws')


# ------------------------------------------------------------------ configs

CONFIGS = {
  **{
    f'cifar10_cpu {name}': nuqsgd_cifar10_cpu.get_config(name)
    for name in nuqsgd_cifar10_cpu.METHODS
  },
  **{
    f'resnet110 {name}': nuqsgd_resnet110.get_config(name)
    for name in ('nuqsgd4', 'ef_sign_small', 'alq4:cpu')
  },
  **{
    f'imagenet {name}': nuqsgd_imagenet.get_config(name)
    for name in ('resnet18:nuqsgd4', 'resnet50:qsgdinf4:cpu')
  },
}


# One of each quantizer and each reduction.
A_FEW = [
  'cifar10_cpu ' + name
  for name in ('super_sgd', 'qsgdinf4', 'nuqsgd4', 'terngrad', 'ef_sign')
]
A_FEW += [name for name in CONFIGS if 'cifar10_cpu' not in name]


@pytest.mark.parametrize('name', helpers.tiered(CONFIGS, A_FEW))
def test_every_config_builds(name):
  config = on_made_up_images(CONFIGS[name], num_train=2400)
  if 'resnet110 ' in name or 'resnet18' in name:
    config.model.name = 'cnn'  # the nets themselves are in test_models
  assert 'bytes per worker' in described(config)


def test_paper_settings():
  config = nuqsgd_resnet110.get_config('nuqsgd4')
  assert config.batch_size == 128 and config.weight_decay == 1e-4
  assert config.learning_rate.peak == 0.1 and config.momentum == 0.9
  assert config.quantizer.bits == 4 and config.quantizer.bucket_size == 8192
  assert round(config.epochs * (50_000 // (8 * 128))) == 80_000
  assert nuqsgd_resnet110.get_config('qsgd4_small').batch_size == 32
  assert nuqsgd_resnet110.get_config('nuqsgd4:cpu').variant == 'cpu'
  with pytest.raises(ValueError, match='only :cpu exists'):
    nuqsgd_resnet110.get_config('nuqsgd4:gpu')
  with pytest.raises(ValueError, match='MODEL one of'):
    nuqsgd_imagenet.get_config('resnet51:nuqsgd4')
  with pytest.raises(ValueError, match='nope is unknown'):
    nuqsgd_imagenet.get_config('resnet18:nope')
