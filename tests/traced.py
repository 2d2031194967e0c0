"""Reads what a program sends off its jaxpr: no compiler is asked.

A branch counts that `choose` takes of [[Sent] of each branch]: rounds of a
schedule, messages in short form or whole, steps that rest.
"""

from typing import NamedTuple

import jax
from jax.extend import core
import numpy as np


class Sent(NamedTuple):
  """One collective: its name and type, and what a worker's own value takes."""

  kind: str
  dtype: str
  nbytes: int
  leaves: float  # bytes that leave a worker, the mean over workers


def sent(fn, *args, n, choose, axis='workers'):
  """All collectives of fn(*args) on n workers; the arguments may be shapes."""
  program = jax.make_jaxpr(fn, axis_env=[(axis, n)])(*args)
  return list(_walk(program.jaxpr, n, choose))


def leaving(found):
  """Bytes that leave a worker."""
  return sum(one.leaves for one in found)


# Of a worker's value of m bytes so many leave it. A sum goes round a ring.
_LEAVES = {
  'ppermute': lambda m, n, perm: m * sum(i != j for i, j in perm) / n,
  'all_gather': lambda m, n, perm: m * (n - 1),
  'all_to_all': lambda m, n, perm: m * (n - 1) / n,
  'psum': lambda m, n, perm: m * 2 * (n - 1) / n,
  'pmax': lambda m, n, perm: m * 2 * (n - 1) / n,
}
_OTHER_NAMES = {'psum_invariant': 'psum', 'all_gather_invariant': 'all_gather'}


def _walk(jaxpr, n, choose):
  for eqn in jaxpr.eqns:
    kind = _OTHER_NAMES.get(eqn.primitive.name, eqn.primitive.name)
    if kind in _LEAVES:
      for var in eqn.invars:
        size = int(np.prod(var.aval.shape)) * var.aval.dtype.itemsize
        leaves = _LEAVES[kind](size, n, eqn.params.get('perm'))
        yield Sent(kind, str(var.aval.dtype), size, leaves)
    elif kind == 'cond':
      branches = [
        list(_walk(b.jaxpr, n, choose)) for b in eqn.params['branches']
      ]
      if any(branches):
        yield from choose(branches)
    else:
      within = list(inner(eqn.params))
      found = [one for jaxpr in within for one in _walk(jaxpr, n, choose)]
      assert not found or kind not in ('scan', 'while'), 'how often is unknown'
      yield from found


def inner(params):
  for value in jax.tree.leaves(
    params, is_leaf=lambda v: isinstance(v, (core.Jaxpr, core.ClosedJaxpr))
  ):
    if isinstance(value, core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
      yield value
