"""n network namespaces, joined by slow links.

  python -m benchmarks.network.namespaces --clean

removes what an owner left that was killed. Each worker has a namespace with one
interface, a veth pair whose other end is a port of a bridge. The bridge has a
namespace of its own, so that the host's network is not touched:

  worker i:  eth0 -- tbf, up -->  [bridge]  -- tbf, down -->  eth0  :worker j

In front of a bucket the packets of different workers take turns.
Needs Linux, root and iproute2.
"""

import argparse
from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import NamedTuple

from benchmarks.network import delay
from moniqua_jax import command_line

PREFIX = 'moniqua'
HOSTS = pathlib.Path('/etc/netns')  # `ip netns exec` reads NAME/hosts there

# A token bucket lets `burst` bytes pass at once, and so makes a message shorter
# by that much. It must hold one whole frame, and what comes due while the
# kernel is late (its timers: about 50 us). Longer frames, which the sender left
# to be cut on their way (GSO), it cuts.
BURST_SECONDS = 200e-6
FRAME = 14  # bytes of Ethernet around an IP packet
# Of each frame 66 bytes are headers, and every second one is answered by 66
# bytes: 6.8 % of what is sent with an MTU of 1500, 3.4 % with 3000, 1.1 % with
# 9000, of which the bucket would hold a quarter of ResNet-20 in one bit.
MTU = 3000
# What waits in front of a bucket before it drops: more than two neighbours send
# at once, so that nothing is lost. Where workers take turns it is 1000 packets
# of each instead.
QUEUE = 16 * 2**20
# Of those that a namespace may choose, the one that every kernel has.
CONGESTION_CONTROL = 'reno'


class NetworkError(ValueError):
  """The links cannot be made; one line says why."""


class Link(NamedTuple):
  """One worker's link to the bridge, the same up and down.

  Attributes:
    rate: bits per second; None for no links, all workers on one loopback.
    delay: seconds from worker to worker; see delay.py.
    mtu: bytes of an IP packet.
  """

  rate: float | None
  delay: float = 0.0
  mtu: int = MTU


class Network(NamedTuple):
  """Where each worker lives.

  Attributes:
    names: n namespaces; the same n times on loopback.
    addresses: n IPv4 addresses.
    interface: the one whose bytes count; on loopback those of all workers do.
  """

  names: tuple[str, ...]
  addresses: tuple[str, ...]
  interface: str

  def inside(self, worker: int, argv: list[str]) -> list[str]:
    """The command that runs argv in the namespace of a worker."""
    return ['ip', 'netns', 'exec', self.names[worker], *argv]

  def counted(self, worker: int) -> dict[str, int]:
    """Bytes that the kernel counted on the worker's interface: tx and rx."""
    show = ['ip', '-n', self.names[worker], '-s', '-j', 'link', 'show']
    return parse_counters(_run(*show, 'dev', self.interface))


def parse_counters(text: str) -> dict[str, int]:
  """tx and rx bytes of the first interface in `ip -s -j link show`.

  >>> one = '[{"stats64": {"rx": {"bytes": 3}, "tx": {"bytes": 7}}}]'
  >>> parse_counters(one)
  {'tx': 7, 'rx': 3}
  """
  stats = json.loads(text)[0]['stats64']
  return {way: stats[way]['bytes'] for way in ('tx', 'rx')}


def parse_rate(text: str) -> float | None:
  """Bits per second of '10mbit', '1gbit'; None for 'loopback'.

  Raises:
    ValueError: it is none of these.

  >>> parse_rate('100mbit'), parse_rate('loopback')
  (100000000.0, None)
  """
  if text == 'loopback':
    return None
  match = re.fullmatch(r'(\d+(?:\.\d+)?)(k|m|g)bit', text)
  if not match or not float(match[1]):
    raise ValueError(f"rate {text!r}; give 'loopback', '10mbit', '1gbit', ...")
  return float(match[1]) * {'k': 1e3, 'm': 1e6, 'g': 1e9}[match[2]]


def parse_delay(text: str) -> float:
  """Seconds of '20ms'.

  Raises:
    ValueError: it is none of these.

  >>> parse_delay('20ms'), parse_delay('0ms')
  (0.02, 0.0)
  """
  if not re.fullmatch(r'\d+(?:\.\d+)?ms', text):
    raise ValueError(f"delay {text!r}; give '0ms', '20ms', ...")
  return 1e-3 * float(text[:-2])


@contextlib.contextmanager
def network(n: int, link: Link) -> Iterator[Network]:
  """Makes the namespaces of n workers; they are gone when the block ends.

  Also after an exception, Ctrl-C and SIGTERM (of the main thread), and with
  them whatever still runs inside. What SIGKILL leaves, the next call removes.

  Args:
    n: workers.
    link: of each.

  Yields:
    A `Network`.

  Raises:
    NetworkError: no right to make namespaces, no `ip` or `tc`, no TUN for a
      delay, or this process has a network already.
  """
  check()
  clean()
  owner = f'{PREFIX}-{os.getpid()}'
  if _of_owner(os.getpid()):
    raise NetworkError(f'{owner}: this process has a network already.')
  with _terminable():
    try:
      make = _loopback if link.rate is None else _bridged
      yield make(owner, n, link)
    finally:
      with _undisturbed():
        for name in _of_owner(os.getpid()):
          remove(name)


def check() -> None:
  """Raises a NetworkError where namespaces cannot be made."""
  for tool in ('ip', 'tc'):
    if shutil.which(tool) is None:
      raise NetworkError(f'there is no {tool!r}; install iproute2 (Linux).')
  if os.geteuid() != 0:
    raise NetworkError('network namespaces need root; run it as root.')


def clean() -> list[str]:
  """Removes the namespaces whose owner is no longer alive; their names."""
  left = [name for name in existing() if not _alive(_owner(name))]
  for name in left:
    remove(name)
  return left


def existing() -> list[str]:
  """All namespaces, and folders of hosts files, that this module made."""
  listed = [line.split()[0] for line in _run('ip', 'netns').splitlines()]
  folders = [path.name for path in HOSTS.glob(f'{PREFIX}-*')]
  ours = re.compile(rf'{PREFIX}-\d+-\w+')
  return sorted(name for name in {*listed, *folders} if ours.fullmatch(name))


def remove(name: str) -> None:
  """Ends what runs in a namespace and removes it; quiet if it is gone."""
  with contextlib.suppress(NetworkError):
    for pid in map(int, _run('ip', 'netns', 'pids', name).split()):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _run('ip', 'netns', 'delete', name)  # and with it its interfaces
  shutil.rmtree(HOSTS / name, ignore_errors=True)


def bucket(link: Link) -> str:
  """The arguments of `tc` for the token bucket of one end of a link.

  >>> bucket(Link(rate=10e6))
  'tbf rate 10000000bit burst 3264 limit 16777216'
  """
  if link.rate is None:
    return ''
  a_second = link.rate / 8
  burst = link.mtu + FRAME + a_second * BURST_SECONDS
  return f'tbf rate {link.rate:.0f}bit burst {burst:.0f} limit {QUEUE}'


def _loopback(owner, n, link):
  name = f'{owner}-0'
  if link.delay:
    raise NetworkError('a delay needs links; loopback has none.')
  _namespace(name, '127.0.0.1')
  return Network((name,) * n, ('127.0.0.1',) * n, 'lo')


def _bridged(owner, n, link):
  bridge = f'{owner}-bridge'
  _namespace(bridge, '127.0.0.1')
  _run('ip', '-n', bridge, 'link', 'add', 'br0', 'type', 'bridge')
  _up(bridge, 'br0', link.mtu)
  names = tuple(f'{owner}-{i}' for i in range(n))
  addresses = tuple(f'10.77.{i // 250}.{i % 250 + 1}' for i in range(n))
  for i, (name, address) in enumerate(zip(names, addresses, strict=True)):
    _namespace(name, address)
    pair = f'link add port{i} type veth peer name eth0 netns {name}'
    _run('ip', '-n', bridge, *pair.split(), 'address', _mac(i))
    _run('ip', '-n', bridge, *f'link set port{i} master br0'.split())
    _run('ip', '-n', name, *f'addr add {address}/16 dev eth0'.split())
    _slow(name, 'eth0', link)
    _slow(bridge, f'port{i}', link)
    _fair(name, 'eth0', 'dst', addresses, link)
    _fair(bridge, f'port{i}', 'src', addresses, link)
    _up(name, 'eth0', link.mtu)
    _up(bridge, f'port{i}', link.mtu)
  if link.delay:
    _delayed(bridge, names, link)
  return Network(names, addresses, 'eth0')


def _namespace(name, address):
  """A namespace in which this host's own name means `address`."""
  folder = HOSTS / name
  folder.mkdir(parents=True)
  host = f'127.0.0.1 localhost\n{address} {socket.gethostname()}\n'
  (folder / 'hosts').write_text(host)
  _run('ip', 'netns', 'add', name)
  _run('ip', '-n', name, 'link', 'set', 'lo', 'up')
  path = '/proc/sys/net/ipv4/tcp_congestion_control'
  _run('ip', 'netns', 'exec', name, 'tee', path, given=CONGESTION_CONTROL)


def _slow(name, interface, link):
  where = ['dev', interface, 'root', 'handle', '1:']
  _run('tc', '-n', name, 'qdisc', 'add', *where, *bucket(link).split())


def _fair(name, interface, end, addresses, link):
  """Those who wait for a bucket take turns, packet by packet.

  As with the queues that Linux distributions choose, sfq and fq_codel, which
  not every kernel has. In one line, the few bytes by which a receiver says that
  it is ready wait behind what its own worker sends to somebody else: .15 s of a
  message at 10 Mbit/s.
  """
  where = ['dev', interface, 'parent']
  _run('tc', '-n', name, 'qdisc', 'add', *where, *'1: handle 10: htb'.split())
  turn = f'htb rate 100gbit quantum {link.mtu + FRAME}'  # the bucket is slower
  for k, address in enumerate(addresses, 1):
    line = f'10: classid 10:{k:x} {turn}'
    _run('tc', '-n', name, 'class', 'add', *where, *line.split())
    line = f'10: protocol ip u32 match ip {end} {address} flowid 10:{k:x}'
    _run('tc', '-n', name, 'filter', 'add', *where, *line.split())


def _delayed(bridge, names, link):
  """Delays what comes up from the workers; the bucket is in front."""
  ports = {f'port{i}': _mac(i) for i in range(len(names))}
  made = delay.commands(bridge, ports, link.delay, link.mtu + FRAME)
  try:
    for command in made:
      _run(*command)
  except (NetworkError, FileNotFoundError) as error:
    raise NetworkError(
      f'delay {link.delay:g} s: it takes TUN, u32 and mirred of the kernel '
      f'and bridge of iproute2; leave the delay out. {error}'
    ) from error
  for name in names:
    _run('ip', 'netns', 'exec', name, 'tee', delay.SYSCTL, given='0')


def _mac(i):
  return f'02:00:00:00:{i // 256:02x}:{i % 256:02x}'


def _up(name, interface, mtu):
  # Without IPv6 addresses the kernel sends nothing by itself.
  words = f'link set dev {interface} mtu {mtu} addrgenmode none up'
  _run('ip', '-n', name, *words.split())


def _run(*argv, given=None) -> str:
  done = subprocess.run(argv, capture_output=True, text=True, input=given)
  if done.returncode:
    reason = ' '.join((done.stderr or done.stdout).split())
    raise NetworkError(f'{" ".join(argv)}: {reason}')
  return done.stdout


def _of_owner(pid):
  return [name for name in existing() if _owner(name) == pid]


def _owner(name):
  return int(name.split('-')[1])


def _alive(pid):
  return pathlib.Path(f'/proc/{pid}').exists()


@contextlib.contextmanager
def _terminable():
  """SIGTERM ends the block as Ctrl-C does, with status 143."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _undisturbed():
  """A second Ctrl-C waits until the block is done."""
  held = {signal.SIGINT, signal.SIGTERM}
  before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.network.namespaces',
    description='Lists the namespaces of the laboratory.',
  )
  parser.add_argument(
    '--clean', action='store_true', help='remove those of dead owners'
  )
  args = parser.parse_args(argv)
  try:
    check()
    if args.clean:
      print('removed:', *(clean() or ['nothing']))
    print('there are:', *(existing() or ['none']))
  except (NetworkError, OSError) as error:
    return command_line.told(error)
  return 0


if __name__ == '__main__':
  sys.exit(main())
