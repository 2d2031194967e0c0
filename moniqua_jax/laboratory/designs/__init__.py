"""What the workers of a problem compress with, and what theory says of it.

Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524, Sections 3 to 5.
A design is a function of the problem; one with a plus compresses within
L_i^{1/2}, with a table that has a row for every worker. n workers, d
coordinates; the budgets are the authors': d / n values a message, and d / n + n
with n blocks.
"""

from moniqua_jax.laboratory.designs.base import Design
from moniqua_jax.laboratory.designs.blocks import (
  block_dcgd_plus,
  block_diana_plus,
  block_diana_plus_short_norms,
  block_uniform_plus,
)
from moniqua_jax.laboratory.designs.plain import (
  levels_of_standard,
  standard,
  standard_blocks,
)
from moniqua_jax.laboratory.designs.sparse import (
  sparse_plus,
  sparse_plus_authors,
)
from moniqua_jax.laboratory.designs.varying import (
  uniform_plus,
  varying_dcgd_plus,
  varying_diana_plus,
  varying_diana_plus_exact,
  varying_diana_plus_short_norm,
)

__all__ = [
  'Design',
  'block_dcgd_plus',
  'block_diana_plus',
  'block_diana_plus_short_norms',
  'block_uniform_plus',
  'levels_of_standard',
  'sparse_plus',
  'sparse_plus_authors',
  'standard',
  'standard_blocks',
  'uniform_plus',
  'varying_dcgd_plus',
  'varying_diana_plus',
  'varying_diana_plus_exact',
  'varying_diana_plus_short_norm',
]
