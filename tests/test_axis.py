"""What is of n workers meets an axis of n, or is refused when it is traced."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import gossip
from moniqua_jax.curvature import shaped
from moniqua_jax.quantizers import within
from moniqua_jax.workers import AXIS
from tests import helpers

N, D = helpers.N, 8
FULL, KEY = mj.full_precision(), jax.random.key(0)
SLOW = lambda n: mj.lazy(mj.ring(n), 0.5)


def traced(make, runner=mj.simulated, axis_name=AXIS, rows=N):
  """Traces a step of make(axis_name) on so many workers."""

  def worker(x):
    algorithm = make(axis_name=axis_name)
    state = algorithm.init(x)
    return algorithm.update(x, state, x, step=jnp.int32(0))[0]

  x = jax.ShapeDtypeStruct((rows, D), jnp.float32)
  return jax.eval_shape(runner(worker, (0,)), x)


def gossips(algorithm, topology, *args):
  slots = dict(quantizer=FULL, key=KEY)
  return lambda n: (
    lambda axis_name: algorithm(
      topology(n), *args, axis_name=axis_name, **slots
    )
  )


def wrapped(wrap, *args):
  inner = gossips(mj.d2, SLOW)
  return lambda n: (
    lambda axis_name: wrap(
      inner(n)(axis_name), *(arg(n) if callable(arg) else arg for arg in args)
    )
  )


def scaled_by(row):
  return within(FULL, lambda x: x / row, lambda x: x * row)


def reduces(quantizer):
  """A mean of messages of a quantizer with a row for each of n workers."""
  return lambda n: (
    lambda axis_name: mj.dcgd(
      quantizer(n, axis_name),
      axis_name=axis_name,
      key=KEY,
      keep=lambda x: False,
    )
  )


def estimated(n, axis_name):
  leaves = [jnp.ones(D)]
  start = shaped.blank('diagonal', leaves)
  return shaped.shaped(mj.qsgd(4), start, [D], n, axis_name)


# name -> n -> axis_name -> algorithm
OF_N = {
  **{
    name: gossips(getattr(mj, name), SLOW)
    for name in ('adpsgd', 'choco', 'd2', 'dcd', 'deepsqueeze', 'dpsgd', 'ecd')
  },
  'push_sum': gossips(mj.push_sum, mj.exponential),
  'a schedule': gossips(mj.dpsgd, mj.one_peer_exponential),
  'answered': wrapped(mj.answered),
  'every': wrapped(mj.every, 2),
  'streaming': wrapped(mj.streaming, 2),
  'stale': wrapped(mj.stale, SLOW),
  'per_worker': reduces(
    lambda n, axis: mj.per_worker(scaled_by, jnp.ones(n), axis)
  ),
  'estimates': reduces(estimated),
}


@pytest.mark.parametrize(
  'name,runner,n',
  helpers.tiered(
    [(a, run, n) for a in OF_N for run in helpers.RUNNERS for n in (4, 16)],
    [
      *((name, 'simulated', 4) for name in OF_N),
      *(('dpsgd', run, n) for run in helpers.RUNNERS for n in (4, 16)),
      ('per_worker', 'sharded', 4),
    ],
  ),
)
def test_another_number_of_workers_is_refused(name, runner, n):
  match = f"{n} workers, but there are 8 on the axis 'workers'.* 8 workers"
  with pytest.raises(ValueError, match=match):
    traced(OF_N[name](n), helpers.RUNNERS[runner])


@pytest.mark.parametrize('name', OF_N)
def test_as_many_as_the_axis_has_are_taken(name):
  assert traced(OF_N[name](N)).shape == (N, D)


@pytest.mark.parametrize('name', [*OF_N, 'allreduce', 'error_feedback'])
def test_an_axis_that_is_not_there_is_named(name):
  means = dict(
    allreduce=lambda axis_name: mj.allreduce(axis_name=axis_name),
    error_feedback=lambda axis_name: mj.error_feedback(
      mj.sign(),
      'scatter_reduce',
      axis_name=axis_name,
      key=KEY,
      keep=lambda x: False,
    ),
  )
  make = means[name] if name in means else OF_N[name](N)
  with pytest.raises(NameError, match='axis name: wokers'):
    traced(make, axis_name='wokers')


def test_one_round_alone_is_checked_too():
  pull = lambda x: gossip.correction(
    x, KEY, topology=mj.ring(4), quantizer=FULL, axis_name=AXIS
  )[0]
  x = jax.ShapeDtypeStruct((N, D), jnp.float32)
  with pytest.raises(ValueError, match='a topology of 4 workers.* 8 on'):
    jax.eval_shape(mj.sharded(pull, (0,)), x)


@pytest.mark.parametrize('rows', [16, 24])
def test_sharded_drops_no_rows(rows):
  x = jax.ShapeDtypeStruct((rows, D), jnp.float32)
  with pytest.raises(ValueError, match=f'8 devices.* has {rows} rows'):
    jax.eval_shape(mj.sharded(lambda x: x + 1, (0,)), x)


@pytest.mark.parametrize('runner', helpers.RUNNERS.values())
def test_runners_take_whole_arguments(runner):
  """What vmap would cut, and sharded hand to all, is refused by all."""
  for in_axes in (0, None, (1,), (0.0,), ({'x': 0},), (0, (0, None))):
    with pytest.raises(ValueError, match='in_axes=.* for each argument, as a'):
      runner(lambda *args: args, in_axes)


@pytest.mark.parametrize('runner', helpers.RUNNERS.values())
def test_runners_give_a_row_of_any_number(runner):
  """Of Python as well: what a step says of itself may be known."""
  step = lambda x: (x, {'samples': len(x), 'rate': 0.5, 'key': KEY})
  _, said = jax.eval_shape(runner(step, (0,)), np.zeros((N, D), 'f4'))
  assert {name: value.shape for name, value in said.items()} == {
    'samples': (N,),
    'rate': (N,),
    'key': (N,),
  }


@pytest.mark.parametrize('within', [False, True])
def test_a_mesh_with_explicit_axes_is_one_as_well(within):
  """As `jax.make_mesh` makes it; and within `jax.set_mesh` of it."""
  mesh = jax.make_mesh((N,), (AXIS,), (jax.sharding.AxisType.Explicit,))
  add = lambda x, key, k: (x + k + jax.random.bits(key, dtype='uint8'), key)
  x, keys = np.zeros((N, D), np.float32), jax.random.split(KEY, N)
  expected, _ = mj.simulated(add, (0, 0, None))(x, keys, 2)
  run = mj.sharded(add, (0, 0, None), mesh)
  with jax.set_mesh(mesh) if within else contextlib.nullcontext():
    first = run(x, keys, np.int32(1))
    again, _ = run(first[0] * 0, first[1], np.int32(2))
  np.testing.assert_array_equal(again, expected)


def test_an_edge_one_way_is_named_where_both_ways_are_asked_for():
  """Of no weight, so that W is symmetric."""
  ahead = tuple(np.roll(np.arange(N), 3).tolist())
  topology = mj.Topology([*mj.ring(N).edges, (0.0, ahead)])
  make = lambda axis_name: mj.answered(
    mj.dpsgd(topology, FULL, axis_name=axis_name, key=KEY)
  )
  with pytest.raises(ValueError, match=r'workers \d and \d have an edge one w'):
    traced(make)
  (again,) = mj.topologies.schedule(mj.from_matrix(mj.matrix(topology)))
  assert len(again.edges) == 2
