"""What one process measures: the parts of a step, in turns, and its bytes.

  python -m benchmarks.network.worker --methods=moniqua4 --model=resnet20 \\
    --process_id=0 --coordinator_address=10.77.0.1:7000 --interface=eth0 \\
    --n=8 --steps=3 --local_steps=3 --rounds=5 --batch_size=16 --out=DIR

is what benchmarks.network starts in each namespace; it writes
DIR/process_id.json. A block is so many steps of one part, from one meeting of
all processes to the next, or to its own end if nothing is sent, so that the
slowest counts; blocks of all parts of all methods take turns, so that a load on
the machine falls on all of them alike, and the whole step of another method, if
--beside names one, takes turns with them. A process stays on one core: eight
with threads for two would only be in each other's way.
"""

import argparse
import contextlib
import json
import os
import pathlib
import time

from benchmarks.network import steps
from moniqua_jax.launch import initialize, multihost

LOCAL = ('compute', 'codec', 'encode')  # nothing is sent in them
COUNTERS = pathlib.Path('/sys/class/net')


def main():
  args = parsed()
  initialize.join(
    args.coordinator_address, args.n, args.process_id, workers=args.n
  )
  with initialize.ended_together():
    stay_on(args.process_id % os.cpu_count())
    # Gloo connects in the first collective and waits 30 s for the others, which
    # is too short where some still compile; this one has next to nothing.
    multihost.table([args.process_id], 1)
    made = {method: _made(method, args) for method in args.methods.split(',')}
    if args.beside:
      beside = _made(args.beside, args).of_step['full']
      for parts in made.values():
        parts.of_step['beside'] = beside
    report = measured(made, args)
    path = pathlib.Path(args.out) / f'{args.process_id}.json'
    path.write_text(json.dumps(report))


def _made(method, args) -> steps.Parts:
  config = steps.configured(method, args.model, args.n, args.batch_size)
  return steps.make(config)


def parsed():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--methods', required=True, help='a comma list')
  parser.add_argument('--model', choices=steps.MODELS, required=True)
  parser.add_argument('--beside', choices=steps.METHODS)
  parser.add_argument('--coordinator_address', required=True)
  parser.add_argument('--interface', required=True)
  parser.add_argument('--out', required=True)
  counts = 'n', 'process_id', 'steps', 'local_steps', 'rounds', 'batch_size'
  for name in counts:
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


def measured(made: dict[str, steps.Parts], args) -> dict[str, dict]:
  """Times and counts `rounds` blocks of each part of each method.

  Args:
    made: the parts of each method's step.
    args: interface, whose counters to read; steps and local_steps, in a block
      of a part that sends and of one that does not; rounds, blocks of each.

  Returns:
    Of each method, and of each part the seconds, tx and rx bytes of each block,
    per step; what its `parts` claim, and the load.
  """
  programs = {
    (method, name): part.stepper()
    for method, parts in made.items()
    for name, part in parts.of_step.items()
  }
  meet = next(iter(made.values())).meeting.stepper()
  for program in (*programs.values(), meet):
    program()  # compiles, and connects
  blocks = {
    method: {name: [] for name in parts.of_step}
    for method, parts in made.items()
  }
  for _ in range(args.rounds):
    for (method, name), program in programs.items():
      local = name in LOCAL
      count = args.local_steps if local else args.steps
      block = _block(program, meet, args.interface, count, local)
      blocks[method][name].append(block)
  return {
    method: {
      'parts': blocks[method],
      'claimed': parts.claimed,
      'size': parts.size,
      'load': os.getloadavg()[0],
    }
    for method, parts in made.items()
  }


def _block(program, meet, interface, count, local) -> dict:
  # Read before the meeting: after it the others may have begun to send.
  before = counters(interface)
  meet()
  began = time.perf_counter()
  for _ in range(count):
    program()
  own = time.perf_counter() - began
  meet()
  seconds = own if local else time.perf_counter() - began
  after = counters(interface)
  each = {key: (after[key] - before[key]) / count for key in after}
  return {'seconds': seconds / count, **each}


def counters(interface) -> dict[str, int]:
  """What the kernel counted on an interface: bytes and packets, tx and rx."""
  folder = COUNTERS / interface / 'statistics'
  names = ('tx_bytes', 'rx_bytes', 'tx_packets', 'rx_packets')
  return {name: int((folder / name).read_text()) for name in names}


if __name__ == '__main__':
  main()
