"""What a run keeps is finite, and who stops says from where to go on."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax.algorithms import turns
from moniqua_jax.asynchronous import worker
from moniqua_jax.curvature import shaped
from moniqua_jax.quantizers import base
from moniqua_jax.training import checkpoint, loop, metrics, monitor
from moniqua_jax.training.step import TrainState

N = 4
NEWS = base.Seen(np.ones((N, 2), bool), np.full((N, 2), np.nan), np.inf)


def state(**spoilt):
  """A train state with a memory and a momentum, one value of it not finite."""
  leaves = {
    name: np.ones((N, 3), np.float32) for name in ('x', 'error', 'trace')
  }
  for name, value in spoilt.items():
    leaves[name][1, 2] = value
  opt_state = {'error': leaves['error'], 'trace': leaves['trace'], 'seen': NEWS}
  return TrainState(leaves['x'], opt_state, {'count': np.arange(N)})


@pytest.mark.parametrize(
  'leaf,name',
  [('x', 'params'), ('error', 'opt_state.error'), ('trace', 'opt_state.trace')],
)
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, leaf, name):
  with contextlib.closing(checkpoint.manager(tmp_path)) as checkpoints:
    for value in (np.nan, np.inf):
      bad = state(**{leaf: value})
      assert checkpoint.not_finite(bad) == [name]
      with pytest.raises(monitor.Stopped, match=f'step 7: {name} is not'):
        loop._save(checkpoints, 8, bad, tmp_path)
    assert checkpoints.latest_step() is None
  # What the last messages told does not matter.
  assert checkpoint.not_finite(state()) == []


def watch(saved):
  return monitor.Guard((), 0, turns.every(1), 'there', range(10, 14), saved)


def report(lost, loss=0.5):
  return {'loss': np.full(N, loss), 'lost': np.array(lost), 'accuracy': 0.0}


def test_a_run_that_loses_every_step_stops_and_says_from_where_to_go_on():
  guard = watch(lambda: 120)
  for k in range(monitor.PATIENCE):
    guard.check(k, report([0, 0, k, 3]))
  match = r'worker 12 .* 20 times in a row.*there, of step 120; go on.*--resume'
  with pytest.raises(monitor.Stopped, match=match):
    guard.check(99, report([0, 0, monitor.PATIENCE, 3]))


def test_steps_lost_now_and_then_do_not_stop_a_run():
  guard = watch(lambda: None)
  for k in range(60):
    guard.check(k, report([0, 0, k - k // 10, 0]))
  with pytest.raises(monitor.Stopped, match='no checkpoint was written yet'):
    guard.check(60, report([0] * N, np.nan))


def test_lost_steps_are_a_column():
  seen = base.Seen(*(np.ones((N, 0)) for _ in range(3)))
  rows = [report([0, 1, 0, 0]) | {'seen': seen}, report([0, 2, 0, 1])]
  rows[1]['seen'] = seen
  assert metrics.summarise(rows)['train/lost'] == 3


def test_a_worker_alone_saves_only_what_is_finite(tmp_path):
  known = np.zeros(2, np.uint32)
  for momentum, saves in ((np.nan, False), (1.0, True)):
    kept = worker.WorkerState(jnp.zeros(2), [jnp.float32(momentum)], {}, ())
    assert worker.Worker(kept).save(tmp_path, known) == saves


# ---------------------------------------------------------- other memories


def test_an_estimate_of_curvature_that_is_not_finite_is_not_taken():
  leaves = [jnp.ones(3)]
  start = shaped.blank('diagonal', leaves)
  tables = [jnp.stack([leaf] * N) for leaf in start.half]
  node = shaped.Shape((), start, tables)
  new = shaped.powers([jnp.array([4.0, 1.0, 1.0])])
  rows = [jnp.array(tables[0]).at[:].set(0.5).at[2].set(jnp.nan)]
  taken = shaped.replaced([node], new, rows)[0]
  np.testing.assert_array_equal(taken.own.half[0], new.half[0])
  np.testing.assert_array_equal(taken.tables[0][:, 0], [0.5, 0.5, 1, 0.5])
  bad = jax.tree.map(lambda v: v * jnp.nan, new)
  kept = shaped.replaced([node], bad, rows)[0]
  np.testing.assert_array_equal(kept.own.half[0], start.half[0])


def test_a_theta_that_is_never_read_stays_finite():
  q = mj.auto_theta(4, start=1.0, limit=8.0)
  see = lambda readable, theta: base.Seen(
    jnp.array(readable), jnp.array([0.1, 0.1]), jnp.array(theta)
  )
  observe = jax.jit(lambda theta, seen: q.observe(theta, seen, None))
  theta = jnp.float32(1)
  for _ in range(200):
    theta = observe(theta, see([False, True], [theta, theta]))
  assert theta == 16  # beyond the limit, and finite
