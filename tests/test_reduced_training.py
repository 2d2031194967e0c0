"""Training with quantized means of gradients: the program and its configs."""

import numpy as np
import optax
import pytest

from configs import nuqsgd_cifar10_cpu, nuqsgd_imagenet, nuqsgd_resnet110
import moniqua_jax as mj
from moniqua_jax import data
from moniqua_jax.training import experiment, loop, metrics, optimizer, summary
from tests.test_loop import assert_same_run, collectives_of_a_step, small

LARGE, KEPT = 64 * 128 + 128 * 10, 128 + 10  # values of the digits' net


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
RUNS = {
  'nuqsgd': reducing(),
  'all to all': reducing(strategy='all_gather'),
  'error feedback': reducing('error_feedback', quantizer=SIGN),
  'double squeeze': reducing('double_squeeze', quantizer=SIGN),
  'local momentum': reducing(
    'error_feedback', quantizer=SIGN, local_momentum=0.9, momentum=0.0
  ),
  'alq': reducing(quantizer=dict(name='alq', bits=3, bucket_size=512)),
  'coded': reducing(strategy='all_gather', coded=3.9),
}


@pytest.mark.parametrize('name', RUNS)
def test_it_learns(tmp_path, name):
  row = loop.train_and_evaluate(RUNS[name], tmp_path)
  assert row['test/accuracy'] > 0.5
  assert row['gossip/consensus_max'] < 1e-6  # of the mean's own rounding


@pytest.mark.parametrize('name', ['double squeeze', 'alq', 'coded'])
def test_resuming_gives_the_same_bits(tmp_path, name):
  """With memories, levels and counts of short messages in the checkpoint."""
  config = RUNS[name]
  loop.train_and_evaluate(config, tmp_path / 'one')
  stop_after(config, 11, tmp_path / 'two')
  loop.train_and_evaluate(config, tmp_path / 'two', resume=True)
  assert_same_run(tmp_path / 'one', tmp_path / 'two', config)


def stop_after(config, step, workdir):
  """Trains, and is interrupted in the step after a checkpoint."""

  class Interrupted(Exception):
    pass

  def batches(*args, **kwargs):
    for k, batch in original(*args, **kwargs):
      if k == step + 2:
        raise Interrupted
      yield k, batch

  original = data.batches
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, 'batches', batches)
    with pytest.raises(Interrupted):
      loop.train_and_evaluate(config, workdir)


def test_bytes_sent_are_those_of_the_payloads(tmp_path):
  row = loop.train_and_evaluate(RUNS['nuqsgd'], tmp_path)
  chunk = LARGE // 8
  message = chunk // 2 + 4 * -(-chunk // 512)
  exact = 2 * 7 / 8 * 4 * KEPT
  assert row['wire/bytes_sent'] == 22 * (2 * 7 * message + exact)
  loop.train_and_evaluate(RUNS['coded'], tmp_path / 'coded')
  coded = metrics.read(tmp_path / 'coded')[-1]['wire/bytes_sent']
  whole = 22 * (7 * (LARGE // 2 + 4 * -(-LARGE // 512)) + exact)
  assert 0.9 * whole < coded < whole  # some messages were short


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
    chains.append(optax.chain(before, mean, optimizer.local(config, 0.1)))
    assert (
      len(
        experiment.from_config(config).optimizer.chain.init(
          np.zeros(9610, 'f4')
        )
      )
      == 4
    )
  results = []
  for tx in chains:
    state = mj.simulated(tx.init, (0,))(grads[0])
    update = mj.simulated(tx.update, (0, 0, 0))
    for g in grads:
      updates, state = update(g, state, g)
    results.append(np.asarray(updates))
  np.testing.assert_allclose(*results, atol=1e-6)


def test_the_probe_sees_the_noise(tmp_path):
  rows = {}
  for name, quantizer in {
    'exact': dict(name='full_precision'),
    'nuqsgd': dict(name='nuqsgd', bits=4, bucket_size=512),
    'qsgd': dict(name='qsgd', bits=3, bucket_size=8192),
  }.items():
    config = reducing(
      strategy='all_gather',
      quantizer=quantizer,
      gradient_probe_every=11,
      gradient_probe_draws=4,
    )
    if name == 'exact':
      config.reduce.strategy = 'exact'
    loop.train_and_evaluate(config, tmp_path / name)
    probed = [
      row
      for row in metrics.read(tmp_path / name)
      if 'gradient/total_variance' in row
    ]
    assert [row['step'] for row in probed] == [11, 22]
    rows[name] = probed[0]
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
  'nine bits': (dict(quantizer=dict(bits=9)), 'config.quantizer: bits=9'),
  'a norm': (dict(quantizer=dict(norm='l1')), "config.quantizer: norm='l1'"),
  'capacity': (dict(coded=4.0), 'config.coded: capacity=4.0'),
  'a code of no codes': (
    dict(
      quantizer=dict(name='natural', bits=None, bucket_size=None), coded=2.0
    ),
    'config.coded: This quantizer cannot be coded',
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
    experiment.from_config(config)
  assert '\n' not in str(error.value)


def test_the_probe_needs_a_mean(tmp_path):
  with pytest.raises(ValueError, match='set config.reduce'):
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


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_builds(name):
  """On images that are made up."""
  config = CONFIGS[name].copy_and_resolve_references()
  with config.unlocked():
    config.runner, config.data.name = 'simulated', 'synthetic'
    if 'resnet110 ' in name or 'resnet18' in name:
      config.model.name = 'cnn'  # the nets themselves are in test_models
    config.data.update(
      num_train=2400, num_test=40, shape=(32, 32, 3), num_classes=10, seed=0
    )
  built = experiment.from_config(config)
  assert 'bytes per worker' in summary.describe(built)


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
