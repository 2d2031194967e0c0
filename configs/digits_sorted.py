"""Digits sorted by label: every worker has one or two digits of its own.

  python train.py --config=configs/digits_sorted.py:METHOD --workdir=DIR
  python -m benchmarks.tune --config=configs/digits_sorted.py --out=DIR

METHOD is one of METHODS below; those that end in x4 take four times the steps.
Each was tuned by six runs, its CHOICES, on a seed that is not among the
reported ones; the choice is in CHOSEN. What came of it is in
results/digits_sorted.
"""

import itertools

import ml_collections

from moniqua_jax.configs import digits

FILE = 'configs/digits_sorted.py'


def get_config(method: str = 'd2moniqua4') -> ml_collections.ConfigDict:
  """The config of one method, with what was chosen for it."""
  return tuned(base(), METHODS, CHOSEN, method, FILE)


def base() -> ml_collections.ConfigDict:
  """What all methods share."""
  config = digits.default()
  config.partition.update(name='sorted_by_label')
  config.log_every, config.eval_every = 20, 20.0
  return config


def tuned(config, methods, chosen, method, file) -> ml_collections.ConfigDict:
  """The config of a method, with the entries that were chosen for it."""
  config = digits.choose(config, methods, method, file)
  config.update_from_flattened_dict(chosen.get(method, {}))
  return config


def d2(bits=None, **entries):
  """D^2: gamma .75 is the most that a ring of 8 allows with a margin."""
  return moniqua(bits, 0.75, gossip=dict(name='d2'), **entries)


def moniqua(bits=None, gamma=1.0, **entries):
  """On D-PSGD if not said otherwise; full precision without bits."""
  quantizer = dict(name='auto_theta', bits=bits, start=1.5)
  return dict(gamma=gamma, **entries) | (
    dict(quantizer=quantizer) if bits else {}
  )


def rival(name, bits, rounding):
  """Min-max quantization; signs and a mean where the nearest is 1 bit."""
  quantizer = dict(name='uniform', bits=bits, rounding=rounding)
  if bits == 1 and rounding == 'nearest':
    quantizer = dict(name='sign')
  return dict(gossip=dict(name=name), quantizer=quantizer)


def methods(epochs: float) -> dict:
  """The rows of the table; `epochs` of a run that is not x4."""
  longer = dict(epochs=4 * epochs)
  return {
    'dpsgd': {},
    'd2': d2(),
    'd2moniqua8': d2(8),
    'd2moniqua4': d2(4),
    'moniqua4': moniqua(4),
    'slack0.5': dict(gamma=0.5),
    'moniqua2': moniqua(2, 0.5),
    'dpsgdx4': longer,
    'slack0.2x4': dict(gamma=0.2, **longer),
    'moniqua1x4': moniqua(1, 0.2, **longer),
    # The loop gain of auto_theta is .8 at gamma .2 and 1/2 at .13.
    'slack0.13x4': dict(gamma=0.13, **longer),
    'moniqua1g0.13x4': moniqua(1, 0.13, **longer),
    **{
      f'{name}{bits}': rival(name, bits, rounding)
      for name, rounding in (
        ('choco', 'nearest'),
        ('deepsqueeze', 'nearest'),
        ('dcd', 'stochastic'),
        ('ecd', 'stochastic'),
      )
      for bits in (8, 4, 2, 1)
    },
  }


def grid(**entries) -> list[dict]:
  """All combinations of values, of entries with __ for a dot."""
  names = [name.replace('__', '.') for name in entries]
  return [
    dict(zip(names, values, strict=True))
    for values in itertools.product(*entries.values())
  ]


RATES = (0.05, 0.1, 0.2)
# Six runs each: three learning rates and two values of the method's own number,
# or six learning rates for those that have none.
SIX = grid(learning_rate__peak=(0.025, 0.05, 0.1, 0.2, 0.3, 0.5))
SAFETY = grid(learning_rate__peak=RATES, quantizer__safety=(1.3, 1.5))
BUCKET = grid(learning_rate__peak=RATES, quantizer__bucket_size=(128, 512))


def choices(names) -> dict[str, list[dict]]:
  """The six runs of each method."""
  own = {'choco': 'gossip__gamma', 'deepsqueeze': 'gossip__eta'}
  values = {'8': (0.5, 1.0), '4': (0.3, 0.9), '2': (0.1, 0.4), '1': (0.05, 0.2)}

  def six(name):
    family, bits = name[:-1], name[-1]
    if family in own:
      number = {own[family]: values[bits]}
      return grid(learning_rate__peak=RATES, **number)
    if family in ('dcd', 'ecd'):
      return BUCKET
    return SAFETY if 'moniqua' in name else SIX

  return {name: six(name) for name in names}


METHODS = methods(epochs=40.0)
CHOICES = choices(METHODS)
CHOSEN = {
  'dpsgd': {'learning_rate.peak': 0.2},
  'd2': {'learning_rate.peak': 0.05},
  'd2moniqua8': {'learning_rate.peak': 0.05, 'quantizer.safety': 1.3},
  'd2moniqua4': {'learning_rate.peak': 0.05, 'quantizer.safety': 1.3},
  'moniqua4': {'learning_rate.peak': 0.1, 'quantizer.safety': 1.5},
  'slack0.5': {'learning_rate.peak': 0.2},
  'moniqua2': {'learning_rate.peak': 0.2, 'quantizer.safety': 1.5},
  'dpsgdx4': {'learning_rate.peak': 0.2},
  'slack0.2x4': {'learning_rate.peak': 0.1},
  'moniqua1x4': {'learning_rate.peak': 0.2, 'quantizer.safety': 1.5},
  'slack0.13x4': {'learning_rate.peak': 0.1},
  'moniqua1g0.13x4': {'learning_rate.peak': 0.1, 'quantizer.safety': 1.3},
  'choco8': {'learning_rate.peak': 0.2, 'gossip.gamma': 1.0},
  'choco4': {'learning_rate.peak': 0.2, 'gossip.gamma': 0.9},
  'choco2': {'learning_rate.peak': 0.2, 'gossip.gamma': 0.4},
  'choco1': {'learning_rate.peak': 0.1, 'gossip.gamma': 0.2},
  'deepsqueeze8': {'learning_rate.peak': 0.2, 'gossip.eta': 1.0},
  'deepsqueeze4': {'learning_rate.peak': 0.2, 'gossip.eta': 0.9},
  'deepsqueeze2': {'learning_rate.peak': 0.2, 'gossip.eta': 0.4},
  'deepsqueeze1': {'learning_rate.peak': 0.1, 'gossip.eta': 0.2},
  'dcd8': {'learning_rate.peak': 0.2, 'quantizer.bucket_size': 128},
  'dcd4': {'learning_rate.peak': 0.2, 'quantizer.bucket_size': 512},
  'dcd2': {'learning_rate.peak': 0.2, 'quantizer.bucket_size': 512},
  'dcd1': {
    'learning_rate.peak': 0.05,
    'quantizer.bucket_size': 128,
  },  # all six diverged
  'ecd8': {'learning_rate.peak': 0.2, 'quantizer.bucket_size': 512},
  'ecd4': {'learning_rate.peak': 0.05, 'quantizer.bucket_size': 128},
  'ecd2': {'learning_rate.peak': 0.2, 'quantizer.bucket_size': 128},
  'ecd1': {'learning_rate.peak': 0.05, 'quantizer.bucket_size': 512},
}
