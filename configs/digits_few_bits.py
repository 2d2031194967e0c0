"""Two bits and less on data that differ: digits by label, or by Dirichlet(.1).

  python train.py --config=configs/digits_few_bits.py:METHOD --workdir=DIR
  python -m benchmarks.tune --config=configs/digits_few_bits.py --out=DIR

METHOD is one of METHODS below: the data, the algorithm, and the bits that a
worker sends for each parameter in each step, to all neighbours together. Each
was tuned by the same learning rates on a seed that is not among the reported
ones. What came of it is in results/digits_few_bits.
"""

import ml_collections

from moniqua_jax.configs import digits_sorted as by_label

FILE, base = 'configs/digits_few_bits.py', by_label.base
DATA = {
  'sorted': dict(name='sorted_by_label'),
  'dirichlet': dict(name='dirichlet', alpha=0.1),
}
FITTED = dict(quantizer=dict(name='fitted_theta', bits=4), rotated=True)
MOMENTUM = dict(momentum_kind=dict(name='quasi_global'))


def get_config(method: str = 'sorted_pairs2') -> ml_collections.ConfigDict:
  """The config of one method, with what was chosen for it."""
  return by_label.tuned(base(), METHODS, CHOSEN, method, FILE)


def pairs(sent, **entries):
  """D-PSGD: one message of 4 bits in each step, of a fragment, mixed last."""
  graph = dict(topology=dict(name='one_peer_hypercube'))
  order = dict(order='adapt_then_combine', fragments=int(4 / sent))
  return FITTED | graph | order | entries


def ring(sent):
  """D^2: two messages of 4 bits in each step, of a fragment."""
  return FITTED | by_label.d2(fragments=int(8 / sent))


ROWS = {
  'dpsgd64': {},
  'd264': by_label.d2(),
  'quasi64': MOMENTUM,
  **{f'pairs{sent:g}': pairs(sent) for sent in (2, 1, 0.5)},
  **{f'd2ring{sent:g}': ring(sent) for sent in (2, 1, 0.5)},
  'quasipairs2': pairs(2, **MOMENTUM),
}
METHODS = {
  f'{data}_{name}': row | dict(partition=partition)
  for data, partition in DATA.items()
  for name, row in ROWS.items()
}
CHOICES = dict.fromkeys(
  METHODS, by_label.grid(learning_rate__peak=(0.05, 0.1, 0.2))
)
CHOSEN = {
  'sorted_dpsgd64': {'learning_rate.peak': 0.2},
  'sorted_d264': {'learning_rate.peak': 0.05},
  'sorted_quasi64': {'learning_rate.peak': 0.2},
  'sorted_pairs2': {'learning_rate.peak': 0.2},
  'sorted_pairs1': {'learning_rate.peak': 0.2},
  'sorted_pairs0.5': {'learning_rate.peak': 0.1},
  'sorted_d2ring2': {'learning_rate.peak': 0.2},
  'sorted_d2ring1': {'learning_rate.peak': 0.1},
  'sorted_d2ring0.5': {'learning_rate.peak': 0.1},
  'sorted_quasipairs2': {'learning_rate.peak': 0.1},
  'dirichlet_dpsgd64': {'learning_rate.peak': 0.1},
  'dirichlet_d264': {'learning_rate.peak': 0.1},
  'dirichlet_quasi64': {'learning_rate.peak': 0.05},
  'dirichlet_pairs2': {'learning_rate.peak': 0.2},
  'dirichlet_pairs1': {'learning_rate.peak': 0.1},
  'dirichlet_pairs0.5': {'learning_rate.peak': 0.2},
  'dirichlet_d2ring2': {'learning_rate.peak': 0.05},
  'dirichlet_d2ring1': {'learning_rate.peak': 0.1},
  'dirichlet_d2ring0.5': {'learning_rate.peak': 0.1},
  'dirichlet_quasipairs2': {'learning_rate.peak': 0.1},
}
