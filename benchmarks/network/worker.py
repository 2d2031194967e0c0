"""What one process measures: the parts of a step, in turns, and its bytes.

  python -m benchmarks.network.worker --method=moniqua4 --model=resnet20 \\
    --process_id=0 --coordinator_address=10.77.0.1:7000 --interface=eth0 \\
    --n=8 --steps=3 --rounds=5 --batch_size=16 --out=DIR

is what benchmarks.network starts in each namespace; it writes
DIR/process_id.json. A block is so many steps of one part, from one meeting of
all processes to the next, so that the slowest counts; blocks of all parts take
turns, so that a load on the machine falls on all of them alike, and the whole
step of another method, if --beside names one, takes turns with them. A process
stays on one core: eight with threads for two would only be in each other's way.
"""

import argparse
import contextlib
import json
import os
import pathlib
import time

from benchmarks.network import steps
from moniqua_jax.launch import initialize, multihost

COUNTERS = pathlib.Path('/sys/class/net')


def main():
  args = parsed()
  initialize.join(
    args.coordinator_address, args.n, args.process_id, workers=args.n
  )
  with initialize.ended_together():
    stay_on(args.process_id % os.cpu_count())
    config = steps.configured(args.method, args.model, args.n, args.batch_size)
    # Gloo connects in the first collective and waits 30 s for the others, which
    # is too short where some still compile; this one has next to nothing.
    multihost.table([args.process_id], 1)
    parts = steps.make(config)
    if args.beside:
      config = steps.configured(
        args.beside, args.model, args.n, args.batch_size
      )
      parts.of_step['beside'] = steps.make(config).of_step['full']
    report = measured(parts, args.interface, args.steps, args.rounds)
    path = pathlib.Path(args.out) / f'{args.process_id}.json'
    path.write_text(json.dumps(report))


def parsed():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--method', choices=steps.METHODS, required=True)
  parser.add_argument('--model', choices=steps.MODELS, required=True)
  parser.add_argument('--beside', choices=steps.METHODS)
  parser.add_argument('--coordinator_address', required=True)
  parser.add_argument('--interface', required=True)
  parser.add_argument('--out', required=True)
  for name in ('n', 'process_id', 'steps', 'rounds', 'batch_size'):
    parser.add_argument(f'--{name}', type=int, required=True)
  return parser.parse_args()


def stay_on(core: int) -> None:
  """Keeps all threads of this process on one core.

  Once JAX has them: where it sees one core it makes one thread, and a program
  that waits for messages would hold up the gradient beside it.
  """
  for task in pathlib.Path('/proc/self/task').iterdir():
    with contextlib.suppress(ProcessLookupError):  # it has just ended
      os.sched_setaffinity(int(task.name), {core})


def measured(parts: steps.Parts, interface, count, rounds) -> dict:
  """Times and counts `rounds` blocks of each part.

  Args:
    parts: of a step.
    interface: whose counters to read.
    count: steps in a block.
    rounds: blocks of each part.

  Returns:
    Of each part the seconds, tx and rx bytes of each block, per step; what
    `parts` claims, and the load.
  """
  blocks = {name: [] for name in parts.of_step}
  programs = {name: part.stepper() for name, part in parts.of_step.items()}
  meet = parts.meeting.stepper()
  for program in (*programs.values(), meet):
    program()  # compiles, and connects
  for _ in range(rounds):
    for name, program in programs.items():
      blocks[name].append(_block(program, meet, interface, count))
  return {
    'parts': blocks,
    'claimed': parts.claimed,
    'size': parts.size,
    'load': os.getloadavg()[0],
  }


def _block(program, meet, interface, count) -> dict:
  # Read before the meeting: after it the others may have begun to send.
  before = counters(interface)
  meet()
  began = time.perf_counter()
  for _ in range(count):
    program()
  meet()
  seconds, after = time.perf_counter() - began, counters(interface)
  each = {key: (after[key] - before[key]) / count for key in after}
  return {'seconds': seconds / count, **each}


def counters(interface) -> dict[str, int]:
  """What the kernel counted on an interface: bytes and packets, tx and rx."""
  folder = COUNTERS / interface / 'statistics'
  names = ('tx_bytes', 'rx_bytes', 'tx_packets', 'rx_packets')
  return {name: int((folder / name).read_text()) for name in names}


if __name__ == '__main__':
  main()
