"""Who computes what where.

The jnp forms are the reference, and run everywhere. Compiled for these
platforms, other forms take their places, and give the same bits:

  CPUs   `native`, in C++, where it was built: Moniqua, rotations and EDEN,
         the buckets of QSGD and NUQSGD, codewords of coded messages; and in
         `wire` the packing of all codes
  GPUs   `at_once`: what is sent, inspected and mixed of Moniqua's, in few
         launches
  TPUs   of `at_once` the mix
"""

from collections.abc import Callable
import functools
import importlib.util
import pkgutil

import jax
from jax import lax
import jax.numpy as jnp

from moniqua_jax import native


def chosen(default: Callable, *how, **forms: Callable | None) -> Callable:
  """Returns f(*arrays) that is default(*how, *arrays), or a platform's form.

  A form is traced only where a program may be for its platform; None is none.
  """
  there = {
    platform: functools.partial(form, *how)
    for platform, form in forms.items()
    if form and _POSSIBLE[platform]()
  }
  default = functools.partial(default, *how)
  if not there:
    return default
  return functools.partial(lax.platform_dependent, default=default, **there)


def in_pieces(do: Callable, payload: jax.Array, cuts) -> jax.Array:
  """Returns do(payload), or concatenates what it does to pieces of the payload.

  So on GPUs and TPUs, where XLA need not copy them into one vector first. For
  GPUs it can send pieces that go the same way as one message.

  Args:
    do: u8[P] -> u8[P], which treats each byte alike.
    payload: u8[P].
    cuts: where a piece ends and the next one begins; () if it is whole.
  """

  def apart(payload):
    return jnp.concatenate([do(piece) for piece in jnp.split(payload, cuts)])

  form = apart if cuts else None
  return chosen(do, cuda=form, tpu=form)(payload)


@functools.cache
def _for_gpu() -> bool:
  """Tells whether there is a plugin for CUDA: as JAX looks for its plugins."""
  plugins = importlib.util.find_spec('jax_plugins')
  places = (plugins and plugins.submodule_search_locations) or ()
  return any('cuda' in found.name for found in pkgutil.iter_modules(places))


@functools.cache
def _for_tpu() -> bool:
  return importlib.util.find_spec('libtpu') is not None


_POSSIBLE: dict[str, Callable[[], bool]] = {
  'cpu': native.ready,
  'cuda': _for_gpu,
  'tpu': _for_tpu,
}
