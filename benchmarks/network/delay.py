"""Packets that are on their way for so many seconds, without netem.

  python delay.py DEVICE SECONDS BYTES

holds every frame of a TAP device back, of at most so many bytes. What the
workers send up to the bridge is led there first and goes on from there:

  eth0 -- tbf, up --> port -- [late: held] --> [bridge] -- tbf, down --> eth0

All workers' frames stand in one queue, for all wait equally long. The program
ends when it is ready, and leaves behind a process that a namespace's end ends.
"""

import collections
from collections.abc import Iterator
import contextlib
import fcntl
import os
import select
import struct
import sys
import time

DEVICE = 'late'
# All frames of so many seconds are looked at in one go, not each at its time:
# at 100 Mbit/s eight workers send 40,000 in a second, with acknowledgements.
TICK = 500e-6
# A message after the gradient of a long step would begin with ten packets and
# wait for their answers, two delays each time, as if the link were a new one.
SYSCTL = '/proc/sys/net/ipv4/tcp_slow_start_after_idle'
# From <linux/if_tun.h>.
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def commands(
  bridge: str, ports: dict[str, str], seconds: float, frame: int
) -> Iterator[list[str]]:
  """What makes the device, leads the packets there and starts the program.

  Args:
    bridge: the namespace of the bridge br0.
    ports: of the bridge, with the MAC address of the worker behind each, which
      a bridge that sees all packets come from one device cannot learn.
    seconds: from worker to worker.
    frame: bytes of the longest one.
  """
  ip, tc = ['ip', '-n', bridge], ['tc', '-n', bridge]
  yield [*ip, *f'tuntap add dev {DEVICE} mode tap'.split()]
  up = f'mtu {frame - 14} txqueuelen 10000 addrgenmode none master br0 up'
  yield [*ip, *f'link set dev {DEVICE} {up}'.split()]
  yield [*ip, *f'link set {DEVICE} type bridge_slave learning off'.split()]
  lead = f'u32 match u32 0 0 action mirred egress redirect dev {DEVICE}'
  for port, address in ports.items():
    yield [*tc, *f'qdisc add dev {port} ingress'.split()]
    where = f'filter add dev {port} ingress protocol all'
    yield [*tc, *where.split(), *lead.split()]
    known = f'fdb add {address} dev {port} master static'
    yield ['bridge', '-n', bridge, *known.split()]
  program = [sys.executable, '-I', __file__, DEVICE, f'{seconds}', f'{frame}']
  yield ['ip', 'netns', 'exec', bridge, *program]


def main() -> None:
  device, seconds, frame = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
  frames = opened(device)
  if os.fork():
    return
  os.setsid()
  silent = os.open(os.devnull, os.O_RDWR)
  for said in range(3):
    os.dup2(silent, said)
  with contextlib.suppress(PermissionError):  # before all, as a kernel would
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
  hold(frames, seconds, frame)


def opened(device: str) -> int:
  """A file that reads and writes the frames of a TAP device."""
  frames = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
  wanted = struct.pack('16sH22x', device.encode(), IFF_TAP | IFF_NO_PI)
  fcntl.ioctl(frames, TUNSETIFF, wanted)
  return frames


def hold(frames: int, seconds: float, frame: int) -> None:
  """Writes each frame back after so many seconds; does not return."""
  held = collections.deque()
  while True:
    if held:
      time.sleep(TICK)
    else:
      select.select([frames], [], [])
    now = time.monotonic()
    with contextlib.suppress(BlockingIOError):
      while True:
        held.append((now + seconds, os.read(frames, frame)))
    while held and held[0][0] <= now + TICK / 2:
      os.write(frames, held.popleft()[1])


if __name__ == '__main__':
  main()
