"""A few values of many: their places, the chunks, and means of who sent."""

import functools

import jax
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import quantized_mean, wire
from moniqua_jax.quantizers import places
from moniqua_jax.workers import AXIS
from tests import helpers, hlo

N, KEY = helpers.N, jax.random.key(5)
CHUNK, KEEP = 256, 16
D = 4 * CHUNK  # one size, one compiled program
BITS = (1, 2, 3, 4)


# --------------------------------------------------------------------- places


def rows_of_places(size, kept):
  """The first, the last, evenly, and two at random; i32[5, kept]."""
  rng = np.random.default_rng(size)
  drawn = [np.sort(rng.permutation(size)[:kept]) for _ in range(2)]
  first = np.arange(kept)
  evenly = first * size // kept
  return np.int32([first, size - kept + first, evenly, *drawn])


def marked(rows, size):
  """The upper bits as Elias writes them: a 1 for a place, a 0 for a step up."""
  low, written = int(np.log2(size / rows.shape[1])), []
  for row in rows >> low:
    for h in range((size - 1 >> low) + 1):
      written += [1] * int((row == h).sum()) + [0]
  return written


def bitmap_of(packed, rows, size):
  count = len(marked(rows, size))
  end = packed.size - wire.packed_size(count, 1)
  return jax.jit(lambda p: wire.unpack(p[end:], 1, count))(packed)


@pytest.mark.parametrize(
  'size,kept',
  helpers.tiered(
    [(1, 1), (7, 7), (7, 2), (4096, 64), (3900, 61), (100_003, 3)],
    [(4096, 64)],
  ),
)
def test_any_places_come_back(size, kept):
  rows = rows_of_places(size, kept)

  def both(at):
    packed = places.write(at, size)
    return packed, places.read(packed, len(rows), kept, size)

  packed, back = jax.jit(both)(rows)
  np.testing.assert_array_equal(back, rows)
  assert packed.size == places.nbytes(len(rows), kept, size)
  # log2(size / kept) + 2 bits for a place, and whole bytes.
  assert 8 * packed.size <= rows.size * (np.log2(size / kept) + 2.1) + 64
  np.testing.assert_array_equal(
    bitmap_of(packed, rows, size), marked(rows, size)
  )


# --------------------------------------------------------------------- chunks


def vectors():
  """name -> f32[D]: tails, ties, zeros, chunks of other sizes."""
  rng = np.random.default_rng(0)
  normal = rng.normal(size=D)
  sizes = np.repeat([1.0, 1e-3, 30.0, 1e-30], CHUNK)
  few = np.where(np.arange(D) % 50 == 0, normal, 0)
  made = {
    'normal': normal,
    'student': rng.standard_t(2, size=D),
    'unlike': normal * sizes,
    'ties': rng.integers(-2, 3, size=D),
    'equal': np.where(normal > 0, 1.5, -1.5),
    'zeros': 0 * normal,
    'few': few,
    'one': np.where(np.arange(D) == 300, -7.0, 0),
    'ramp': np.arange(D),
    'ascending': np.exp(np.linspace(-20, 20, D)),
  }
  return {name: np.float32(x) for name, x in made.items()}


def oracle(x, bits):
  """As the reference has it: where, and what is said there; float64."""
  rows, count = x.astype(float).reshape(-1, CHUNK), 2 ** (bits - 1)
  at = np.sort(np.argsort(-abs(rows), axis=1, kind='stable')[:, :KEEP], axis=1)
  values = np.take_along_axis(rows, at, axis=1)
  mean = abs(values).mean(axis=1, keepdims=True)
  live = mean[:, 0] > 2.0**-64 * abs(x).max()
  u = np.divide(abs(values), mean, out=0 * values, where=live[:, None])
  levels = (2 * np.arange(count) + 1) / count
  code_of = lambda u: np.searchsorted(
    (levels[1:] + levels[:-1]) / 2, u, 'right'
  )
  for _ in range(8):
    codes = code_of(u)
    cells = [u[live][codes[live] == j] for j in range(count)]
    levels = np.array(
      [
        c.mean() if c.size else old
        for c, old in zip(cells, levels, strict=True)
      ]
    )
  q = levels[code_of(u)] / levels[-1]
  scale = (abs(values) * q).sum(axis=1) / np.maximum((q * q).sum(axis=1), 1e-30)
  x_hat = np.zeros_like(rows)
  np.put_along_axis(
    x_hat,
    at,
    np.where(values < 0, -1, 1) * eighths(live * scale)[:, None] * q,
    axis=1,
  )
  return at, x_hat.reshape(-1)


def eighths(scale):
  """A float of three bits behind the point; 0 below 2^-31 of the largest."""
  power = 2.0 ** np.floor(np.log2(np.maximum(scale, 1e-300)))
  near = np.floor(scale / power * 8 + 0.5) / 8 * power
  return np.where(scale > 2.0**-31.5 * scale.max(), near, 0)


@functools.cache
def said(bits):
  """name -> x_hat of every vector, in one call."""
  q = mj.chunked_top_k(CHUNK, KEEP, bits)
  talk = lambda x: q.decode(q.encode(x, KEY), x)
  found = jax.jit(jax.vmap(talk))(np.stack(list(vectors().values())))
  return dict(zip(vectors(), np.asarray(found), strict=True))


@pytest.mark.parametrize('bits', helpers.tiered(BITS, (2,)))
def test_it_is_the_dense_oracle(bits):
  for name, x in vectors().items():
    at, expected = oracle(x, bits)
    x_hat = said(bits)[name]
    rows = x_hat.reshape(-1, CHUNK)
    others = rows.copy()
    np.put_along_axis(others, at, 0, axis=1)
    assert not others.any(), name  # ties as well: the first are sent
    # A value between two levels may fall to either side in float32.
    off = abs(x_hat - expected) > 1e-5 * abs(expected)
    assert off.sum() <= 0.1 * KEEP, name


@pytest.mark.parametrize('bits', helpers.tiered(BITS, (2,)))
def test_no_chunk_is_further_away_than_nothing(bits):
  for name, x in vectors().items():
    before = x.astype(float).reshape(-1, CHUNK)
    after = said(bits)[name].astype(float).reshape(-1, CHUNK)
    error, energy = ((before - after) ** 2).sum(1), (before**2).sum(1)
    assert (error <= energy * (1 + 1e-6)).all(), name
    if name in ('normal', 'student', 'ties'):  # a fair share of it is sent
      assert (error < 0.92 * energy).all(), name


@pytest.mark.parametrize(
  'd,most',
  [(97 * 4096, 10.2), (394_634, 10.2), (10**7, 10.13)],
)
def test_a_kept_value_takes_ten_bits(d, most):
  q = mj.chunked_top_k()
  payload = jax.eval_shape(q.encode, jax.ShapeDtypeStruct((d,), 'f4'), KEY)
  chunks = -(-d // 4096)
  kept = chunks * -(-64 * -(-d // chunks) // 4096)
  assert 8 * wire.nbytes(payload) / kept <= most
  assert 8 * wire.nbytes(payload) / d <= 0.161


@pytest.mark.parametrize(
  'numbers,words',
  [
    ((0, 1, 2), 'chunk=0; it must be at least 1'),
    ((8, 9, 2), 'keep=9; of a chunk of 8 take 1 to 8'),
    ((8, 0, 2), 'keep=0'),
    ((8, 4, 5), 'value_bits=5; it must be 1 to 4'),
  ],
)
def test_what_cannot_be_is_named(numbers, words):
  with pytest.raises(ValueError, match=words):
    mj.chunked_top_k(*numbers)


# ------------------------------------------------------- means of who sent it


def sparse_mean(x_hats):
  """Each value's mean over those who sent it, none above the median norm."""
  norms = np.linalg.norm(x_hats, axis=1)
  shares = np.minimum(1, np.median(norms) / np.maximum(norms, 1e-99))
  count = (x_hats != 0).sum(axis=0)
  return (shares[:, None] * x_hats).sum(axis=0) / np.maximum(count, 1)


@pytest.mark.parametrize('unit', [1.0, 1e-30, 1e30])
def test_of_senders_the_loud_are_turned_down_and_the_quiet_stay(unit):
  rng = np.random.default_rng(2)
  x = unit * np.arange(1, N + 1)[:, None] * rng.normal(size=(N, 40))
  x = np.float32(np.where(rng.uniform(size=x.shape) < 0.5, x, 0))
  mean = lambda x: (
    quantized_mean.of_senders(mj.full_precision(), x, KEY, AXIS).mean
  )
  found = jax.jit(jax.vmap(mean, axis_name=AXIS))(x)
  expected = sparse_mean(np.float64(x))
  np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6 * unit)


@functools.cache
def feedback(runner='simulated', decay=0.9):
  tx = mj.error_feedback(
    mj.chunked_top_k(CHUNK, KEEP),
    'of_senders',
    decay,
    axis_name=AXIS,
    key=KEY,
    keep=lambda leaf: False,
  )
  run = helpers.RUNNERS[runner]
  step = run(lambda g, s, k: tx.update(g, s, step=k), (0, 0, None))
  return run(tx.init, (0,)), step


@pytest.mark.slow
def test_error_feedback_of_senders_is_the_dense_oracle():
  rng = np.random.default_rng(1)
  loud = np.arange(1, N + 1)[:, None]
  grads = np.float32(loud * rng.standard_t(3, size=(N, D)))
  init, step = feedback()
  state, error = init(grads), np.zeros((N, D))
  for k in range(3):
    mean, state = step(grads, state, np.int32(k))
    p = np.float32(grads + error)
    x_hats = np.stack([oracle(row, 2)[1] for row in p])
    error = 0.9 * (p - x_hats)
    expected = sparse_mean(x_hats)
    off = abs(np.asarray(mean)[0] - expected) > 1e-4 * abs(expected) + 1e-6
    assert off.mean() < 0.01
    assert (np.asarray(mean) == np.asarray(mean)[:1]).all()
  off = abs(np.asarray(state.error) - error) > 1e-3
  assert off.mean() < 0.01


@pytest.mark.slow
def test_its_bytes_in_the_compiled_program():
  init, step = feedback('sharded')
  g = jax.ShapeDtypeStruct((N, D), np.float32)
  text = step.lower(g, jax.eval_shape(init, g), np.int32(0)).compile().as_text()
  payload = jax.eval_shape(
    mj.chunked_top_k(CHUNK, KEEP).encode,
    jax.ShapeDtypeStruct((D,), 'f4'),
    KEY,
  )
  found = [c[1:] for c in hlo.collectives(text) if c[2] > 4]
  assert found == [('u8', N * payload.size)]
