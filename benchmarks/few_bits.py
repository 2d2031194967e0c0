"""How few bits are enough? Accuracy against bits sent, from kept runs.

  python -m benchmarks.few_bits results/digits_few_bits

draws DIR/figure.png: a panel a partition, a line a method, the mean of the
seeds with the least and the most of them. Bits are those that a worker sends
for each parameter in each step, of all its messages, headers included.
"""

import argparse
import pathlib

import numpy as np

from moniqua_jax import command_line, plots
from moniqua_jax.plots import kept, tables

PARTITIONS = {'sorted_by_label': 'sorted by label', 'dirichlet': 'Dirichlet .1'}
# By gossip, momentum and the bits of a code.
METHODS = {
  ('dpsgd', 'local', 4): 'D-PSGD in pairs, 4 bits',
  ('d2', 'local', 4): 'D² on a ring, 4 bits',
  ('dpsgd', 'quasi_global', 4): 'quasi-global in pairs, 4 bits',
  ('dpsgd', 'local', 32): 'D-PSGD on a ring, 32 bits',
  ('d2', 'local', 32): 'D² on a ring, 32 bits',
  ('dpsgd', 'quasi_global', 32): 'quasi-global on a ring, 32 bits',
}


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('runs', type=pathlib.Path)
  args = parser.parse_args()
  groups = tables.by_seed(kept.loaded([args.runs]))
  try:
    with plots.drawing(8, 4) as fig:
      draw(fig, points(groups))
  except KeyError as error:
    raise ValueError(
      f'{args.runs} does not keep all runs of '
      f'configs/digits_few_bits.py, and no others: {error}.'
    ) from error
  plots.save(fig, args.runs / 'figure')
  (args.runs / 'figure.svg').unlink()


def points(groups) -> dict:
  """Of each partition and method the bits and the accuracies of the seeds."""
  sent = [group[0].end['wire/bytes_sent'] for group in groups]
  found = {}
  for group, each in zip(groups, sent, strict=True):
    config = group[0].config
    method = METHODS[
      config['gossip']['name'],
      config['momentum_kind']['name'],
      config['quantizer'].get('bits', 32),
    ]
    accuracies = [100 * run.end['test/accuracy'] for run in group]
    key = PARTITIONS[config['partition']['name']], method
    # On a ring full precision sends two messages of 32 bits.
    found.setdefault(key, []).append((64 * each / max(sent), accuracies))
  return found


def draw(fig, found) -> None:
  """Draws a panel a partition; a method of one number of bits is a point."""
  panels = fig.subplots(1, 2, sharey=True)
  for axes, partition in zip(panels, PARTITIONS.values(), strict=True):
    for i, method in enumerate(METHODS.values()):
      bits, seeds = zip(*sorted(found[partition, method]), strict=True)
      # Beside each other where three stand at 2 or 64.
      bits = np.array(bits) * 1.06 ** (i % 3 - 1)
      mean = np.mean(seeds, axis=1)
      off = [mean - np.min(seeds, axis=1), np.max(seeds, axis=1) - mean]
      axes.errorbar(
        bits, mean, off, label=method, capsize=2, **plots.line_style(i)
      )
    axes.set(title=partition, xscale='log', xlim=(0.35, 110))
    axes.set_xlabel('bits sent per parameter and step')
    axes.set_xticks([0.5, 1, 2, 4, 8, 16, 32, 64])
    axes.xaxis.set_major_formatter('{x:g}')
    axes.minorticks_off()
  panels[0].set_ylabel('test accuracy, mean model (%)')
  fig.legend(
    *panels[0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=3,
    frameon=False,
  )


if __name__ == '__main__':
  main()
