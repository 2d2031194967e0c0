"""Training with quantizers shaped by estimates: the program and its configs."""

import jax
import numpy as np
import pytest

from configs import smoothness_cifar10_cpu, smoothness_digits
from moniqua_jax import data
from moniqua_jax.asynchronous import training
from moniqua_jax.curvature import refresh, shaped
from moniqua_jax.quantizers import roots
from moniqua_jax.training import experiment, loop, metrics
from moniqua_jax.training import step as step_lib
from tests import helpers, hlo
from tests.test_reduced_training import KEPT, LARGE
from tests.trained import (
  assert_same_run,
  built,
  compiled_quickly,
  described,
  last_state,
  on_made_up_images,
  stop_after,
)

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True, scope='module')
def quickly():
  with compiled_quickly():
    yield


def short(method, **entries):
  """A method of the digits, over in seconds; two epochs are 22 steps."""
  config = smoothness_digits.get_config(method).copy_and_resolve_references()
  config.epochs, config.eval_every, config.checkpoint_every = 2.0, 1.0, 1.0
  if config.momentum:
    config.learning_rate.warmup_epochs = 0.5
  with config.unlocked():
    config.update(entries)
  return config


LEARNS = [
  'layer4',
  'shared_third_kronecker3',
  'diana3',
  'inverse_kronecker_dcd_torus4',
  'layer_moniqua_ring4',
]


def check_learns(config, row):
  assert row['test/accuracy'] > 0.5
  assert row.get('gossip/unreadable', 0) == 0
  if config.gossip.name == 'none':
    assert row['gossip/consensus_max'] == 0  # all decode the same bytes


@pytest.mark.parametrize(
  'method',
  [
    pytest.param(name, marks=() if 'moniqua' in name else SLOW)
    for name in LEARNS
  ],
)
def test_it_learns(tmp_path, method):
  config = short(method)
  config.smoothness.draws = None if config.smoothness.name == 'none' else 2
  check_learns(config, loop.train_and_evaluate(config, tmp_path))


def test_diana_learns_and_the_probe_sees_the_noise_of_what_it_sends(tmp_path):
  config = short('diana_diagonal4', gradient_probe_every=22)
  config.gradient_probe_draws = config.smoothness.draws = 2
  row = loop.train_and_evaluate(config, tmp_path)
  check_learns(config, row)
  assert row['gradient/quantization_variance'] > 0
  assert metrics.read(tmp_path)[-1]['gradient/total_variance'] > 0


@pytest.fixture(scope='module')
def adiana(tmp_path_factory):
  """Two messages a step, seven estimates in 44 steps; config and folder."""
  config, workdir = short('adiana4', epochs=4.0), tmp_path_factory.mktemp('a')
  config.smoothness.update(refresh=7, draws=2)
  check_learns(config, loop.train_and_evaluate(config, workdir))
  return config, workdir


@pytest.fixture(scope='module')
def choco(tmp_path_factory):
  """Full matrices, estimated anew every seventh step; config and folder."""
  config = short('kronecker_choco_ring4')
  config.smoothness.update(refresh=7, draws=2)
  workdir = tmp_path_factory.mktemp('choco')
  check_learns(config, loop.train_and_evaluate(config, workdir))
  return config, workdir


@pytest.mark.parametrize(
  'method', ['adiana', pytest.param('choco', marks=SLOW)]
)
def test_resuming_gives_the_same_bits(tmp_path, method, request):
  """With tables in the checkpoint, renewed after it and once before it."""
  config, whole = request.getfixturevalue(method)
  stop_after(config, 11, tmp_path)
  _, before = last_state(tmp_path, config)
  loop.train_and_evaluate(config, tmp_path, resume=True)
  assert_same_run(whole, tmp_path)
  _, after = last_state(tmp_path, config)
  old, new = shapes_of(before), shapes_of(after)
  assert np.abs(old.own.half[0] - 1).max() > 0  # was estimated
  changed = jax.tree.map(lambda a, b: np.any(a != b), old, new)
  assert any(jax.tree.leaves(changed))  # and again


def test_all_keep_and_decode_with_the_table_of_the_sender(tmp_path):
  """A table row is the owner's root, and workers differ; resuming keeps it."""
  config = short('diagonal4')
  config.smoothness.update(refresh=0, draws=2)
  stop_after(config, 11, tmp_path)
  _, state = last_state(tmp_path, config)
  shape = shapes_of(state)
  for leaf, table in zip(shape.own.half, shape.tables, strict=True):
    for reader in range(8):
      np.testing.assert_array_equal(table[reader], leaf)
    assert np.any(leaf[0] != leaf[1])
  halves, inverses = shape.own
  for half, inverse in zip(halves, inverses, strict=True):
    np.testing.assert_allclose(half * inverse, 1, rtol=1e-5)
  loop.train_and_evaluate(config, tmp_path, resume=True)
  step, state = last_state(tmp_path, config)
  assert step == 22  # and the estimate was not due
  jax.tree.map(np.testing.assert_array_equal, shapes_of(state), shape)
  config.smoothness.draws = 3
  with pytest.raises(
    ValueError, match='config.smoothness.draws was .* another run'
  ):
    loop.train_and_evaluate(config, tmp_path, resume=True)


def shapes_of(state):
  """The one `Shape` in a train state."""
  is_shape = lambda node: isinstance(node, shaped.Shape)
  nodes = jax.tree.leaves(state.opt_state, is_leaf=is_shape)
  (shape,) = filter(is_shape, nodes)
  return shape


# -------------------------------------------------------------------- bytes

# Numbers in the root of D by kind, of the large leaves of the digits' net.
TABLE = {
  'layer': 2,
  'diagonal': LARGE,
  'kronecker': 64**2 + 128**2 + 128**2 + 10**2,
}


@pytest.mark.parametrize('kind', helpers.tiered(TABLE, ['kronecker']))
def test_the_estimates_are_one_gather(kind):
  """What the compiled exchange sends, and what is counted for it."""
  config = short(f'{kind}4', runner='sharded')
  of = built(config)
  found = collectives_of_an_exchange(config, of)
  assert found == [('all-gather', 'f32', 8 * 4 * TABLE[kind])]
  assert of.sent.by_worker.estimate == 7 * 4 * TABLE[kind]


def test_one_matrix_for_all_is_one_all_reduce():
  config = short('shared_diagonal4', runner='sharded')
  of = built(config)
  found = collectives_of_an_exchange(config, of)
  assert found == [('all-reduce', 'f32', 4 * LARGE)]
  assert of.sent.by_worker.estimate == 2 * 7 / 8 * 4 * LARGE


def collectives_of_an_exchange(config, of):
  init, _, _ = step_lib.make_steps(of)
  state = jax.eval_shape(of.run(init, (0,)), np.arange(8))
  sample, exchange = refresh.make_functions(of)
  batch = data.batch(*of.data, seed=0, step=0, batch_size=16)
  sample = of.run(sample, (0, 0, 0, None))
  args = state.params, state.model_state, batch, np.int32(0)
  with compiled_quickly(False):
    assert not list(hlo.collectives(sample.lower(*args).compile().as_text()))
    seen = jax.eval_shape(sample, *args)
    lowered = of.run(exchange, (0, 0)).lower(state.opt_state, seen)
    return list(hlo.collectives(lowered.compile().as_text()))


def check_bytes(config, workdir, rounds, steps, estimates):
  message = LARGE // 2 + 4 * -(-LARGE // 512) + 1  # codes, norms, sender
  exact = 2 * 7 / 8 * 4 * KEPT
  step = 7 * message * rounds + exact
  table = 7 * 4 * TABLE[config.smoothness.name]
  sent = metrics.read(workdir)[-1]['wire/bytes_sent']
  assert sent == steps * step + estimates * table
  _, state = last_state(workdir, config)
  assert state.opt_state[1].error is not None
  sent = getattr(state.opt_state[1].error, 'sent', state.opt_state[1].error)
  assert sent.nbytes == 8 * rounds * message


def test_bytes_sent_are_those_of_payloads_and_estimates(adiana):
  check_bytes(*adiana, rounds=2, steps=44, estimates=7)


@SLOW
def test_bytes_sent_are_those_of_payloads_and_estimates_of_one_round(tmp_path):
  config = short('layer4')
  config.smoothness.update(refresh=5, draws=1)
  loop.train_and_evaluate(config, tmp_path)
  check_bytes(config, tmp_path, rounds=1, steps=22, estimates=5)


def test_same_bytes_with_and_without():
  """In gossip not even a sender's index is added."""
  sent = lambda name: built(short(name)).sent.by_worker
  for name in ('choco_ring3', 'moniqua_torus2'):
    kind = 'layer' if 'moniqua' in name else 'diagonal'
    shaped_ = sent(f'{kind}_{name}')
    np.testing.assert_array_equal(sent(name).gossip, shaped_.gossip)
    assert shaped_.estimate > 0 == sent(name).estimate
  assert sent('diagonal4').whole == sent('qsgd4').whole + 7


# ------------------------------------------------------------- what is shaped


def test_an_estimate_depends_on_the_step_and_the_seed_alone():
  config = short('shared_kronecker4')
  config.smoothness.draws = 2
  of = experiment.from_config(config)
  init, _, _ = step_lib.make_steps(of)
  state = of.run(init, (0,))(np.arange(8))
  estimate = refresh.renewal(of)
  halves = [
    shapes_of(estimate(state, step)).own.half[0].left for step in (3, 3, 4)
  ]
  np.testing.assert_array_equal(halves[0], halves[1])
  assert np.any(halves[0] != halves[2])
  np.testing.assert_array_equal(halves[0][0], halves[0][5])  # shared
  # All start from the coordinates of the parameters.
  first = shapes_of(state).own.half[0]
  assert isinstance(first, roots.Kronecker)
  np.testing.assert_array_equal(first.left[0], np.eye(64))


# ------------------------------------------------------------------ mistakes

MISTAKES = {
  'a kind': (
    'diagonal4',
    dict(smoothness=dict(name='full')),
    "config.smoothness.name='full'; choose from .*'kronecker'",
  ),
  'an entry without a kind': (
    'qsgd4',
    dict(smoothness=dict(refresh=5)),
    'config.smoothness.refresh is not an argument of none',
  ),
  'refresh': (
    'diagonal4',
    dict(smoothness=dict(refresh=-1)),
    'config.smoothness.refresh=-1; it must be a whole number >= 0',
  ),
  'draws': (
    'diagonal4',
    dict(smoothness=dict(draws=0)),
    'config.smoothness.draws=0; it must be a whole number >= 1',
  ),
  'floor': (
    'diagonal4',
    dict(smoothness=dict(floor=0.0)),
    'config.smoothness.floor=0.0; it must be a positive number',
  ),
  'power': (
    'diagonal4',
    dict(smoothness=dict(power=0.0)),
    'config.smoothness: power=0.0; it must be finite, and not 0',
  ),
  'no quantizer': (
    'diagonal_choco_ring4',
    dict(
      quantizer=dict(
        name='full_precision', bits=None, norm=None, bucket_size=None
      )
    ),
    "config.smoothness.name='diagonal' shapes a quantizer",
  ),
  'two scales': (
    'layer_moniqua_ring4',
    dict(scales_from='runs/probe'),
    "config.scales_from='runs/probe' does not go with it",
  ),
  'a table for each in gossip': (
    'diagonal_choco_ring4',
    dict(smoothness=dict(per_worker=True)),
    'config.smoothness.per_worker=True: in gossip all share one D',
  ),
  'moniqua with a table for each': (
    'layer4',
    dict(quantizer=dict(name='moniqua', theta=1.0, bucket_size=None)),
    'config.smoothness.per_worker=True: moniqua reads',
  ),
  'layers and norms of layers': (
    'layer4',
    dict(quantizer=dict(name='block')),
    "config.smoothness.name='layer' changes nothing",
  ),
  'bits of block': (
    'choco_ring4',
    dict(quantizer=dict(bits=1)),
    'config.quantizer: bits=1; block takes 2 to 8',
  ),
  'a bucket of block': (
    'choco_ring4',
    dict(quantizer=dict(bucket_size=0)),
    'config.quantizer.bucket_size=0; .* whole number from 1',
  ),
  'alpha': (
    'diana4',
    dict(reduce=dict(alpha=2.0)),
    'config.reduce.alpha=2.0; .* above 0 and at most 1',
  ),
  'no alpha': (
    'diana4',
    dict(reduce=dict(alpha=None)),
    'config.reduce: diana needs reduce.alpha',
  ),
  'dcgd without a quantizer': (
    'qsgd4',
    dict(quantizer=dict(name='full_precision', bits=None, bucket_size=None)),
    "config.reduce.name='dcgd' needs a quantizer of gradients",
  ),
  'numbers of adiana': (
    'adiana4',
    dict(reduce=dict(theta2=0.9)),
    'theta1=0.2 .* at most 1; config.reduce.theta2=0.9 does not',
  ),
  'adiana with momentum': (
    'adiana4',
    dict(momentum=0.9),
    'gives the whole step; config.momentum=0.9 .*: take .*momentum=0.0',
  ),
  'adiana with a rate': (
    'adiana4',
    dict(learning_rate=dict(peak=0.1)),
    'step; config.learning_rate.peak=0.1 .*: take .*peak=1.0',
  ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_named(mistake):
  method, entries, message = MISTAKES[mistake]
  with pytest.raises(ValueError, match=message) as error:
    built(short(method, **entries))
  assert '\n' not in str(error.value)


def test_a_side_that_is_too_large_is_named():
  config = short('kronecker4', model=dict(name='mlp', hidden=(1200,)))
  with pytest.raises(ValueError, match='config.smoothness: .* 64 x 1200; its'):
    built(config)


def test_the_asynchronous_form_has_no_estimates():
  config = short('layer_moniqua_ring4')
  with pytest.raises(ValueError, match="config.smoothness.name='layer': its"):
    training.setup(config, 0, 8)


# ------------------------------------------------------------------- configs


# Each kind of shape and each algorithm; the digits' net has the others.
A_FEW = [
  'super_sgd',
  'layer4',
  'shared_third_diagonal4',
  'kronecker_inf4',
  'inverse_diagonal4',
  'diagonal_nuqsgd4',
  'diana_third_kronecker4',
  'inverse_kronecker_choco_ring4',
  'diagonal_dcd_torus3',
  'inverse_layer_moniqua_torus2',
]


@pytest.mark.parametrize(
  'method', helpers.tiered(smoothness_cifar10_cpu.METHODS, A_FEW)
)
def test_configs_build(method):
  config = on_made_up_images(smoothness_cifar10_cpu.get_config(method))
  assert ('per worker and estimate' in described(config)) == (
    config.smoothness.name != 'none'
  )
