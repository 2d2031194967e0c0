"""The convex laboratory: methods of arXiv:2106.03524 on logistic regression.

  python train.py --config=configs/smoothness.py:breast_cancer \\
    --workdir=runs/smoothness_breast_cancer

The argument is breast_cancer or digits (even or odd), which come with
scikit-learn, or libsvm, whose file is named:

  python train.py --config=configs/smoothness.py:libsvm --config.workers=20 \\
    --config.data.path=DATA/a8a --workdir=runs/a8a_n20

The settings are the paper's as its authors' code has them: lam = 1e-3, rows
scaled by their largest entry, sorted by norm and cut into equal pieces. Its
norm is 'linf'; 'l2' is what its theory is for, and the default here.
"""

import ml_collections
from ml_collections import config_dict


def get_config(data: str = 'breast_cancer') -> ml_collections.ConfigDict:
  """The config of one data set: `configs/smoothness.py:DATA`."""
  if data not in WORKERS:
    raise ValueError(
      f'configs/smoothness.py:{data} is unknown; choose from {sorted(WORKERS)}.'
    )
  unset = config_dict.placeholder
  config = ml_collections.ConfigDict()
  config.laboratory = True  # a convex problem, in float64
  config.seed = 0
  config.seeds = 5
  config.workers = WORKERS[data]
  config.runner = 'simulated'
  config.data = dict(name=data, path=unset(str))
  config.row_scaled = True
  config.partition = dict(name='by_norm')
  config.problem = dict(name='logistic_regression', lam=1e-3)
  config.norm = 'l2'
  config.iterations = 60_000
  config.clock = True  # also time each method alone
  config.methods = METHODS
  return config.lock()


WORKERS = {'breast_cancer': 5, 'digits': 8, 'libsvm': 20}
ARGUMENTS = tuple(WORKERS)
METHODS = (
  'GD',
  'DCGD',
  'DIANA',
  'DIANA, authors',
  'DIANA block, authors',
  'ADIANA',
  'DCGD+ uniform',
  'DCGD+ varying',
  'DCGD+ block',
  'DIANA+ uniform',
  'DIANA+ varying',
  'DIANA+ varying, exact',
  'DIANA+ varying, 16-bit norm',
  'DIANA+ block, one step',
  'DIANA+ block',
  'DIANA+ block, 8-bit norms',
  'DIANA+ sparse',
  'DIANA+ sparse, authors',
  'ADIANA+ varying',
)
