"""Reads what a compiled program sends."""

import re

import numpy as np

# name, dtype, dimensions of what a collective gives; -start forms give tuples.
_COLLECTIVE = re.compile(
  r'= (\(?.*?)\s(all-reduce|all-gather|all-to-all|collective-permute|'
  r'reduce-scatter|collective-broadcast)(?:-start)?\('
)
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\]')
_WIDTH = {'u8': 1, 'pred': 1, 's8': 1, 'f32': 4, 'u32': 4, 's32': 4}


def collectives(text):
  """(kind, dtype, bytes) of every collective in compiled HLO text."""
  for result, kind in _COLLECTIVE.findall(text):
    for dtype, dims in _SHAPE.findall(result):
      size = int(np.prod([int(d) for d in dims.split(',') if d]))
      yield kind, dtype, size * _WIDTH[dtype]
