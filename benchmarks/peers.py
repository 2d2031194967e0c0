"""What do the codecs of other libraries cost, beside ours in one run?

  python -m benchmarks.peers --size=4000000 --repeats=9

wants the extra `peers`: PyTorch, bitsandbytes and hivemind; rows of what is not
installed are left out. Prints a table: bits sent for a value, the error as a
share of x, and medians in ns a value, of CPU time with the share of the speed
of `numpy.copyto` in brackets, and of wall time. All rows take turns, on one
core: threads of OpenMP that wait for one whose core another program has would
count as work. Before anything is timed, what is decoded is compared with x.

The functions of the others are called as they are: of PyTorch those behind its
DDP hooks. hivemind's `extract` fails with NumPy 2.4; its two lines are ours.
"""

import argparse
from collections.abc import Callable
import math
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import moniqua_jax as mj
from moniqua_jax import command_line
from moniqua_jax.plots import tables

THETA = 0.25  # of Moniqua: a receiver's own values are at most so far away
BLOCK = 4096
CHANNEL = 512
RANK = 4
TITLES = ('codec', 'bits', 'error', 'encode', 'decode')
TITLES += ('encode, wall', 'decode, wall')


class Codec(NamedTuple):
  """A way to send a vector.

  Attributes:
    encode: () -> message, of the vector that it was made for.
    decode: message -> the vector again.
    most: the largest error allowed, of all values or of each.
    rms: the largest root mean square of it, as a share of that of x.
  """

  encode: Callable[[], Any]
  decode: Callable[[Any], Any]
  most: Any = math.inf
  rms: float = math.inf


def ours(x) -> dict[str, Codec]:
  """Those of this library, compiled."""
  device, key = jnp.asarray(x), jax.random.key(0)
  # What a receiver of Moniqua has.
  apart = np.random.default_rng(1).uniform(-THETA, THETA, x.size)
  near = jnp.asarray(x + 0.99 * apart.astype(np.float32))
  largest = float(np.abs(x).max())
  buckets = x[: x.size // 512 * 512].reshape(-1, 512)
  norm = 1.1 * float(np.linalg.norm(buckets, axis=1).max())

  def codec(quantizer, **bound):
    encode, decode = jax.jit(quantizer.encode), jax.jit(quantizer.decode)
    of_x = lambda: encode(device, key)
    return Codec(of_x, lambda message: decode(message, near), **bound)

  def moniqua(bits):
    return codec(mj.moniqua(THETA, bits), most=THETA / (2**bits - 1) + 4e-6)

  return {
    **{f'Moniqua {bits}, theta {THETA}': moniqua(bits) for bits in (8, 4, 1)},
    'QSGDinf 4': codec(mj.qsgd(4, 512, norm='linf'), most=1.001 * largest / 7),
    'NUQSGD 4': codec(
      mj.nuqsgd(4, 512), most=np.maximum(1.001 * np.abs(x), norm / 64)
    ),
    # By arXiv:2108.08842, of normal values, and a twentieth more.
    'EDEN 4': codec(mj.eden(4), rms=1.05 * 0.098),
    'EDEN 1': codec(mj.eden(1), rms=1.05 * math.sqrt(math.pi / 2 - 1)),
  }


def of_torch(x) -> dict[str, Codec]:
  """What DDP's hooks do before and after they send."""
  import torch
  from torch.ao import quantization
  from torch.distributed.algorithms import ddp_comm_hooks as hooks

  eight, low_rank = hooks.quantization_hooks, hooks.powerSGD_hook
  vector = torch.from_numpy(x)
  channels = vector[: x.size // CHANNEL * CHANNEL].view(-1, CHANNEL)
  side = math.isqrt(x.size)
  matrix = vector[: side**2].view(side, side)
  start = torch.randn(side, RANK, generator=torch.Generator().manual_seed(0))

  def cast(dtype, digits):
    back = lambda message: message.to(torch.float32)
    most = 2.0**-digits * np.abs(x) + 2.0**-24
    return Codec(lambda: vector.to(dtype), back, most)

  def per_tensor():
    observer = quantization.MinMaxObserver()
    observer(vector)
    scale, zero = observer.calculate_qparams()
    codes = eight._quantize_per_tensor_backend(vector, scale, zero)
    return codes, scale.float(), zero

  def per_channel():
    observer = quantization.PerChannelMinMaxObserver()
    observer(channels)
    scale, zero = observer.calculate_qparams()
    codes = eight._quantize_per_channel_backend(channels, scale, zero)
    return codes, scale, zero

  def factors():
    left = (matrix @ start)[None]
    low_rank._orthogonalize(left)
    return left[0], matrix.T @ left[0]

  step = np.ptp(x) / 255  # an end may be clipped by one rounding of the zero
  return {
    'torch fp16': cast(torch.float16, 11),
    'torch bf16': cast(torch.bfloat16, 8),
    'torch 8, tensor': Codec(
      per_tensor, lambda m: eight._dequantize_per_tensor_backend(*m), step
    ),
    'torch 8, channels of 512': Codec(
      per_channel, lambda m: eight._dequantize_per_channel_backend(*m), step
    ),
    # A projection: it loses no more than all.
    f'torch PowerSGD, rank {RANK}': Codec(
      factors, lambda m: m[0] @ m[1].T, rms=1.0
    ),
  }


def of_bitsandbytes(x) -> dict[str, Codec]:
  """Its codes by blocks, of 8 bits (hivemind's, too) and of 4."""
  from bitsandbytes import functional
  import torch

  vector, largest = torch.from_numpy(x), np.abs(x).max()
  eight = lambda: functional.quantize_blockwise(vector, blocksize=BLOCK)
  four = lambda: functional.quantize_4bit(vector, quant_type='nf4')
  return {
    'bitsandbytes 8, blocks of 4096': Codec(
      eight, lambda m: functional.dequantize_blockwise(*m), largest / 64
    ),
    'bitsandbytes NF4, blocks of 64': Codec(
      four, lambda m: functional.dequantize_4bit(*m), largest * 0.16
    ),
  }


def of_hivemind(x) -> dict[str, Codec]:
  """Its two quantizers of its own."""
  from hivemind.compression import quantization
  import torch

  vector = torch.from_numpy(x)

  def extract(message):
    codes, codebook = message
    return torch.as_tensor(codebook)[torch.as_tensor(codes, dtype=torch.int64)]

  codec = lambda kind: Codec(lambda: kind().quantize(vector), extract, rms=0.05)
  return {
    'hivemind 8, uniform': codec(quantization.Uniform8BitQuantization),
    'hivemind 8, quantiles': codec(quantization.Quantile8BitQuantization),
  }


def made(x) -> dict[str, Codec]:
  """All that can be had here."""
  found = ours(x)
  for others in (of_torch, of_bitsandbytes, of_hivemind):
    try:
      found |= others(x)
    except ImportError as error:
      print(f'{others.__name__}: {error}; left out.')
  return found


def checked(name, codec, x) -> tuple[float, float]:
  """Bits of a value, and the error as a share of x; raises if it is wrong."""
  message = codec.encode()
  decoded = np.asarray(codec.decode(message), np.float32).reshape(-1)
  x = x[: decoded.size]
  error = np.abs(decoded - x)
  rms = float(np.linalg.norm(error) / np.linalg.norm(x))
  most = codec.most[: x.size] if np.ndim(codec.most) else codec.most
  if not (rms <= codec.rms and (error <= most).all()):  # or NaN
    raise ValueError(f'{name} decodes to something else: it is {rms:.3g} off.')
  parts = message if isinstance(message, tuple) else (message,)
  sent = sum(getattr(part, 'absmax', part).nbytes for part in parts)
  return 8 * sent / x.size, rms


def tasks(codecs, x) -> dict:
  """(name, what) -> function to time."""
  target, rows = np.empty_like(x), {}
  rows['numpy.copyto', 'encode'] = lambda: np.copyto(target, x)
  for name, codec in codecs.items():
    rows[name, 'encode'] = codec.encode
    message = codec.encode()
    rows[name, 'decode'] = lambda f=codec.decode, m=message: f(m)
  return rows


def timed(rows, repeats) -> dict:
  """Median (CPU seconds, wall seconds) of each, in turns."""
  taken = {row: [] for row in rows}
  for _ in range(repeats + 1):  # the first turn compiles
    for row, run in rows.items():
      cpu, wall = time.process_time(), time.perf_counter()
      jax.block_until_ready(run())
      now = time.process_time(), time.perf_counter()
      taken[row].append((now[0] - cpu, now[1] - wall))
  return {row: np.median(each[1:], axis=0) for row, each in taken.items()}


def table(quality, taken, values) -> str:
  """A row a codec, in markdown."""
  copy = taken['numpy.copyto', 'encode']
  rows = []
  for name, (bits, error) in quality.items():
    times = [taken[name, what] for what in ('encode', 'decode')]
    cpu = [
      f'{1e9 * own / values:.2f} ({copy[0] / own:.2f})' for own, _ in times
    ]
    wall = [f'{1e9 * own / values:.2f}' for _, own in times]
    rows.append([name, f'{bits:.2f}', f'{error:.2g}', *cpu, *wall])
  return tables.markdown(TITLES, rows, words=1)


@command_line.one_line_errors()
def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', type=int, default=4_000_000, help='values')
  parser.add_argument('--repeats', type=int, default=9, help='of every row')
  args = parser.parse_args(argv)
  # Before JAX and the others count the cores.
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  x = np.random.default_rng(0).standard_normal(args.size, np.float32)
  codecs = made(x)
  quality = {name: checked(name, codec, x) for name, codec in codecs.items()}
  taken = timed(tasks(codecs, x), args.repeats)
  cpu, wall = 1e9 * taken['numpy.copyto', 'encode'] / args.size
  print(
    f'{args.size:,} normal values; medians of {args.repeats}; load '
    f'{os.getloadavg()[0]:.1f}; numpy.copyto {cpu:.2f} ns a value of CPU time, '
    f'{wall:.2f} of wall time\n'
  )
  print(table(quality, taken, args.size))


if __name__ == '__main__':
  main()
