"""CIFAR-10 over slow links, a perceptron, eight processes on two CPU cores.

  python -m benchmarks.network.training --data_dir=DATA --out=results/network

runs all METHODS in network namespaces, or one of them in a single process:

  python train.py --config=configs/network_cifar10_cpu.py:moniqua4 \\
    --config.data.data_dir=DATA --workdir=runs/moniqua4

DATA is a TFDS directory with cifar10/3.0.2. A perceptron of 394,634 parameters,
which two cores compute quickly enough for eight: the links are what is slow.
One epoch at most, images dealt out at random, a ring of 8. Rows with `leaf`
take a theta of each parameter leaf from results/network/probe, a full-precision
run on a seed of its own, for the first layer's weights stay seven times nearer
to each other than the last one's; start them in the project's folder.
"""

import ml_collections
from moniqua_jax.configs.digits_sorted import moniqua, rival

from moniqua_jax.configs import digits, digits_sorted

FILE = 'configs/network_cifar10_cpu.py'
EPOCHS = 1.0


def get_config(method: str = 'moniqua4') -> ml_collections.ConfigDict:
  """The config of one method, with what was chosen for it."""
  return digits_sorted.tuned(base(), METHODS, CHOSEN, method, FILE)


def base() -> ml_collections.ConfigDict:
  """What all methods share."""
  config = digits.default()
  config.variant = 'cpu'
  config.runner = 'sharded'
  config.model.update(name='mlp')
  config.data.update(name='cifar10')
  config.batch_size = 16  # per worker
  config.epochs = EPOCHS
  config.learning_rate.update(peak=0.02, warmup_epochs=0.1)
  config.weight_decay = 5e-4
  config.log_every = 4
  config.eval_every = EPOCHS / 4
  config.checkpoint_every = EPOCHS
  config.worker_test_images = 128  # the clock runs while they are looked at
  return config


def quantized(name, reduce='allreduce', **arguments):
  """All-reduce of quantized gradients: each worker sums up one chunk."""
  return dict(
    reduce=dict(name=reduce, strategy='scatter_reduce'),
    gossip=dict(name='none'),
    quantizer=dict(name=name, **arguments),
  )


def fixed(bits, theta, gamma=1.0):
  """Moniqua with a theta that is given, as in the paper: no answers."""
  return dict(
    gamma=gamma,
    quantizer=dict(name='moniqua', bits=bits, theta=theta),
    theta=dict(name='follow', shrink=0.995),
  )


def leaf(bits, theta, gamma=1.0):
  """The same with a theta for each leaf, in distances that a run measured."""
  return fixed(bits, theta, gamma) | dict(scales_from='results/network/probe')


def pairs(**more):
  """One message to one partner, rotated and mixed last; theta finds itself."""
  return more | dict(
    topology=dict(name='one_peer_hypercube'),
    quantizer=dict(name='fitted_theta', bits=4),
    rotated=True,
    order='adapt_then_combine',
  )


def to_all(spec):
  """The same, each gradient sent to all in one pass, as the papers have it."""
  return spec | dict(reduce=spec['reduce'] | dict(strategy='all_gather'))


def coded(bits, room, **code):
  """NUQSGD with room for so many bits of a coded value.

  A message has one size in all steps: where one of a step's does not fit, all
  of them travel packed. In six first steps of this net the most that a chunk
  took was 2.31 bits of 4 and .40 of 3 in the recursive code; the room is
  8 to 25 percent more.
  """
  return nuqsgd(bits) | dict(coded=room, code=code)


def nuqsgd(bits):
  return quantized('nuqsgd', bits=bits, bucket_size=8192)


# How often each level of NUQSGD's 4 bits came in those steps; the last two are
# guesses, for they did not come.
OFTEN = (0.515, 0.428, 0.053, 3e-3, 7e-4, 1e-4, 1e-5, 1e-6)
HUFFMAN = dict(
  name='huffman',
  probabilities=(
    *(p / 2 for p in OFTEN[:0:-1]),
    OFTEN[0],
    *(p / 2 for p in OFTEN[1:]),
  ),
)
OF_GRADIENTS = {
  'nuqsgd4': nuqsgd(4),
  'nuqsgd3': nuqsgd(3),
  'nuqsgd4_recursive': coded(4, 2.5, name='recursive'),
  'nuqsgd3_recursive': coded(3, 0.5, name='recursive'),
  'nuqsgd4_huffman': coded(4, 2.0, **HUFFMAN),
  'qsgd4': quantized('qsgd', bits=4, bucket_size=8192),
  'ef_sign': quantized(
    'sign', 'error_feedback', bucket_size=64, scale='two_mean'
  ),
}
PEER = dict(topology=dict(name='one_peer_exponential'))
METHODS = {
  'allreduce': dict(reduce=dict(name='allreduce'), gossip=dict(name='none')),
  'dpsgd': {},
  'moniqua8': moniqua(8),
  'moniqua4': moniqua(4),
  'moniqua2': moniqua(2, 0.5),
  'moniqua1': moniqua(1, 0.2),
  'moniqua4fixed': fixed(4, 0.1),
  # For its time: on this net its own noise outgrows every theta that was tried,
  # also one for each leaf, of 2 and 3 distances.
  'moniqua1fixed': fixed(1, 0.2, 0.2),
  'd2': digits_sorted.d2(),
  'd2moniqua4': digits_sorted.d2(4),
  'choco4': rival('choco', 4, 'nearest'),
  'deepsqueeze4': rival('deepsqueeze', 4, 'nearest'),
  # One message a step instead of the ring's two; exact means in three steps.
  'dpsgd_peer': PEER,
  'moniqua4fixed_peer': fixed(4, 0.1) | PEER,
  'moniqua4leaf': leaf(4, 2.0),
  'moniqua4leaf_peer': leaf(4, 2.0) | PEER,
  'moniqua2leaf': leaf(2, 2.0, 0.5),
  'moniqua2leaf_peer': leaf(2, 2.0, 0.5) | PEER,
  # Messages travel while the gradient is computed; see algorithms/stale.py.
  'dpsgd_overlap': dict(overlap=True),
  'moniqua4fixed_overlap': fixed(4, 0.1) | dict(overlap=True),
  'd2moniqua4_overlap': digits_sorted.d2(4) | dict(gamma=0.5, overlap=True),
  'choco4_overlap': rival('choco', 4, 'nearest')
  | dict(gamma=0.5, overlap=True),
  **OF_GRADIENTS,
  **{f'{name}_all': to_all(spec) for name, spec in OF_GRADIENTS.items()},
  'qsgdinf4': quantized('qsgd', bits=4, bucket_size=8192, norm='linf'),
  # By the bits that a worker sends for each parameter in each step: fragments
  # of models in pairs, and means in two passes of 2 (8 - 1) / 8 bits.
  'sent2': pairs(fragments=2),
  'sent1': pairs(fragments=4),
  'eden2': quantized('eden', bits=2),
  'eden1': quantized('eden', bits=1),
  'mean1': quantized('eden', bits=2) | dict(fragments=4),
  'mean0.25': quantized('eden', bits=2) | dict(fragments=16),
  # What the plan chooses at 10 and 100 Mbit/s, with a gradient of 80 ms (eight
  # workers on two cores) and 5 ms a message; and with 20 ms more.
  'eden1_every4': quantized('eden', bits=1) | dict(local_steps=4),
  'eden2_every2': quantized('eden', bits=2) | dict(local_steps=2),
}


def choices(spec: dict) -> list[dict]:
  """Four runs of a method: four rates, or two with two of its own number."""
  own = {
    'choco': dict(gossip__gamma=(0.6, 0.9)),
    'deepsqueeze': dict(gossip__eta=(0.6, 0.9)),
  }.get(spec.get('gossip', {}).get('name'))
  if 'scales_from' in spec:
    # Who meets each other in every third step only is further apart.
    own = dict(
      quantizer__theta=(3.0, 4.5) if 'topology' in spec else (2.0, 3.0)
    )
  elif 'theta' in spec.get('quantizer', {}):
    own = dict(quantizer__theta=(0.1, 0.2))
  if own:
    return digits_sorted.grid(learning_rate__peak=(0.02, 0.04), **own)
  return digits_sorted.grid(learning_rate__peak=(0.01, 0.02, 0.04, 0.08))


CHOICES = {name: choices(spec) for name, spec in METHODS.items()}
# By the fewest steps to a training loss of 2.
CHOSEN = {
  'allreduce': {'learning_rate.peak': 0.01},
  'choco4': {'gossip.gamma': 0.9},
  'choco4_overlap': {'gossip.gamma': 0.9},
  'd2': {'learning_rate.peak': 0.01},
  'd2moniqua4': {'learning_rate.peak': 0.01},
  'deepsqueeze4': {'gossip.eta': 0.9},  # 0.6 takes as many, and ends lower
  'dpsgd': {'learning_rate.peak': 0.01},
  'dpsgd_peer': {'learning_rate.peak': 0.01},
  'moniqua4fixed_overlap': {'quantizer.theta': 0.2},  # for two steps
  'moniqua4leaf': {'quantizer.theta': 3.0},
  'moniqua4leaf_peer': {'quantizer.theta': 3.0},
  'moniqua2leaf_peer': {'quantizer.theta': 4.5},
  'qsgdinf4': {'learning_rate.peak': 0.01},
  'sent2': {'learning_rate.peak': 0.01},
  'sent1': {'learning_rate.peak': 0.01},
  'eden2': {'learning_rate.peak': 0.01},
  'eden1': {'learning_rate.peak': 0.01},
  'mean1': {'learning_rate.peak': 0.01},
  'mean0.25': {'learning_rate.peak': 0.01},
  # nuqsgd4 was tuned, and a code changes nothing of a run. The others and those
  # below were not: the rate of all their kin.
  **{
    f'{name}{to}': {'learning_rate.peak': 0.01}
    for name in OF_GRADIENTS
    for to in ('', '_all')
  },
  'eden1_every4': {'learning_rate.peak': 0.01},
  'eden2_every2': {'learning_rate.peak': 0.01},
}
