"""A theta to try, once a message could not be read.

A message that wrapped does not say how far apart two workers are. Their
parameters do, and theory says how much further apart they are going to be: they
start equal, momentum builds up, and gossip takes its time to hold it.
"""

from collections.abc import Callable

import numpy as np

from moniqua_jax import topologies
from moniqua_jax.launch import multihost
from moniqua_jax.quantizers import unreadable
from moniqua_jax.theory import laws, responses
from moniqua_jax.training import optimizer, talk

SAFETY = 1.5  # theta over the largest distance expected, as of `auto_theta`
_ROUNDS, _VALUES = 400, 256  # of the simulation


def make(experiment, own) -> Callable:
  """Builds (step, theta, distance, params) -> what to try, in a line.

  `own` has the worker of each row of the parameters of this process.
  """
  setup = experiment.setup
  config, further = setup.config, growth(experiment)

  def cure(step, theta, distance, params) -> str:
    del distance  # of a message that wrapped
    if not np.isfinite(theta):
      return unreadable.cure(theta)
    if experiment.quantizer.theta is None:
      return (
        f'They are further apart than theta={theta:.4g}, and '
        f'{config.quantizer.name} does not catch up: try a smaller learning '
        'rate, a smaller gamma (python -m moniqua_jax.theory), or more bits.'
      )
    seen = _apart(setup, own, params)
    apart = max(theta, seen)
    told = f' (they are {apart:.2g} apart, and get further)' if seen else ''
    wanted = SAFETY * apart * further(step)
    return (
      f'They are further apart than theta={theta:.4g}: try theta='
      f'{wanted:.2g}{told}, or --config.quantizer.name=auto_theta, which finds '
      'a theta.'
    )

  return cure


def growth(experiment) -> Callable:
  """Builds step -> the theta of the config that distances of 1 now ask for.

    max over t >= now of (r_t / r_now) (alpha_t / alpha_now) / relative theta_t

  with r the distances at a constant rate, see `_relaxing`.
  """
  setup, pace = experiment.setup, experiment.pace
  relative = lambda step: 1.0
  if experiment.quantizer.theta is not None:
    number = lambda step: (
      experiment.turns.before(step) // setup.config.fragments
    )
    relative = lambda step: float(
      experiment.quantizer.theta(number(step)) / setup.spec['theta']
    )

  def further(step: int) -> float:
    r = _relaxing(setup)
    now = min(experiment.turns.before(step), len(r) - 1)
    later = np.linspace(step, max(step, pace.steps - 1), 50).astype(int)
    rate = lambda t: max(float(pace.learning_rate(t)), 1e-30)
    ahead = max(rate(t) / relative(t) for t in later) / rate(step)
    return ahead * max(r[now:]) / r[now]

  return further


def _relaxing(setup) -> np.ndarray:
  """How far apart neighbours are in each round, at a constant rate.

  In full precision, with gradients that are new in each step where the data of
  the workers are alike; where they differ, half the variance is a worker's own
  for good.
  """
  config, law = setup.config, _law(setup.config)
  if law is None:
    return np.ones(1)
  schedule = optimizer.mixing(config, setup.schedule)
  weights, n = [law.weights(r) for r in schedule], schedule[0].n
  rng = np.random.default_rng(0)
  differ = config.partition.name != 'iid'
  own = differ * rng.normal(size=(n, _VALUES))
  momenta = [np.zeros((n, _VALUES)) for _ in range(2)]
  steps = talk.of(config).longest * config.fragments

  def update(step):
    moved = np.zeros_like(own)
    for _ in range(steps):
      gradient = own + rng.normal(size=own.shape)
      momenta[0] = config.local_momentum * momenta[0] + gradient
      momenta[1] = config.momentum * momenta[1] + momenta[0]
      moved = moved + momenta[1]
    return moved

  silent = lambda step, message: 0
  run = responses.messages(
    optimizer.law(config), weights, 0 * own, update, silent
  )
  pairs = responses.neighbours(schedule)
  apart = []
  for k, message in zip(range(_ROUNDS), run, strict=False):
    i, j = pairs[k % len(pairs)].T
    apart.append(np.sqrt(np.mean((message[i] - message[j]) ** 2)))
  # Before the first update they are equal, and nobody is asked.
  return np.maximum(apart, max(apart) * 1e-3)


def _law(config) -> laws.Law | None:
  """What theory knows of the algorithm; None of one's own, or of replicas."""
  law = laws.LAWS.get(optimizer.law(config))
  return law if law and law.recursion else None


def _apart(setup, own, params) -> float:
  """The largest distance of neighbours, of which this process has both.

  0 where it says nothing of messages: in other coordinates, of differences, or
  in an algorithm of one's own.
  """
  config = setup.config
  if _law(config) is None:
    return 0.0
  if config.rotated or config.scales_from or setup.smoothness is not None:
    return 0.0
  workers = list(dict.fromkeys(own))
  rows = multihost.to_host(params).reshape(len(workers), -1)
  place = {worker: row for worker, row in zip(workers, rows, strict=True)}
  found = [
    np.max(np.abs(place[i] - place[j]))
    for topology in setup.schedule
    for _, perm in topology.edges
    for i, j in enumerate(topologies.sources(perm))
    if i in place and j in place
  ]
  largest = max(found, default=0.0)
  return float(largest) if np.isfinite(largest) else 0.0
