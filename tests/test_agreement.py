"""Graphs on which workers never agree are refused, and no others."""

import re

import jax
import networkx as nx
import numpy as np
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import theory, topologies
from moniqua_jax.training import resolve

FULL = mj.full_precision()
SLOTS = dict(axis_name='workers', key=jax.random.key(0))
hop = lambda n, by: tuple((i + by) % n for i in range(n))
pairs = lambda weight, *perms: tuple(mj.Topology([(weight, p)]) for p in perms)


def bipartite(graph):
  """Neighbours alone, each with as much: eigenvalues from -1 to 1."""
  near = nx.to_numpy_array(graph)
  return mj.from_matrix(near / near.sum(0))


# One for all steps, symmetric, with lambda_n = -1.
SWINGING = {
  'ring 8': mj.ring(8, weight=0.5),
  'ring 2': mj.ring(2, weight=1.0),
  'torus': mj.torus(4, 4, weight=0.25),
  'flat torus': mj.torus(2, 4, weight=1 / 3),
  'hypercube': bipartite(nx.hypercube_graph(3)),
  'complete bipartite': bipartite(nx.complete_bipartite_graph(4, 4)),
}
# Directed, or changing with the step.
TURNING = {
  'a cycle': mj.Topology([(1.0, hop(5, 1))]),
  'two cycles': mj.Topology([(0.5, hop(4, 1)), (0.5, hop(4, 3))]),
  'swaps': pairs(1.0, (1, 0, 3, 2), (0, 2, 1, 3)),
  'a swap and a mean': (
    *pairs(1.0, (1, 0, 3, 2)),
    *pairs(0.5, (2, 3, 0, 1)),
  ),
  'a ring twice': (mj.ring(8, weight=0.5),) * 2,
}
AGREEING = {
  'alone': mj.ring(1),
  'two': mj.ring(2),
  'ring 3 of neighbours': mj.ring(3, weight=0.5),
  'ring 8': mj.ring(8),
  'nearly swinging': mj.ring(8, weight=0.4999),
  'one peer': mj.one_peer_exponential(8),
  'one peer of six': mj.one_peer_exponential(6),
  'matchings': mj.random_matchings(8, rounds=5, seed=0),
  'many matchings': mj.random_matchings(32, rounds=64, seed=0),
  'two matchings': pairs(0.5, (1, 0, 3, 2), (0, 2, 1, 3)),
  'a cycle and a ring': (mj.Topology([(1.0, hop(5, 1))]), mj.ring(5)),
  # Nobody keeps anything, and still it mixes.
  'two hops': mj.Topology([(0.5, hop(5, 1)), (0.5, hop(5, 2))]),
  # A period leaves some differences as large as they were; two do not.
  'a cycle and one pair': (
    mj.Topology([(1.0, hop(5, 1))]),
    mj.Topology([(0.5, (1, 0, 2, 3, 4))]),
  ),
}


def rounds_of(topology):
  return (topology,) if isinstance(topology, mj.Topology) else topology


def agree(topology, gamma=1.0, weights=topologies.matrix):
  """Whether x <- W x brings all workers to one x, in 2^18 periods."""
  period = np.eye(rounds_of(topology)[0].n)
  for r in rounds_of(topology):
    eye = np.eye(r.n)
    period = (eye + gamma * (weights(r) - eye)) @ period
  for _ in range(18):
    period = period @ period
  return np.ptp(period / period.sum(1, keepdims=True), axis=0).max() < 1e-6


SEVERAL = {
  'dpsgd': mj.dpsgd,
  'adpsgd': mj.adpsgd,
  'deepsqueeze': mj.deepsqueeze,
  'push_sum': mj.push_sum,
}
ONE = SEVERAL | {'choco': mj.choco, 'dcd': mj.dcd, 'ecd': mj.ecd}


def stale_choco(topology, *args, **slots):
  return mj.stale(mj.choco(topology, *args, gamma=0.5, **slots), topology)


def refused(make, topology, **options):
  """The name and lambda that a refusal has; None without one."""
  try:
    make(topology, FULL, **SLOTS, **options)
  except ValueError as error:
    text = str(error)
    assert 'rho = 1.000000' in text and 'lazy(topology, 0.5)' in text
    return re.match(r'(\w+)', text)[1], re.search(r'lambda = (\S+)', text)[1]


@pytest.mark.parametrize('name', SWINGING)
@pytest.mark.parametrize('algorithm', ONE)
def test_lambda_of_minus_one_is_refused(name, algorithm):
  topology, make = SWINGING[name], ONE[algorithm]
  assert not agree(topology)
  assert refused(make, topology) == (algorithm, '-1')
  assert agree(mj.lazy(topology, 0.5))
  assert refused(make, mj.lazy(topology, 0.5)) is None
  for wrong in (mj.d2, stale_choco):
    with pytest.raises(ValueError, match=r'lambda_n.*Use lazy'):
      wrong(topology, FULL, **SLOTS)


@pytest.mark.parametrize('name', TURNING)
@pytest.mark.parametrize('algorithm', SEVERAL)
def test_the_product_over_a_period_counts(name, algorithm):
  topology, make = TURNING[name], SEVERAL[algorithm]
  assert not agree(topology)
  assert refused(make, topology)[0] == algorithm
  assert agree(mj.lazy(topology, 0.5))
  assert refused(make, mj.lazy(topology, 0.5)) is None


@pytest.mark.parametrize('name', AGREEING)
@pytest.mark.parametrize('algorithm', SEVERAL)
def test_who_agrees_is_not_refused(name, algorithm):
  assert agree(AGREEING[name])
  assert refused(SEVERAL[algorithm], AGREEING[name]) is None
  theory.t_mix(AGREEING[name])


@pytest.mark.parametrize(
  'make,option', [(mj.choco, 'gamma'), (mj.deepsqueeze, 'eta')]
)
def test_a_consensus_step_below_one_is_slack_enough(make, option):
  for topology in SWINGING.values():
    assert agree(topology, 0.9)
    assert refused(make, topology, **{option: 0.9}) is None
    assert refused(make, topology, **{option: 1.0})[1] == '-1'


def test_push_sum_is_judged_by_what_it_pushes():
  """Column stochastic; both would swing if one worker kept nothing."""
  ring = mj.Topology([(1.0, hop(4, 1))])
  one_keeps = mj.Topology([((1.0, 1.0, 1.0, 0.5), hop(4, 1))])
  push = topologies.push_matrix
  assert not agree(ring, weights=push)
  assert agree(one_keeps, weights=push)
  assert refused(mj.push_sum, ring)[0] == 'push_sum'
  assert refused(mj.push_sum, one_keeps) is None


def test_weights_below_what_float32_moves_are_no_agreement():
  with pytest.raises(ValueError, match='not connected'):
    mj.dpsgd(mj.ring(4, weight=1e-16), FULL, **SLOTS)
  with pytest.raises(ValueError, match='lambda = 1 of W.*more weight'):
    mj.dpsgd(mj.ring(64, weight=2e-9), FULL, **SLOTS)


@pytest.mark.parametrize('algorithm', ['choco', 'dcd', 'dpsgd', 'ecd'])
def test_the_theory_names_lambda(algorithm):
  with pytest.raises(ValueError, match=f'{algorithm}: .* lambda = -1 of W'):
    theory.report(SWINGING['ring 8'], algorithm)
  with pytest.raises(ValueError, match='t_mix: .* of the product of 2 rounds'):
    theory.t_mix(TURNING['swaps'])


def test_a_run_is_refused_unless_gamma_leaves_slack():
  swinging = dict(name='ring', weight=0.5)
  config = digits.get_config('moniqua4')
  config.update(topology=swinging, gamma=0.9)
  assert resolve.resolve(config).schedule == (
    mj.lazy(mj.ring(8, weight=0.5), 0.9),
  )


# -------------------------------------------------------------- spectral gap


def test_the_gap_of_many_rounds_is_above_the_rounding():
  ring = mj.lazy(mj.ring(8), 0.9)
  for count in (1, 30, 3000):
    gap = mj.spectral_gap((ring,) * count)
    np.testing.assert_allclose(gap, mj.spectral_gap(ring), rtol=1e-9)


@pytest.mark.parametrize('count', [1, 8, 64])
def test_exact_averaging_has_gap_one_in_floats_too(count):
  assert mj.spectral_gap((mj.complete(7),) * count) == 1
  assert mj.spectral_gap((mj.ring(7), mj.complete(7)) * count) == 1


def test_the_gap_of_who_never_agrees_is_zero():
  for topology in SWINGING.values():
    assert 0 <= mj.spectral_gap(topology) < 1e-12
