"""Schedules: values at the corners, and the law of the followed theta."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moniqua_jax.training import schedules

PEAK, PER_EPOCH = 0.8, 10
WARMUP = 20  # steps, of 2 epochs

SCHEDULES = {
  'constant': lambda **kw: schedules.constant(PEAK, PER_EPOCH, **kw),
  'step': lambda **kw: schedules.step(PEAK, PER_EPOCH, [5, 7.5], 0.1, **kw),
  'cosine': lambda **kw: schedules.cosine(PEAK, 100, PER_EPOCH, **kw),
}
make = pytest.mark.parametrize('make', SCHEDULES.values(), ids=list(SCHEDULES))


def values(schedule, steps):
  return np.array([float(schedule(t)) for t in range(steps)])


@make
def test_warmup_is_linear_and_never_a_zero_step(make):
  ramp = values(make(warmup_epochs=2), WARMUP + 1)
  expected = PEAK * np.arange(1, WARMUP + 1) / WARMUP
  np.testing.assert_allclose(ramp[:-1], expected, rtol=1e-6)
  assert ramp[-1] == pytest.approx(PEAK)


@make
def test_a_warmup_of_one_step_and_none_start_at_the_peak(make):
  assert float(make(warmup_epochs=0.1)(0)) == pytest.approx(PEAK)
  assert float(make()(0)) == pytest.approx(PEAK)


@make
def test_a_traced_step_gives_the_same_value(make):
  for schedule in (make(), make(warmup_epochs=2)):
    for t in (0, 7, WARMUP, 50, 99):
      traced = jax.jit(schedule)(jnp.int32(t))
      np.testing.assert_allclose(traced, schedule(t), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('warmup_epochs', [0, 2])
def test_constant_stays_at_the_peak(warmup_epochs):
  schedule = SCHEDULES['constant'](warmup_epochs=warmup_epochs)
  after = values(schedule, 100)[warmup_epochs * PER_EPOCH :]
  np.testing.assert_allclose(after, PEAK, rtol=1e-6)


@pytest.mark.parametrize('warmup_epochs', [0, 2])
def test_step_drops_at_milestones_from_the_start_of_the_run(warmup_epochs):
  rates = values(SCHEDULES['step'](warmup_epochs=warmup_epochs), 100)
  rates = rates[warmup_epochs * PER_EPOCH :]
  drops = [50 - warmup_epochs * PER_EPOCH, 75 - warmup_epochs * PER_EPOCH]
  expected = np.full(rates.size, PEAK)
  for drop in drops:
    expected[drop:] *= 0.1
  np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize('warmup_epochs', [0, 2])
def test_cosine_ends_at_zero_with_half_at_half_way(warmup_epochs):
  schedule = SCHEDULES['cosine'](warmup_epochs=warmup_epochs)
  start = warmup_epochs * PER_EPOCH
  t = np.arange(start, 101)
  expected = PEAK * (1 + np.cos(np.pi * (t - start) / (100 - start))) / 2
  np.testing.assert_allclose(values(schedule, 101)[start:], expected, atol=1e-6)
  assert float(schedule(start)) == pytest.approx(PEAK)
  assert float(schedule((start + 100) // 2)) == pytest.approx(PEAK / 2)
  assert float(schedule(100)) == pytest.approx(0, abs=1e-7)


def test_fixed_is_one():
  np.testing.assert_array_equal(values(schedules.fixed(), 5), 1)


rates = st.lists(st.floats(0.001, 10), min_size=1, max_size=40)


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(rates, st.floats(0.01, 0.99), st.sampled_from([0.5, 1.0]))
def test_follow_is_never_below_the_rate_and_shrinks_slowly(
  rates, shrink, power
):
  rate = jnp.asarray(rates).__getitem__
  theta = schedules.follow(rate, len(rates), shrink, power)
  relative, rates = values(theta, len(rates)), np.array(rates)
  ratio, peak = (rates / rates.max()) ** power, rates.argmax()
  # One for the whole way up: distances grow with the rate, not after it.
  np.testing.assert_array_equal(relative[: peak + 1], 1)
  assert (relative >= ratio * (1 - 1e-6)).all()
  assert (relative[1:] >= shrink * relative[:-1] * (1 - 1e-6)).all()
  assert (relative > 0).all() and (relative <= 1).all()
  # And no larger than these two laws ask for.
  least = np.maximum(ratio[1:], shrink * relative[:-1])[peak:]
  np.testing.assert_allclose(relative[peak + 1 :], least, rtol=1e-6)


@make
def test_follow_stands_at_its_end_and_takes_a_traced_step(make):
  theta = schedules.follow(make(warmup_epochs=2), 100, shrink=0.9)
  assert float(theta(1000)) == float(theta(99))
  np.testing.assert_array_equal(jax.jit(theta)(jnp.int32(60)), theta(60))


def test_follow_of_a_drop_shrinks_geometrically_until_it_is_reached():
  drop = schedules.step(1.0, 1, milestones=[3], factor=0.1)
  theta = values(schedules.follow(drop, 20, shrink=0.8), 20)
  expected = np.maximum(0.1, 0.8 ** np.maximum(0, np.arange(20) - 2))
  np.testing.assert_allclose(theta, expected, rtol=1e-6)


@pytest.mark.parametrize('shrink', [0, 1, -0.5, 1.5, float('nan')])
def test_follow_refuses_a_shrink_outside_0_to_1(shrink):
  with pytest.raises(ValueError, match=f'shrink={shrink!r};'):
    schedules.follow(schedules.fixed(), 10, shrink)


def test_milestones_that_round_to_one_step_both_count():
  schedule = schedules.step(1.0, steps_per_epoch=10, milestones=[1.0, 1.01])
  np.testing.assert_allclose([schedule(9), schedule(10)], [1, 0.01], rtol=1e-6)
