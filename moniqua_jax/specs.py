"""From a spec in a config to the object it names.

A spec is a dict: `name` chooses a factory, the rest are its keyword arguments;
None means that the factory's own default holds.
The tables below say which names there are.
"""

from collections.abc import Callable, Mapping
import inspect

from moniqua_jax import (
  algorithms,
  data,
  models,
  quantizers,
  schedules,
  topologies,
  workers,
)


def _named(namespace, names):
  return {name: getattr(namespace, name) for name in names}


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
)
LEARNING_RATES = _named(schedules, ['constant', 'cosine', 'step'])
THETAS = _named(schedules, ['fixed', 'follow'])
REDUCE = _named(algorithms, ['allreduce', 'double_squeeze', 'error_feedback'])
GOSSIP = _named(
  algorithms,
  ['adpsgd', 'choco', 'd2', 'dcd', 'deepsqueeze', 'dpsgd', 'ecd', 'push_sum'],
)
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
