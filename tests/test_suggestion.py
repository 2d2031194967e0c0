"""A theta to try comes from what is seen and from theory."""

import functools
import re
import types

import numpy as np
import pytest

from configs import digits
from moniqua_jax.training import resolve, suggestion, talk
from tests import helpers

N, STEPS = helpers.N, 300


def experiment(rate=lambda step: 0.1, relative=lambda number: 1.0, **entries):
  """What a suggestion asks of an experiment: data and net are not built."""
  config = digits.get_config('moniqua4')
  config.update(dict(theta=dict(name='fixed', shrink=None)) | entries)
  setup = resolve.resolve(config)
  return types.SimpleNamespace(
    setup=setup,
    pace=types.SimpleNamespace(steps=STEPS, learning_rate=rate),
    quantizer=types.SimpleNamespace(theta=lambda number: relative(number)),
    turns=talk.of(config),
  )


def apart(distance):
  """Parameters of which worker 3 is so far from all others."""
  x = np.zeros((N, 5), np.float32)
  x[3, 1] = distance
  return x


def suggested(made, step, theta, params):
  cure = suggestion.make(made, range(N))
  return cure(step, theta, 0.1, params)


def theta_in(text):
  return float(re.search(r'try theta=([\d.]+)[ ,]', text)[1])


def test_what_is_seen_is_the_distance_of_neighbours():
  """Whatever the theta that failed; no less than it, where nothing is seen."""
  close = functools.partial(pytest.approx, rel=0.15)
  text = suggested(experiment(), STEPS, 0.01, apart(0.4))
  assert 'theta=0.01' in text and '(they are 0.4 apart' in text
  assert '--config.quantizer.name=auto_theta' in text
  assert theta_in(text) == close(1.05 * 1.5 * 0.4)
  blind = dict(rotated=True), dict(scales_from='there')
  cases = [(experiment(**b), 0.4) for b in blind] + [(experiment(), np.nan)]
  for made, x in cases:
    assert theta_in(suggested(made, STEPS, 0.01, apart(x))) == close(0.0158)


def test_early_distances_grow_with_momentum_and_until_gossip_holds_them():
  """From those of one update; more where data differ, and late ones no more."""
  sorted_ = dict(partition=dict(name='sorted_by_label'))
  for m in (0.0, 0.5, 0.9):
    alike, differ = (
      suggestion.growth(experiment(momentum=m, **more))
      for more in ({}, sorted_)
    )
    assert 1 / (1 - m**2) ** 0.5 < alike(1) < differ(1) < 1.5 / (1 - m)
    for further in (alike, differ):
      assert further(1) > further(2) > further(20) >= 1
      assert further(STEPS - 1) < 1.3


@pytest.mark.parametrize('drop', [1, 4])
def test_the_rate_and_a_theta_that_follows_it_count(drop):
  """What a theta of the config must be now, for what is still to come."""
  rate = lambda step: 0.1 * min(1, (step + 1) / 200)
  further = suggestion.growth(experiment(rate=rate))
  assert further(99) / further(299) == pytest.approx(2, rel=0.2)
  falls = lambda number: np.float32(1 if number < 250 else 1 / drop)
  further = suggestion.growth(experiment(relative=falls))
  assert further(200) / further(299) == pytest.approx(1, rel=0.2)
  assert further(200) == pytest.approx(drop, rel=0.2)


def test_a_theta_that_finds_itself_is_not_told_another():
  made = experiment(quantizer=dict(name='auto_theta', theta=None, start=1.0))
  made.quantizer.theta = None
  text = suggested(made, 9, 0.5, apart(2.0))
  assert 'auto_theta does not catch up: try a smaller' in text
  assert 'not finite' in suggested(made, 9, np.nan, apart(2.0))


@pytest.mark.parametrize('name', ['choco', 'moniqua_jax:dpsgd'])
def test_differences_and_algorithms_of_ones_own_have_no_such_theory(name):
  made = experiment(gossip=dict(name=name))
  assert 'try theta=1.5, or' in suggested(made, 1, 1.0, apart(9.0))
