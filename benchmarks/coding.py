"""Where does coding pay? Bits per value of messages, packed and coded.

  python -m benchmarks.coding --out=results/coding

One vector of 2^18 Gaussian values, as gradients nearly are, or heavy-tailed
(Student t with 3 degrees of freedom). Bits per value, the norms (32 bits a
bucket) included, but for the entropy: packed at fixed width; in the recursive
code of QSGD and NUQSGD; in their dense code; in a Huffman code of how often
each level comes; and bzip2 of the packed message, which Moniqua's paper
suggests for its codes. Those are near a uniform distribution unless theta is as
large as the parameters themselves: theta is given in standard deviations.

And what a coder takes, in C++ and as jnp, in turns, in CPU time: other programs
disturb it less than the clock.
"""

import argparse
import bz2
import os
import pathlib
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import moniqua_jax as mj
from moniqua_jax import coding, command_line, wire
from moniqua_jax.plots import kept, tables
from moniqua_jax.training.workdir import provenance

SIZE = 2**18
TIMED, TURNS = 2**20, 9
QUANTIZERS = {
  **{
    f'NUQSGD, {bits} bits, bucket {bucket}': mj.nuqsgd(bits, bucket)
    for bits in (3, 4, 8)
    for bucket in (512, 8192)
  },
  'NUQSGD without zero, 4 bits, bucket 8192': mj.nuqsgd(
    4, 8192, zero_level=False
  ),
  **{
    f'{name}, {bits} bits, bucket {bucket}': mj.qsgd(bits, bucket, norm)
    for name, norm in (('QSGD', 'l2'), ('QSGDinf', 'linf'))
    for bits in (4, 8)
    for bucket in (512, 8192)
  },
  'TernGrad, bucket 8192': mj.terngrad(8192),
  **{
    f'Moniqua, {bits} bits, theta {theta:g}': mj.moniqua(theta, bits)
    for bits in (1, 4, 8)
    for theta in (0.1, 1.0, 4.0)
  },
}
CODED = tuple(
  f'NUQSGD, {bits} bits, bucket {bucket}'
  for bits in (3, 4)
  for bucket in (512, 8192)
)
LAWS = {
  'Gaussian': lambda rng, size: rng.standard_normal(size),
  'Student t(3)': lambda rng, size: rng.standard_t(3, size),
}


def row(quantizer, x) -> dict:
  payload = jax.jit(quantizer.encode)(x, jax.random.key(1))
  about = quantizer.codes
  packed = wire.packed_size(SIZE, about.bits)
  codes = wire.unpack(payload[:packed], about.bits, SIZE)
  forms = {'huffman': coding.huffman(frequencies(codes, about))}
  if about.zero is not None:
    forms |= {'recursive': coding.recursive(), 'dense': coding.dense()}
  bits = {
    name: float(coding.coded_bits(quantizer, payload, SIZE, form)) / SIZE
    for name, form in forms.items()
  }
  return bits | {
    'packed': 8 * payload.size / SIZE,
    'entropy': float(coding.entropy(codes, about)),
    'bzip2': 8 * len(bz2.compress(np.asarray(payload).tobytes())) / SIZE,
  }


def frequencies(codes, about):
  counts = np.bincount(np.asarray(codes), minlength=about.count)
  return np.maximum(counts, 1e-3) / np.maximum(counts, 1e-3).sum()


def coders(name) -> dict:
  """(quantizer, code, 'encode' or 'decode', native or not) -> what to time."""
  q, found = QUANTIZERS[name], {}
  x = jnp.float32(LAWS['Gaussian'](np.random.default_rng(0), TIMED))
  payload = jax.jit(q.encode)(x, jax.random.key(1))
  codes, _ = wire.split(payload, q.codes.bits, TIMED)
  huffman = coding.huffman(frequencies(codes, q.codes))
  for kind, code in (('recursive', coding.recursive()), ('huffman', huffman)):
    room = -(-int(code.length(codes, q.codes).sum()) // 8)
    for native in '10':
      encode = lambda x, of=code, n=room: of.encode(x, q.codes, n)
      decode = lambda *x, of=code: of.decode(*x, q.codes, TIMED)
      with mock.patch.dict(os.environ, MONIQUA_NATIVE=native):
        encode = jax.jit(encode).lower(codes).compile()
        stream = encode(codes)
        decode = jax.jit(decode).lower(*stream).compile()
      assert (decode(*stream) == codes).all()
      found[name, kind, 'encode', native] = encode, (codes,)
      found[name, kind, 'decode', native] = decode, stream
  return found


def speeds(names) -> dict:
  """The same keys -> seconds of CPU time, medians over turns."""
  tasks = {key: task for name in names for key, task in coders(name).items()}
  taken = {key: [] for key in tasks}
  for _ in range(TURNS):
    for key, (fn, args) in tasks.items():
      began = time.process_time()
      jax.block_until_ready(fn(*args))
      taken[key].append(time.process_time() - began)
  return {key: float(np.median(each)) for key, each in taken.items()}


def speed_table(taken) -> str:
  """A row a quantizer and code."""
  rows, ways = [], ('encode', 'decode')
  for name, kind in dict.fromkeys(key[:2] for key in taken):
    row = [
      taken[name, kind, way, form] / TIMED for way in ways for form in '10'
    ]
    rows.append([name, kind, *(f'{1e9 * each:.1f}' for each in row)])
    rows[-1] += [f'{4e-6 / each:.0f}' for each in row[::2]]
  titles = ['quantizer', 'code']
  titles += [f'{way} {says}' for way in ways for says in ('ns', 'ns as jnp')]
  titles += [f'{way} MB/s' for way in ways]
  return (
    f'Coders, {TIMED} Gaussian values, in C++ and as jnp: ns of CPU time a '
    'value, all threads together, and for C++ MB of float32 in a second of one '
    f'core. {os.cpu_count()} cores, a load of {os.getloadavg()[0]:.1f}.\n\n'
  ) + tables.markdown(titles, rows, 2)


COLUMNS = ('packed', 'recursive', 'dense', 'huffman', 'bzip2', 'entropy')


@command_line.one_line_errors()
def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  began, text, rows = time.perf_counter(), '', []
  for law, draw in LAWS.items():
    x = jnp.float32(draw(np.random.default_rng(0), SIZE))
    x = x / jnp.std(x)
    own = {name: row(quantizer, x) for name, quantizer in QUANTIZERS.items()}
    rows += [{'law': law, 'quantizer': name} | own[name] for name in own]
    text += f'{law}\n\n{table(own)}\n'
  text += speed_table(speeds(CODED))
  print(text)
  (args.out / 'table.md').write_text(text)
  source = provenance() | {'seconds': time.perf_counter() - began}
  kept.write_measured(args.out, rows, source)


def table(rows) -> str:
  """Bits per value in each form; a row a quantizer."""
  form = lambda bits, name: f'{bits[name]:.2f}' if name in bits else tables.DASH
  lines = [[k, *(form(bits, c) for c in COLUMNS)] for k, bits in rows.items()]
  return tables.markdown(['quantizer', *COLUMNS], lines)


if __name__ == '__main__':
  main()
