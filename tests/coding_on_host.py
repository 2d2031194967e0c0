"""Messages as bytes on the host, bit for bit as the papers write them.

Norms and codes of a bucket together, bucket after bucket, in plain Python: an
oracle for what runs inside `jit`.
"""

from collections.abc import Callable
import struct
from typing import NamedTuple

import bitarray
import numpy as np

from moniqua_jax.coding import elias
from moniqua_jax.quantizers import base


class Form(NamedTuple):
  """How one bucket is written."""

  # (codes, zero) -> a text of 0 and 1
  write: Callable[[list[int], int], str]
  # (text, its start, its end, number of codes, zero) -> (codes, the next start)
  read: Callable[[str, int, int, int, int], tuple[list[int], int]]


def _sparse(codes, zero):
  text, last = '', -1
  for place, code in enumerate(codes):
    if code != zero:
      gap, level = place - last, abs(code - zero)
      text += elias.omega_text(gap) + f'{int(code < zero)}'
      text, last = text + elias.omega_text(level), place
  return text


def _read_sparse(text, start, stop, count, zero, nonzeros=None):
  codes, place, read = [zero] * count, -1, 0
  while read < nonzeros if nonzeros is not None else start < stop:
    gap, start = omega_from(text, start)
    negative, start = text[start] == '1', start + 1
    level, start = omega_from(text, start)
    place, read = place + gap, read + 1
    codes[place] = zero - level if negative else zero + level
  return codes, start


def _counted(codes, zero):
  nonzeros = sum(code != zero for code in codes)
  return elias.omega_text(nonzeros + 1) + _sparse(codes, zero)


def _read_counted(text, start, stop, count, zero):
  nonzeros, start = omega_from(text, start)
  return _read_sparse(text, start, stop, count, zero, nonzeros - 1)


def _dense(codes, zero):
  sign = lambda code: '' if code == zero else f'{int(code < zero)}'
  word = lambda code: elias.omega_text(abs(code - zero) + 1) + sign(code)
  return ''.join(word(code) for code in codes)


def _read_dense(text, start, stop, count, zero):
  codes = []
  for _ in range(count):
    level, start = omega_from(text, start)
    negative = level > 1 and text[start] == '1'
    start += level > 1
    codes.append(zero - level + 1 if negative else zero + level - 1)
  return codes, start


SPARSE = Form(_sparse, _read_sparse)  # ends where it is told to
COUNTED = Form(_counted, _read_counted)  # omega(nonzeros + 1), then SPARSE
DENSE = Form(_dense, _read_dense)


def to_bytes(
  norms: np.ndarray, codes: np.ndarray, about: base.Codes, form: Form = COUNTED
) -> bytes:
  """Writes a message: for each bucket its norm, big-endian, and its codes."""
  _with_zero(about)
  step, text = about.bucket_size, ''
  codes = np.asarray(codes).tolist()
  for row, norm in enumerate(np.asarray(norms, np.float32)):
    (word,) = struct.unpack('>I', struct.pack('>f', norm))
    bucket = codes[row * step : (row + 1) * step]
    text += f'{word:032b}' + form.write(bucket, about.zero)
  return bitarray.bitarray(text).tobytes()


def from_bytes(
  data: bytes,
  size: int,
  about: base.Codes,
  form: Form = COUNTED,
  lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Reads what `to_bytes` wrote; SPARSE needs the bits of each bucket."""
  _with_zero(about)
  if form is SPARSE and lengths is None:
    raise ValueError('SPARSE does not say where a bucket ends; give lengths.')
  bits = bitarray.bitarray()
  bits.frombytes(data)
  text, start, norms, codes = bits.to01(), 0, [], []
  for row in range(-(-size // about.bucket_size)):
    word, start = int(text[start : start + 32], 2), start + 32
    norms.append(struct.unpack('>f', struct.pack('>I', word))[0])
    count = min(about.bucket_size, size - len(codes))
    stop = start + int(lengths[row]) if lengths is not None else len(text)
    bucket, start = form.read(text, start, stop, count, about.zero)
    codes += bucket
  return np.array(norms, np.float32), np.array(codes, np.uint8)


def omega_from(text: str, start: int = 0) -> tuple[int, int]:
  """Reads the omega codeword at a place of a text, and returns where it ends.

  n = 1; while the next bit is 1: n <- the next n + 1 bits
  """
  n = 1
  while text[start] == '1':
    n, start = int(text[start : start + n + 1], 2), start + n + 1
  return n, start + 1


def _with_zero(about):
  if about.zero is None:
    raise ValueError('These forms are for grids with a zero level.')
