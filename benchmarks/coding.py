"""Where does coding pay? Bits per value of messages, packed and coded.

  python -m benchmarks.coding --out=results/coding

One vector of 2^18 Gaussian values, as gradients nearly are, or heavy-tailed
(Student t with 3 degrees of freedom). Bits per value, the norms (32 bits a
bucket) included, but for the entropy: packed at fixed width; in the recursive
code of QSGD and NUQSGD; in their dense code; in a Huffman code of how often
each level comes; and bzip2 of the packed message, which Moniqua's paper
suggests for its codes. Those are near a uniform distribution unless theta is as
large as the parameters themselves: theta is given in standard deviations.
"""

import argparse
import bz2
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import moniqua_jax as mj
from moniqua_jax import coding, command_line, wire
from moniqua_jax.plots import kept, tables
from moniqua_jax.training.workdir import provenance

SIZE = 2**18
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
LAWS = {
  'Gaussian': lambda rng: rng.standard_normal(SIZE),
  'Student t(3)': lambda rng: rng.standard_t(3, SIZE),
}


def row(quantizer, x) -> dict:
  payload = jax.jit(quantizer.encode)(x, jax.random.key(1))
  about = quantizer.codes
  packed = wire.packed_size(SIZE, about.bits)
  codes = wire.unpack(payload[:packed], about.bits, SIZE)
  counts = np.bincount(np.asarray(codes), minlength=about.count)
  probabilities = np.maximum(counts, 1e-3) / np.maximum(counts, 1e-3).sum()
  forms = {'huffman': coding.huffman(probabilities)}
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
    x = jnp.float32(draw(np.random.default_rng(0)))
    x = x / jnp.std(x)
    own = {name: row(quantizer, x) for name, quantizer in QUANTIZERS.items()}
    rows += [{'law': law, 'quantizer': name} | own[name] for name in own]
    text += f'{law}\n\n{table(own)}\n'
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
