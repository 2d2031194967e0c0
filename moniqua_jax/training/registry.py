"""From a spec in a config to the object it names.

A spec is a dict: `name` chooses a factory, the rest are its keyword arguments;
None means that the factory's own default holds. The tables say which names
there are; `package.module:function` is one of your own.
"""

from collections.abc import Callable, Mapping
import functools
import importlib
import inspect
import sys

import optax
from optax import contrib

from moniqua_jax import (
  algorithms,
  coding,
  data,
  models,
  quantizers,
  topologies,
  workers,
)
from moniqua_jax.algorithms import transformation
from moniqua_jax.curvature import moments, refresh
from moniqua_jax.theory import gammas
from moniqua_jax.training import ones_own, schedules


def _from(namespace, names: str) -> dict:
  """Collects the factories of these names."""
  return {name: getattr(namespace, name) for name in names.split()}


def _block(
  bits: int,
  leaf_sizes: tuple[int, ...],
  bucket_size: int | None = None,
  norm: str = 'l2',
  norm_bits: int = 32,
) -> quantizers.Quantizer:
  """Builds `block` on the grid of `qsgd`, with blocks that end with a leaf."""
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
  keep,
):
  """Builds `adiana` from numbers of a spec; none of them has a default."""
  numbers = gammas.Adiana(alpha, eta, theta1, theta2, gamma, beta, p)
  return algorithms.adiana(
    quantizer, numbers, axis_name=axis_name, key=key, keep=keep
  )


def _sgd(
  learning_rate, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
  """Builds SGD with momentum, of gradients with the weight decay in them."""
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(learning_rate, momentum or None, nesterov),
  )


def _muon(
  learning_rate,
  weight_decay: float,
  by_leaf: Callable,
  beta: float = 0.95,
  b1: float = 0.9,
  b2: float = 0.999,
) -> optax.GradientTransformation:
  """Builds Muon of matrices and AdamW of the rest, at one learning rate.

  A matrix moves by as much, rms, as by AdamW (.2 of a rate, arXiv:2502.16982).
  """
  return by_leaf(
    contrib.muon(
      learning_rate,
      beta=beta,
      adam_b1=b1,
      adam_b2=b2,
      weight_decay=weight_decay,
      adam_weight_decay=weight_decay,
      consistent_rms=0.2,
    )
  )


MODELS = _from(models, ' '.join(models.__all__))
DATASETS = _from(data, 'cifar10 digits folder imagenet2012 npz synthetic text')
PARTITIONS = _from(data, 'dirichlet iid sorted_by_label')
TOPOLOGIES = topologies.BY_NAME
QUANTIZERS = _from(
  quantizers,
  'alq alq_n amq amq_n auto_theta chunked_top_k eden fitted_theta '
  'full_precision leveled moniqua natural nuqsgd one_bit qsgd random_k sign '
  'terngrad top_k uniform',
) | {'block': _block}
CODES = _from(coding, 'dense huffman recursive')
OPTIMIZERS = {
  'sgd': _sgd,
  'adamw': optax.adamw,
  'dadam': algorithms.dadam,
  'lion': optax.lion,
  'muon': _muon,
}
LEARNING_RATES = _from(schedules, 'constant cosine step')
THETAS = _from(schedules, 'fixed follow')
REDUCE = _from(
  algorithms, 'allreduce dcgd diana double_squeeze error_feedback power_sgd'
) | {'adiana': _adiana, 'none': transformation.no_reduction}
GOSSIP = _from(
  algorithms, 'adpsgd choco d2 dcd deepsqueeze dpsgd ecd push_sum qdgd'
) | {'none': transformation.no_gossip}
ORDERS = {
  'adapt_with_combine': lambda gossip: gossip,
  'adapt_then_combine': algorithms.adapt_then_combine,
}
MOMENTUM_KINDS = _from(algorithms, 'quasi_global') | {
  'local': lambda algorithm: algorithm
}
SMOOTHNESS = {'none': refresh.none} | {
  kind: functools.partial(refresh.estimated, kind) for kind in moments.KINDS
}
RUNNERS = _from(workers, 'pmapped sharded simulated')


# What a factory says of its arguments; what else one of your own may raise has
# the line that did.
_MISTAKES = ArithmeticError, MemoryError, SystemExit, TypeError, ValueError
_ANY_NUMBER = (
  inspect.Parameter.VAR_POSITIONAL,
  inspect.Parameter.VAR_KEYWORD,
)


def found(choices, what, name) -> Callable:
  """Looks up a factory in a table, or imports one that is not ours."""
  if ':' in str(name):
    return _imported(f'config.{what}.name={name!r}', name)
  if name not in choices:
    raise ValueError(
      f'config.{what}.name={name!r}; choose from {sorted(choices)}, or name '
      'your own as package.module:function.'
    )
  return choices[name]


def _imported(entry, name) -> Callable:
  module, _, attribute = name.partition(':')
  if '' not in sys.path:
    sys.path.append('')  # the folder one is in, which a console script lacks
  try:
    factory = getattr(importlib.import_module(module), attribute)
  except ModuleNotFoundError as error:
    raise ValueError(
      f'{entry}: {error}; it is looked for in the folder one is in and on '
      'PYTHONPATH.'
    ) from error
  except AttributeError as error:
    raise ValueError(f'{entry}: {error}.') from error
  except (Exception, SystemExit) as error:  # of a program, too
    raise ValueError(
      f'{entry}: importing {module} fails with {error!r}.'
    ) from error
  try:
    inspect.signature(factory)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{entry} is {factory!r}; it must be a function, with arguments that can '
      'be looked up.'
    ) from error
  return factory


def named(
  choices: Mapping[str, Callable], what: str, spec, later: tuple[str, ...] = ()
) -> Callable:
  """Looks up `spec['name']`, and checks the rest of the spec against it.

  Returns the factory with the spec's arguments; it takes those named in `later`
  as keywords, and drops what the factory has no use for or the spec has given.
  """
  kwargs = {k: v for k, v in dict(spec).items() if v is not None}
  name = kwargs.pop('name', None)
  factory = found(choices, what, name)
  accepted = inspect.signature(factory).parameters
  if said := _unfit(what, name, kwargs, accepted, later):
    raise ValueError(said)

  def make(**context):
    context = {k: v for k, v in context.items() if k in accepted}
    try:
      return factory(**(context | kwargs))
    except _MISTAKES as error:
      raise ValueError(f'config.{what}: {str(error) or repr(error)}') from error
    except Exception as error:
      if ':' not in name or isinstance(error, (ImportError, OSError)):
        raise
      raise ValueError(
        f'config.{what}.name={name!r}: {error!r}{ones_own.place(error)}.'
      ) from error

  return make


def _unfit(what, name, kwargs, accepted, later) -> str:
  """Says which arguments of a spec are too many, and which are missing."""
  other = [argument for argument in kwargs if argument not in accepted]
  missing = [
    f'{what}.{argument} (--config.{what}.{argument}=...)'
    for argument, parameter in accepted.items()
    if parameter.default is parameter.empty
    and parameter.kind not in _ANY_NUMBER
    and argument not in (*kwargs, *later)
  ]
  said = []
  if other:
    away = ' '.join(f'--config.{what}.{argument}=None' for argument in other)
    said.append(
      f'config.{what}.{other[0]} is not an argument of {name}; it takes '
      f'{sorted(set(accepted) - set(later))}: leave it out by {away}'
    )
  if missing:
    how = f'; {data.MADE_BY[name]} makes it' if name in data.MADE_BY else ''
    needs = f'{name} needs {" and ".join(missing)}{how}.'
    said.append(needs if said else f'config.{what}: {needs}')
  return '; and '.join(said)


def build(choices: Mapping[str, Callable], what: str, spec, **context):
  """Calls the factory that a spec names, with the context that it takes.

  >>> build({'f': lambda a, b: a + b}, 'f', {'name': 'f', 'a': 1}, b=2, c=3)
  3
  """
  return named(choices, what, spec, tuple(context))(**context)
