"""Means of gradients on bad days, against dense float64.

Rounds, gradients that are not finite, thetas too small and resumes, in any
order. The dense model (tests/dense.py) takes from the package what a message
says, and nothing else.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import gossip
from moniqua_jax.theory import gammas
from moniqua_jax.workers import AXIS
from tests import days, dense, helpers
from tests.days import FEW, KEY, MANY, D, N, close, finite

OPTIONS = dict(axis_name=AXIS, key=KEY, keep=lambda leaf: False)
TOP = 15  # steps of `uniform`, in each bucket


class Row(NamedTuple):
  """A method in both forms, and how what was sent is read."""

  make: Callable  # quantizer -> algorithm
  dense: dense.Mean
  quantizer: Callable  # theta -> Quantizer
  chunks: bool = False  # whether a mean is taken by chunk, and quantized again
  memory: Callable = lambda state: ()  # what a state keeps, as the model has it


def uniform(theta):
  return mj.uniform(bits=4, bucket_size=8, rounding='nearest')


def nuqsgd(theta):
  return mj.nuqsgd(bits=4, bucket_size=16)


def moniqua(theta):
  return mj.moniqua(theta, bits=6)


def row(make, model, quantizer, *args, **how):
  return Row(lambda q: make(q, *args, **OPTIONS), model, quantizer, **how)


def of_feedback(state):
  return (state.error,)


def of_squeezing(state):
  of_workers, of_mean = state.error
  return of_workers, of_mean.reshape(-1)[:D]


def of_shifts(state):
  """h_i, and h is their mean."""
  close(state.error.mean, np.tile(state.error.own.mean(axis=0), (N, 1)))
  return (state.error.own,)


def of_points(state):
  return *of_shifts(state), state.y, state.z, state.w


GATHER, SCATTER = 'all_gather', 'scatter_reduce'
NESTEROV = gammas.Adiana(0.3, 0.2, 0.25, 0.5, 0.3, 0.8, 0.5)
feedback = functools.partial(
  row, mj.error_feedback, dense.error_feedback(), uniform, memory=of_feedback
)
MEANS = {
  'allreduce': row(mj.allreduce, dense.allreduce(), nuqsgd, GATHER),
  'allreduce, moniqua': row(mj.allreduce, dense.allreduce(), moniqua, GATHER),
  'allreduce, in chunks': row(
    mj.allreduce, dense.allreduce(), uniform, SCATTER, chunks=True
  ),
  'error_feedback': feedback(GATHER),
  'error_feedback, in chunks': feedback(SCATTER, chunks=True),
  'double_squeeze': row(
    mj.double_squeeze,
    dense.double_squeeze(),
    uniform,
    chunks=True,
    memory=of_squeezing,
  ),
  'dcgd': row(mj.dcgd, dense.allreduce(), nuqsgd),
  'diana': row(mj.diana, dense.diana(0.3), nuqsgd, 0.3, memory=of_shifts),
  'adiana': row(
    mj.adiana, dense.adiana(*NESTEROV), nuqsgd, NESTEROV, memory=of_points
  ),
}


@functools.cache
def compiled(name: str):
  """init and a step of all workers."""
  tx = MEANS[name].make(days.by_hand(MEANS[name].quantizer))

  def step(x, state, b, k):
    return tx.update(x - b, state, x, step=k, grad_fn=lambda w: w - b)

  return mj.simulated(tx.init, (0,)), mj.simulated(step, (0, 0, 0, None))


@functools.cache
def said_in_chunks(make: Callable):
  """(x, theta, step) -> what each x became: its own chunk stays as it is."""

  def worker(x, theta, step):
    quantizer = make(theta)
    key = gossip.worker_key(KEY, step, AXIS, quantizer.shared)
    keys = jax.random.split(jax.random.split(key)[0], N)
    chunks = jnp.pad(x, (0, -D % N)).reshape(N, -1)
    talk = lambda v, key: quantizer.decode(quantizer.encode(v, key), v)
    me = jax.lax.axis_index(AXIS)
    return jax.vmap(talk)(chunks, keys).at[me].set(chunks[me]).reshape(-1)[:D]

  return mj.simulated(worker, (0, 0, None))


@functools.cache
def said_of_two(make: Callable):
  """The same of two messages, whole."""

  def worker(x, y, theta, step):
    quantizer = make(theta)
    key = gossip.worker_key(KEY, step, AXIS, quantizer.shared)
    talk = lambda v, key: quantizer.decode(quantizer.encode(v, key), v)
    return tuple(map(talk, (x, y), jax.random.split(key)))

  return mj.simulated(worker, (0, 0, 0, None))


class Point(NamedTuple):
  """Where a run is: what a checkpoint holds, and the model's memory."""

  k: int
  x: np.ndarray
  state: tuple
  memory: tuple


class Means(days.Days):
  """Runs a method, and the dense model of it beside."""

  def first(self, rng):
    self.row = MEANS[self.name]
    init, self.step = compiled(self.name)
    x = np.tile(rng.normal(size=D), (N, 1)).astype(np.float32)
    state = jax.tree.map(np.asarray, init(x))
    return Point(0, x, state, self.row.dense.start(x.astype(np.float64)))

  def live(self, b, theta=days.ENOUGH):
    self.day(b, theta)

  def run(self, at, b, theta):
    state = at.state._replace(tuned=theta)
    mean, state = self.step(at.x, state, b, np.int32(at.k))
    return jax.tree.map(np.asarray, (mean, state))

  def checked(self, b, theta, mean, state):
    row, at = self.row, self.at
    before, after = row.memory(at.state), row.memory(state)
    assert finite(after)
    vectors = row.dense.vectors(at.x, b, before)
    said, read = self.said(vectors, theta)
    args = at.x.astype(np.float64), b.astype(np.float64), at.memory
    if not finite(b) or not read.all():  # a lost step
      lost = ~read.all(axis=1) if finite(b) else np.ones(N, bool)
      if before:  # a memory: it is lost, and no more
        assert not mean.any()
      else:
        np.testing.assert_array_equal(~np.isfinite(mean).all(axis=1), lost)
      np.testing.assert_array_equal(state.lost - at.state.lost, lost)
      jax.tree.map(np.testing.assert_array_equal, after, before)
      return at._replace(k=at.k + 1, state=state)
    for sent, model in zip(vectors, row.dense.vectors(*args), strict=True):
      close(sent, model)
    got = dense.Got(mean, after)
    expected, memory = row.dense.lands(*args, said, got)
    self.compare(mean, np.broadcast_to(expected, mean.shape))
    jax.tree.map(close, after, memory)
    x = at.x - (mean if self.name == 'adiana' else np.float32(0.1) * mean)
    return Point(at.k + 1, x, state, memory)

  def compare(self, mean, expected):
    """All workers have one mean; in chunks, to half a step of each chunk."""
    if not self.row.chunks:
      return close(mean, expected)
    np.testing.assert_array_equal(mean, np.broadcast_to(mean[:1], mean.shape))
    chunks = np.pad(expected[0], (0, -D % N)).reshape(N, -1)
    step = np.repeat(np.ptp(chunks, axis=1) / TOP, chunks.shape[1])[:D]
    assert (np.abs(mean[0] - expected[0]) <= 0.51 * step + 1e-5).all()

  def said(self, vectors, theta):
    """What was said, f64[n, d] each, and whether worker i read worker j."""
    k, make = np.int32(self.at.k), self.row.quantizer
    read = np.ones((N, N), bool)
    if len(vectors) > 1:
      said = said_of_two(make)(*vectors, theta, k)
    elif self.row.chunks:
      said = (said_in_chunks(make)(*vectors, theta, k),)
    else:
      pairs = np.asarray(days.believed(make)(*vectors, theta, k))
      said, read = (days.own(pairs),), days.read_right(pairs, theta)
    return [np.asarray(v, np.float64) for v in said], read


CASES = [(name, examples) for name in MEANS for examples in (FEW, MANY)]
A_KIND_EACH = ['allreduce, moniqua', 'double_squeeze', 'diana', 'adiana']


@pytest.mark.parametrize(
  'name,examples',
  helpers.tiered(CASES, [(name, FEW) for name in A_KIND_EACH]),
)
def test_bad_days(name, examples):
  days.live_through(Means, name, examples)
