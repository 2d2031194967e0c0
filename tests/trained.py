"""Short trainings, and what they leave: for the tests of the program."""

import contextlib
import functools
import signal

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import digits
from moniqua_jax import data
from moniqua_jax.training import (
  checkpoint,
  experiment,
  loop,
  metrics,
  signals,
  summary,
)
from moniqua_jax.training import step as step_lib
from tests import hlo, programs


def small(method='moniqua4', **entries):
  """The real digits config, over in a second."""
  config = digits.get_config(method).copy_and_resolve_references()
  config.epochs, config.eval_every, config.checkpoint_every = 2.0, 1.0, 1.0
  config.learning_rate.warmup_epochs = 0.5
  with config.unlocked():
    config.update(entries)
  return config


@contextlib.contextmanager
def compiled_quickly(quickly=True):
  """In half the time, without most optimizations; or with them, within that.

  With them where everything is compiled so: what a module shares is then the
  program of its tests.
  """
  before = jax.config.read('jax_disable_most_optimizations')
  quickly = quickly and programs.QUICK
  jax.config.update('jax_disable_most_optimizations', quickly)
  try:
    yield
  finally:
    jax.config.update('jax_disable_most_optimizations', before)


def saved(workdir):
  """The step and the state of a run's last checkpoint, as NumPy arrays."""
  path = workdir.absolute() / 'checkpoints'
  with ocp.CheckpointManager(path) as checkpoints:
    step = checkpoints.latest_step()
  path = path / str(step) / 'default'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    each = jax.tree.map(lambda _: as_numpy, tree)
    args = ocp.args.PyTreeRestore(restore_args=each)
    return step, checkpointer.restore(path, args=args)


def last_state(workdir, config):
  """The step and the `TrainState` of a run's last checkpoint."""
  of = built(config)
  init, _, _ = step_lib.make_steps(of)
  like = of.run(init, (0,))(np.arange(config.workers))
  with contextlib.closing(checkpoint.manager(workdir)) as checkpoints:
    step, state = checkpoint.restore(checkpoints, like)
  return step, jax.tree.map(np.asarray, state)


def assert_same_run(one, other):
  """Bit for bit the same state at the end, and the same metrics."""
  (step, state), (other_step, other_state) = saved(one), saved(other)
  assert step == other_step > 0
  jax.tree.map(np.testing.assert_array_equal, state, other_state)
  assert rows(one) == rows(other)


def rows(workdir):
  """The metrics, without the time that it took."""
  return [{**row, 'seconds': 0} for row in metrics.read(workdir)]


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
  assert step <= saved(workdir)[0] < step + 2


def signal_in(config, step, number, workdir):
  """Trains, and gets a signal in a step; how the run was ended by it."""

  def batches(*args, **kwargs):
    for k, batch in original(*args, **kwargs):
      if k == step:
        signal.raise_signal(number)
      yield k, batch

  original = data.batches
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, 'batches', batches)
    with pytest.raises(signals.Interrupted) as ended:
      loop.train_and_evaluate(config, workdir)
  return ended.value


def collectives_of_a_step(config):
  """What the compiled step of the loop sends."""
  of = built(config)
  init, train_step, _ = step_lib.make_steps(of)
  state = jax.eval_shape(of.run(init, (0,)), np.arange(8))
  batch = data.batch(*of.data, seed=0, step=0, batch_size=16)
  step = of.run(train_step, (0, 0, None))
  with compiled_quickly(False):
    text = step.lower(state, batch, np.int32(0)).compile().as_text()
  return list(hlo.collectives(text))


def on_made_up_images(config, num_train=400):
  """The config with images of CIFAR's shape, and no need of devices."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.runner, config.data.name = 'simulated', 'synthetic'
    config.data.update(
      num_train=num_train,
      num_test=40,
      shape=(32, 32, 3),
      num_classes=10,
      seed=0,
    )
  return config


def built(config) -> experiment.Experiment:
  """The experiment, its parameters zeros: nothing has to be compiled."""
  init = nn.Module.init

  def zeros(model, *args, **kwargs):
    found = jax.eval_shape(functools.partial(init, model, **kwargs), *args)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), found)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(nn.Module, 'init', zeros)
    return experiment.from_config(config)


def described(config) -> str:
  """What `--dry_run` says of it."""
  return summary.describe(built(config))
