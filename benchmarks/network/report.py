"""Tables of what the laboratory measured. Pure: cells in, text out."""

from collections.abc import Sequence

import numpy as np

from benchmarks.network import namespaces
from moniqua_jax.plots import tables

# Of a TCP packet: Ethernet 14, IP 20, TCP 20 and 12 for its time stamp.
HEADER = 66
TITLES = (
  'rate',
  'method',
  'step ms',
  'compute',
  'codec',
  'communication',
  'codec + communication',
  'times less',
  'step, times faster',
  'kB claimed',
  'kB counted',
  'kB empty',
  'counted / (claimed + empty)',
  'without headers',
)
NOTES = """
{n} processes, a worker each, on a ring; {model}, {size:,} parameters, batches
of {batches}; medians of {blocks} steps. A block begins at a meeting of all
processes and ends at the next, of compute and codec where a process is done
with it (in cells of before 2026-11-30 at the next, too). Step: as train.py
takes it. Compute: the same without gossip and reduction, in the same run.
Codec: encode, decode and mix with every collective a copy. Communication: the
rest. Times less, times faster: D-PSGD in full precision at the same rate over
this, in codec + communication and in the whole step. kB of each worker per
step, 1 kB = 1000 bytes: claimed by the software; counted by the kernel on the
interface, sent; and counted for the same collectives with next to nothing in
them. Without headers: the same when {header} bytes of each packet (Ethernet,
IP, TCP) are taken off.
"""


def merged(reports: Sequence[dict], shared: bool) -> dict:
  """One cell from what its processes measured.

  Args:
    reports: of the processes, as worker.py writes them.
    shared: whether all read the counters of one interface.

  Returns:
    Of each part the median over blocks of the slowest process's seconds, and
    bytes and packets of a worker; what is claimed, d, and the largest load.
  """
  return {
    'claimed': reports[0]['claimed'],
    'size': reports[0]['size'],
    'largest_load': max(report['load'] for report in reports),
    'parts': {
      name: _part([report['parts'][name] for report in reports], shared)
      for name in reports[0]['parts']
    },
  }


def _part(blocks, shared):
  """From blocks[process][round] -> {key: number}."""
  of = lambda key: np.array([[b[key] for b in rows] for rows in blocks])
  workers = len(blocks) if shared else 1
  counted = {
    key: of(key).mean() / workers for key in blocks[0][0] if key != 'seconds'
  }
  seconds = of('seconds').max(axis=0)
  return {
    'seconds': float(np.median(seconds)),
    'seconds_of_blocks': seconds.tolist(),
    **{key: float(value) for key, value in counted.items()},
  }


def split(cell: dict) -> dict[str, float]:
  """Seconds of a step, and of what it is made of.

  >>> parts = {'full': 1.0, 'compute': 0.25, 'codec': 0.25}
  >>> split({'parts': {k: {'seconds': v} for k, v in parts.items()}})['wire']
  0.5
  """
  full, compute, codec = (
    cell['parts'][name]['seconds'] for name in ('full', 'compute', 'codec')
  )
  talk = full - compute  # codec and communication
  return {
    'full': full,
    'compute': compute,
    'codec': codec,
    'wire': talk - codec,
    'talk': talk,
  }


def bytes_ratio(cell: dict, header: int = 0) -> float:
  """Counted over claimed and empty, without `header` bytes of each packet."""
  net = lambda part: part['tx_bytes'] - header * part['tx_packets']
  full, empty = cell['parts']['full'], cell['parts']['empty']
  return net(full) / (cell['claimed'] + net(empty))


def one_line(cell: dict) -> str:
  """What is printed when a cell is done."""
  ms = {name: f'{1e3 * value:.1f}' for name, value in split(cell).items()}
  return (
    f'{cell["rate"]}, {cell["method"]}: step {ms["full"]} ms = compute '
    f'{ms["compute"]} + codec {ms["codec"]} + communication {ms["wire"]}; '
    f'bytes {bytes_ratio(cell):.3f} of claimed + empty; '
    f'load {cell["largest_load"]:.1f}'
  )


def ordered(cells: Sequence[dict], methods: Sequence[str]) -> list[dict]:
  """Cells by rate, the fastest first, and then in the order of `methods`."""
  speed = lambda cell: namespaces.parse_rate(cell['rate']) or np.inf
  order = lambda cell: (-speed(cell), methods.index(cell['method']))
  return sorted(cells, key=order)


def table(cells: Sequence[dict]) -> str:
  """A row a cell, with notes and the loads, in markdown.

  Args:
    cells: one or more, of one model and one number of workers, in order.

  Returns:
    Text.
  """
  full = {c['rate']: split(c) for c in cells if c['method'] == 'dpsgd'}
  rows = [_row(cell, full.get(cell['rate'])) for cell in cells]
  text = tables.markdown(TITLES, rows, words=2)
  loads = [cell['largest_load'] for cell in cells]
  taken = sorted({(cell['rounds'], cell['steps']) for cell in cells})
  blocks = ' or '.join(f'{rounds} blocks of {steps}' for rounds, steps in taken)
  batches = ' or '.join(map(str, sorted({c['batch_size'] for c in cells})))
  text += NOTES.format(
    header=HEADER, blocks=blocks, batches=batches, **cells[0]
  )
  return text + (
    f'\nLoad of the machine {min(loads):.1f} to {max(loads):.1f}, of which the '
    f'processes themselves are up to {cells[0]["n"]}; {cells[0]["machine"]}.\n'
    f'\n{_links(cells)}{_turns(cells)}'
  )


def _row(cell, full):
  times = split(cell)
  ms = [f'{1e3 * value:.1f}' for value in times.values()]
  less, faster = (
    f'{full[key] / times[key]:.2f}' if full and times[key] > 0 else tables.DASH
    for key in ('talk', 'full')
  )
  counted = (cell['parts'][name]['tx_bytes'] for name in ('full', 'empty'))
  kb = [f'{1e-3 * value:.2f}' for value in (cell['claimed'], *counted)]
  ratios = [f'{bytes_ratio(cell, header):.3f}' for header in (0, HEADER)]
  title = f'{cell["title"]} (`{cell["method"]}`)'
  return [cell['rate'], title, *ms, less, faster, *kb, *ratios]


def _links(cells):
  """How each rate was made."""
  made = {cell['rate']: cell['link'] for cell in cells if cell['link']['rate']}
  return ''.join(
    f'{rate}: `{link["bucket"]}`, up and down, MTU {link["mtu"]}, delay '
    f'{1e3 * link["delay"]:g} ms.\n'
    for rate, link in made.items()
  )


def _turns(cells):
  """Steps that took turns in the same processes, block against block."""
  text = ''
  for cell in cells:
    if beside := cell.get('beside'):
      mine, other = (
        np.array(cell['parts'][name]['seconds_of_blocks'])
        for name in ('full', 'beside')
      )
      times = np.median(mine / other)
      text += (
        f'{cell["rate"]}: in turns with a step of {beside} in the same '
        f'processes {cell["method"]} takes {times:.2f} times as long.\n'
      )
  return text
