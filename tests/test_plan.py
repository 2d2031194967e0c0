"""The plan of a run, against formulas worked out by hand."""

import pytest

from configs import digits, smoothness
import moniqua_jax as mj
from moniqua_jax.plan import chips as plan
from tests import programs

MLP = 64 * 128 + 128 + 128 * 10 + 10  # parameters of the digits config


def test_pods_of_chips():
  assert plan.pod('v5e:16x16') == plan.Pod('v5e', 256, 1, 256)
  assert plan.pod('v4:4x4x8', workers=4096) == plan.Pod('v4', 128, 32, 4096)
  assert plan.pod('H100:16', workers=4) == plan.Pod('H100', 16, 1, 4)
  assert plan.pod('cpu', workers=8) == plan.Pod('cpu', 1, 8, 8)


@pytest.mark.parametrize(
  'topology,workers,message',
  [
    ('v9:4x4', None, r"unknown chip 'v9'; choose from \['A100', 'H100'"),
    ('v5e:4y4', None, "'4y4' is no shape; it is CHIP:A, CHIP:AxB"),
    ('v5e:0x4', None, "'0x4' is no shape"),
    ('v5e:4x4', 24, 'v5e:4x4 has 16 chips; it takes 2 workers or more'),
    ('v5e', None, '--workers=1: v5e has 1 chips'),
  ],
)
def test_chips_that_do_not_fit_are_refused(topology, workers, message):
  with pytest.raises(ValueError, match=message):
    plan.pod(topology, workers)


def test_bytes_and_speeds_on_a_ring():
  d, compute = 1_000_003, 0.5
  found = plan.rows((mj.ring(4096),), d, compute, plan.Chip(1.0, 1e9))
  full, four = found[0], found[2]
  assert [row.bits for row in found] == [32, 8, 4, 2, 1]
  assert full[:4] == (32, 4 * d, 8 * d, 0)
  link = 500_002 + 12  # two codes a byte; theta, seed and digest
  assert four.per_link == link and four.per_worker == 2 * link
  # Reads x, writes a message; reads x and two messages.
  assert four.codec == pytest.approx(4 * d * (2 + 3 / 8) / 1e9)
  assert four.pays_below == pytest.approx(8 * (8 * d - 2 * link) / four.codec)
  assert four.exceeds_below == pytest.approx(8 * 2 * link / compute)


@pytest.mark.parametrize(
  'rounds,messages',
  [
    ((mj.exponential(4096),), 12),
    (mj.one_peer_exponential(4096), 1),
    ((mj.torus(64, 64),), 4),
  ],
)
def test_messages_of_thousands_of_workers(rounds, messages):
  one = plan.rows(rounds, 1000, 1.0, plan.CHIPS['v5e'])[-1]
  assert one.per_link == 125 + 12
  assert one.per_worker == pytest.approx(messages * one.per_link)


def test_local_steps_and_workers_that_rest_send_less():
  config = digits.get_config('moniqua4')
  config.update(dict(topology=dict(name='star'), local_steps=2))
  text = plan.text(config, plan.pod('cpu', workers=8))
  assert 'star: 0.875 messages a worker and step' in text
  rows = {line.split()[0]: line.split() for line in text.splitlines()[-5:]}
  assert rows['32'][2] == f'{1.75 / 2 * 4 * MLP / 1e6:.3f}'


def test_work_is_counted_in_the_program():
  d, flops = plan.work(digits.get_config('moniqua4'))
  assert d == MLP
  # Forward, and gradients of the weights; of the input only behind the first.
  products = 2 * 16 * (2 * (64 * 128 + 128 * 10) + 128 * 10)
  assert products <= flops <= 1.1 * products


def test_the_plan_in_words():
  config = digits.get_config('moniqua4')
  text = plan.text(config, plan.pod('cpu', workers=8))
  assert '8 workers of 1 cpu' in text and f'mlp: {MLP:,} parameters' in text
  rows = {line.split()[0]: line.split() for line in text.splitlines()[-5:]}
  assert rows['32'][1] == f'{4 * MLP / 1e6:.3f}'
  assert rows['1'][2] == f'{2 * (1202 + 12) / 1e6:.3f}'


@pytest.mark.parametrize(
  'change,message',
  [
    (dict(gossip=dict(name='none')), "config.gossip.name='none': a plan"),
    (
      dict(topology=dict(name='torus', rows=2, cols=4)),
      '8 workers, the plan 16',
    ),
    (dict(data=dict(name='mnist')), "config.data.name='mnist': a plan knows"),
    (
      dict(model=dict(name='optax:identity', hidden=None)),
      "config.model.name='optax:identity': .*; a model is a flax.linen.Module",
    ),
  ],
)
def test_configs_that_do_not_fit_are_refused(change, message):
  config = digits.get_config()
  config.update(change)
  with pytest.raises(ValueError, match=message):
    plan.text(config, plan.pod('v5e:4x4'))


def test_a_laboratory_has_no_plan():
  with pytest.raises(ValueError, match='of a laboratory; a plan is for a net'):
    plan.text(smoothness.get_config(), plan.pod('v5e:4x4'))


def test_the_utilisation_is_a_fraction():
  with pytest.raises(ValueError, match='--utilisation=1.5; it must be above 0'):
    plan.text(digits.get_config(), plan.pod('v5e:4x4'), 1.5)


def test_an_unknown_chip_is_one_line(tmp_path):
  command = 'moniqua_jax/plan/__main__.py', '--topology=v9:2x2'
  status, out, err = programs.run(*command, folder=tmp_path)
  assert status == 2 and out == ''
  assert err.startswith("error: --topology=v9:2x2: unknown chip 'v9'")
  assert err.count('\n') == 1
