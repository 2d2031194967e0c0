"""AD-PSGD where every worker is a process with a pace of its own.

  mpiexec --with-ft ulfm --oversubscribe -n 8 \\
    python -m moniqua_jax.asynchronous --config=configs/digits.py:moniqua4 \\
    --workdir=runs/asynchronous

Lian et al., "Asynchronous decentralized parallel stochastic gradient descent",
ICML 2018, arXiv:1710.06952, Algorithm 1; with the quantizer `moniqua` it is
Moniqua on AD-PSGD, arXiv:2002.11787. algorithms/adpsgd.py is the form in which
all workers tick together and a run repeats bit for bit; the arithmetic of an
averaging is the same code in both.

In the order of a step: __main__.py starts a process, training.py takes the
gradients, averaging.py says with whom to average and network.py carries that
beside the gradient, pair.py does the arithmetic and worker.py holds x.
"""

from moniqua_jax.asynchronous.averaging import Averaging
from moniqua_jax.asynchronous.network import Network
from moniqua_jax.asynchronous.pair import Ends, ends
from moniqua_jax.asynchronous.worker import Worker, WorkerState

__all__ = ['Averaging', 'Ends', 'Network', 'Worker', 'WorkerState', 'ends']
