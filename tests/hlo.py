"""Reads what a compiled program sends, and what it moves."""

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
  bodies, entry = _bodies(text)
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


_LINE = re.compile(
  r'^ +(ROOT )?(%[\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$', re.MULTILINE
)
_FREE = (
  'parameter constant tuple get-tuple-element bitcast after-all partition-id '
  'replica-id'
).split()


def launches(text):
  """(operation, bytes) of all that the entry of a GPU's program launches.

  Of what a fusion reads only the values that it needs count, and of what it
  updates in place only the update. A message is read once and written once.
  """
  bodies, entry = _bodies(text)
  sizes = {}
  for _, name, shape, op, operands, rest in _LINE.findall(bodies[entry]):
    sizes[name] = sum(_nbytes(shape))
    if op in _FREE or op.endswith('-done'):
      continue
    given = sum(sizes[each] for each in re.findall(r'%[\w.-]+', operands))
    if op == 'fusion':
      called = re.search(r'calls=(%[\w.-]+)', rest)[1]
      yield op, _moved(bodies[called])
    elif 'permute' in op:
      yield op, 2 * given
    else:
      yield op, given + sizes[name]


def _moved(body):
  """Bytes that a fusion reads and writes."""
  lines = _LINE.findall(body)
  width = _widths(lines)
  read = sum(width[name] * share for name, _, share in _parameters(lines))
  return int(read) + _all_written(lines)


def _widths(lines):
  return {name: sum(_nbytes(shape)) for _, name, shape, *_ in lines}


def _parameters(lines):
  """(name, number, share that is needed) of each parameter of a fusion."""
  needed = {}
  count = {name: _count(shape) for _, name, shape, *_ in lines}
  for root, name, _, op, operands, _ in reversed(lines):
    args = re.findall(r'%[\w.-]+', operands)
    most = count[name] if root else min(needed.get(name, 0), count[name])
    if op == 'parameter':
      yield name, int(operands), most / max(count[name], 1)
    for place, arg in enumerate(args):
      if op == 'dynamic-update-slice' and place == 0:
        continue  # stays where it is
      whole = op in ('reduce', 'tuple', 'concatenate', 'dynamic-update-slice')
      need = count[arg] if whole else min(most, count[arg])
      needed[arg] = needed.get(arg, 0) + need


def _all_written(lines):
  root = next(name for is_root, name, *_ in lines if is_root)
  return _written(root, lines, _widths(lines))


def _written(name, lines, width):
  op, operands = next((line[3], line[4]) for line in lines if line[1] == name)
  args = re.findall(r'%[\w.-]+', operands)
  if op == 'tuple':
    return sum(_written(arg, lines, width) for arg in args)
  if op == 'bitcast':
    return _written(args[0], lines, width)
  return width[args[1] if op == 'dynamic-update-slice' else name]


_IN_MAIN = re.compile(r'\w+\[[\d,]*\](?!\{[^}]*S\()')


def through_memory(text):
  """Bytes that a TPU's program reads from its main memory, and writes there.

  A layout with S(1) is in the vector memory, which a copy into it and all that
  reads it there do not leave. Each loop is taken to turn once.
  """
  bodies, entry = _bodies(text)
  return _through(entry, bodies)


def _through(called, bodies):
  main, total = {}, 0  # bytes in main memory of all that was computed
  for _, name, shape, op, operands, rest in _LINE.findall(bodies[called]):
    main[name] = sum(_nbytes(' '.join(_IN_MAIN.findall(shape))))
    args = re.findall(r'%[\w.-]+', operands)
    if op == 'while':
      total += _through(re.search(r'body=(%[\w.-]+)', rest)[1], bodies)
    elif op == 'fusion':
      lines = _LINE.findall(bodies[re.search(r'calls=(%[\w.-]+)', rest)[1]])
      total += sum(main[args[k]] * share for _, k, share in _parameters(lines))
      total += min(main[name], _all_written(lines))
    elif op in ('slice', 'dynamic-slice'):
      total += main[name] + min(sum(_nbytes(shape)), main[args[0]])
    elif op.endswith('-start'):  # its result names its operand, too
      total += main[name]
    elif op not in (*_FREE, 'custom-call') and not op.endswith('-done'):
      total += sum(main[arg] for arg in args) + main[name]
  return total


def _count(shape):
  """Values of an array, or of all in a tuple."""
  return sum(
    int(np.prod([int(d) for d in dims.split(',') if d]))
    for _, dims in _SHAPE.findall(shape)
  )


def _bodies(text):
  """The lines of each computation, and the name of the one that is run."""
  found = re.findall(r'^(?:ENTRY )?(%[\w.-]+) .*?\{\n(.*?)^\}', text, _MS)
  return dict(found), re.search(r'^ENTRY (%[\w.-]+)', text, re.MULTILINE)[1]
