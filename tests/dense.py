"""Every algorithm in dense float64, as its paper writes it, on bad days.

X is f64[n, d], one worker a row; W[i, j] is the weight that worker i gives to
what it hears of worker j. Replicas are kept by those who hold them: R[i, j] is
what worker i believes of worker j, and R[i, i] of itself. Nothing here knows
that the package keeps sums of them only.

A message that was not read leaves its edge as it is: who did not read it goes
on as if the other had said what it said itself. Who could say nothing said NaN,
and stays where it is.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests import oracles


class Heard(NamedTuple):
  """What the messages of a round told.

  Attributes:
    said: f64[n, d], what was sent, as its sender decodes it.
    came: bool[n, n], whether worker i counts what worker j said.
    went: bool[n, n], whether worker j believes that worker i does.
  """

  said: np.ndarray
  came: np.ndarray
  went: np.ndarray

  def replicas(self) -> np.ndarray:
    """What worker i takes for the message of worker j, f64[n, n, d]."""
    return np.where(self.came[..., None], self.said[None], self.said[:, None])


class Gossip(NamedTuple):
  """One algorithm.

  Attributes:
    start: x -> memory.
    says: (w, x, u, memory, t) -> f64[n, d], or None if nothing is sent.
    lands: (w, x, u, memory, heard, t) -> (x, memory).
  """

  start: Callable
  says: Callable
  lands: Callable


def mix(w, replicas):
  """sum_j W_ij (R_ij - R_ii)."""
  own = np.einsum('iid->id', replicas)
  apart = np.nan_to_num(replicas - own[:, None], posinf=0, neginf=0)
  return np.einsum('ij,ijd->id', w, apart)


def nothing(x):
  return ()


def copies(x):
  return np.broadcast_to(x[None], (len(x), *x.shape)).copy()


def dpsgd() -> Gossip:
  def lands(w, x, u, memory, heard, t):
    return x + mix(w, heard.replicas()) + u, memory

  return Gossip(nothing, lambda w, x, u, memory, t: x, lands)


def adapt_then_combine() -> Gossip:
  says = lambda w, x, u, memory, t: x + u

  def lands(w, x, u, memory, heard, t):
    return x + u + mix(w, heard.replicas()), memory

  return Gossip(nothing, says, lands)


def d2() -> Gossip:
  """The memory is x and u of the step before."""

  def says(w, x, u, memory, t):
    return 2 * x - memory[0] + u - memory[1] if memory else x + u

  def lands(w, x, u, memory, heard, t):
    moved = says(w, x, u, memory, t) + mix(w, heard.replicas())
    return moved, (x, u)

  return Gossip(nothing, says, lands)


def extra() -> Gossip:
  """EXTRA with 2 W - I, which sends what it knows before its gradient."""

  def says(w, x, u, memory, t):
    return 2 * x - memory[0] if memory else x

  def lands(w, x, u, memory, heard, t):
    before = memory[1] if memory else 0
    moved = says(w, x, u, memory, t) + mix(w, heard.replicas()) + u - before
    return moved, (x, u)

  return Gossip(nothing, says, lands)


def dcd() -> Gossip:
  def says(w, x, u, memory, t):
    return np.einsum('ij,ijd->id', w, memory) + u - x

  def lands(w, x, u, memory, heard, t):
    return x + heard.said, memory + heard.replicas()

  return Gossip(copies, says, lands)


def ecd() -> Gossip:
  """The paper's t is counted from 2."""

  def new(w, u, memory):
    return np.einsum('ij,ijd->id', w, memory) + u

  def says(w, x, u, memory, t):
    t = t + 2
    return (1 - t / 2) * x + t / 2 * new(w, u, memory)

  def lands(w, x, u, memory, heard, t):
    t = t + 2
    kept = (1 - 2 / t) * memory + 2 / t * heard.replicas()
    return new(w, u, memory), kept

  return Gossip(copies, says, lands)


def qdgd(epsilon: float) -> Gossip:
  def lands(w, x, u, memory, heard, t):
    theirs = w - np.diag(np.diag(w))
    pull = theirs @ heard.said - theirs.sum(axis=1, keepdims=True) * x
    return x + epsilon * (pull + u), memory

  return Gossip(nothing, lambda w, x, u, memory, t: x, lands)


def choco(gamma: float) -> Gossip:
  def says(w, x, u, memory, t):
    return x + u - np.einsum('iid->id', memory)

  def lands(w, x, u, memory, heard, t):
    memory = memory + heard.replicas()
    return x + u + gamma * mix(w, memory), memory

  return Gossip(lambda x: 0 * copies(x), says, lands)


def deepsqueeze(eta: float) -> Gossip:
  def says(w, x, u, error, t):
    return x + u + error

  def lands(w, x, u, error, heard, t):
    left = says(w, x, u, error, t) - heard.said
    left = np.where(np.isnan(left), error, left)
    return x + u + eta * mix(w, heard.replicas()), left

  return Gossip(np.zeros_like, says, lands)


def push_sum() -> Gossip:
  """W is read by sender: column j is what worker j gives away, and keeps."""

  def start(x):
    return np.ones(len(x))

  def says(w, x, u, mass, t):
    return x + u / mass[:, None]

  def lands(w, x, u, mass, heard, t):
    others = ~np.eye(len(w), dtype=bool)
    taken, given = w * (heard.came & others), w * (heard.went & others)
    weighted = lambda v: np.append(v, np.ones((len(w), 1)), 1) * mass[:, None]
    said = weighted(np.nan_to_num(heard.said))
    new = weighted(says(w, x, u, mass, t)) + taken @ said
    new = new - given.sum(axis=0)[:, None] * said
    return new[:, :-1] / new[:, -1:], new[:, -1]

  return Gossip(start, says, lands)


def adpsgd(delays) -> Gossip:
  """The memory is all updates so far."""

  def lands(w, x, u, memory, heard, t):
    memory = (*memory, u)
    late = np.zeros_like(x)
    for i, delay in enumerate(delays):
      if delay < len(memory):
        late[i] = memory[-1 - delay][i]
    return x + mix(w, heard.replicas()) + late, memory

  return Gossip(nothing, lambda w, x, u, memory, t: x, lands)


def every(inner: Gossip, steps: int) -> Gossip:
  def says(w, x, u, memory, t):
    return inner.says(w, x, u, memory, t // steps) if turn(t) else None

  def lands(w, x, u, memory, heard, t):
    if not turn(t):
      return x + u, memory
    return inner.lands(w, x, u, memory, heard, t // steps)

  turn = lambda t: (t + 1) % steps == 0
  return Gossip(inner.start, says, lands)


def quasi_global(inner: Gossip, beta: float, mu: float, period: int) -> Gossip:
  """The memory is the inner one, m, and x at the last turn; u is minus g."""

  def start(x):
    return inner.start(x), np.zeros_like(x), x

  def says(w, x, u, memory, t):
    return inner.says(w, x, beta * memory[1] + u, memory[0], t)

  def lands(w, x, u, memory, heard, t):
    own, m, last = memory
    new, own = inner.lands(w, x, beta * m + u, own, heard, t)
    if (t + 1) % period:
      return new, (own, m, last)
    return new, (own, mu * m + (1 - mu) * (new - last) / period, new)

  return Gossip(start, says, lands)


def streaming(inner: Gossip, fragments: int) -> Gossip:
  """Each fragment by itself, with a memory of its own."""

  def cut(x, f):
    begin, end = (k * x.shape[1] // fragments for k in (f, f + 1))
    return np.arange(begin, end)

  def start(x):
    return tuple(inner.start(x[:, cut(x, f)]) for f in range(fragments))

  def says(w, x, u, memory, t):
    t, f = divmod(t, fragments)
    own = cut(x, f)
    return inner.says(w, x[:, own], u[:, own], memory[f], t)

  def lands(w, x, u, memory, heard, t):
    t, f = divmod(t, fragments)
    own, moved, memory = cut(x, f), x + u, list(memory)
    moved[:, own], memory[f] = inner.lands(
      w, x[:, own], u[:, own], memory[f], heard, t
    )
    return moved, tuple(memory)

  return Gossip(start, says, lands)


def stale(inner: Gossip) -> Gossip:
  """The update of the step before is what is sent; that of now is added."""

  def start(x):
    return inner.start(x), np.zeros_like(x)

  def says(w, x, u, memory, t):
    return inner.says(w, x, memory[1], memory[0], t)

  def lands(w, x, u, memory, heard, t):
    own, before = memory
    moved, own = inner.lands(w, x, before, own, heard, t)
    return moved - before + u, (own, u)

  return Gossip(start, says, lands)


def trained(model, x, grad, ws, lr, steps, compress=oracles.identity):
  """X after some steps of which all is read: a W for each, u = -lr grad(X)."""
  read, memory = np.ones((len(x), len(x)), bool), model.start(x)
  for t in range(steps):
    w, u = ws[t % len(ws)], -lr * grad(x)
    message = model.says(w, x, u, memory, t)
    said = None if message is None else oracles.each(compress, message)
    x, memory = model.lands(w, x, u, memory, Heard(said, read, read), t)
  return x


# ----------------------------------------------------------- means of gradients


class Mean(NamedTuple):
  """A method whose messages are means: all workers have one x.

  Attributes:
    start: x -> memory.
    vectors: (x, b, memory) -> what each worker sends, some f[n, d]; the
      gradients are x - b, one row of b for each worker. In any precision.
    lands: (x, b, memory, said, got) -> (f64[n, d] or f64[d], memory); `said` is
      what the messages say, and `got` what the package made of them: what was
      said of the mean, and the coin.
  """

  start: Callable
  vectors: Callable
  lands: Callable


class Got(NamedTuple):
  """What the package gave: the mean, f32[n, d], and its new memory."""

  mean: np.ndarray
  memory: tuple


def allreduce() -> Mean:
  def lands(x, b, memory, said, got):
    return said[0].mean(axis=0), memory

  return Mean(nothing, lambda x, b, memory: (x - b,), lands)


def error_feedback() -> Mean:
  def vectors(x, b, memory):
    return (x - b + memory[0],)

  def lands(x, b, memory, said, got):
    left = vectors(x, b, memory)[0] - said[0]
    return said[0].mean(axis=0), (left,)

  return Mean(lambda x: (np.zeros_like(x),), vectors, lands)


def double_squeeze() -> Mean:
  """The memory of the mean, too, is f64[d]: the chunks in a row."""

  def start(x):
    return np.zeros_like(x), np.zeros_like(x[0])

  def vectors(x, b, memory):
    return (x - b + memory[0],)

  def lands(x, b, memory, said, got):
    left = vectors(x, b, memory)[0] - said[0]
    mean = said[0].mean(axis=0) + memory[1]
    return mean, (left, mean - got.mean[0])

  return Mean(start, vectors, lands)


def diana(alpha: float) -> Mean:
  """The memory is h_i; their mean is taken anew."""

  def vectors(x, b, memory):
    return (x - b - memory[0],)

  def lands(x, b, memory, said, got):
    mean = memory[0].mean(axis=0) + said[0].mean(axis=0)
    return mean, (memory[0] + alpha * said[0],)

  return Mean(lambda x: (np.zeros_like(x),), vectors, lands)


def adiana(alpha, eta, theta1, theta2, gamma, beta, p) -> Mean:
  """The memory is h_i, y, z and w; the coin is known by where w went."""

  def start(x):
    return np.zeros_like(x), x, x, x

  def vectors(x, b, memory):
    h, *_, w = memory
    return x - b - h, w - b - h

  def lands(x, b, memory, said, got):
    h, y, z, w = memory
    g = h.mean(axis=0) + said[0].mean(axis=0)
    w_new = got.memory[-1]
    tossed = np.abs(w_new - y).max() <= np.abs(w_new - w).max()
    y_new = x - eta * g
    z = beta * z + (1 - beta) * x + gamma / eta * (y_new - x)
    w = y if tossed else w
    y = y_new
    x_new = theta1 * z + theta2 * w + (1 - theta1 - theta2) * y
    return x - x_new, (h + alpha * said[1], y, z, w)

  return Mean(start, vectors, lands)
