"""Quantizers that need a reference near the sender, where there is none."""

import jax
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax.curvature import shaped
from moniqua_jax.quantizers import base
from moniqua_jax.theory import gammas
from moniqua_jax.training import resolve
from tests.trained import small

SLOTS = dict(axis_name='workers', key=jax.random.key(0))
MONIQUA = mj.moniqua(1.0, 4)
NEAR = {
  'moniqua': MONIQUA,
  'auto_theta': mj.auto_theta(4, start=1.0),
  'fitted_theta': mj.fitted_theta(4),
  'scheduled': mj.scheduled(lambda t: mj.moniqua(t, 4), lambda k: 0.9**k),
  'scaled': mj.scaled(MONIQUA, ((4, 1.0), (4, 0.5))),
  'scaled auto_theta': mj.scaled(mj.auto_theta(4, 1.0), ((8, 1.0),)),
  'smooth': mj.smooth(MONIQUA, np.ones(8)),
  'per_worker': mj.per_worker(
    lambda c: mj.within(MONIQUA, lambda x: x / c, lambda y: c * y),
    np.ones(4, np.float32),
    'workers',
  ),
}
FAR = {
  'uniform': mj.uniform(4),
  'coded': mj.coded(mj.nuqsgd(4), 3),
  'alq': mj.alq(3),
  'smooth': mj.smooth(mj.qsgd(4), np.ones(8)),
}
ADIANA = gammas.adiana(L=1.0, L_max=1.0, calL_max=2.0, omega=2.0, mu=0.1, n=4)
SLOTS_WITHOUT = {
  'error_feedback': lambda q: mj.error_feedback(q, **SLOTS),
  'double_squeeze': lambda q: mj.double_squeeze(q, **SLOTS),
  'dcgd': lambda q: mj.dcgd(q, **SLOTS),
  'diana': lambda q: mj.diana(q, 0.2, **SLOTS),
  'adiana': lambda q: mj.adiana(q, ADIANA, **SLOTS),
}


@pytest.mark.parametrize('slot', SLOTS_WITHOUT)
def test_a_slot_without_a_reference_refuses_and_names_three(slot):
  for quantizer in NEAR.values():
    with pytest.raises(
      ValueError, match=f'{slot}: .*moniqua.* take .*, .* or '
    ):
      SLOTS_WITHOUT[slot](quantizer)
  for quantizer in FAR.values():
    SLOTS_WITHOUT[slot](quantizer)


def test_a_mean_of_close_gradients_takes_moniqua_but_not_auto_theta():
  mj.allreduce(MONIQUA, 'all_gather', **SLOTS)
  with pytest.raises(ValueError, match='allreduce: .*auto_theta.*answers'):
    mj.allreduce(NEAR['auto_theta'], 'all_gather', **SLOTS)


def test_wrappers_and_tuned_hand_on_what_they_need():
  assert all(base.needs_near(q) for q in NEAR.values())
  assert not any(base.needs_near(q) for q in FAR.values())


def test_shapes_of_each_worker_refuse_it():
  start = shaped.blank('layer', [np.ones(8, np.float32)])
  shaped.shaped(MONIQUA, start, [8])
  with pytest.raises(ValueError, match='a D each: .*moniqua'):
    shaped.shaped(MONIQUA, start, [8], n=4, axis_name='workers')


@pytest.mark.parametrize('name', ['error_feedback', 'diana'])
def test_the_program_names_the_entry(name):
  config = small('moniqua4')
  config.gossip.name = 'none'
  with config.unlocked():
    config.reduce = dict(name=name)
    if name == 'diana':
      config.reduce.alpha = 0.2
    else:
      config.reduce.strategy = 'scatter_reduce'
  with pytest.raises(
    ValueError, match=f"config.quantizer.name='moniqua': {name}: "
  ):
    resolve.resolve(config)
