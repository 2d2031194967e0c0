"""Theory: bounds that are attained, floors that are seen, claims marked."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import theory
from moniqua_jax import topologies as tp
from moniqua_jax.theory import __main__ as command
from tests import helpers, programs

RING = tp.ring(8)
MATCHINGS = tp.random_matchings(6, 5, seed=0)
HALF = {
  name: tp.lazy(RING, 0.5)
  for name in ('dpsgd', 'd2', 'deepsqueeze', 'stale_d2', 'stale_deepsqueeze')
}


# ------------------------------------------ the algorithms, as papers have them
# x, u, noise: [n, columns]; each yields what is sent, step by step.


def dpsgd(weights, u, noise, delay=0):
  x = 0 * u[0]
  for k, w in enumerate(weights):
    yield x
    late = u[k - delay] if k >= delay else 0 * u[0]
    x = w @ x + (w - np.eye(len(w))) @ noise[k] + late


def d2(weights, u, noise):
  x, before, last = 0 * u[0], 0 * u[0], 0 * u[0]
  for w, now, error in zip(weights, u, noise, strict=True):
    half = 2 * x - before + now - last
    yield half
    x, before = w @ half + (w - np.eye(len(w))) @ error, x
    last = now


def deepsqueeze(weights, u, noise):
  x, e = 0 * u[0], 0 * u[0]
  for w, now, error in zip(weights, u, noise, strict=True):
    v = x + now + e
    yield v
    x = x + now + (w - np.eye(len(w))) @ (v + error)
    e = v - (v + error)


def extra(weights, u, noise):
  x, before, last = 0 * u[0], 0 * u[0], 0 * u[0]
  for w, now, error in zip(weights, u, noise, strict=True):
    message = 2 * x - before
    yield message
    pull = (w - np.eye(len(w))) @ (message + error)
    x, before, last = message + pull + now - last, x, now


def stale_deepsqueeze(weights, u, noise):
  x, e, late = 0 * u[0], 0 * u[0], 0 * u[0]
  for w, now, error in zip(weights, u, noise, strict=True):
    v = x + late + e
    yield v
    x = x + now + (w - np.eye(len(w))) @ (v + error)
    e, late = -error, now


def half_steps(weights, u, noise):
  x = 0 * u[0]
  for a, now, error in zip(weights, u, noise, strict=True):
    yield x + now
    x = a @ (x + now) + (a - np.eye(len(a))) @ error


def with_eta(weights, u, noise, eta):
  """DeepSqueeze with its consensus step, as its paper has it."""
  x, e = 0 * u[0], 0 * u[0]
  for w, now, error in zip(weights, u, noise, strict=True):
    v = x + now + e
    yield v
    x = x + now + eta * (w - np.eye(len(w))) @ (v + error)
    e = v - (v + error)


CASES = {
  'dpsgd': ('dpsgd', RING, dpsgd),
  'dpsgd, directed': ('dpsgd', tp.exponential(6), dpsgd),
  'dpsgd, matchings': ('dpsgd', MATCHINGS, dpsgd),
  'adpsgd': ('adpsgd', MATCHINGS, lambda *a: dpsgd(*a, delay=2)),
  'd2': ('d2', tp.lazy(RING, 0.75), d2),
  'd2, odd ring': ('d2', tp.ring(5), d2),
  'deepsqueeze': ('deepsqueeze', tp.ring(5), deepsqueeze),
  'push_sum': ('push_sum', tp.exponential(6), half_steps),
  'atc_dpsgd': ('atc_dpsgd', tp.one_peer_hypercube(8), half_steps),
  'stale_d2': ('stale_d2', tp.lazy(RING, 0.7), extra),
  'stale_deepsqueeze': (
    'stale_deepsqueeze',
    tp.lazy(tp.ring(5), 0.5),
    stale_deepsqueeze,
  ),
}
cases = pytest.mark.parametrize(
  'name, topology, run', CASES.values(), ids=CASES.keys()
)


def last_message(run, rounds, u, noise):
  weights = [tp.matrix(rounds[k % len(rounds)]) for k in range(len(u))]
  *_, message = run(weights, u, noise)
  return message


def worst_case(run, rounds, steps, i, j, kind):
  """What one sequence of signs makes of |m_i - m_j| after `steps`.

  The response to every single impulse is measured; the signs make all of them
  pull i and j apart.
  """
  n = rounds[0].n
  impulses = np.eye(steps * n).reshape(steps, n, -1)
  silence = 0 * impulses
  feed = (impulses, silence) if kind == 'gradient' else (silence, impulses)
  message = last_message(run, rounds, *feed)
  signs = np.sign(message[i] - message[j]).reshape(steps, n, 1)
  feed = (signs, 0 * signs) if kind == 'gradient' else (0 * signs, signs)
  apart = last_message(run, rounds, *feed)
  return float(apart[i, 0] - apart[j, 0])


@cases
@pytest.mark.parametrize('kind', ['gradient', 'noise'])
def test_sums_are_attained_by_signs(name, topology, run, kind):
  rounds = tp.schedule(topology)
  found = getattr(theory.sums(topology, name), kind)
  pairs = theory.neighbours(rounds)
  worst = [
    worst_case(run, rounds, steps, i, j, kind)
    # One length for every round in which the last message can be sent.
    for steps in range(160, 160 + len(rounds))
    for i, j in pairs[(steps - 1) % len(rounds)][:6]
  ]
  assert max(worst) <= found * (1 + 1e-6)
  np.testing.assert_allclose(max(worst), found, rtol=1e-4)


@cases
def test_nothing_random_exceeds_the_sums(name, topology, run):
  rounds, rng = tp.schedule(topology), np.random.default_rng(0)
  gradient, noise = theory.sums(topology, name)
  u, errors = rng.choice([-1.0, 1.0], (2, 80, rounds[0].n, 500))
  weights = [tp.matrix(rounds[k % len(rounds)]) for k in range(80)]
  pairs = theory.neighbours(rounds)
  for k, message in enumerate(run(weights, u, 0.3 * errors)):
    i, j = pairs[k % len(rounds)].T
    assert abs(message[i] - message[j]).max() <= gradient + 0.3 * noise


@pytest.mark.parametrize('kind', ['gradient', 'noise'])
@pytest.mark.parametrize('eta', [0.2, 0.7])
def test_eta_stands_where_gamma_of_lazy_stands(eta, kind):
  topology = tp.ring(5)
  slow = tp.lazy(topology, eta)
  found = getattr(theory.sums(slow, 'deepsqueeze'), kind)
  run = lambda *given: with_eta(*given, eta)
  worst = worst_case(run, (topology,), 300, 0, 1, kind)
  np.testing.assert_allclose(worst, found, rtol=1e-4)
  assert worst != pytest.approx(
    getattr(theory.sums(topology, 'deepsqueeze'), kind), rel=0.05
  )


def local_steps(name, w, u, period):
  """x and what is sent in one step of so many, u in all of them."""
  n = len(w)
  x, kept, late = 0 * u[0], 0 * u[0], 0 * u[0]
  for k, now in enumerate(u):
    ahead = late if name.startswith('stale') else now
    talks = (k + 1) % period == 0
    if talks and name == 'dpsgd':
      yield x
      x = w @ x
    elif talks:  # what is kept: the drift of d2, 0 for deepsqueeze
      message = x + ahead + kept
      yield message
      pull = (w - np.eye(n)) @ message + kept
      x, kept = x + pull, pull if name.endswith('d2') else kept
    x, late = x + now, now


@pytest.mark.parametrize(
  'name', ['dpsgd', 'd2', 'deepsqueeze', 'stale_d2', 'stale_deepsqueeze']
)
@pytest.mark.parametrize(
  'topology', [tp.lazy(tp.ring(6), 0.5), tp.ring(6, 0.2)]
)
def test_local_steps_move_as_one_of_their_sum(name, topology):
  period, rounds, n = 3, 100, 6
  found = period * theory.sums(topology, name).gradient
  impulses = np.eye(period * rounds * n).reshape(period * rounds, n, -1)
  *_, message = local_steps(name, tp.matrix(topology), impulses, period)
  worst = abs(message[0] - message[1]).sum()
  assert worst <= found * (1 + 1e-6)
  # A late update stands in x and in the message, the others in x alone.
  assert worst > found * (0.5 if name.startswith('stale') else 0.999)


def test_all_pairs_are_at_least_the_neighbours():
  for name, topology, _ in CASES.values():
    near = theory.sums(topology, name)
    far = theory.sums(topology, name, theory.everyone)
    assert far.gradient >= near.gradient and far.noise >= near.noise
  pairs = theory.neighbours(tp.schedule(tp.ring(4)))[0].tolist()
  assert pairs == [[0, 1], [0, 3], [1, 2], [2, 3]]


# The reference takes the sums over all pairs of workers. theta needs those of
# neighbours only, which are up to n / 4 times smaller on a ring.
RINGS = {
  4: (3.0, 4.00, 0.0193, 5, 3),
  8: (12.0, 5.11, 0.00498, 7, 3),
  16: (48.0, 6.20, 0.00114, 9, 3),
  32: (192.0, 7.50, 0.00026, 11, 4),
}


@pytest.mark.parametrize('n, row', RINGS.items(), ids=RINGS)
def test_rings_of_the_reference(n, row):
  s, s_prime, delta, bits, tight_bits = row
  found = theory.sums(tp.ring(n), 'dpsgd', theory.everyone)
  assert round(found.gradient, 1) == s and round(found.noise, 2) == s_prime
  paper = theory.paper(tp.ring(n), 'dpsgd')
  assert paper.bits == bits and 'as recalled' in paper.note
  np.testing.assert_allclose(paper.delta, delta, rtol=0.02)
  assert math.ceil(math.log2(found.noise + 1)) == tight_bits
  near = theory.sums(tp.ring(n), 'dpsgd')
  np.testing.assert_allclose(near.gradient, 3 * n / 4, rtol=1e-6)


def test_theta_factors_of_the_reference():
  found = theory.sums(RING, 'dpsgd', theory.everyone)
  thetas = [found.gradient / (1 - found.noise / (2**b - 1)) for b in (8, 4, 3)]
  np.testing.assert_allclose(thetas, [12.2, 18.2, 44.5], rtol=0.005)
  assert round(theory.paper(RING, 'dpsgd').theta, 1) == 49.7


# The reference has 8.69 for the second number of the first row, which no
# reading of it gives; 13.58 is attained (test_sums_are_attained_by_signs).
D2 = {
  'weights 1/4': (tp.ring(8, 1 / 4), 22.3, 13.6),
  'weights 1/6': (tp.ring(8, 1 / 6), 33.8, 14.3),
  'odd': (tp.ring(5), 12.0, 22.0),
}


@pytest.mark.parametrize('topology, gradient, noise', D2.values(), ids=D2)
def test_d2_of_the_reference(topology, gradient, noise):
  found = theory.sums(topology, 'd2', theory.everyone)
  assert [round(value, 1) for value in found] == [gradient, noise]
  if topology.n == 8:
    assert theory.least_bits(topology, 'd2') == 4


# ----------------------------------------------------------------------- theta


@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('name', HALF)
def test_theta_closes_the_induction_or_is_refused(name, bits):
  topology = HALF[name]
  gradient, noise = theory.sums(topology, name)
  least = theory.least_bits(topology, name)
  if bits < least:
    assert noise >= 2**bits - 1
    with pytest.raises(ValueError, match=f'bits={bits}: .*take {least} bits'):
      theory.theta(topology, name, bits, update=0.1)
  else:
    theta = theory.theta(topology, name, bits, update=0.1)
    delta = 2.0 ** -(bits + 1)
    error = delta * 2 * theta / (1 - 2 * delta)
    np.testing.assert_allclose(gradient * 0.1 + noise * error, theta)
    assert delta < 1 / (2 * (noise + 1))


def test_moniqua_never_wraps_within_theta():
  bits, update, w = 3, 0.05, tp.matrix(RING)
  theta = theory.theta(RING, 'dpsgd', bits, update)
  circle = 2 * theta / (1 - 2.0**-bits)
  rng, x = np.random.default_rng(0), np.zeros((8, 200))
  apart = 0
  for _ in range(200):
    apart = max(apart, abs(x - np.roll(x, 1, 0)).max())
    grid = circle / 2**bits
    code = np.rint(x / grid) % 2**bits * grid  # nearest: no dither helps
    here = x[:, None]  # receiver i, sender j
    turn = code[None] - here
    x_hat = here + turn - circle * np.rint(turn / circle)
    np.testing.assert_allclose(
      x_hat[0, 1], np.rint(x[1] / grid) * grid, atol=1e-9
    )
    # Alternating blocks of signs drive neighbours far apart.
    u = update * np.sign(rng.normal(size=(8, 200)) + 3 * np.sign(x - x.mean(0)))
    own = np.rint(x / grid) * grid
    x = x + np.einsum('ij,ijd->id', w, x_hat - own[:, None]) + u
  assert 0.2 * theta < apart < theta


# -------------------------------------------------------------- spectrum of W


def test_t_mix_by_hand():
  assert theory.t_mix(tp.complete(8)) == 1
  # W e_0 = (4, 4, 0, 4) / 12 is 3 / 12 + 3 (1 / 12) = 1/2 from the mean.
  assert theory.t_mix(tp.ring(4)) == 1
  # 1/2, 1/4 and 1/8 of the mass: 1.5, 1 and 0 from it, from any start.
  assert theory.t_mix(tp.one_peer_exponential(8)) == 3


@pytest.mark.parametrize('topology', [RING, MATCHINGS, tp.star(5)])
def test_t_mix_is_the_least_over_distributions_and_starts(topology):
  rounds, rng = tp.schedule(topology), np.random.default_rng(0)
  n, t = rounds[0].n, theory.t_mix(topology)
  starts = np.concatenate([np.eye(n), rng.dirichlet(np.full(n, 0.3), 50)]).T

  def worst(t):
    norms = []
    for start in range(len(rounds)):
      mu = starts
      for k in range(t):
        mu = tp.matrix(rounds[(start + k) % len(rounds)]) @ mu
      norms.append(abs(mu - 1 / n).sum(0).max())
    return max(norms)

  assert worst(t) <= 0.5 + 1e-9 < worst(t - 1)


def test_eigenvalues():
  found = theory.eigenvalues(RING)
  np.testing.assert_allclose(found, [(1 + math.sqrt(2)) / 3, -1 / 3])
  assert theory.eigenvalues(tp.ring(1)) == (1, 1)
  rho = theory.report(RING, 'choco').rho
  np.testing.assert_allclose(rho, 1 - tp.spectral_gap(RING))


@pytest.mark.parametrize('weight', [0.2, 0.3, 0.325, 0.332, 0.335, 0.35, 0.4])
def test_d2_is_stable_where_it_is_allowed(weight):
  topology = tp.ring(6, weight)  # lambda_n = 1 - 4 weight
  silence = np.zeros((3000, 6, 1))
  kick = silence.copy()
  kick[0, :, 0] = [1, -1, 1, -1, 1, -1]
  for message in d2([tp.matrix(topology)] * 3000, kick, silence):
    if abs(message).max() > 1e3:
      break
  assert abs(message).max() < 1e-3 or abs(message).max() > 1e3
  assert (abs(message).max() < 1) == (weight < 1 / 3)
  if weight < 1 / 3:
    theory.require_d2_stable(topology)
  else:
    with pytest.raises(ValueError, match=f'{1 - 4 * weight:.6f}'):
      theory.require_d2_stable(topology)


REFUSED = {
  'ring_4': tp.ring(4),
  'ring_8': RING,
  'ring_32': tp.ring(32),
  'float32': tp.from_matrix(tp.matrix(RING).astype(np.float32)),
  'hypercube': tp.hypercube(16),
  'a tuple of one': (RING,),
}


@pytest.mark.parametrize('topology', REFUSED.values(), ids=REFUSED)
def test_d2_names_a_gamma_that_works(topology):
  with pytest.raises(ValueError, match='lambda_n') as error:
    theory.require_d2_stable(topology)
  gamma = float(re.search(r'lazy\(topology, ([\d.]+)\)', str(error.value))[1])
  theory.require_d2_stable(topology, gamma)
  (slow,) = tp.schedule(tp.lazy(topology, gamma))
  theory.require_d2_stable(slow)
  assert -1e-9 < theory.eigenvalues(slow)[1] < 0.02
  limit = float(re.search(r'gamma below ([\d.]+)', str(error.value))[1])
  theory.require_d2_stable(topology, limit - 0.001)
  with pytest.raises(ValueError):
    theory.require_d2_stable(topology, min(1, limit + 0.001))


def test_d2_on_a_ring_of_eight_takes_a_self_weight_of_a_half():
  with pytest.raises(ValueError, match=r'is -0.333333.*lazy\(topology, 0.75\)'):
    theory.require_d2_stable(RING)
  assert tp.matrix(tp.lazy(RING, 0.75))[0, 0] == 0.5


# ----------------------------------------------------------------- noise floor

# The noise floor over delta B that trainings showed, by gamma.
FIT = {1.0: 3.2, 0.5: 1.33, 0.2: 0.53, 0.1: 0.27, 0.05: 0.133}


@pytest.mark.parametrize('gamma, kappa', FIT.items())
def test_noise_floor_is_that_of_trainings(gamma, kappa):
  found = theory.noise_floor(tp.lazy(RING, gamma), 'dpsgd')
  np.testing.assert_allclose(found, kappa, rtol=0.1)


@cases
def test_noise_floor_is_below_the_worst_case(name, topology, run):
  del run
  floor = theory.noise_floor(topology, name)
  assert 0.1 < floor < theory.sums(topology, name).noise


def test_noise_floor_with_the_codec_itself():
  topology, bits, theta = tp.lazy(RING, 0.5), 4, 1.0
  q, w = mj.moniqua(theta, bits), jnp.asarray(tp.matrix(topology), jnp.float32)

  @jax.jit
  def step(x, key):
    payload = jax.vmap(q.encode, (0, None))(x, key)
    own = jax.vmap(q.decode)(payload, x)
    for hop in (-1, 1):
      theirs = jax.vmap(q.decode)(jnp.roll(payload, hop, 0), x)
      x += w[0, 1] * (theirs - own)
    return x, jnp.abs(x - jnp.roll(x, 1, 0)).max()

  x = jax.random.uniform(jax.random.key(1), (8, 5000), maxval=0.2)
  for k in range(80):
    x, apart = step(x, jax.random.key(k))
  floor = theory.noise_floor(topology, 'dpsgd')
  np.testing.assert_allclose(apart / (theta / (2**bits - 1)), floor, rtol=0.1)


def test_slack_quiets_dpsgd_but_not_those_that_remember():
  floor = lambda name, gamma: theory.noise_floor(tp.lazy(RING, gamma), name)
  np.testing.assert_allclose(
    floor('dpsgd', 0.5) / floor('dpsgd', 0.1), 5, rtol=0.1
  )
  for name in ('d2', 'deepsqueeze'):
    assert 0.5 < floor(name, 0.1) / floor(name, 0.5) < 1
  # The worst case hardly sees it: no theta for certain at 1 bit, ever.
  assert theory.sums(tp.lazy(RING, 0.01), 'dpsgd').noise > 2
  assert theory.least_bits(tp.lazy(RING, 0.2), 'dpsgd') == 3
  assert theory.least_bits(tp.lazy(RING, 0.1), 'dpsgd') == 2


@pytest.mark.parametrize('gain', [0.8, 1.3])
def test_a_theta_that_follows_its_noise_runs_away_from_gain_one_on(gain):
  bits, topology = 1, tp.lazy(RING, 0.25)
  w, rng = tp.matrix(topology), np.random.default_rng(0)
  safety = gain / theory.loop_gain(topology, 'dpsgd', bits, safety=1.0)
  x = rng.uniform(-0.1, 0.1, (8, 4000))
  sizes = []
  for _ in range(400):
    apart = abs(x - np.roll(x, 1, 0)).max()
    sizes.append(apart)
    grid = 2 * safety * apart / (2**bits - 1)
    u = rng.random(4000) - 0.5
    believed = (np.rint(x / grid - u) + u) * grid
    x = x + w @ believed - believed
  growth = sizes[-1] / sizes[100]
  assert growth > 10 if gain > 1 else growth < 0.1


FOLLOWED = {
  'dpsgd': (tp.lazy(RING, 0.5), dpsgd),
  'adpsgd': (MATCHINGS, CASES['adpsgd'][2]),
  'd2': (tp.lazy(RING, 0.6), d2),
  'deepsqueeze': (tp.lazy(RING, 0.5), deepsqueeze),
  'push_sum': (tp.exponential(6), half_steps),
  'stale_d2': (tp.lazy(RING, 0.6), extra),
  'stale_deepsqueeze': (tp.lazy(RING, 0.5), stale_deepsqueeze),
  # W of the paper's recursion, where the law has lazy(W, eta).
  'eta': (tp.lazy(RING, 0.2), lambda *given: with_eta(*given, 0.2)),
}


def following(name, u, bits, safety):
  """What a theta that follows sees, step by step, and the distances of u."""
  topology, run = FOLLOWED[name]
  rounds = tp.schedule(RING if name == 'eta' else topology)
  rng, noise = np.random.default_rng(0), np.zeros(u.shape)
  weights = [tp.matrix(rounds[k % len(rounds)]) for k in range(len(u))]
  pairs = theory.neighbours(rounds)
  for k, message in enumerate(run(weights, u, noise)):
    i, j = pairs[k % len(rounds)].T
    apart = abs(message[i] - message[j]).max()
    grid = 2 * safety * apart / (2**bits - 1)
    if grid:
      dither = rng.random(u.shape[2]) - 0.5
      believed = (np.rint(message / grid - dither) + dither) * grid
      noise[k] = believed - message  # read when the algorithm goes on
    yield apart


law_of = lambda name: 'deepsqueeze' if name == 'eta' else name
each_law = pytest.mark.parametrize(
  'name', helpers.tiered(FOLLOWED, ['d2', 'eta', 'stale_deepsqueeze'])
)


@each_law
@pytest.mark.parametrize('gain', [0.7, 1.4])
def test_every_law_runs_away_from_gain_one_on(name, gain):
  topology, _ = FOLLOWED[name]
  safety = gain / theory.loop_gain(topology, law_of(name), 4, safety=1.0)
  n = tp.schedule(topology)[0].n
  u = np.zeros((240, n, 4000))
  u[0] = np.random.default_rng(1).uniform(-0.1, 0.1, u.shape[1:])
  seen = list(following(name, u, 4, safety))
  growth = max(seen[-20:]) / max(seen[60:80])
  assert growth > 10 if gain > 1 else growth < 0.1


@each_law
def test_the_limit_of_a_theta_that_follows_is_reached_not_passed(name):
  topology, run = FOLLOWED[name]
  law, update, bits, safety, steps = law_of(name), 0.1, 6, 1.5, 160
  limit = theory.auto_theta_limit(topology, law, bits, update, safety)
  rounds = tp.schedule(RING if name == 'eta' else topology)
  n = rounds[0].n
  thetas = []
  for i, j in theory.neighbours(rounds)[(steps - 1) % len(rounds)]:
    impulses = np.eye(steps * n).reshape(steps, n, -1)
    message = last_message(run, rounds, impulses, 0 * impulses)
    signs = np.sign(message[i] - message[j]).reshape(steps, n, 1)
    u = update * np.broadcast_to(signs, (steps, n, 500))
    thetas.append(safety * list(following(name, u, bits, safety))[-1])
    if max(thetas) > 0.8 * limit:
      break
  # The noise of the limit is what rounding does as a rule.
  assert 0.8 * limit < max(thetas) < 1.01 * limit


def test_largest_gamma_has_the_gain_asked_for():
  for bits, gain in [(1, 1.0), (1, 0.5), (2, 0.5)]:
    gamma = theory.largest_gamma(RING, 'dpsgd', bits, 1.5, gain)
    slow = tp.lazy(RING, gamma)
    found = theory.loop_gain(slow, 'dpsgd', bits, safety=1.5)
    np.testing.assert_allclose(found, gain, rtol=0.05)
  assert theory.largest_gamma(RING, 'dpsgd', 4, 1.5, 0.5) == 1


def test_rule_of_thumb_of_the_trial():
  """gamma = .1, .3, .7, 1 for 1, 2, 3, 4 bits at safety 2."""
  found = [
    theory.largest_gamma(RING, 'dpsgd', bits, 2.0, 0.5) for bits in (1, 2, 3, 4)
  ]
  np.testing.assert_allclose(found, [0.1, 0.3, 0.7, 1], rtol=0.15)


def test_d2_stays_clear_of_its_limit():
  assert theory.largest_gamma(RING, 'd2', 1, 1.5, 1.0) is None
  np.testing.assert_allclose(
    theory.largest_gamma(RING, 'd2', 8, 1.5, 1.0), 0.95
  )


def test_limit_of_a_theta_that_follows():
  slow = tp.lazy(RING, 0.2)
  limit = theory.auto_theta_limit(slow, 'dpsgd', 1, update=0.1, safety=1.5)
  kappa = theory.noise_floor(slow, 'dpsgd')
  gradient = theory.sums(slow, 'dpsgd').gradient
  np.testing.assert_allclose(1.5 * (gradient * 0.1 + kappa * limit), limit)
  with pytest.raises(ValueError, match=r'gain of dpsgd is 4.*lazy\(.*0.13\)'):
    theory.auto_theta_limit(RING, 'dpsgd', 1, update=0.1, safety=1.5)


# ------------------------------------------------------------ the paper, memory


def test_paper_values_are_those_recalled():
  paper = theory.paper(RING, 'dpsgd')
  mixing = math.log(16 * 8) / tp.spectral_gap(RING)
  np.testing.assert_allclose(paper.theta, 2 * mixing)
  # 2 delta B_theta = alpha G: what the two constants were chosen for.
  error = paper.delta * 2 * paper.theta / (1 - 2 * paper.delta)
  np.testing.assert_allclose(2 * error, 1)
  np.testing.assert_allclose(
    theory.paper(RING, 'dpsgd', gamma=0.1).theta, 20 * mixing
  )
  t = theory.t_mix(MATCHINGS)
  adpsgd = theory.paper(MATCHINGS, 'adpsgd')
  assert adpsgd.theta == 16 * t and adpsgd.delta == 1 / (64 * t + 2)
  assert adpsgd.bits == math.ceil(math.log2(32 * t + 2))


@pytest.mark.parametrize(
  'name, topology, gamma',
  [
    ('d2', RING, 0.75),
    ('choco', RING, 1.0),
    ('push_sum', RING, 1.0),
    ('dpsgd', MATCHINGS, 1.0),
    ('dpsgd', tp.exponential(6), 1.0),
  ],
)
def test_what_is_not_known_is_not_printed(name, topology, gamma):
  paper = theory.paper(topology, name, gamma)
  assert paper[:3] == (None, None, None) and paper.note


def test_paper_has_no_bits_for_the_slack_matrix():
  paper = theory.paper(RING, 'dpsgd', gamma=0.1)
  assert paper.bits is None and paper.delta is None


@pytest.mark.parametrize('name', theory.LAWS)
def test_memory_is_what_the_algorithm_keeps(name):
  topology, size = tp.lazy(RING, 0.5), 1000
  algorithm = getattr(mj, name.removeprefix('stale_').removeprefix('atc_'))(
    topology,
    mj.moniqua(1.0, 4),
    axis_name='workers',
    key=jax.random.key(0),
  )
  if name.startswith('stale_'):
    algorithm = mj.stale(algorithm, topology)
  if name.startswith('atc_'):
    algorithm = mj.adapt_then_combine(algorithm)
    assert algorithm.name == name
  state = jax.eval_shape(algorithm.init, {'w': jnp.zeros(size)})
  floats = sum(leaf.size for leaf in jax.tree.leaves(state))
  found = theory.report(RING, name, gamma=0.5, bits=8)
  assert found.memory == floats // size


def test_replicas_of_the_papers():
  size = 270_000
  mib = lambda name: (
    4 * size * theory.report(RING, name, bits=8).replicas / 2**20
  )
  assert round(mib('choco'), 2) == round(mib('dcd'), 2) == 16.48
  assert round(mib('deepsqueeze'), 2) == 8.24
  assert mib('dpsgd') == 0
  assert theory.report(RING, 'push_sum', bits=8).replicas is None
  assert theory.report(RING, 'adpsgd', bits=8, delay=0).memory == 0


# -------------------------------------------------------------------- the table


@pytest.mark.parametrize(
  'name', helpers.tiered(theory.LAWS, ['dpsgd', 'push_sum', 'stale_d2'])
)
def test_table_fits_a_terminal(name):
  topology = RING if theory.LAWS[name].least is None else tp.lazy(RING, 0.5)
  text = theory.table(theory.report(topology, name, size=269_722))
  assert max(map(len, text.splitlines())) <= 80
  assert '-0.0' not in text
  needs_theta = theory.LAWS[name].recursion is not None
  assert text.count('\n|') == (10 if needs_theta else 0)
  assert 'MiB' in text and ('papers (recalled)' in text) != (name == 'push_sum')


def test_rows_agree_with_the_functions():
  found = theory.report(RING, 'dpsgd', gamma=0.5, safety=1.2)
  slow = tp.lazy(RING, 0.5)
  assert [row.bits for row in found.rows] == list(range(1, 9))
  assert [row.theta is None for row in found.rows] == [True] * 2 + [False] * 6
  row = found.rows[3]
  np.testing.assert_allclose(row.theta, theory.theta(slow, 'dpsgd', 4, 1.0))
  assert row.gain == theory.loop_gain(slow, 'dpsgd', 4, 1.2)
  # Of the topology before lazy: they do not depend on the gamma given.
  safe = theory.largest_gamma(RING, 'dpsgd', 2, 1.2, 0.5)
  assert found.rows[1].safe == safe < 0.5


def test_the_command_prints_the_table(capsys):
  command.main(['--topology=ring:8', '--algorithm=d2', '--gamma=0.75'])
  text = capsys.readouterr().out
  assert text.count('\n|') == 10 and 'not printed' in text
  command.main(['--topology=torus:2:4', '--bits=4', '--size=269722'])
  assert capsys.readouterr().out.count('\n|') == 3
  command.main(['--topology=random_matchings:6:5:0', '--algorithm=adpsgd'])
  assert '5 in turn; 6 workers, 6 messages' in capsys.readouterr().out


def test_the_module_runs(tmp_path):
  program = 'moniqua_jax/theory/__main__.py', '--algorithm=d2'
  status, out, err = programs.run(*program, folder=tmp_path)
  assert status == 2 and out == ''
  assert err.count('\n') == 1
  assert 'lazy(topology, 0.75)' in err


MISTAKES = {
  '--topology=rign:8': "--topology=rign:8: 'rign' is no topology; choose from",
  '--topology=ring:eight': "n='eight' is not a whole number",
  '--topology=ring:8:x': "weight='x' is not a number",
  '--topology=ring': 'ring takes 1 to 2 arguments, ring:n:weight; got 0',
  '--topology=ring:8:1:1': 'got 3',
  '--topology=ring:1': '2 to 256 workers; the topology has 1',
  '--topology=complete:100000': 'n=100000; at most 256',
  '--topology=random_matchings:4:10001:0': 'rounds=10001; at most 10000',
  '--rounds=1001': 'rounds=1001; a step has 1 to 1000',
  '--topology=hypercube:6': '--topology=hypercube:6: .*power of two',
  '--topology=ring:2:1': r'rho = 1.0000.*lazy\(topology, 0.5\)',
  '--topology=random_matchings:4:1:0': 'not connected',
  '--algorithm=dpsdg': "algorithm='dpsdg'; choose from .*'dpsgd'",
  '--algorithm=d2': r'd2 needs lambda_n.*lazy\(topology, 0.75\)',
  '--bits=9': 'bits=9; a code has 1 to 8 bits',
  '--bits=one': 'bits.*one',
  '--gamma=0': '0 < gamma <= 1; got gamma=0',
  '--gamma=nan': 'got gamma=nan',
  '--safety=0.5': 'safety=0.5; .* at least 1',
  '--size=0': 'size=0; .* at least 1',
  '--delay=-1': 'delay=-1; .* 0 or more',
  '--gama=1': 'unrecognized arguments: --gama=1',
}


@pytest.mark.parametrize('argument', MISTAKES)
def test_mistakes_get_one_line_and_exit_status_2(argument, capsys):
  with pytest.raises(SystemExit) as error:
    command.main([argument])
  text = capsys.readouterr().err
  assert error.value.code == 2 and text.count('\n') == 1
  assert re.match(f'error: .*{MISTAKES[argument]}', text)


def test_many_rounds_in_a_step_round_as_one_does():
  """To the last of their rounds, in less than a second."""
  one, many = (theory.sums(RING, 'dpsgd', rounds=k) for k in (1, 100))
  np.testing.assert_allclose(many.noise, one.noise, rtol=1e-5)
  assert many.gradient < one.gradient


UNEVEN = tp.Topology([((0.5, 0.25, 0.25), (1, 2, 0)), ((0, 0.5, 0), (2, 0, 1))])
ERRORS = {
  'differences': (
    lambda: theory.theta(RING, 'choco', 8, 1.0),
    "choco sends differences.*'dpsgd'",
  ),
  'own x': (
    lambda: theory.sums(RING, 'qdgd'),
    "qdgd rounds no x of its own.*'dpsgd'",
  ),
  'update': (lambda: theory.theta(RING, 'dpsgd', 8, 0.0), 'update=0.0'),
  'no update': (
    lambda: theory.auto_theta_limit(RING, 'dpsgd', 8, math.nan, 1.5),
    'update=nan',
  ),
  'bits': (lambda: theory.loop_gain(RING, 'dpsgd', 0, 1.5), 'bits=0'),
  'directed d2': (
    lambda: theory.sums(tp.exponential(8), 'd2'),
    'd2 needs a symmetric W',
  ),
  'several': (lambda: theory.require_d2_stable(MATCHINGS), 'd2 .*not 5'),
  'several for dcd': (lambda: theory.report(MATCHINGS, 'dcd'), 'dcd .*not 5'),
  'slow': (lambda: theory.t_mix(tp.lazy(RING, 1e-6)), '8 workers .* too slowl'),
  'unequal masses': (
    lambda: theory.sums(UNEVEN, 'push_sum'),
    'push_sum is of equal masses; in round 0 worker',
  ),
  'columns': (
    lambda: theory.t_mix(tp.Topology([((0.5, 0.25), (1, 0))])),
    't_mix needs a doubly stochastic W',
  ),
  'no topology': (lambda: theory.sums((), 'dpsgd'), 'non-empty tuple'),
}


@pytest.mark.parametrize('call, match', ERRORS.values(), ids=ERRORS)
def test_errors_name_the_thing_the_value_and_the_way_out(call, match):
  with pytest.raises(ValueError, match=match):
    call()


def test_every_public_name_is_listed_and_sorted():
  assert theory.__all__ == sorted(theory.__all__)
  assert all(getattr(theory, name).__doc__ for name in theory.__all__)
