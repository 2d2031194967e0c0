"""How the processes of a run come together, and how they end together.

All of it is JAX's own distributed runtime: Gloo between CPUs, NCCL between
GPUs, ICI between TPUs.
"""

from collections.abc import Mapping
import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time

import jax

from moniqua_jax.launch import watch

# The runtime finds a lost process after half of these seconds to all of them:
# later than our watch, which says what to do.
HEARTBEAT = 60
JOINING = 60  # seconds until all must have come


def join(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  workers: int = 1,
  timeout: int = JOINING,
  environment: Mapping[str, str] = os.environ,
) -> int:
  """Joins the run that the flags, Slurm or OpenMPI describe, if any does.

  Before anything of JAX runs. Ends the process with one line where it cannot
  join in time, for JAX would end it with many.

  Source: jax.distributed.initialize.
  """
  three = (coordinator_address, num_processes, process_id)
  if three == (None, None, None):
    count, how = _cluster(environment)
    if count == 1:
      return 1
  elif coordinator_address == 'auto':
    count, how = 1, {}  # what JAX finds has devices of its own
  else:
    _check(*three)
    count = num_processes or 1
    names = ('coordinator_address', 'num_processes', 'process_id')
    how = dict(zip(names, three, strict=True))
  # Who cannot share them says so when all are here: see multihost.agreed.
  show_devices(max(1, workers // count))
  # The processes of a run speak to each other, not to a proxy of the web.
  if {'http_proxy', 'https_proxy'} & set(os.environ):
    os.environ.setdefault('grpc_proxy', '')
  with _in_time(timeout, coordinator_address, how):
    jax.distributed.initialize(
      **how,
      initialization_timeout=10 * timeout,  # ours comes first
      heartbeat_timeout_seconds=HEARTBEAT,
    )
    jax.devices()  # waits for all processes, too
  # When the runtime ends us it says why; absl would add every thread's stack.
  faulthandler.disable()
  if jax.process_count() > 1:
    watch.start()
  return jax.process_count()


def show_devices(count: int) -> None:
  """Makes a CPU so many devices; a `ValueError` where JAX has begun already."""
  try:
    jax.config.update('jax_num_cpu_devices', count)
  except RuntimeError as error:
    raise ValueError(
      f'JAX was used before it could have {count} devices, as by a config that '
      'makes arrays of jax.numpy when it is read: take NumPy there, or make '
      'them in a function.'
    ) from error


def _cluster(environment) -> tuple[int, dict]:
  """How many processes a job has, and how JAX finds them."""
  if (count := int(environment.get('SLURM_STEP_NUM_TASKS', 1))) > 1:
    return count, {}
  # JAX knows OpenMPI by a variable that its fifth release no longer sets.
  count = int(environment.get('OMPI_COMM_WORLD_SIZE', 1))
  return count, {'cluster_detection_method': 'mpi4py'}


def _check(coordinator_address, num_processes, process_id):
  named = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in named.items() if value is None]
  if missing:
    raise ValueError(
      f'{", ".join(missing)} not given; many processes need all of '
      f'{", ".join(named)}.'
    )
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise ValueError(
      f'--process_id={process_id} --num_processes={num_processes}; ids go from '
      '0 to one less than the number of processes.'
    )
  host, _, port = coordinator_address.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise ValueError(
      f'--coordinator_address={coordinator_address!r}; it is HOST:PORT, one '
      'port from 1 to 65535 for all processes.'
    )
  if process_id == 0:
    _check_port(coordinator_address, int(port))


def _check_port(address, port):
  # gRPC would share the port with whoever has it, and wait.
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(('', port))
    except OSError as error:
      raise ValueError(
        f'--coordinator_address={address}: process 0 cannot listen at port '
        f'{port}: {error.strerror}; take another.'
      ) from error


@contextlib.contextmanager
def _in_time(timeout, address, how):
  """Ends the process with one line unless the body is done in time."""
  joined = threading.Event()

  def give_up():
    if joined.wait(timeout):
      return
    if how.get('process_id') and not _answers(address):
      reason = f'nobody listens at {address}: process 0 is not there'
    else:
      reason = (
        'not all processes came: one that was given something wrong says so; '
        'is --num_processes the same everywhere, and does each --process_id '
        'occur once'
      )
    who = how.get('process_id', 'this one')
    watch.end(f'error: process {who} waited {timeout} s to join; {reason}.', 2)

  threading.Thread(target=give_up, daemon=True).start()
  try:
    yield
  except (RuntimeError, ImportError) as error:
    watch.end(f'error: joining failed: {_first_line(error)}', 2)
  finally:
    joined.set()


def _answers(address) -> bool:
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), 2).close()
  except OSError:
    return False
  return True


@contextlib.contextmanager
def ended_together():
  """Ends this process with the others, when one of them fails.

  A failure of our own ends this process at once, and tells the others. When it
  is a collective that fails, another process is lost: the watch finds out which
  one within 20 seconds, names it and ends us.
  """
  if jax.process_count() == 1:
    yield
    return
  me = jax.process_index()
  goes = f'process {me} ends, and with it the run.'
  try:
    yield
  except SystemExit as error:
    if error.code:
      status = error.code if isinstance(error.code, int) else 1
      watch.end(goes, status, words=_why(error))
    raise
  except jax.errors.JaxRuntimeError as error:
    time.sleep(watch.SILENCE + 3 * watch.BEAT)  # the watch ends us before
    watch.end(f'error: process {me}: {_first_line(error)}', 1)
  except BaseException as error:
    sys.excepthook(*sys.exc_info())
    watch.end(goes, 1, words=f'{type(error).__name__}: {_first_line(error)}')


def _why(error: SystemExit) -> str:
  """What led to an exit: the mistake that was turned into one line."""
  return _first_line(error.__context__ or f'status {error.code}')


def _first_line(error) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
