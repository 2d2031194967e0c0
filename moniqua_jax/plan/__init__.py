"""What a run would send and take, by calculation; and a choice by it.

`chips` is for pods, `choice` for slow links or a budget of bits.
"""

from moniqua_jax.plan.chips import (
  BITS,
  CHIPS,
  Chip,
  Pod,
  Row,
  images,
  pod,
  rows,
  schedule,
  text,
  work,
)

__all__ = [
  'BITS',
  'CHIPS',
  'Chip',
  'Pod',
  'Row',
  'images',
  'pod',
  'rows',
  'schedule',
  'text',
  'work',
]
