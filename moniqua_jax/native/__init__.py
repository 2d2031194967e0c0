"""Codecs in C++, for CPUs: packing, Moniqua's, rotations, buckets, codewords.

`quantizers.forms` says where these take the places of the jnp forms, whose bits
they give. `python -m moniqua_jax.native` builds them, with any C++ compiler;
MONIQUA_NATIVE=0 turns all of it off for what is traced from then on (a program
that `jax.export` is to write down for CPUs wants that).
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform

import jax
from jax import ffi
import jax.numpy as jnp
import jaxlib

Array = jax.Array

FOLDER = pathlib.Path(__file__).parent
SOURCES = sorted([*FOLDER.glob('*.cc'), *FOLDER.glob('*.h')])
FUNCTIONS = tuple(
  f'moniqua_{name}'
  for name in (
    *('pack', 'unpack', 'join', 'encode', 'decode', 'look', 'mix'),
    *('hadamard', 'eden_encode', 'eden_decode', 'uniform', 'halving'),
    *('words_encode', 'words_decode'),
  )
)
LANES = 128


def ready() -> bool:
  """Tells whether the functions below can be called."""
  return os.environ.get('MONIQUA_NATIVE') != '0' and _loaded()


def built(source: str = '') -> pathlib.Path:
  """Names the library of these sources, for the jaxlib that is to call it."""
  if not source:
    text = b''.join(path.read_bytes() for path in SOURCES)
    source = hashlib.sha256(text).hexdigest()[:16]
  return FOLDER / f'{platform.machine()}-{jaxlib.__version__}-{source}.so'


@functools.cache
def _loaded() -> bool:
  try:
    library = ctypes.CDLL(str(built()))
  except OSError:  # there is none, or it is of another system
    return False
  for name in FUNCTIONS:
    handler = ffi.pycapsule(getattr(library, name))
    ffi.register_ffi_target(name, handler, platform='cpu')
  return True


def pack(codes: Array, behind: Array, size: int, bits: int) -> Array:
  """Returns u8[size] of codes u8[d], with bytes behind them."""
  packed = jax.ShapeDtypeStruct((size,), jnp.uint8)
  return _call('moniqua_pack', packed)(codes, behind, bits=bits)


def unpack(packed: Array, size: int, bits: int) -> Array:
  """Returns codes u8[size] of what `pack` wrote, and perhaps more."""
  codes = jax.ShapeDtypeStruct((size,), jnp.uint8)
  return _call('moniqua_unpack', codes)(packed, bits=bits)


def join(*pieces: Array) -> Array:
  """Returns vectors of one kind, one after the other."""
  size = sum(piece.size for piece in pieces)
  joined = jax.ShapeDtypeStruct((size,), pieces[0].dtype)
  return _call('moniqua_join', joined)(*pieces)


def encode(x: Array, header: Array, nbytes: int, **how) -> Array:
  """Returns a whole payload u8[nbytes] of x f32[d]; header is u32[4]."""
  payload = jax.ShapeDtypeStruct((nbytes,), jnp.uint8)
  return _call('moniqua_encode', payload)(x, header, **how)


def decode(y: Array, header: Array, payload: Array, **how) -> Array:
  """Returns x_hat f32[d] of a payload, next to y f32[d]."""
  x_hat = jax.ShapeDtypeStruct(y.shape, y.dtype)
  return _call('moniqua_decode', x_hat)(y, header, payload, **how)


def look(y: Array, headers: Array, payloads: list, **how) -> tuple:
  """Returns what digests are checked with: u32[E] and lanes u32[E, 128]."""
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.uint32)
  seen = shape((len(payloads),)), shape((len(payloads), LANES))
  return _call('moniqua_look', seen)(y, headers, *payloads, **how)


def mix(x, onto, headers, weights, payloads: list, **how) -> Array:
  """Returns onto + sum_k w_k (x_hat_k - x_hat_own), f32[d]."""
  call = _call('moniqua_mix', jax.ShapeDtypeStruct(x.shape, x.dtype))
  return call(x, onto, headers, weights, *payloads, **how)


def hadamard(back: bool, rows: int, size: int, z: Array, seed: Array) -> Array:
  """Turns f32[d] to f32[size] in blocks of so many rows, or back."""
  turned = jax.ShapeDtypeStruct((size,), jnp.float32)
  return _call('moniqua_hadamard', turned)(z, seed, rows=rows, back=back)


def eden_encode(x: Array, seed: Array, shape: tuple, **how) -> tuple:
  """Returns codes u8[B, m] of f32[d]; unit, yy, yq and qq of each block."""
  codes = jax.ShapeDtypeStruct(shape, jnp.uint8)
  sums = [jax.ShapeDtypeStruct((1, shape[1]), jnp.float32)] * 4
  codes, *sums = _call('moniqua_eden_encode', (codes, *sums))(x, seed, **how)
  return codes, tuple(sums)


def eden_decode(codes: Array, scales: Array, seed: Array, d: int, **how):
  """Returns x_hat f32[d] of codes u8[B, m] and scales f32[1, m]."""
  x_hat = jax.ShapeDtypeStruct((d,), jnp.float32)
  return _call('moniqua_eden_decode', x_hat)(codes, scales, seed, **how)


def buckets(grid: str, x: Array, seed: Array, **how) -> tuple[Array, Array]:
  """Returns codes u8[d] of x f32[d], and the norm of each bucket."""
  count = -(-x.size // how['bucket_size'])
  codes = jax.ShapeDtypeStruct(x.shape, jnp.uint8)
  norms = jax.ShapeDtypeStruct((count,), jnp.float32)
  return tuple(_call(f'moniqua_{grid}', (codes, norms))(x, seed, **how))


def words_encode(codes: Array, size: int, buckets: int, **how) -> tuple:
  """Returns a stream u8[size] of codes u8[d], and the bits of each bucket."""
  stream = jax.ShapeDtypeStruct((size,), jnp.uint8)
  lengths = jax.ShapeDtypeStruct((buckets,), jnp.int32)
  call = _call('moniqua_words_encode', (stream, lengths))
  return tuple(call(codes, **how))


def words_decode(stream: Array, lengths: Array, size: int, **how) -> Array:
  """Returns the codes u8[size] of a stream with so many bits a bucket."""
  codes = jax.ShapeDtypeStruct((size,), jnp.uint8)
  return _call('moniqua_words_decode', codes)(stream, lengths, **how)


def _call(name, result):
  """Returns the function of this name; what it returns varies as arrays do."""

  def call(*arrays, **how):
    # A shard_map may check over which axes of a mesh results vary: as zeros do
    # that are made of the arrays. Types name these axes otherwise in each JAX.
    zero = lambda *arrays: sum(jnp.sum(0 * jnp.float32(x)) for x in arrays)
    like = lambda x: jax.eval_shape(
      lambda *arrays: jnp.full(x.shape, zero(*arrays), x.dtype), *arrays
    )
    function = ffi.ffi_call(
      name, jax.tree.map(like, result), vmap_method='broadcast_all'
    )
    return function(*arrays, **how)

  return call
