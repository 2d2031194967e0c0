"""The collectives of a function: found, replaced by copies, or run alone.

Read from the traced function (its jaxpr), so that a method need not say what it
sends, and a benchmark need not know it.
"""

from collections.abc import Callable, Iterator

import jax
from jax import lax
from jax.extend import core
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

Array = jax.Array
MESSAGES = ('all_gather', 'all_to_all', 'ppermute')


def _everywhere(x, zero, params):
  del params
  return x + zero


def _gathered(x, zero, params):
  return jnp.broadcast_to(x + zero, (params['axis_size'], *x.shape))


# What each would give if all workers held the same: a copy, for others to send.
COPIES = {
  'all_gather': _gathered,
  'all_to_all': _everywhere,
  'pmax': _everywhere,
  'ppermute': _everywhere,
  'psum': _everywhere,
}


def found(fn: Callable, axis_name: str, n: int, *args) -> list:
  """The collectives of a worker's function, in order.

  Args:
    fn: of one worker.
    axis_name: of the workers.
    n: workers.
    *args: of fn; shapes will do.

  Returns:
    Equations of its jaxpr under `shard_map`; of branches those of the last, of
    a condition where it holds, or those of this platform.

  Raises:
    ValueError: one of them is inside a loop, or branches have different ones.

  >>> fn = lambda x: jax.lax.psum(x, 'w') + jax.lax.ppermute(x, 'w', [(0, 0)])
  >>> [str(e.primitive) for e in found(fn, 'w', 1, jnp.ones(3))]
  ['psum', 'ppermute']
  """
  mesh = jax.sharding.AbstractMesh((n,), (axis_name,))
  run = jax.shard_map(
    fn, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
  )
  return list(_of(jax.make_jaxpr(run)(*args).jaxpr))


def with_copies(fn: Callable, zeros: Array) -> Callable:
  """The same function with a copy in the place of each collective.

  The copies add a zero that only shows at run time: were they constants, two
  messages would be known to be equal, and decoded once.

  Args:
    fn: of one worker, called where its axis name is known.
    zeros: i32[k], one for each collective.

  Returns:
    A function of the same arguments.
  """

  def copied(*args):
    traced, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    results = _evaluate(
      traced.jaxpr, traced.consts, jax.tree.leaves(args), iter(zeros)
    )
    return jax.tree.unflatten(jax.tree.structure(shape), results)

  return copied


def until_messages(fn: Callable, zeros: Array) -> Callable:
  """The same function up to its first messages, whose operands it returns.

  Means and maxima before them are copies, as in `with_copies`; nothing is
  returned if none follow.
  """

  def encoded(*args):
    traced = jax.make_jaxpr(fn)(*args)
    if not any(map(_sends, traced.jaxpr.eqns)):
      return []
    return _evaluate(
      traced.jaxpr, traced.consts, jax.tree.leaves(args), iter(zeros), _sends
    )

  return encoded


def alone(equations: list, token: Array, shape: Callable) -> Array:
  """Runs collectives one after the other, with operands of other shapes.

  Args:
    equations: as `found` gave them.
    token: i32[], what the first one waits for.
    shape: equation -> shape of its operand.

  Returns:
    i32[], which waits for the last.
  """
  for equation in equations:
    value = token.astype(equation.invars[0].aval.dtype)
    out = equation.primitive.bind(
      jnp.broadcast_to(value, shape(equation)), **equation.params
    )
    token = jax.tree.leaves(out)[0].reshape(-1)[0].astype(jnp.int32)
  return token


def whole(equation) -> tuple[int, ...]:
  """The shape of what a collective carries."""
  (operand,) = equation.invars
  return operand.aval.shape


def least(n: int) -> Callable:
  """As little as a collective of n workers takes.

  One value for each message that its payload would need: Gloo's all-reduce goes
  round in 2 n pieces, and with fewer values in fewer.
  """
  shapes = {'all_to_all': (n, 1), 'psum': (2 * n,), 'pmax': (2 * n,)}
  return lambda equation: shapes.get(_name(equation), (1,))


def _of(jaxpr) -> Iterator:
  for equation in jaxpr.eqns:
    each = [list(_of(sub)) for sub in _inside(equation)]
    inner = [found for branch in each for found in branch]
    if inner and _name(equation) not in ('jit', 'pjit', 'cond', 'shard_map'):
      raise ValueError(
        f'{_name(inner[0])} stands inside {_name(equation)}; its copy would '
        'have to be made there, which is not written.'
      )
    kinds = [list(map(_name, found)) for found in each]
    if any(other != kinds[0] for other in kinds):
      raise ValueError(
        'branches with different collectives; one must stand for all.'
      )
    yield from each[-1] if each else ()
    if _name(equation) in COPIES:
      yield equation


def _sends(equation) -> bool:
  """Whether messages are sent in it, not only means and maxima taken."""
  inside = [found for sub in _inside(equation) for found in _of(sub)]
  names = {_name(found) for found in (equation, *inside)}
  return not names.isdisjoint(MESSAGES)


def _evaluate(jaxpr, consts, args, zeros, ends=lambda equation: False):
  """Computes the jaxpr; a collective takes the next zero.

  The result is that of the jaxpr, or what goes into the equation that `ends`.
  """
  values = dict(
    zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True)
  )
  read = lambda v: v.val if isinstance(v, core.Literal) else values[v]
  for equation in jaxpr.eqns:
    inputs = [read(v) for v in equation.invars]
    if ends(equation):
      return inputs
    if _name(equation) in COPIES:
      copy = COPIES[_name(equation)]
      outputs = [
        _made_before(copy, x, next(zeros), equation.params) for x in inputs
      ]
    elif branches := [sub for sub in _inside(equation) if list(_of(sub))]:
      known = equation.params.get('branches_platforms') is not None
      outputs = _of_branches(branches, inputs[known:], zeros)
    else:
      outputs = _bind(equation, inputs)
    values.update(zip(equation.outvars, outputs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def _of_branches(branches, inputs, zeros):
  """Of a cond the branch that the first input names; of a jit its one."""
  own = [next(zeros) for _ in _of(branches[0])]
  evaluated = lambda jaxpr: lambda *args: _evaluate(jaxpr, (), args, iter(own))
  functions = [evaluated(jaxpr) for jaxpr in branches]
  if len(functions) == 1:
    return functions[0](*inputs)
  return lax.switch(inputs[0], functions, *inputs[1:])


def _made_before(copy, x, zero, params):
  """In a branch: XLA would make a copy again in whatever reads it."""
  zero_here = lambda x: copy(x, zero.astype(x.dtype), params)
  return lax.cond(zero == 0, zero_here, lambda x: 1 + zero_here(x), x)


def _bind(equation, inputs):
  params = equation.primitive.get_bind_params(equation.params)
  out = equation.primitive.bind(*inputs, **params)
  return out if equation.primitive.multiple_results else [out]


def _inside(equation):
  """The jaxprs among the parameters of an equation; that of this platform."""
  params = equation.params
  if platforms := params.get('branches_platforms'):
    here = [p is None or jax.default_backend() in p for p in platforms]
    params = params['branches'][here.index(True)]
  for leaf in jax.tree.leaves(
    params, is_leaf=lambda p: isinstance(p, core.ClosedJaxpr)
  ):
    if isinstance(leaf, core.ClosedJaxpr):
      yield leaf.jaxpr
    elif isinstance(leaf, core.Jaxpr):
      yield leaf


def _name(equation):
  return equation.primitive.name
