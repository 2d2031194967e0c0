"""COLA: linear models learnt by workers that each have some of the features.

He, Bian and Jaggi, "COLA: decentralized linear learning", NeurIPS 2018,
arXiv:1808.04883.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from moniqua_jax import collectives, gossip, quantizers, topologies
from moniqua_jax.laboratory.problems import Problem

Array = jax.Array


class ColaState(NamedTuple):
  """What a worker of COLA keeps.

  Attributes:
    v: f64[N], what it believes of A x, the predictions for all rows.
    own: f64[b], its coordinates x_[k].
  """

  v: Array
  own: Array


class Parts(NamedTuple):
  """The columns of each worker, padded to ceil(d / n), and their subproblem."""

  columns: np.ndarray  # f64[n, N, b], A_[k]
  inverse: np.ndarray  # f64[n, b, b], of sigma c/N A_[k]^T A_[k] + lam I
  targets: np.ndarray  # f64[N]


def parts(problem: Problem, sigma: float | None = None) -> Parts:
  """Gives each worker its columns of all rows; sigma is n if not given."""
  n, d = problem.n, problem.d
  sigma, size = n if sigma is None else sigma, -(-d // n)
  rows = problem.features.reshape(-1, d)
  padded = np.pad(rows, ((0, 0), (0, n * size - d)))
  columns = padded.reshape(len(rows), n, size).transpose(1, 0, 2)
  smooth = problem.matrices.mean(axis=0) - problem.lam * np.eye(d)  # c/N A^T A
  smooth = np.pad(smooth, (0, n * size - d)).reshape(n, size, n, size)
  own = sigma * smooth[np.arange(n), :, np.arange(n)]
  inverse = np.linalg.inv(own + problem.lam * np.eye(size))
  return Parts(columns, inverse, problem.targets.reshape(-1))


def cola(
  problem: Problem, axis_name: str, sigma: float | None = None
) -> optax.GradientTransformationExtraArgs:
  """The way from x to the next x on a ring, whatever the gradient at x.

    v_k <- sum_l W_kl v_l
    Delta = argmin <grad f(v_k), A_[k] Delta> + sigma c / (2 N) |A_[k] Delta|^2
                   + lam/2 |x_[k] + Delta|^2
    x_[k] <- x_[k] + Delta,        v_k <- v_k + n A_[k] Delta

  for f(v) = (1/N) sum_j phi(v_j, b_j), phi'' <= c: the subproblem is solved
  exactly, with the whole step, for which sigma = n is safe. The mean of all v_k
  is A x. A worker sends v, N numbers, to its two neighbours; that all see the
  whole x is of the measurement alone.

  Source: Algorithm 1 of arXiv:1808.04883, with gamma = 1.
  """
  given, ring = parts(problem, sigma), topologies.ring(problem.n)
  count, size = given.columns.shape[1:]

  def init(x):
    del x
    return ColaState(jnp.zeros(count), jnp.zeros(size))

  def update(updates, state, x, **extra_args):
    del updates, extra_args
    me = lax.axis_index(axis_name)
    columns, inverse = (jnp.asarray(table)[me] for table in given[:2])
    v, _ = gossip.mixed(
      state.v,
      jax.random.key(0),  # nothing is random
      topology=ring,
      quantizer=quantizers.full_precision(),
      axis_name=axis_name,
    )
    slope = problem.residual(v, jnp.asarray(given.targets)) / count
    moved = -inverse @ (slope @ columns + problem.lam * state.own)
    state = ColaState(v + problem.n * (columns @ moved), state.own + moved)
    whole = collectives.gathered(state.own, axis_name).reshape(-1)
    return whole[: problem.d] - x, state

  return optax.GradientTransformationExtraArgs(init, update)
