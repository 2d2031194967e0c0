"""The passes that GPUs and TPUs run, on this CPU: the bits of the reference.

What compilers make of them: test_gpu.py, test_tpu.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import gossip
from moniqua_jax.quantizers import forms
from moniqua_jax.workers import AXIS
from tests import helpers

N, THETA = 5, 0.5
AUTO = (jax.sharding.AxisType.Auto,)
RUNNERS = {
  'simulated': lambda fn: mj.simulated(fn, (0, 0, None)),
  'sharded': lambda fn: mj.sharded(fn, (0, 0, None), mesh()),
}
CASES = [
  # size, bits, rounding, digest, runner
  (8192 + 1023, 4, 'dithered', True, 'simulated'),
  (1023, 3, 'stochastic', False, 'sharded'),
  *((size, 4, 'dithered', True, 'simulated') for size in (1, 128, 8192, 8193)),
  *((100_003, b, 'dithered', True, 'simulated') for b in range(1, 9)),
  *((100_003, b, 'nearest', False, 'sharded') for b in (1, 4, 8)),
  (3 * 8 * 8192, 1, 'dithered', True, 'sharded'),
]


def mesh():
  return jax.make_mesh((N,), (AXIS,), AUTO, devices=jax.devices()[:N])


def workers(size):
  """x, y [5, size]: two are well; one wraps, one is too far, one has a NaN."""
  random = np.random.default_rng(size)
  x = random.uniform(-3, 3, size) + random.uniform(-0.2, 0.2, (N, size))
  x[2, size // 2] += 3 * THETA
  x[3, -1] = 1e9
  x[4, size // 3] = np.nan
  return x.astype(np.float32), random.normal(size=(N, size)).astype(np.float32)


def results(size, bits, rounding, digest, runner):
  """All that depends on the form: messages, what was seen, what was mixed."""
  quantizer = mj.moniqua(THETA, bits, rounding, digest)
  shared = {
    'topology': mj.ring(N),
    'quantizer': quantizer,
    'axis_name': AXIS,
  }

  def run(x, y, key):
    payload = quantizer.encode(x, key)
    mixed, seen = gossip.mixed(x, key, **shared)
    onto = quantizer.fast.mix(
      x, [payload] * 2, jnp.array([True]), lambda x_hats, came: x_hats[1], y
    )
    return payload, mixed, seen, onto

  return jax.tree.map(
    np.asarray, RUNNERS[runner](run)(*workers(size), jax.random.key(size))
  )


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize(
  'size,bits,rounding,digest,runner', helpers.tiered(CASES, CASES[:2])
)
def test_a_form_of_another_platform_gives_the_bits_of_the_reference(
  size, bits, rounding, digest, runner, platform, monkeypatch
):
  case = size, bits, rounding, digest, runner
  expected = results(*case)
  other = lambda default, *how, **forms: functools.partial(
    forms.get(platform) or default, *how
  )
  monkeypatch.setattr(forms, 'chosen', other)
  found = results(*case)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  readable = expected[2].readable
  assert readable.any() and not readable.all()
