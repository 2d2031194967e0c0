"""Who averages with whom: one neighbour at a time, and no deadlock.

A worker that wants to average asks a random neighbour. While it waits, and
while the one it asked waits for the answer, neither is in another averaging:
overlapping ones would each move a worker half the way from where it stood
before the others, too far in sum, and the workers would drift apart.

A worker that is busy lets those of lower rank wait and turns those of higher
rank away, who go on and ask again after their next step. So whoever waits,
waits for a higher rank, and no circle of workers can wait for each other.
"""

from collections import deque
from collections.abc import Sequence
import threading
from typing import Any, NamedTuple

import jax
import numpy as np

from moniqua_jax.asynchronous import network as network_lib
from moniqua_jax.asynchronous import pair
from moniqua_jax.asynchronous.network import Kind
from moniqua_jax.quantizers import base
from moniqua_jax.training import monitor


class _Exchange(NamedTuple):
  """The averaging that a worker is in."""

  other: int
  asker: int
  event: int  # the number of the asker's step
  x: Any = None  # f32[d], of which the message was made
  own: Any = None  # f32[d], what the other end believes of x
  move: Any = None  # f32[d], held until both are known to read
  seen: Any = None


class Averaging:
  """The averagings of one worker with a neighbour at random, by `seed`.

  `patience` is how many times in a row an averaging with the same neighbour may
  be of no use before the run stops; `max_staleness` the averagings after which
  a gradient under way must be applied before a neighbour gets the next: the
  theory wants some bound.
  """

  def __init__(
    self,
    network: network_lib.Network,
    worker,
    ends: pair.Ends,
    neighbours: Sequence[int],
    *,
    seed: int = 0,
    patience: int = 0,
    max_staleness: int = 32,
  ):
    self._network, self._worker, self._ends = network, worker, ends
    self._neighbours, self._patience = list(neighbours), patience
    self._max_staleness = max_staleness
    self._random = np.random.default_rng((seed, network.rank))
    self._dtype = jax.eval_shape(
      ends.speak, worker.state.x, worker.state.tuned, 0, 0, 0
    )[0].dtype
    self._exchange: _Exchange | None = None
    self._waiting = deque()
    self._wanted, self._settled = False, threading.Event()
    self._settled.set()  # nothing was asked for yet
    self._in_a_row = np.zeros(network.n, int)
    self._seen = deque()
    self.concluded = self.unreadable = self.declined = 0
    network.idle = self._next
    network.handlers |= {
      Kind.REQUEST: self._on_request,
      Kind.BUSY: self._on_busy,
      Kind.OFFER: self._on_offer,
      Kind.REPLY: self._on_reply,
      Kind.ANSWER: self._on_answer,
    }

  # ------------------------------------------------- for the training thread
  def ask(self) -> None:
    """Wants one averaging with a random neighbour, and goes on at once."""
    self._settled.clear()
    self._wanted = True
    self._network.wake()

  def wait(self) -> None:
    """Waits until the averaging that was asked for is done, or was declined."""
    self._settled.wait()

  def take_seen(self) -> base.Seen | None:
    """What came in since the last call, each field [1, E]; None if nothing."""
    seen = [self._seen.popleft() for _ in range(len(self._seen))]
    if not seen:
      return None
    return jax.tree.map(lambda *leaves: np.array([leaves]), *seen)

  # ----------------------------------------------------- for the main thread
  @property
  def busy(self) -> bool:
    """Whether an averaging is under way or waits."""
    return self._exchange is not None or bool(self._waiting)

  def _next(self):
    if self._exchange is not None:
      return
    if self._waiting:
      self._offer(*self._waiting.popleft())
    elif self._wanted:
      self._wanted = False
      self._request()

  def _request(self):
    other, event = self._random.choice(self._neighbours), self._worker.steps
    self._exchange = _Exchange(int(other), self._network.rank, event)
    self._network.send(int(other), Kind.REQUEST, event)

  def _on_request(self, source, event, _):
    stale = self._worker.staleness >= self._max_staleness
    if stale or (self._exchange is not None and source > self._network.rank):
      self._network.send(source, Kind.BUSY)
    else:
      self._waiting.append((source, event))

  def _on_busy(self, *_):
    self._exchange = None
    self.declined += 1
    self._settled.set()

  def _offer(self, source, event):
    payload = self._speak(_Exchange(source, source, event))
    self._network.send(source, Kind.OFFER, body=payload)

  def _on_offer(self, source, _, body):
    payload = self._speak(self._exchange)
    readable = self._listen(body)
    self._network.send(source, Kind.REPLY, readable, payload)

  def _on_reply(self, source, readable, body):
    both = self._listen(body) and bool(readable)
    self._network.send(source, Kind.ANSWER, both)
    self._conclude(both)

  def _on_answer(self, _, both, body):
    self._conclude(bool(both))
    self._settled.set()

  def _speak(self, exchange) -> np.ndarray:
    """The payload, of x as it is now."""
    state, clock = self._worker.state, self._network.clock()
    payload, own = self._ends.speak(
      state.x, state.tuned, clock, exchange.asker, exchange.event
    )
    self._exchange = exchange._replace(x=state.x, own=own)
    return np.asarray(payload)

  def _listen(self, body) -> bool:
    """Whether the other's payload can be read next to the x of one's own."""
    exchange, tuned = self._exchange, self._worker.state.tuned
    assert exchange is not None
    payload, clock = body.view(self._dtype), self._network.clock()
    seen, move = self._ends.listen(
      payload, exchange.x, exchange.own, tuned, clock
    )
    exchange = exchange._replace(seen=jax.device_get(seen), move=move)
    self._exchange = exchange
    return bool(exchange.seen.readable)

  def _conclude(self, both):
    """Both ends move, or neither does."""
    exchange, self._exchange = self._exchange, None
    assert exchange is not None
    seen, tuned = exchange.seen, self._worker.state.tuned
    tuned = self._ends.observe(tuned, seen, both, exchange.x)
    self._worker.average(exchange.move if both else None, tuned)
    self._seen.append(seen._replace(readable=both))
    self.concluded += 1
    self.unreadable += not both
    in_a_row = 0 if both else self._in_a_row[exchange.other] + 1
    self._in_a_row[exchange.other] = in_a_row
    # Where only the other end could not read, it will say so.
    if in_a_row > self._patience and not seen.readable:
      raise monitor.Stopped(self._why(exchange))

  def _why(self, exchange) -> str:
    seen = exchange.seen
    return (
      f'worker {self._network.rank} could not read the message of worker '
      f'{exchange.other} (step {exchange.event} of worker {exchange.asker}). '
      f'{monitor.cure(float(seen.theta), float(seen.distance))}'
    )
