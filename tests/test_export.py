"""The train step, lowered for machines that are not here."""

import re

import jax
import jax.numpy as jnp
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import wire
from moniqua_jax.training import experiment as experiment_lib
from moniqua_jax.training import step as step_lib


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_a_train_step_lowers_and_sends_packed_bytes(platform):
  config = digits.get_config('moniqua4')
  experiment = experiment_lib.from_config(config)
  init, step, _ = step_lib.make_steps(experiment)
  n, b = config.workers, config.batch_size
  rows = experiment.model.held.rows(list(range(n)))
  state = jax.eval_shape(jax.vmap(init), rows)
  batch = {
    'image': jax.ShapeDtypeStruct((n, b, 8, 8, 1), jnp.float32),
    'label': jax.ShapeDtypeStruct((n, b), jnp.int32),
  }
  run = mj.sharded(step, (0, 0, None), donate_argnums=0)
  exported = jax.export.export(run, platforms=[platform])(
    state, batch, jax.ShapeDtypeStruct((), jnp.int32)
  )
  assert exported.platforms == (platform,)
  text = str(exported.mlir_module())
  sent = re.findall(
    r'collective_permute"?\(.*?-> tensor<(\w+)>', text, re.DOTALL
  )
  d = state.params.shape[1]
  assert sent == [f'{wire.packed_size(d, 4) + 12}xui8'] * 2
  assert not re.search(r'all_(reduce|gather|to_all)|reduce_scatter', text)
