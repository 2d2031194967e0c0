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
    parts = list(zip(_dtypes(result), _nbytes(result), strict=True))
    if kind == 'all-to-all':  # one part from each worker
      parts = [(parts[0][0], sum(nbytes for _, nbytes in parts))]
    for dtype, nbytes in parts:
      yield kind, dtype, nbytes


def between_messages(text):
  """(there, in all): how much of a gradient runs while messages travel.

  The instructions of a scheduled program that hold a dot product or a
  convolution, and those of them that stand after all messages of more than 64
  bytes are sent and before the first of them is waited for.
  """
  bodies = dict(
    re.findall(r'^(?:ENTRY )?(%[\w.-]+) .*?\{\n(.*?)^\}', text, _MS)
  )
  entry = re.search(r'^ENTRY (%[\w.-]+)', text, re.MULTILINE)[1]
  lines = bodies[entry].splitlines()
  heavy = [i for i, line in enumerate(lines) if _multiplies(line, bodies)]
  starts, ends = [], []
  for i, line in enumerate(lines):
    if re.search(r' collective-permute-(start|done)\(', line) and _bulk(line):
      (starts if '-start(' in line else ends).append(i)
  there = [i for i in heavy if max(starts) < i < min(ends)] if ends else []
  return len(there), len(heavy)


_MS = re.MULTILINE | re.DOTALL


def _multiplies(line, bodies):
  if re.search(r' (dot|convolution)\(', line):
    return True
  called = re.findall(r'(?:calls|to_apply|body)=(%[\w.-]+)', line)
  return any(_multiplies(bodies[name], bodies) for name in called)


def _bulk(line):
  result = re.search(r' = (.*?) collective-permute', line)[1]
  return max(_nbytes(result)) > 64


def _dtypes(shapes):
  return [dtype for dtype, _ in _SHAPE.findall(shapes) if dtype in _WIDTH]


def _nbytes(shapes):
  for dtype, dims in _SHAPE.findall(shapes):
    if dtype in _WIDTH:
      size = int(np.prod([int(d) for d in dims.split(',') if d]))
      yield size * _WIDTH[dtype]
