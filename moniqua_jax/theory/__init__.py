"""What the weights W say before a run: theta, bits, gamma, memory.

Moniqua needs a theta that bounds how far neighbours are apart. Gossip is linear
in the updates u (every coordinate within alpha G) and in the rounding errors
(within delta B_theta), so what neighbours send differs by at most

  S alpha G + S' delta B_theta,     B_theta = 2 theta / (1 - 2 delta)

with sums S and S' over the impulse responses of the algorithm. A theta that
covers this is a promise; what rounding does in fact is simulated.

  python -m moniqua_jax.theory --topology=ring:8 --algorithm=dpsgd

prints all of it. `paper` gives the values of Lu and De Sa, "Moniqua: Modulo
quantized communication in decentralized SGD", ICML 2020, arXiv:2002.11787, as
we recall them. Quantizers that divide by a norm need no theta: `variance`
bounds the noise that they add, and says which bounds are papers'.

DCGD+ and DIANA+ take their numbers from four modules, which keep their names
since these are short: `smoothness.calL`, `steps.varying_diana`,
`block_steps.block_diana`, `gammas.gamma_diana`. They follow Wang, Safaryan and
Richtarik, NeurIPS 2022, arXiv:2106.03524, and say where they do not.

Everything else is ours. NumPy and SciPy, on the host; imports nothing but
topologies, so that algorithms can import it.
"""

from moniqua_jax.theory import block_steps, gammas, smoothness, steps
from moniqua_jax.theory.bounds import least_bits, theta
from moniqua_jax.theory.laws import LAWS
from moniqua_jax.theory.noise import (
  auto_theta_limit,
  largest_gamma,
  loop_gain,
  noise_floor,
)
from moniqua_jax.theory.outer import adam_step, outer_radius
from moniqua_jax.theory.responses import Sums, everyone, neighbours, sums
from moniqua_jax.theory.spectrum import (
  eigenvalues,
  require_d2_stable,
  t_mix,
)
from moniqua_jax.theory.steady import disagreement
from moniqua_jax.theory.summary import Report, Row, report
from moniqua_jax.theory.text import table
from moniqua_jax.theory.theorems import Paper, paper
from moniqua_jax.theory.variance import (
  eden_variance,
  exact_nonzeros,
  exact_variance,
  expected_nonzeros,
  leveled_variance,
  nuqsgd_variance,
  nuqsgd_variance_tight,
  qsgd_variance,
)

__all__ = [
  'LAWS',
  'Paper',
  'Report',
  'Row',
  'Sums',
  'adam_step',
  'auto_theta_limit',
  'block_steps',
  'disagreement',
  'eden_variance',
  'eigenvalues',
  'everyone',
  'exact_nonzeros',
  'exact_variance',
  'expected_nonzeros',
  'gammas',
  'largest_gamma',
  'least_bits',
  'leveled_variance',
  'loop_gain',
  'neighbours',
  'noise_floor',
  'nuqsgd_variance',
  'nuqsgd_variance_tight',
  'outer_radius',
  'paper',
  'qsgd_variance',
  'report',
  'require_d2_stable',
  'smoothness',
  'steps',
  'sums',
  't_mix',
  'table',
  'theta',
]
