"""From a spec in a config to the object it names.

A spec is a dict: `name` chooses a factory, the rest are its keyword arguments;
None means that the factory's own default holds.
The tables below say which names there are.
"""

from collections.abc import Callable, Mapping
import functools
import inspect

from moniqua_jax import (
  algorithms,
  data,
  models,
  quantizers,
  topologies,
  workers,
)
from moniqua_jax.curvature import moments, refresh
from moniqua_jax.theory import gammas
from moniqua_jax.training import schedules


def _named(namespace, names):
  return {name: getattr(namespace, name) for name in names}


def _block(
  bits: int,
  leaf_sizes: tuple[int, ...],
  bucket_size: int | None = None,
  norm: str = 'l2',
  norm_bits: int = 32,
) -> quantizers.Quantizer:
  """`block` on the grid of `qsgd`, with blocks that end where a leaf does."""
  if type(bits) is not int or bits not in range(2, 9):
    raise ValueError(f'bits={bits!r}; block takes 2 to 8, one is the sign.')
  if bucket_size is not None and bucket_size < 1:
    raise ValueError(f'bucket_size={bucket_size}; it must be 1 or more.')
  step = 1 / (2 ** (bits - 1) - 1)
  blocks = []
  for size in leaf_sizes:
    whole, rest = divmod(size, bucket_size or size)
    blocks += [bucket_size or size] * whole + [rest] * (rest > 0)
  return quantizers.block(step, tuple(blocks), norm, bits, norm_bits)


def _adiana(
  quantizer,
  alpha: float,
  eta: float,
  theta1: float,
  theta2: float,
  gamma: float,
  beta: float,
  p: float,
  *,
  axis_name: str,
  key,
):
  """`adiana` with its parameters as numbers of a spec."""
  numbers = gammas.Adiana(alpha, eta, theta1, theta2, gamma, beta, p)
  for name, valid, range_ in (
    ('alpha', 0 < alpha <= 1, 'above 0 and at most 1'),
    ('eta', eta > 0, 'above 0'),
    ('theta1', 0 <= theta1 <= 1, 'within 0 and 1'),
    ('theta2', 0 <= theta2 <= 1 - theta1, 'within 0 and 1 - theta1'),
    ('gamma', gamma > 0, 'above 0'),
    ('beta', 0 <= beta <= 1, 'within 0 and 1'),
    ('p', 0 < p <= 1, 'above 0 and at most 1'),
  ):
    if not valid:
      raise ValueError(
        f'{name}={getattr(numbers, name)!r}; adiana needs it {range_}.'
      )
  return algorithms.adiana(quantizer, numbers, axis_name=axis_name, key=key)


MODELS = _named(models, models.__all__)
DATASETS = _named(data, ['cifar10', 'digits', 'imagenet2012', 'synthetic'])
PARTITIONS = _named(data, ['dirichlet', 'iid', 'sorted_by_label'])
TOPOLOGIES = _named(
  topologies,
  [
    'complete',
    'exponential',
    'hypercube',
    'one_peer_exponential',
    'random_matchings',
    'ring',
    'star',
    'torus',
  ],
)
QUANTIZERS = _named(
  quantizers,
  [
    'alq',
    'alq_n',
    'amq',
    'amq_n',
    'auto_theta',
    'full_precision',
    'leveled',
    'moniqua',
    'natural',
    'nuqsgd',
    'one_bit',
    'qsgd',
    'random_k',
    'sign',
    'terngrad',
    'top_k',
    'uniform',
  ],
) | {'block': _block}
LEARNING_RATES = _named(schedules, ['constant', 'cosine', 'step'])
THETAS = _named(schedules, ['fixed', 'follow'])
REDUCE = _named(
  algorithms,
  ['allreduce', 'dcgd', 'diana', 'double_squeeze', 'error_feedback'],
) | {'adiana': _adiana}
GOSSIP = _named(
  algorithms,
  ['adpsgd', 'choco', 'd2', 'dcd', 'deepsqueeze', 'dpsgd', 'ecd', 'push_sum'],
)
SMOOTHNESS = {'none': refresh.none} | {
  kind: functools.partial(refresh.estimated, kind) for kind in moments.KINDS
}
RUNNERS = _named(workers, ['pmapped', 'sharded', 'simulated'])


def build(choices: Mapping[str, Callable], what: str, spec, **context):
  """Calls choices[spec['name']] with the rest of the spec.

  Args:
    choices: factories by name.
    what: the name of the config entry, for messages.
    spec: a mapping with `name` and keyword arguments.
    **context: further arguments, given to factories that take them, unless the
      spec gives them itself.

  Returns:
    What the factory returns.

  Raises:
    ValueError: unknown name or argument, a missing argument, or what the
      factory raises, with the config entry in front.

  >>> build({'f': lambda a, b: a + b}, 'f', {'name': 'f', 'a': 1}, b=2, c=3)
  3
  """
  kwargs = {k: v for k, v in dict(spec).items() if v is not None}
  name = kwargs.pop('name', None)
  if name not in choices:
    raise ValueError(
      f'config.{what}.name={name!r}; choose from {sorted(choices)}.'
    )
  accepted = inspect.signature(choices[name]).parameters
  for argument in kwargs:
    if argument not in accepted:
      raise ValueError(
        f'config.{what}.{argument} is not an argument of {name}; it takes '
        f'{sorted(set(accepted) - set(context))}.'
      )
  context = {k: v for k, v in context.items() if k in accepted}
  kwargs = {**context, **kwargs}
  for argument, parameter in accepted.items():
    if argument not in kwargs and parameter.default is parameter.empty:
      raise ValueError(f'config.{what}: {name} needs {what}.{argument}.')
  try:
    return choices[name](**kwargs)
  except (TypeError, ValueError) as error:
    raise ValueError(f'config.{what}: {error}') from error
