"""Coding: the same message in fewer bits, and how few there could be."""

from moniqua_jax.coding.coded import coded, coded_bits
from moniqua_jax.coding.entropy import entropy
from moniqua_jax.coding.huffman import (
  Density,
  huffman,
  level_probabilities,
  normal,
  truncated_normal,
)
from moniqua_jax.coding.message import Code, counted_length, dense, recursive

__all__ = [
  'Code',
  'Density',
  'coded',
  'coded_bits',
  'counted_length',
  'dense',
  'entropy',
  'huffman',
  'level_probabilities',
  'normal',
  'recursive',
  'truncated_normal',
]
