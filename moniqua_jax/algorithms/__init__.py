"""Algorithms: optax transformations, one file each.

First in the chain stand those that take gradients to a mean gradient, last
those that add gossip to the updates; each docstring's first line says which.
"""

from moniqua_jax.algorithms.allreduce import allreduce
from moniqua_jax.algorithms.dpsgd import dpsgd
from moniqua_jax.algorithms.quantize import quantize

__all__ = ['allreduce', 'dpsgd', 'quantize']
