"""Local SGD: gossip only now and then.

Koloskova et al., "A unified theory of decentralized SGD with changing topology
and local updates", ICML 2020, arXiv:2003.10422.
"""

from jax import lax
import optax

from moniqua_jax.algorithms import turns, vectors
from moniqua_jax.algorithms.transformation import Gossip, require_gossip


def every(
  algorithm: optax.GradientTransformationExtraArgs,
  steps: int | tuple[tuple[int, int], ...],
) -> optax.GradientTransformationExtraArgs:
  """Last in the chain: the algorithm in one step of so many, else local steps.

    x_{k+1} = algorithm(x_k, u_k) if (k + 1) mod steps = 0 else x_k + u_k

  Args:
    algorithm: dpsgd, d2, choco, deepsqueeze or push_sum; it counts only the
      steps in which it takes part.
    steps: of a period, >= 1; or pairs such as ((0, 1), (500, 4)): each step up
      to step 500, then one of four. A number begins with a period.

  Returns:
    A transformation whose state is that of the algorithm.

  Raises:
    ValueError: steps < 1, pairs that are not in order, one that changes within
      a period; no gossip algorithm, or one that must see each step.

  >>> import jax
  >>> from moniqua_jax import dpsgd, moniqua, ring
  >>> gossip = dpsgd(ring(8), moniqua(theta=1.0, bits=4),
  ...                axis_name='workers', key=jax.random.key(0))
  >>> tx = optax.chain(optax.sgd(0.1), every(gossip, steps=4))

  Source: Algorithm 1 of arXiv:2003.10422.
  """
  require_gossip('every', algorithm)
  clock, within = turns.every(steps), algorithm.period
  require_rest('every', algorithm)

  # What would stay in the state is lost in a local step as well.
  taken = algorithm.taken

  def update(updates, state, params=None, *, step, **extra_args):
    extra_args = {'counted': step} | extra_args

    def talk(updates, state, params):
      return algorithm.update(
        updates, state, params, step=clock.before(step), **extra_args
      )

    def rest(updates, state, params):
      return taken(vectors.complete(updates, params), state)

    turn = clock.at(step) > 0
    return lax.cond(turn, talk, rest, updates, state, params)

  period = within and clock.period and clock.period * within
  return Gossip(algorithm.init, update, **vars(algorithm) | {'period': period})


def require_rest(wrapper: str, algorithm) -> None:
  """Refuses what must see each step, where a wrapper leaves some out."""
  if not getattr(algorithm, 'may_rest', True):
    raise ValueError(
      f'{wrapper}: {algorithm.name} must see each step; use dpsgd, d2, choco, '
      'deepsqueeze or push_sum, with stale around it.'
    )
