"""Algorithms: optax transformations, one file each.

First in the chain stand those that take gradients to a mean gradient, last
those that add gossip to the updates; each docstring's first line says which.
"""

from moniqua_jax.algorithms.adapt_then_combine import adapt_then_combine
from moniqua_jax.algorithms.adiana import adiana
from moniqua_jax.algorithms.adpsgd import adpsgd
from moniqua_jax.algorithms.allreduce import allreduce
from moniqua_jax.algorithms.answered import answered
from moniqua_jax.algorithms.checking import check, report
from moniqua_jax.algorithms.choco import choco
from moniqua_jax.algorithms.d2 import d2
from moniqua_jax.algorithms.dadam import dadam
from moniqua_jax.algorithms.dcd import dcd
from moniqua_jax.algorithms.dcgd import dcgd
from moniqua_jax.algorithms.deepsqueeze import deepsqueeze
from moniqua_jax.algorithms.diana import diana
from moniqua_jax.algorithms.dpsgd import dpsgd
from moniqua_jax.algorithms.ecd import ecd
from moniqua_jax.algorithms.error_feedback import double_squeeze, error_feedback
from moniqua_jax.algorithms.every import every
from moniqua_jax.algorithms.outer import outer
from moniqua_jax.algorithms.power_sgd import power_sgd
from moniqua_jax.algorithms.push_sum import push_sum
from moniqua_jax.algorithms.qdgd import qdgd
from moniqua_jax.algorithms.quantize import quantize
from moniqua_jax.algorithms.quasi_global import quasi_global
from moniqua_jax.algorithms.rounds import rounds
from moniqua_jax.algorithms.stale import stale
from moniqua_jax.algorithms.streaming import streaming

__all__ = [
  'adapt_then_combine',
  'adiana',
  'adpsgd',
  'allreduce',
  'answered',
  'check',
  'choco',
  'd2',
  'dadam',
  'dcd',
  'dcgd',
  'deepsqueeze',
  'diana',
  'double_squeeze',
  'dpsgd',
  'ecd',
  'error_feedback',
  'every',
  'outer',
  'power_sgd',
  'push_sum',
  'qdgd',
  'quantize',
  'quasi_global',
  'report',
  'rounds',
  'stale',
  'streaming',
]
