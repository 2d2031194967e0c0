"""Moniqua's codec in C++, for CPUs: each function is one pass over memory.

Who computes what where: the jnp forms in `quantizers.moniqua` are the reference
and run everywhere; compiled for a CPU, where this package was built, their
places are taken by the functions here, which give the same bits. `python -m
moniqua_jax.native` builds, with any C++ compiler; MONIQUA_NATIVE=0 turns all of
it off for what is traced from then on (a program that `jax.export` is to write
down for CPUs wants that).
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
SOURCE = FOLDER / 'codec.cc'
FUNCTIONS = tuple(
  f'moniqua_{name}' for name in ('encode', 'decode', 'look', 'mix')
)
LANES = 128


def ready() -> bool:
  """Tells whether the functions below can be called."""
  return os.environ.get('MONIQUA_NATIVE') != '0' and _loaded()


def built(source: str = '') -> pathlib.Path:
  """Names the library of this source, and of the jaxlib that is to call it."""
  source = source or hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
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


def _call(name, result):
  return ffi.ffi_call(name, result, vmap_method='broadcast_all')
