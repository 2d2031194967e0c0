"""Dithering with varying steps and blocks, roots, sparsifying, per_worker.

Held against Sections 3 to 5 of arXiv:2106.03524 in float64, written here from
the formulas: |x_hat_j - x_j| <= |x| h_j, E x_hat = x, the variance sum_j norm^2
h_j^2 f_j (1 - f_j), the nonzeros and the bits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import coding
from moniqua_jax.quantizers import dithered, norm_formats, roots
from moniqua_jax.theory import smoothness
from tests import helpers

D = 60
KEY = jax.random.key(5)
RNG = np.random.default_rng(0)
STEPS = 10 ** RNG.uniform(-1, 0.7, D)
SIZES = (10, 10, 10, 10, 20)
BLOCK_STEPS = np.array([0.2, 0.5, 1.0, 2.0, 0.1])
_ROOT = RNG.standard_normal((D, D))
FULL = _ROOT @ _ROOT.T / D + 0.01 * np.eye(D)
DIAGONAL = 10 ** RNG.uniform(-3, 1, D)
KRONECKER = (np.diag([1.0, 2, 3, 4, 5]) + 0.3, FULL[:12, :12])
ONE = (D,)

# name -> (quantizer, norm of a block, steps of the values, sizes, bytes)
TABLE = {
  'dithering 1': (mj.dithering(1), 'l2', np.ones(D), ONE, 15 + 4),
  'dithering 3': (mj.dithering(3), 'l2', np.ones(D) / 3, ONE, 30 - 7 + 4),
  'dithering linf': (mj.dithering(5, 'linf'), 'linf', np.ones(D) / 5, ONE, 34),
  'dithering blocks': (
    mj.dithering(2, block_sizes=SIZES),
    'l2',
    np.ones(D) / 2,
    SIZES,
    23 + 20,
  ),
  'varying': (mj.varying_steps(STEPS), 'l2', STEPS, ONE, 38 + 4),
  'varying traced': (
    mj.varying_steps(jnp.float32(STEPS), bits=5),
    'l2',
    STEPS,
    ONE,
    38 + 4,
  ),
  'varying 16': (mj.varying_steps(STEPS, norm_bits=16), 'l2', STEPS, ONE, 40),
  **{
    f'block {bits}': (
      mj.block(BLOCK_STEPS, SIZES, norm_bits=bits),
      'l2',
      np.repeat(BLOCK_STEPS, SIZES),
      SIZES,
      38 + size,
    )
    for bits, size in ((32, 20), (16, 10), (8, 9))
  },
}
# Each norm, each shape of steps, each format of norms.
SOME = [
  'dithering linf',
  'dithering blocks',
  'varying',
  'varying traced',
  'varying 16',
  'block 8',
]
rows = pytest.mark.parametrize('name', helpers.tiered(TABLE, SOME))
SMOOTH = {
  'full': FULL,
  'diagonal': DIAGONAL,
  'kronecker': KRONECKER,
  'blocks': [DIAGONAL[:10], FULL[:20, :20], (FULL[:5, :5], FULL[:6, :6])],
}


def f64(x):
  return np.asarray(x, np.float64)


def norms_of(x, norm, sizes, growth=1.0):
  parts = np.split(x, np.cumsum(sizes)[:-1])
  order = {'l2': 2, 'linf': np.inf}[norm]
  return growth * np.repeat([np.linalg.norm(p, order) for p in parts], sizes)


def vector(seed=0):
  return jnp.float32(
    np.random.default_rng(seed).standard_normal(D) * DIAGONAL**0.5
  )


@functools.cache
def compiled(quantizer):
  """(x, key) of many messages -> payload, x_hat, whether it is readable."""

  def talk(x, key):
    payload = jax.lax.optimization_barrier(quantizer.encode(x, key))
    seen = quantizer.inspect(payload, x)
    return payload, quantizer.decode(payload, x), seen.readable

  return jax.jit(jax.vmap(talk))


COUNT = 4000


def draws(quantizer, x):
  """Many messages of the same x, f64[COUNT, d]."""
  xs = np.broadcast_to(x, (COUNT, D))
  return f64(compiled(quantizer)(xs, jax.random.split(KEY, COUNT))[1])


def messages(quantizer, *xs):
  """A message of each; in calls of one size, so that nothing compiles again."""
  rows = np.resize(np.stack(xs), (COUNT, D))
  told = compiled(quantizer)(rows, jax.random.split(KEY, COUNT))
  return [np.asarray(each[: len(xs)]) for each in told]


def growth_of(name):
  bits = int(name.split()[-1]) if name[-2:] in ('16', ' 8') else 32
  return norm_formats.chosen(bits).growth


@rows
def test_an_error_is_below_a_step_and_the_message_has_the_stated_bytes(name):
  quantizer, norm, steps, sizes, size = TABLE[name]
  xs = [vector(seed) for seed in range(5)]
  payloads, x_hats, readable = messages(quantizer, *xs)
  assert payloads.dtype == np.uint8 and payloads.shape == (5, size)
  assert readable.all()
  for x, x_hat in zip(xs, x_hats, strict=True):
    error = np.abs(f64(x_hat) - f64(x))
    bound = norms_of(f64(x), norm, sizes, growth_of(name)) * steps
    assert (error <= bound * (1 + 1e-5)).all()


@rows
def test_it_is_unbiased_and_its_variance_is_the_formula(name):
  quantizer, norm, steps, sizes, _ = TABLE[name]
  x, x_hat = vector(), draws(quantizer, vector())
  cell = norms_of(f64(x), norm, sizes) * steps
  u = np.abs(f64(x)) / cell
  variance = cell**2 * (u - np.floor(u)) * (1 - u + np.floor(u))
  deviation = np.sqrt(growth_of(name) ** 2 * variance + 1e-12 + 0.01 * cell**2)
  z = (x_hat.mean(0) - f64(x)) / deviation * np.sqrt(COUNT)
  assert np.abs(z).max() < 5
  if growth_of(name) == 1:
    np.testing.assert_allclose(x_hat.var(0).sum(), variance.sum(), rtol=0.1)
  most = smoothness.omega_exact(steps, sizes) * growth_of(name) ** 2
  assert variance.sum() <= most * np.sum(f64(x) ** 2) * (norm == 'l2') + (
    norm != 'l2'
  ) * np.sum(variance)


@pytest.mark.slow  # `dithering 5 norms 8` is in test_quantizers
@pytest.mark.optimized
@rows
def test_jit_vmap_and_the_loop_agree(name):
  quantizer, *_ = TABLE[name]
  x = jnp.stack([vector(seed) for seed in range(3)])
  keys = jax.random.split(KEY, 3)
  each = jnp.stack([quantizer.encode(*p) for p in zip(x, keys, strict=True)])
  np.testing.assert_array_equal(jax.vmap(quantizer.encode)(x, keys), each)
  np.testing.assert_array_equal(
    jax.jit(jax.vmap(quantizer.encode))(x, keys), each
  )
  read = jnp.stack([quantizer.decode(p, x[0]) for p in each])
  jitted = jax.jit(jax.vmap(quantizer.decode, (0, None)))(each, x[0])
  np.testing.assert_array_equal(jitted, read)


def test_nonzeros_are_within_their_budget():
  for steps in (STEPS, np.full(D, 1.0)):
    x_hat = draws(mj.varying_steps(steps), vector())
    mean = (x_hat != 0).sum(1).mean()
    assert mean <= smoothness.expected_nonzeros(steps) * 1.02


def test_its_bits_are_those_of_the_recursive_code():
  """32 for the norm; of each nonzero omega(gap), a sign and omega(level)."""
  lengths = {1: 1, 2: 3, 3: 3, 4: 6, 5: 6, 6: 6, 7: 6}
  omega = lambda k: lengths[k] if k < 8 else 7 if k < 16 else 11
  quantizer = mj.varying_steps(STEPS)
  coded_bits = jax.jit(lambda p: coding.coded_bits(quantizer, p, D))
  xs = [vector(seed) for seed in range(10)]
  payloads, x_hats, _ = messages(quantizer, *xs)
  for x, payload, x_hat in zip(xs, payloads, f64(x_hats), strict=True):
    level = np.rint(np.abs(x_hat) / (np.linalg.norm(f64(x)) * STEPS)).astype(
      int
    )
    bits, before = 32, -1
    for j in np.flatnonzero(level):
      bits += omega(j - before) + 1 + omega(level[j])
      before = j
    assert coded_bits(payload) == bits


@pytest.mark.parametrize('bits', [32, 16, 8])
def test_a_norm_is_rounded_up_and_by_no_more_than_stated(bits):
  form = norm_formats.chosen(bits)
  norms = np.float32(10 ** np.random.default_rng(bits).uniform(-4, 4, 500))
  norms[:3] = 0, norms.max(), norms.max()
  given = f64(form.read(form.write(jnp.asarray(norms)), 500))
  share = given[1:] / f64(norms[1:])
  assert share.min() >= 1 - 2e-7 and share.max() <= form.growth * (1 + 1e-6)
  assert given[0] == 0
  spoilt = jnp.asarray(norms).at[7].set(jnp.nan)
  read = form.read(form.write(spoilt), 500)
  assert jnp.isnan(read[7])


@rows
def test_what_is_not_finite_is_never_read(name):
  quantizer, *_ = TABLE[name]
  spoilt = np.tile(vector(), (3, 1))
  spoilt[:, 13] = np.nan, np.inf, -np.inf
  _, x_hats, readable = messages(quantizer, *spoilt)
  assert not readable.any() and not np.isfinite(x_hats[:, 13]).any()


def test_traced_steps_that_need_more_bits_are_not_clipped_but_unreadable():
  encode = jax.jit(lambda h: mj.varying_steps(h, bits=3).encode(vector(), KEY))
  readable = lambda h: (
    mj.varying_steps(h, bits=3).inspect(encode(h), vector()).readable
  )
  assert readable(jnp.full(D, 1 / 3))
  assert not readable(jnp.full(D, 1 / 3).at[0].set(0.25))


def test_zeros_become_zeros_and_a_block_spoils_itself_only():
  quantizer = mj.block(BLOCK_STEPS, SIZES)
  x = jnp.zeros(D).at[15].set(jnp.nan)
  x_hat = quantizer.decode(quantizer.encode(x, KEY), x)
  assert jnp.isnan(x_hat[15]) and (x_hat[:10] == 0).all()
  assert (x_hat[20:] == 0).all()


# ------------------------------------------------------------------- smooth


def dense(form):
  """The matrix itself, float64."""
  if isinstance(form, list):
    parts = [dense(part) for part in form]
    size, whole, at = sum(map(len, parts)), None, 0
    whole = np.zeros((size, size))
    for part in parts:
      whole[at : at + len(part), at : at + len(part)] = part
      at += len(part)
    return whole
  if isinstance(form, tuple):
    return np.kron(*form)
  return np.diag(form) if form.ndim == 1 else form


@pytest.mark.parametrize('name', SMOOTH)
def test_roots_are_roots(name):
  matrix, root = dense(SMOOTH[name]), roots.root(SMOOTH[name])
  columns = jax.jit(jax.vmap(roots.times, (None, 0), 1))
  half, inverse = (columns(part, np.eye(D, dtype='f4')) for part in root)
  scale = np.abs(matrix).max()
  np.testing.assert_allclose(half @ half, matrix, atol=1e-5 * scale)
  np.testing.assert_allclose(half @ inverse, np.eye(D), atol=1e-3)


@pytest.mark.parametrize('name', SMOOTH)
def test_codes_can_be_coded_outside_as_inside(name):
  """L^{-1/2} x has a code for each of x: the payload begins as that of Q."""
  inner, x = mj.varying_steps(STEPS, bits=5), vector()
  outside = mj.coded(mj.smooth(inner, SMOOTH[name]), 4.5)
  inside = mj.smooth(mj.coded(inner, 4.5), SMOOTH[name])
  assert outside.codes == inner.codes
  payload = outside.encode(x, KEY)
  short, fits = outside.short.shorten(payload, D)
  assert fits
  np.testing.assert_array_equal(short, inside.short.shorten(payload, D)[0])
  np.testing.assert_array_equal(outside.short.restore(short, D), payload)


@pytest.mark.parametrize('name', SMOOTH)
def test_smooth_is_unbiased_and_its_noise_is_that_of_L(name):
  """Its covariance is L^{1/2} Var(C) L^{1/2}; the trace is below calL."""
  inner = mj.varying_steps(STEPS)
  quantizer = mj.smooth(inner, SMOOTH[name])
  x, matrix = vector(), dense(SMOOTH[name])
  x_hat = draws(quantizer, x)
  values, vectors = np.linalg.eigh(matrix)
  half = vectors * np.sqrt(values) @ vectors.T
  y = np.linalg.solve(half, f64(x))
  cell = np.linalg.norm(y) * STEPS
  u = np.abs(y) / cell
  variance = cell**2 * (u - np.floor(u)) * (1 - u + np.floor(u))
  per_value = half**2 @ variance
  z = (x_hat.mean(0) - f64(x)) / np.sqrt(per_value / COUNT)
  assert np.abs(z).max() < 6
  np.testing.assert_allclose(x_hat.var(0).sum(), per_value.sum(), rtol=0.1)
  calL = smoothness.calL(STEPS, np.diag(matrix))
  assert per_value.sum() <= calL * np.sum(y**2) * (1 + 1e-6)


def test_identity_changes_nothing():
  inner = mj.varying_steps(STEPS)
  same = mj.smooth(inner, np.ones(D))
  payload = inner.encode(vector(), KEY)
  np.testing.assert_array_equal(same.encode(vector(), KEY), payload)
  x_hat = same.decode(payload, vector())
  np.testing.assert_array_equal(x_hat, inner.decode(payload, vector()))


def test_a_pseudo_inverse_sends_what_is_in_the_range():
  a = np.random.default_rng(3).standard_normal((5, D))
  singular = a.T @ a
  with pytest.raises(ValueError, match='L is singular.*lam I.*pseudo_inverse'):
    mj.smooth(mj.full_precision(), singular)
  quantizer = mj.smooth(mj.full_precision(), singular, pseudo_inverse=True)
  x = jnp.float32(a.T @ np.arange(5.0))
  x_hat = quantizer.decode(quantizer.encode(x, KEY), x)
  np.testing.assert_allclose(x_hat, x, atol=1e-3 * np.abs(x).max())


# --------------------------------------------------------------- random tau


def test_random_tau_is_unbiased_and_sends_tau_values():
  p = np.clip(10 ** np.random.default_rng(4).uniform(-1.5, 0.3, D), 0, 1)
  quantizer, x = mj.random_tau(p), vector()
  x_hat = draws(quantizer, x)
  variance = (1 / p - 1) * f64(x) ** 2
  z = (x_hat.mean(0) - f64(x)) / np.sqrt(variance + 1e-9) * np.sqrt(COUNT)
  assert np.abs(z).max() < 5.5
  sent = (x_hat != 0).sum(1)
  assert abs(sent.mean() - p.sum()) < 5 * np.sqrt(p.sum() / COUNT)
  np.testing.assert_allclose(x_hat.var(0).sum(), variance.sum(), rtol=0.15)


def test_random_tau_without_rescaling_is_p_times_x():
  p = np.full(D, 0.25)
  x_hat = draws(mj.random_tau(p, rescale=False), vector())
  np.testing.assert_allclose(
    x_hat.mean(0), 0.25 * f64(vector()), atol=0.05 * np.abs(vector()).max()
  )


def test_random_tau_divides_by_the_chance_to_be_drawn():
  """Which is a multiple of 2^-24, and here a tenth more than p."""
  size, chance = 2**20, 5 * 2.0**-24
  q = mj.random_tau(np.full(size, 0.9 * chance))
  one = lambda key: q.decode(q.encode(jnp.ones(size), key), jnp.ones(size))
  x_hat = jax.lax.map(one, jax.random.split(KEY, 32))
  sent = x_hat[x_hat != 0]
  assert sent.size and (sent == 1 / chance).all()


def test_its_short_form_is_the_message():
  p = np.clip(10 ** np.random.default_rng(4).uniform(-2, -0.3, D), 0, 1)
  quantizer = mj.random_tau(p)
  form, fitted = quantizer.short, 0
  shorten = jax.jit(lambda payload: form.shorten(payload, D))
  restore = jax.jit(lambda short: form.restore(short, D))
  payloads, _, _ = messages(quantizer, *map(vector, range(40)))
  for payload in payloads:
    short, fits = shorten(payload)
    assert short.size == form.capacity(D) < payload.size
    if fits:
      fitted += 1
      np.testing.assert_array_equal(restore(short), payload)
  assert fitted >= 38


# --------------------------------------------------------------- per_worker

TABLES = {
  'steps': jnp.float32(
    10 ** np.random.default_rng(7).uniform(-1, 1, (helpers.N, D))
  ),
  'root': roots.stacked(
    [roots.root(FULL + i * np.eye(D)) for i in range(helpers.N)]
  ),
}


def own_kind(row):
  return mj.smooth(mj.varying_steps(row['steps'], bits=5), row['root'])


KNOWN = mj.per_worker(own_kind, TABLES, 'workers')


def row_of(i):
  return jax.tree.map(lambda table: table[i], TABLES)


@pytest.mark.parametrize('runner', helpers.tiered(helpers.RUNNERS, ['sharded']))
def test_a_receiver_decodes_with_the_table_of_the_sender(runner):
  x = jnp.stack([vector(seed) for seed in range(helpers.N)])
  keys = jax.random.split(KEY, helpers.N)
  key_data = jax.random.key_data(keys)

  def talk(x, data):
    payload = KNOWN.encode(x, jax.random.wrap_key_data(data))
    came = jax.lax.ppermute(
      payload, 'workers', [(i, (i + 1) % helpers.N) for i in range(helpers.N)]
    )
    return payload, KNOWN.decode(came, x)

  payloads, read = helpers.RUNNERS[runner](talk, (0, 0))(x, key_data)
  for i in range(helpers.N):
    quantizer = own_kind(row_of(i))
    payload = quantizer.encode(x[i], keys[i])
    np.testing.assert_array_equal(payloads[i][:-1], payload)
    assert payloads[i][-1] == i
    x_hat = quantizer.decode(payload, x[i])
    np.testing.assert_allclose(read[(i + 1) % helpers.N], x_hat, atol=1e-4)


def test_decode_all_is_decode_one_by_one_and_refuses_a_wrong_sender():
  encode = jax.vmap(lambda x: KNOWN.encode(x, KEY), axis_name='workers')
  payloads = jax.jit(encode)(np.stack([vector(i) for i in range(helpers.N)]))
  decode = jax.jit(KNOWN.decode)
  one_by_one = np.stack([decode(p, vector()) for p in payloads])
  decode_all = jax.jit(KNOWN.fast.decode_all)
  together = decode_all(payloads, vector())
  np.testing.assert_allclose(together, one_by_one, atol=1e-5)
  swapped = decode_all(payloads[::-1], vector())
  assert jnp.isnan(swapped).all()
  unknown = payloads[0].at[-1].set(helpers.N)
  assert not KNOWN.inspect(unknown, vector()).readable
  assert jnp.isnan(KNOWN.decode(unknown, vector())).all()


def test_the_upload_is_the_bytes_of_the_tables():
  assert mj.nbytes(TABLES) == 4 * helpers.N * (D + 2 * D * D)


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize(
  'make,words',
  [
    (lambda: mj.dithering(0), 'levels=0; dithering takes s = 1 to 127.*sqrt'),
    (lambda: mj.dithering(128), 'levels=128'),
    (lambda: mj.dithering(1, norm='l3'), "norm='l3'; choose from"),
    (lambda: mj.dithering(1, norm_bits=4), r'norm_bits=4; choose.*8, 16, 32'),
    (lambda: mj.varying_steps([0.5, 0.0]), 'steps: .*0.0.* is among them'),
    (lambda: mj.varying_steps([0.5, np.nan]), 'steps: .*above 0'),
    (lambda: mj.varying_steps([0.001]), 'needs 1000 levels.*there are 8'),
    (lambda: mj.varying_steps([0.1], bits=3), 'needs 10 levels.*there are 3'),
    (lambda: mj.varying_steps([0.1], bits=9), 'bits=9; dithering takes 2 to 8'),
    (lambda: mj.varying_steps(jnp.ones(2)), 'bits=None; for steps that are'),
    (lambda: mj.block([1.0], (2, 2)), r'steps of shape \(1,\) for 2 blocks'),
    (lambda: mj.block(1.0, ()), r'block_sizes=\(\); a block has 1 or more'),
    (lambda: mj.block(1.0, (3, 0)), 'a block has 1 or more coordinates'),
    (
      lambda: mj.block(1.0, (3, 1)).encode(jnp.ones(3), KEY),
      'for 4 coordinates, the vector has 3',
    ),
    (
      lambda: mj.varying_steps([0.5] * 4).encode(jnp.ones(3), KEY),
      'for 4 coordinates, the vector has 3',
    ),
    (lambda: mj.smooth(mj.dithering(1), -np.eye(2)), 'L has the eigenvalue -1'),
    (
      lambda: mj.smooth(mj.dithering(1), np.array([[1.0, 1], [0, 1]])),
      'L is not symmetric: .* differ by 1,',
    ),
    (
      lambda: roots.root(1e-9 * np.array([[2.0, 1], [0.5, 2]])),
      'L is not symmetric: .* differ by 5e-10,',
    ),
    (
      lambda: mj.smooth(mj.dithering(1), np.array([1.0, np.nan])),
      'L has an entry that is not finite',
    ),
    (
      lambda: mj.dithering(1, block_sizes=(3, 0)),
      r'block_sizes=\(3, 0\); a block has 1 or more',
    ),
    (
      lambda: mj.smooth(mj.dithering(1), np.ones(4)).encode(jnp.ones(1), KEY),
      'L is for 4 values, the vector has 1',
    ),
    (
      lambda: mj.smooth(mj.dithering(1), [np.eye(2), np.ones(2)]).encode(
        jnp.ones(3), KEY
      ),
      'L is for 4 values, the vector has 3',
    ),
    (
      lambda: mj.random_tau([0.5, 0.5]).encode(jnp.ones(3), KEY),
      'probabilities are for 2 values, the vector has 3',
    ),
    (lambda: mj.random_tau([0.0, 0.5]), 'probabilities from 0.0 to 0.5'),
    (lambda: mj.random_tau([0.5, 1.5]), 'take above 0, at most 1'),
    (lambda: mj.random_tau(jnp.ones(2)), 'tau=None'),
    (
      lambda: mj.per_worker(own_kind, [jnp.ones(2), jnp.ones(3)], 'workers'),
      r'tables: first axes of \[2, 3\]',
    ),
  ],
)
def test_one_clear_line_for_each_mistake(make, words):
  with pytest.raises(ValueError, match=words):
    make()


@pytest.mark.parametrize('unit', [1e-9, 1.0, 1e9])
def test_a_matrix_of_float32_is_symmetric_but_for_its_rounding(unit):
  rounded = unit * np.array([[8.0, 1e-3], [1e-3 + 2e-6, 4.0]])
  half = f64(roots.root(rounded).half)
  np.testing.assert_allclose(half @ half, rounded, atol=3e-6 * unit)


def test_levels_needed():
  assert dithered.levels_needed([1 / 49]) == 49
  assert dithered.levels_needed([3.0]) == 1
