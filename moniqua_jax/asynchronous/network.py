"""Messages between processes over MPI, and who is still there.

A process has two threads: one trains, the other, its main thread, makes all the
MPI calls and is never blocked in one. So any MPI will do, a message is answered
while a gradient is being computed, and silence means that a process is dead,
stopped, or cut off.

A message is one vector of bytes, its MPI tag is its kind:

  known: u32[n]    how many steps each worker is known to have taken
  number: u32      of the kind: an event, or whether something was readable
  body: u8[m]      a payload, or words

n: number of processes, which are the workers.
"""

from collections import deque
from collections.abc import Callable, Mapping
import concurrent.futures
import contextlib
import enum
import os
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from moniqua_jax.launch import multihost
from moniqua_jax.training import monitor

PING_EVERY = 0.25  # seconds
POLL_EVERY = 1e-3  # seconds, while nothing is on its way
GRACE = 10.0  # seconds that the others get to save their state


class Kind(enum.IntEnum):
  """What a message says."""

  REQUEST = 1  # number: the event, a step of the asker
  BUSY = 2  # no
  OFFER = 3  # yes; body: the payload of the one asked
  REPLY = 4  # number: could read; body: the payload of the asker
  ANSWER = 5  # number: both could read
  PING = 6
  HALT = 7  # number: 1 + who is lost, or 0; body: why; the sender has saved


class _Message(NamedTuple):
  request: Any  # of MPI
  source: int
  kind: Kind
  content: np.ndarray  # u8[4 * (n + 1) + m]


class Network:
  """What one process sends and receives, through the module `mpi4py.MPI`.

  After `timeout` seconds of silence, or in one step, a worker is lost.
  """

  def __init__(self, mpi, timeout: float = 20.0):
    if not timeout >= 8 * PING_EVERY:
      raise ValueError(
        f'--timeout={timeout}; a worker says that it is alive every '
        f'{PING_EVERY} s, so take {8 * PING_EVERY} s or more.'
      )
    self._mpi, self._comm, self._timeout = mpi, mpi.COMM_WORLD, timeout
    self.rank, self.n = self._comm.rank, self._comm.size
    self.library = mpi.Get_library_version().split(',')[0]
    # Written by the training thread; when its step under way began, or None.
    self.steps = 0
    self.step_began: float | None = None
    self.bytes_sent = 0  # headers and pings included
    # What to do with (source, number, body).
    self.handlers: dict[Kind, Callable[[int, int, np.ndarray], None]] = {
      Kind.PING: lambda source, number, body: None,
      Kind.HALT: self._on_halt,
    }
    # Called in each turn; and before the run stops, whether that saved a state.
    self.idle, self.save = lambda: None, lambda: False
    self._known = np.zeros(self.n, np.uint32)
    self._sending, self._arriving, self._inbox = [], [], deque()
    self._wake = threading.Event()
    self._stop: str | None = None
    self._halted, self._lost = set(), set()
    self.names = self._meet()  # of all processes, for people
    self._heard = np.full(self.n, time.monotonic())
    self._turned = self._pinged = time.monotonic()

  # ------------------------------------------------------ for both threads
  def clock(self) -> int:
    """The time of the run: steps that the workers are known to have taken, / n.

    With equal paces it is the number of a worker's own steps. Learning rate and
    theta follow it, so that they agree on slow and fast workers.
    """
    return int(self.known().sum()) // self.n

  def known(self) -> np.ndarray:
    """u32[n], how many steps each worker is known to have taken."""
    self._known[self.rank] = self.steps
    return self._known.copy()

  def wake(self) -> None:
    """Makes the main thread take its next turn now."""
    self._wake.set()

  def stop(self, reason: str) -> None:
    """Ends the run in the next turn, by `monitor.Stopped`."""
    self._stop = reason

  # -------------------------------------------------- for the main thread
  def send(self, to: int, kind: Kind, number: int = 0, body=b'') -> None:
    """Sends one message, and does not wait for it."""
    header = np.append(self.known(), np.uint32(number)).view(np.uint8)
    body = np.frombuffer(body, np.uint8)
    content = np.concatenate([header, body])
    request = self._comm.Isend(content, to, kind)
    self._sending.append((request, content))
    self.bytes_sent += content.nbytes

  def serve(self, until: Callable[[], bool]) -> None:
    """Handles messages until a condition holds."""
    try:
      while not until():
        self._turn()
    except self._mpi.Exception as error:
      self._find_failed()  # by name, if this MPI knows it
      raise monitor.Stopped(f'worker {self.rank}: {error}.') from error

  def during(self, work: Callable[[], Any]) -> Any:
    """Runs `work` in a thread, serves meanwhile, and returns its result."""
    future = concurrent.futures.Future()

    def run():
      try:
        future.set_result(work())
      except BaseException as error:
        future.set_exception(error)

    # A daemon: where the run ends, a step that hangs must not keep it.
    threading.Thread(target=run, daemon=True).start()
    self.serve(future.done)
    return future.result()

  def agreed(self, work: Callable[[], Any]) -> Any:
    """`during(work)`; a ValueError or OSError of one is raised on all."""
    result = None
    error: Exception | None = None
    try:
      result = self.during(work)
    except ValueError as mistake:
      error = ValueError(str(mistake))
    except OSError as failed:
      error = OSError(
        failed.errno, failed.strerror or str(failed), failed.filename
      )
    self.barrier()
    errors = [each for each in self._comm.allgather(error) if each is not None]
    if errors:
      raise errors[0]
    return result

  def same(self, given: Mapping) -> None:
    """Raises a ValueError on all workers unless all were given the same."""
    all_given = self._comm.allgather(dict(given))
    if said := multihost.differences(all_given, 'worker'):
      raise ValueError(f'the workers were given different commands: {said}.')

  def barrier(self, until: Callable[[], bool] = lambda: True) -> None:
    """Serves until all processes are here, and a condition holds here."""
    request = self._comm.Ibarrier()
    self.serve(lambda: request.Test() and until())

  def sum(self, x: np.ndarray) -> np.ndarray:
    """The sum over the workers, like x."""
    return self._all_reduce(x, self._mpi.SUM)

  def largest(self, x: np.ndarray) -> np.ndarray:
    """The largest over the workers, like x."""
    return self._all_reduce(x, self._mpi.MAX)

  def gather(self, x: np.ndarray) -> np.ndarray:
    """x of all workers [n, ...], on worker 0."""
    rows = np.empty((self.n, *x.shape), x.dtype)
    self.serve(self._comm.Igather(x, rows).Test)
    return rows

  @property
  def speaks(self) -> bool:
    """Whether this worker says why the run ends: the first that is left."""
    return self.rank == min(set(range(self.n)) - self._lost)

  def halt(self, reason: str) -> None:
    """Tells all others that the run ends; returns when they have saved too."""
    others = set(range(self.n)) - self._lost - {self.rank}
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(self._mpi.Exception):
      for worker in others:
        lost = min(self._lost, default=-1) + 1
        self.send(worker, Kind.HALT, lost, reason.encode())
      while not others <= self._halted and time.monotonic() < deadline:
        self._receive()
        self._halted |= {m.source for m in self._inbox if m.kind == Kind.HALT}
        time.sleep(POLL_EVERY)

  def _all_reduce(self, x, operation):
    result = np.empty_like(x)
    self.serve(self._comm.Iallreduce(x, result, operation).Test)
    return result

  def _meet(self):
    """Waits until all processes are here; who they are."""
    request = self._comm.Ibarrier()
    while not request.Test():
      time.sleep(10 * POLL_EVERY)  # blocked in MPI it would burn a core
    me = f'process {os.getpid()} on {self._mpi.Get_processor_name()}'
    return self._comm.allgather(me)

  def _turn(self):
    if self._stop:
      raise monitor.Stopped(self._stop)
    self._receive()
    while self._inbox:
      message = self._inbox.popleft()
      self._heard[message.source] = time.monotonic()
      header = message.content[: 4 * (self.n + 1)].view(np.uint32)
      np.maximum(self._known, header[:-1], out=self._known)
      body = message.content[header.nbytes :]
      self.handlers[message.kind](message.source, int(header[-1]), body)
    self.idle()
    self._watch()
    moving = self._arriving or self._sending
    self._wake.wait(POLL_EVERY / 10 if moving else POLL_EVERY)
    self._wake.clear()

  def _receive(self):
    status = self._mpi.Status()
    while (matched := self._comm.Improbe(status=status)) is not None:
      content = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
      request = matched.Irecv(content)
      kind = Kind(status.Get_tag())
      message = _Message(request, status.Get_source(), kind, content)
      self._arriving.append(message)
    tested = [(message.request.Test(), message) for message in self._arriving]
    self._inbox.extend(message for here, message in tested if here)
    self._arriving = [message for here, message in tested if not here]
    self._sending = [sent for sent in self._sending if not sent[0].Test()]

  def _watch(self):
    """Says that this worker is alive, and looks who else is."""
    now = time.monotonic()
    if now - self._turned > self._timeout / 4:
      self._heard[:] = now  # this process was stopped for a while, not they
    self._turned = self._heard[self.rank] = now
    if now - self._pinged < PING_EVERY:
      return
    self._pinged = now
    self._find_failed()
    for worker in set(range(self.n)) - {self.rank}:
      self.send(worker, Kind.PING)
    if (now - self._heard > self._timeout).any():
      silent = np.flatnonzero(now - self._heard > self._timeout)
      self._lose(silent.tolist(), f'silent for {self._timeout:g} s')
    began = self.step_began
    if began is not None and now - began > self._timeout:
      raise monitor.Stopped(
        f'worker {self.rank} ({self.names[self.rank]}) hangs: its step takes '
        f'longer than --timeout={self._timeout:g} s.'
      )

  def _find_failed(self):
    """Raises with the names of dead processes, where MPI reports them."""
    try:
      failed = self._comm.Get_failed()
    except (NotImplementedError, self._mpi.Exception):
      return  # an MPI without fault tolerance: silence will tell
    if failed.size:
      self._comm.Ack_failed()  # so that the others can still be heard
      everyone = self._comm.Get_group()
      ranks = self._mpi.Group.Translate_ranks(failed, None, everyone)
      self._lose(list(ranks), 'dead')

  def _lose(self, ranks, why):
    self._lost |= set(ranks)
    who = ' and '.join(f'worker {r} ({self.names[r]})' for r in ranks)
    raise monitor.Stopped(f'lost {who}: {why}.')

  def _on_halt(self, source, number, body):
    self._halted.add(source)
    self._lost |= {number - 1} if number else set()
    raise monitor.Stopped(body.tobytes().decode())
