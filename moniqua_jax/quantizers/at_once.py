"""The passes of `moniqua` over all stripes at once, as GPUs want them.

XLA for CPUs goes from part to part, each in its own pass, and for TPUs with all
but the mix; a GPU would launch a kernel for each. Here a thread takes the
values that share a byte of the message, of all stripes at once:

  encode   reads x, writes the codes, and joins what is checked; a second launch
           joins that of all threads, a third writes what is behind the codes,
           which travels beside them: see `forms.in_pieces`
  inspect  reads x and all messages, and joins what is checked; a second launch
           as above, and a third says what was seen
  mix      reads x and all messages, and changes x in place; or changes an
           update, in one pass with the learning rate and `apply_updates`
           around it; on TPUs, too

One launch before encode makes its header, and one before inspect reads those of
all messages, for mix, too.

The same codes, digests and values as in `moniqua`, to the bit.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import dither, wire
from moniqua_jax.quantizers import base, circle, digest

_FAR = 256  # a bit above the turn in a word of `encode`
_REST = 8192  # values, or fewer, are no stripe; see `wire`


def encode(grid, about, x):
  """Writes a message; see `moniqua`."""
  parts = wire.parts(x.size, grid.bits)
  about, (headers,) = _headers(jax.tree.map(lambda v: v[None], about), parts)
  written = [
    _write(grid, header, x[slice(*part)])
    for part, header in zip(parts, headers, strict=True)
  ]
  codes, words = zip(*written, strict=True)
  # XLA makes codes and checks in one launch if the codes are wanted alone.
  packed = wire.merged([wire.pack_parts(codes, grid.bits, x.size)])
  whole = len(wire.cuts(x.size, grid.bits))
  packed[:whole] = lax.optimization_barrier(packed[:whole])
  most, turned = _joined([words], _join)
  fits = circle.usable(grid, about) & (most < _FAR)
  fields = [jnp.where(fits, about.bound, jnp.nan), about.seed, turned]
  return jnp.concatenate([*packed, *map(_to_bytes, fields[: 2 + grid.digest])])


def _write(grid, about, y):
  """Returns the codes of a part, and for the checks a word of each value."""
  y = jnp.pad(y, (0, -y.size % wire.TILE))  # of zeros n is 0
  n = jnp.rint(circle.place(grid, about, y, 0)).astype(jnp.int32)
  codes = (n & (grid.levels - 1)).astype(jnp.uint8)
  far = circle.magnitude(y) >= wire.words(about.reach)
  turns = (n >> grid.bits).astype(jnp.uint32) & 255
  return codes, jnp.where(far, turns | _FAR, turns)


def inspect_all(grid, payloads, reference):
  """Inspects all messages in one pass over the reference; see `moniqua`."""
  y = reference.astype(jnp.float32)
  parts = wire.parts(y.size, grid.bits)
  about, sent = _read_headers(grid, payloads, y.size)
  about, headers_of = _headers(about, parts)
  words = []
  for payload, headers in zip(payloads, headers_of, strict=True):
    look = functools.partial(_look, grid, payload, y)
    words.append([look(*each) for each in zip(parts, headers, strict=True)])
  most, turned = _joined(words, _join if grid.digest else lax.max)
  if grid.digest:
    gap = circle.gap_of(grid, about, digest.unpack(most)[1])
    seen = circle.conclude(grid, about, gap, turned == sent)
  else:
    seen = circle.conclude(grid, about, wire.floats(most), True)
  return [base.Seen(*each) for each in zip(*seen[:3], strict=True)]


def _look(grid, payload, y, part, about):
  """Returns a word of each value: its distance, above its turn if asked for."""
  codes = wire.unpack_part(payload, grid.bits, y.size, *part)
  y = y[slice(*part)]
  k, x_hat = circle.resolve(grid, about, codes, y)
  gap = jnp.abs(x_hat - y)
  if grid.digest:
    words = digest.pack(k, gap * about.inverse / grid.levels)
  else:
    words = circle.magnitude(gap)
  return jnp.pad(words, (0, -words.size % wire.TILE))


def mix(pull, unpack, grid, x, payloads, came, onto):
  """Adds the pull to a vector in one pass; see `base.Fast.mix`.

  `unpack` is that of `wire`, in the order of operations that a platform wants.
  """
  about, _ = _read_headers(grid, payloads, x.size)
  # The same rows as in `inspect_all`, which XLA makes once.
  _, headers_of = _headers(about, wire.parts(x.size, grid.bits))
  own, *theirs = [headers[0] for headers in headers_of]
  y = x.astype(jnp.float32)
  x_hats = [circle.value(grid, own, jnp.rint(circle.place(grid, own, y, 0)), 0)]
  for header, message in zip(theirs, payloads[1:], strict=True):
    codes = unpack(message, grid.bits, x.size)
    x_hats.append(circle.resolve(grid, header, codes, y)[1])
  pulls = pull([x_hat.astype(x.dtype) for x_hat in x_hats], came)
  return (x if onto is None else onto) + pulls


def _read_headers(grid, payloads, size):
  """Reads all headers at once: each field [E], and the digests u32[E]."""
  at = wire.packed_size(size, grid.bits)
  for payload in payloads:
    wire.require(payload, at + (12 if grid.digest else 8), size)
  ends = [_from_bytes(payload[None, at:]) for payload in payloads]
  words = jnp.concatenate(ends)
  about = circle.checked(grid, wire.floats(words[:, 0]), words[:, 1])
  return about, words[:, -1]


def _headers(about, parts):
  """Returns the headers again, and of each message that of each of its parts.

  A part has a seed of its own. All in one launch, which XLA would otherwise
  scatter over many.
  """
  starts = jnp.array([start for start, _ in parts], jnp.uint32)
  *numbers, seeds = about
  columns = [wire.words(number)[:, None] for number in numbers]
  columns.append(dither.part(seeds[:, None], starts[None]))
  apart = jnp.split(jnp.concatenate(columns, axis=1), len(seeds))
  rows = jnp.concatenate([lax.optimization_barrier(row) for row in apart])
  n = len(numbers)
  header = lambda at, k: circle.Header(
    *[*(wire.floats(rows[at, j]) for j in range(n)), rows[at, n + k]]
  )
  each = [
    [header(message, k) for k in range(len(parts))]
    for message in range(len(rows))
  ]
  return header(slice(None), 0), each


def _join(a, b):
  """Joins two words: the larger upper 24 bits, and the XOR of the low bytes."""
  return lax.max(a, b) & ~jnp.uint32(255) | (a ^ b) & 255


def _joined(words, op):
  """Joins the words of each message: the largest, and the digest of the low.

  words: of each message a list for its parts, u32[1024 k] each. Returns u32[E]
  twice; of the largest only the upper 24 bits count if `op` is `_join`.
  """
  # Not stacked before: XLA would lay all rows out anew to join them.
  rows = tuple(_all_rows(op, each) for each in words)
  join = lambda a, b: tuple(map(op, a, b))
  zeros = (jnp.uint32(0),) * len(rows)
  most = jnp.stack(lax.reduce(rows, zeros, join, (0,)))
  turned = _turned(most)
  # In halves: XLA would make a launch of a reduction.
  for k in (16, 8, 4, 2, 1):
    most = op(most[:, :k], most[:, k:])
    turned = turned[:, :k] ^ turned[:, k:]
  return most[:, 0], turned[:, 0]


def _all_rows(op, words):
  """Joins the words of all parts of a message in rows of 32: u32[k, 32]."""
  alike = {part.size: [] for part in words}
  for part in words:
    alike[part.size].append(part)
  joined = [functools.reduce(op, group) for group in alike.values()]
  return jnp.concatenate([_rows(op, each) for each in joined])


def _rows(op, words):
  """Joins words in 32 lanes, as many as a warp has threads: u32[k, 32].

  Some tiles at a time, whole ones: if XLA had to pad them, it would compute the
  words in a launch of its own. A thousand blocks of threads, if they are not
  more than 128 tiles each: of more, or of more than 4096 rows behind them, XLA
  makes two launches.
  """
  if words.size <= _REST:
    return words.reshape(-1, 32)
  tiles = words.size // wire.TILE
  most = min(max(tiles // 1024, 16), 128)
  rows = 32 * max(k for k in range(1, most + 1) if tiles % k == 0)
  return lax.reduce(words.reshape(-1, rows, 32), jnp.uint32(0), op, (1,))


def _turned(low):
  """Rotates low bytes by their places, as `digest.fold` does."""
  low = low.astype(jnp.uint32) & 255
  left = lax.broadcasted_iota(jnp.uint32, low.shape, 1) & 31
  return low << left | low >> (32 - left & 31)


def _to_bytes(numbers):
  """As `wire.to_bytes`, by shifts: a bit-cast would be a launch of its own."""
  words = wire.words(numbers) if numbers.dtype == jnp.float32 else numbers
  shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32)
  return (words[:, None] >> shifts[None]).astype(jnp.uint8).reshape(-1)


def _from_bytes(packed):
  """Puts u8[E, 4 k] together to u32[E, k]; see `_to_bytes`."""
  rows = packed.reshape(len(packed), -1, 4).astype(jnp.uint32)
  a, b, c, d = (rows[..., j] << 8 * j for j in range(4))
  return a | b | c | d
