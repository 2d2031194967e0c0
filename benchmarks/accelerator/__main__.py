"""How fast are codec, round and step on the accelerator that JAX finds?

  JAX_PLATFORMS=cuda,cpu python -m benchmarks.accelerator

writes DIR/NAME.md, NAME being the kind of the device, after each of its parts:
codec, round, simulated and step; of --only some of them DIR/NAME-PARTS.md. Rows
of a table take turns, and a turn is as many calls as last 20 ms. No codec is
timed whose values are not those of a CPU.
"""

import argparse
import datetime
import os
import pathlib
import time

import jax

from benchmarks.accelerator import codecs, rows, steps
from moniqua_jax import command_line

PARTS = {
  'codec': codecs.codec_part,
  'round': codecs.round_part,
  'simulated': steps.simulated_part,
  'step': steps.step_part,
}
ALL = ','.join(PARTS)


@command_line.one_line_errors()
def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default=ALL, help='parts, commas')
  parser.add_argument('--size', type=int, default=100 * 2**20, help='values')
  parser.add_argument('--out', type=pathlib.Path, help='folder of NAME.md')
  args = parser.parse_args(arguments)
  chosen = args.only.split(',')
  if unknown := sorted({*chosen} - {*PARTS}):
    parser.error(f'--only={unknown}: choose from {", ".join(PARTS)}')
  kind = jax.devices()[0].device_kind
  text = (
    f'## {kind}\n\n{datetime.date.today()}, jax {jax.__version__}, '
    f'{os.cpu_count()} CPU cores; medians of {rows.TURNS} turns.\n\n'
  )
  print(text, end='')
  folder = args.out or pathlib.Path('results/accelerator')
  folder.mkdir(parents=True, exist_ok=True)
  stem = '-'.join(kind.lower().split() + (chosen if args.only != ALL else []))
  for name in chosen:
    began = time.perf_counter()
    part = PARTS[name](args.size)
    part += f'{time.perf_counter() - began:.0f} s with compiling.\n\n'
    print(part, end='', flush=True)
    text += part
    (folder / f'{stem}.md').write_text(text)


if __name__ == '__main__':
  main()
