"""Plans: numbers worked out by hand."""

import math
import subprocess
import sys

import pytest

from configs import digits, moniqua_resnet20
from moniqua_jax import plan


def test_bytes_and_limits_are_those_of_the_formulas():
  chip = plan.Chip(flops=1e12, memory=1e9)
  full, one, two, four, eight = plan.lines(8_000, 3, 2.0, chip)
  assert [line.message for line in (full, one, two, four, eight)] == [
    32_000,
    1_012,
    2_012,
    4_012,
    8_012,
  ]
  assert four.sent == 3 * 4_012
  assert four.hidden == 3 * 4_012 / 2.0
  assert full.codec == pytest.approx(12 * 32_000 / 1e9)
  assert math.isinf(four.pays)  # moves fewer bytes than full precision


def test_a_slower_codec_pays_below_a_speed(monkeypatch):
  monkeypatch.setitem(plan.MOVED, 4, 20.0)
  chip = plan.Chip(flops=1e12, memory=1e9)
  full, _, _, four, _ = plan.lines(8_000, 1, 1.0, chip)
  at = lambda line: line.sent / four.pays + line.codec
  assert at(four) == pytest.approx(at(full))


def test_flops_of_a_perceptron():
  config = digits.get_config('moniqua4')
  size, flops = plan.gradient_flops(config)
  assert size == 9_610
  # Forward, and backward to weights and to all but the images.
  forward = 2 * config.batch_size * (64 * 128 + 128 * 10)
  backward = forward + 2 * config.batch_size * 128 * 10
  assert flops == pytest.approx(forward + backward, rel=0.1)


@pytest.mark.parametrize('n', [8, 64, 4096])
def test_a_ring_has_two_neighbours_and_a_torus_four(n):
  config = digits.get_config('moniqua4')
  assert plan.degree(config, n) == 2
  if n > 8:
    config.topology.update(name='torus', rows=2, cols=4)
    assert plan.degree(config, n) == 4


def test_a_report_of_a_thousand_pods():
  config = moniqua_resnet20.get_config('moniqua8')
  text = plan.report(config, plan.pod('v5p:16x16x16'), 1024, 0.4)
  assert '1024 of 4 chips each' in text
  assert len([row for row in text.splitlines() if row.startswith('| ')]) == 7


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--topology=v9:4'], "'v9' is unknown; choose from"),
    (['--topology=v5e:4xq'], "'4xq' is no shape"),
    (['--config=configs/none.py'], 'no such file'),
    (['--config=configs/digits.py:allreduce'], 'what is planned is gossip'),
    (['--workers=1'], 'the second 2 or more'),
    (['--workers=3'], 'cannot share the 16 chips of v5e:4x4'),
  ],
)
def test_a_mistake_has_one_line(flags, message):
  result = subprocess.run(
    [sys.executable, '-m', 'moniqua_jax.plan', *flags],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 2
  assert message in result.stderr and result.stderr.count('\n') == 1
