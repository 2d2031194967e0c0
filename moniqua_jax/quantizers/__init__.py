"""Quantizers: one vector into one payload of bytes, and back."""

from moniqua_jax.quantizers.auto import auto_theta
from moniqua_jax.quantizers.base import (
  Quantizer,
  Seen,
  Tuned,
  full_precision,
  scheduled,
)
from moniqua_jax.quantizers.modulo import moniqua
from moniqua_jax.quantizers.sign import sign
from moniqua_jax.quantizers.uniform import uniform
from moniqua_jax.quantizers.within import scaled, within

__all__ = [
  'Quantizer',
  'Seen',
  'Tuned',
  'auto_theta',
  'full_precision',
  'moniqua',
  'scaled',
  'scheduled',
  'sign',
  'uniform',
  'within',
]
