"""Quantizers: one vector into one payload of bytes, and back."""

from moniqua_jax.quantizers.adaptive import alq, alq_n, amq, amq_n
from moniqua_jax.quantizers.auto import auto_theta
from moniqua_jax.quantizers.base import (
  Codes,
  Quantizer,
  Seen,
  Short,
  Tuned,
  scheduled,
)
from moniqua_jax.quantizers.chunked import chunked_top_k
from moniqua_jax.quantizers.dithered import block, dithering, varying_steps
from moniqua_jax.quantizers.eden import eden
from moniqua_jax.quantizers.fitted import fitted_theta
from moniqua_jax.quantizers.float8 import float8
from moniqua_jax.quantizers.full_precision import full_precision
from moniqua_jax.quantizers.leveled import leveled
from moniqua_jax.quantizers.moniqua import moniqua
from moniqua_jax.quantizers.nuqsgd import natural, nuqsgd
from moniqua_jax.quantizers.per_worker import per_worker
from moniqua_jax.quantizers.qsgd import qsgd, terngrad
from moniqua_jax.quantizers.rotated import rotated
from moniqua_jax.quantizers.sign import one_bit, sign
from moniqua_jax.quantizers.sparse import random_k, random_tau, top_k
from moniqua_jax.quantizers.transformed import scaled, smooth, within
from moniqua_jax.quantizers.uniform import uniform

__all__ = [
  'Codes',
  'Quantizer',
  'Seen',
  'Short',
  'Tuned',
  'alq',
  'alq_n',
  'amq',
  'amq_n',
  'auto_theta',
  'block',
  'chunked_top_k',
  'dithering',
  'eden',
  'fitted_theta',
  'float8',
  'full_precision',
  'leveled',
  'moniqua',
  'natural',
  'nuqsgd',
  'one_bit',
  'per_worker',
  'qsgd',
  'random_k',
  'random_tau',
  'rotated',
  'scaled',
  'scheduled',
  'sign',
  'smooth',
  'terngrad',
  'top_k',
  'uniform',
  'varying_steps',
  'within',
]
