"""Coding: the vectors of the papers, identities, and lengths against bounds."""

import functools
import itertools

import bitarray
from bitarray import util
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import coding, data, gossip, wire
from moniqua_jax.algorithms import large_leaves
from moniqua_jax.coding import bits, elias, message, prefix
from moniqua_jax.coding.huffman import codewords, least_lengths
from moniqua_jax.quantizers import base, leveled, moniqua
from moniqua_jax.training import experiment
from moniqua_jax.training import step as step_lib
from tests import coding_on_host as host
from tests import helpers

OMEGA = dict(
  pair.split(':')
  for pair in (
    '1:0 2:100 3:110 4:101000 5:101010 6:101100 7:101110 8:1110000 9:1110010 '
    '10:1110100 15:1111110 16:10100100000 17:10100100010 31:10100111110 '
    '32:101011000000 64:1011010000000 100:1011011001000 127:1011011111110 '
    '128:10111100000000 255:10111111111110 256:1110001000000000 '
    '1000:11100111111010000 1024:111010100000000000 '
    '8192:111101100000000000000 65535:11111111111111111111110 '
    '65536:1010010000100000000000000000 1000000:1010010011111101000010010000000'
  ).split()
)
LENGTHS = {  # of the numbers from each on
  1: 1, 2: 3, 4: 6, 8: 7, 16: 11, 32: 12, 64: 13, 128: 14, 256: 16, 512: 17,
  1024: 18, 2048: 19, 4096: 20, 8192: 21, 16384: 22, 32768: 23, 65536: 28,
}  # fmt: skip
WORKED = np.uint8([5, 3, 0, 3, 3, 3, 3, 3])  # 3, 0, -4, 0, ... by their norm 5
ABOUT = base.Codes(bits=3, count=7, zero=3, bucket_size=8)
NORM = '01000000101000000000000000000000'
CODES = {
  'recursive': coding.recursive(),
  'dense': coding.dense(),
  'huffman': coding.huffman([0.01, 0.06, 0.2, 0.5, 0.2, 0.03, 0.01]),
}


def text_of(stream, length):
  return ''.join(f'{byte:08b}' for byte in np.asarray(stream).tolist())[:length]


def nuqsgd_levels(bits_):
  s = 2 ** (bits_ - 1) - 2
  return np.array([0] + [2.0 ** (j - s - 1) for j in range(1, s + 2)])


def codes_of(x, levels, norm):
  """Codes of rows, rounded at random to `levels` of x / norm."""
  r = np.minimum(np.abs(x) / norm, 1)
  low = np.searchsorted(levels[1:-1], r, side='right')
  p = (r - levels[low]) / (levels[low + 1] - levels[low])
  level = low + (np.random.default_rng(1).random(x.shape) < p)
  return (np.sign(x) * level + len(levels) - 1).astype(np.uint8)


@functools.cache
def both_ways(name, about, size):
  """jitted: codes -> (stream, lengths), and the way back."""
  code, room = CODES[name], 4 * size + 8
  encode = jax.jit(lambda codes: code.encode(codes, about, room))
  decode = jax.jit(lambda stream, n: code.decode(stream, n, about, size))
  return encode, decode


# The streams.


def test_words_of_any_length_are_written_and_read():
  rng = np.random.default_rng(0)
  lengths = rng.integers(0, 33, (500, 2))
  values = [
    [int(rng.integers(2**n)) if n else 0 for n in row] for row in lengths
  ]
  text = ''.join(
    f'{value:0{n}b}'
    for row, ns in zip(values, lengths, strict=True)
    for value, n in zip(row, ns, strict=True)
    if n
  )
  size = -(-len(text) // 8)
  write = lambda size: bits.write(
    jnp.asarray(np.array(values, np.uint32)), jnp.asarray(lengths), size
  )
  assert text_of(write(size), len(text)) == text
  assert text_of(write(100), 800) == text[:800]  # the rest is lost
  positions = rng.integers(0, len(text) + 9, 50)
  expected = [int((text + '0' * 64)[p : p + 32], 2) for p in positions]
  stream = write(size)
  np.testing.assert_array_equal(
    bits.read(stream, jnp.asarray(positions)), np.uint32(expected)
  )
  everywhere = bits.read(stream, jnp.arange(8 * size))
  np.testing.assert_array_equal(bits.windows(stream), everywhere)


@pytest.mark.parametrize('count', (1, 2, 3, 7, 8, 9))
def test_follow_is_one_jump_after_another(count):
  jumps = bits.after(jnp.asarray(np.random.default_rng(0).integers(1, 9, 60)))
  at = bits.follow(jumps, jnp.array([0, 5, 60]), count)
  assert at.shape == (3, count)
  for row in np.asarray(at):
    for here, there in zip(row, row[1:], strict=False):
      assert there == jumps[here]


# Elias.


def test_omega_has_the_codewords_of_the_paper():
  @jax.jit
  def written(n):
    values, lengths = elias.omega(n)
    return bits.write(values, lengths, 8), lengths.sum()

  for n, text in OMEGA.items():
    n = int(n)
    assert elias.omega_text(n) == text
    assert host.omega_from(text + '01') == (n, len(text))
    stream, length = written(np.array([n], np.int32))
    assert text_of(stream, int(length)) == text
  starts = np.array(list(LENGTHS))
  expected = list(LENGTHS.values())
  np.testing.assert_array_equal(
    elias.omega_length(jnp.asarray(starts)), expected
  )
  ends = jnp.asarray(starts[1:] - 1)
  np.testing.assert_array_equal(elias.omega_length(ends), expected[:-1])


def test_a_million_numbers_come_back():
  rng = np.random.default_rng(0)
  n = np.concatenate(
    [
      [1, 2**31 - 1, 1, 2**30, 2**21 - 1, 2**21],
      rng.integers(1, 2**20, 500_000),
      np.exp(rng.uniform(0, np.log(2**20), 500_000)).astype(int),
    ]
  ).astype(np.int32)

  @jax.jit
  def there_and_back(n):
    values, lengths = elias.omega(n)
    stream = bits.write(values, lengths, 41 * n.size // 8)
    sums = lengths.sum(1)
    starts = jnp.cumsum(sums) - sums
    high, low = bits.read(stream, starts), bits.read(stream, starts + 32)
    return elias.omega_in(high, low), sums

  (again, lengths), sums = there_and_back(n)
  np.testing.assert_array_equal(again, n)
  np.testing.assert_array_equal(lengths, sums)
  np.testing.assert_array_equal(elias.omega_length(jnp.asarray(n)), sums)


def test_zero_has_no_codeword():
  for name in ('omega', 'omega_length'):
    with pytest.raises(ValueError, match='0 has none'):
      getattr(elias, name)(jnp.array([3, 0]))
  with pytest.raises(ValueError, match='0 has none'):
    elias.omega_text(0)


def test_expected_lengths_of_gaps():
  expected = {
    0.01: 11.97, 0.03: 9.58, 0.1: 6.33, 0.3: 3.53, 0.5: 2.38, 0.9: 1.20
  }  # fmt: skip
  gaps = np.arange(1, 5000)
  lengths = np.asarray(elias.omega_length(jnp.asarray(gaps)))
  for p, length in expected.items():
    assert abs((p * (1 - p) ** (gaps - 1) * lengths).sum() - length) < 0.006


# Messages.


def test_the_worked_buckets_bit_for_bit():
  sparse, counted, dense = (
    '001001001110',
    '110001001001110',
    '11000101000100000',
  )
  assert (len(sparse), len(counted), len(dense)) == (44 - 32, 47 - 32, 49 - 32)
  for form, text in (
    (host.SPARSE, sparse),
    (host.COUNTED, counted),
    (host.DENSE, dense),
  ):
    data = host.to_bytes(np.float32([5]), WORKED, ABOUT, form)
    assert data == bitarray.bitarray(NORM + text).tobytes()
    norms, codes = host.from_bytes(data, 8, ABOUT, form, [len(text)])
    np.testing.assert_array_equal(codes, WORKED)
    assert norms == 5
  for name, text in (('recursive', sparse), ('dense', dense)):
    stream, lengths = both_ways(name, ABOUT, 8)[0](WORKED)
    assert text_of(stream, int(lengths[0])) == text
    assert lengths == CODES[name].length(WORKED, ABOUT)
  assert coding.counted_length(WORKED, ABOUT) == len(counted)
  payload = jnp.concatenate(
    [wire.pack(jnp.asarray(WORKED), 3), wire.to_bytes(jnp.float32(5))]
  )
  q = mj.full_precision()._replace(codes=ABOUT)
  assert coding.coded_bits(q, payload, 8) == 44
  assert coding.coded_bits(q, payload, 8, coding.dense()) == 49


MESSAGES = {
  'zeros': lambda rng, size: np.full(size, 3),
  'no zero': lambda rng, size: rng.choice([0, 1, 2, 4, 5, 6], size),
  'any': lambda rng, size: rng.integers(0, 7, size),
  'sparse': lambda rng, size: np.where(rng.random(size) < 0.03, 6, 3),
  'last only': lambda rng, size: np.append(np.full(size - 1, 3), 0),
}


@pytest.mark.parametrize('name', CODES)
@pytest.mark.parametrize('size', (1, 75))
def test_every_bucket_comes_back(name, size):
  about = ABOUT._replace(bucket_size=20)
  encode, decode = both_ways(name, about, size)
  for make in MESSAGES.values():
    codes = make(np.random.default_rng(size), size).astype(np.uint8)
    stream, lengths = encode(codes)
    assert lengths.shape == (-(-size // 20),)
    again = decode(stream, lengths)
    np.testing.assert_array_equal(again, codes)
    assert again.dtype == jnp.uint8


@pytest.mark.parametrize('name', CODES)
def test_nothing_is_a_message_too(name):
  stream, lengths = CODES[name].encode(jnp.zeros(0, jnp.uint8), ABOUT, 0)
  assert stream.shape == lengths.shape == (0,)
  assert CODES[name].decode(stream, lengths, ABOUT, 0).shape == (0,)


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
  st.lists(st.integers(0, 6), min_size=75, max_size=75),
  st.sampled_from([*CODES]),
)
def test_any_message_comes_back(codes, name):
  encode, decode = both_ways(name, ABOUT._replace(bucket_size=20), 75)
  codes = np.uint8(codes)
  stream, lengths = encode(codes)
  np.testing.assert_array_equal(decode(stream, lengths), codes)


def test_the_host_writes_the_same_message():
  about, size = ABOUT._replace(bucket_size=20), 75
  codes = MESSAGES['any'](np.random.default_rng(0), size).astype(np.uint8)
  norms = np.float32([1, 0, np.inf, 3e-39])
  for form, code in ((host.SPARSE, 'recursive'), (host.DENSE, 'dense')):
    stream, lengths = both_ways(code, about, size)[0](codes)
    text, start = '', 0
    for norm, length in zip(norms, np.asarray(lengths), strict=True):
      text += f'{norm.view(np.uint32):032b}'
      text += text_of(stream, start + length)[start:]
      start += length
    data = host.to_bytes(norms, codes, about, form)
    assert data == bitarray.bitarray(text).tobytes()
    back = host.from_bytes(data, size, about, form, lengths)
    np.testing.assert_array_equal(back[0], norms)
    np.testing.assert_array_equal(back[1], codes)
  data = host.to_bytes(norms, codes, about)
  total = 32 * 4 + int(coding.counted_length(codes, about).sum())
  assert len(data) == -(-total // 8)
  np.testing.assert_array_equal(host.from_bytes(data, size, about)[1], codes)


def test_a_long_bucket_of_wide_codes():
  # Gaps of 28 bits, and signs and levels of up to 15: two words.
  about, size = base.Codes(8, 255, 127, 2**20), 70_001
  codes = np.full(size, 127, np.uint8)
  codes[[66_000, -1]] = 0, 254
  code = coding.recursive()
  stream, lengths = code.encode(codes, about, 20)
  assert int(lengths[0]) == 28 + 1 + 13 + 19 + 1 + 13
  again = code.decode(stream, lengths, about, size)
  np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize('zero, count', ((None, 8), (None, 7), (127, 255)))
def test_dense_codes_of_any_grid(zero, count):
  about = base.Codes((count - 1).bit_length(), count, zero, 60)
  codes = np.random.default_rng(0).integers(0, count, 100).astype(np.uint8)
  code = coding.dense()
  stream, lengths = code.encode(jnp.asarray(codes), about, 300)
  again = code.decode(stream, lengths, about, 100)
  np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize(
  'bits_, bucket, norm, expected',
  (
    (4, 512, 'l2', 4.23),
    (4, 8192, 'l2', 2.32),
    (3, 512, 'l2', 1.09),
    (3, 8192, 'l2', 0.40),
    (4, 8192, 'linf', 3.66),
  ),
)
def test_bits_per_value_of_gaussian_messages(bits_, bucket, norm, expected):
  x = np.random.default_rng(0).normal(size=(65536 // bucket, bucket))
  if norm == 'l2':
    levels, norms = nuqsgd_levels(bits_), np.linalg.norm(x, axis=1)
  else:
    levels, norms = np.linspace(0, 1, 8), np.abs(x).max(1)
  codes = codes_of(x, levels, norms[:, None]).reshape(-1)
  about = base.Codes(bits_, 2**bits_ - 1, 2 ** (bits_ - 1) - 1, bucket)
  lengths = coding.recursive().length(codes, about)
  assert float(lengths.mean() + 32) / bucket == pytest.approx(
    expected, rel=0.05
  )
  least = float(coding.entropy(jnp.asarray(codes), about))
  assert least < expected
  if (bits_, bucket, norm) == (4, 8192, 'l2'):
    assert least == pytest.approx(1.75, rel=0.01)
    p = coding.level_probabilities(
      leveled_signed(levels), coding.normal(0, bucket**-0.5)
    )
    counts = np.bincount(codes, minlength=15) / codes.size
    np.testing.assert_allclose(p, counts, atol=0.004)
    length = float(coding.huffman(p).length(codes, about).sum()) / codes.size
    assert least < length < least + 0.2


def leveled_signed(levels):
  return np.concatenate([-levels[:0:-1], levels])


# Huffman and entropy.


@pytest.mark.parametrize('kind', ('random', 'steep', 'zeros', 'one'))
def test_huffman_is_within_a_bit_of_the_entropy(kind):
  rng = np.random.default_rng(0)
  weights = {
    'random': rng.dirichlet(np.ones(15)),
    'steep': 0.5 ** np.arange(60),
    'zeros': np.float64([0, 0, 0.3, 0.7, 0]),
    'one': np.float64([2]),
  }[kind]
  words = codewords(weights)
  lengths = np.array([len(word) for word in words])
  assert 1 <= lengths.min() and lengths.max() <= 16
  prefix.prefix(words)  # none begins another
  p = weights / weights.sum()
  entropy = -(p[p > 0] * np.log2(p[p > 0])).sum()
  assert entropy - 1e-9 <= (p * lengths).sum() <= entropy + 1


def test_huffman_writes_what_bitarray_writes():
  p = np.random.default_rng(0).dirichlet(np.ones(15))
  codes = np.random.default_rng(1).choice(15, 300, p=p).astype(np.uint8)
  about = base.Codes(4, 15, 7, 90)
  code = coding.huffman(p)
  stream, lengths = code.encode(jnp.asarray(codes), about, 200)
  words, counts, symbols = util.canonical_huffman(dict(enumerate(p.tolist())))
  expected = bitarray.bitarray()
  expected.encode(words, codes.tolist())
  assert int(lengths.sum()) == len(expected)
  assert text_of(stream, len(expected)) == expected.to01()
  assert (
    list(util.canonical_decode(expected, counts, symbols)) == codes.tolist()
  )
  again = code.decode(stream, lengths, about, 300)
  np.testing.assert_array_equal(again, codes)


def least_bits(p, longest):
  """The least p @ lengths: how many words end at each depth, by trying all."""
  p = np.sort(p)[::-1]
  rest = np.append(p[::-1].cumsum()[::-1], 0)  # of all from i on
  n, inf = len(p), np.inf
  # cost[i, a]: i words are done, and a nodes are at this depth.
  cost = np.where(np.arange(n + 1)[:, None] < n, inf, np.zeros((n + 1, n + 1)))
  for _ in range(longest):
    new = np.full_like(cost, inf)
    new[n] = 0
    for i, k in itertools.combinations_with_replacement(range(n + 1), 2):
      inner = np.arange(n + 1 - (k - i))  # i to k - 1 end here
      below = cost[k, np.minimum(2 * inner, n)]
      new[i, k - i :] = np.minimum(new[i, k - i :], rest[k] + below)
    cost = new
  return rest[0] + cost[0, 2]


@pytest.mark.parametrize('count, longest', [(2, 1), (4, 3), (6, 3), (6, 5)])
def test_package_merge_is_the_best_of_all_lengths(count, longest):
  rng = np.random.default_rng(count)
  every = itertools.product(range(1, longest + 1), repeat=count)
  every = np.array([ns for ns in every if sum(2.0**-n for n in ns) <= 1])
  for p in rng.dirichlet(np.full(count, 0.2), 30):
    p[rng.random(count) < 0.2] = 0
    least = (every @ p).min()
    np.testing.assert_allclose(p @ least_lengths(p, longest), least, 1e-12)
    np.testing.assert_allclose(least_bits(p, longest), least, 1e-12)


def fibonacci(count):
  weights = [1.0, 1.0]
  while len(weights) < count:
    weights.append(weights[-1] + weights[-2])
  return np.array(weights)


EXTREME = {
  'fibonacci': fibonacci(60),
  'steep': 0.5 ** np.arange(60),
  'steeper': 0.01 ** np.arange(40),
  'zeros': np.append(np.zeros(30), fibonacci(30)),
  'two': np.array([1e-300, 1]),
  'fibonacci, 256 symbols': fibonacci(256),
  'narrow, 255 symbols': coding.level_probabilities(
    np.linspace(-1, 1, 255), coding.normal(0, 0.011)
  ),
  'zeros, 256 symbols': np.append(np.zeros(255), 1),
}


@pytest.mark.parametrize(
  'name',
  helpers.tiered(EXTREME, [name for name in EXTREME if 'symbols' not in name]),
)
def test_no_code_of_16_bits_is_shorter(name):
  p = EXTREME[name] / EXTREME[name].sum()
  lengths = np.array([len(word) for word in codewords(EXTREME[name])])
  assert lengths.max() <= 16
  np.testing.assert_allclose(p @ lengths, least_bits(p, 16), 1e-12)


def test_package_merge_of_256_symbols_meets_every_bound():
  for name, weights in EXTREME.items():
    p = weights / weights.sum()
    best = p @ least_lengths(p, 16)
    assert best <= p @ least_lengths(p, 15)
    words = codewords(weights)
    prefix.prefix(words)  # none begins another
    assert sum(2.0 ** -len(word) for word in words) == 1, name
    assert p @ [len(word) for word in words] <= best + 1e-12, name


def test_words_of_ordinary_tables_are_those_of_bitarray():
  rng = np.random.default_rng(0)
  tables = [rng.dirichlet(np.ones(n)) for n in (2, 3, 15, 31, 255)]
  for p in (*tables, np.ones(8), np.float64([1, 1, 2, 2, 3])):
    words, _, _ = util.canonical_huffman(dict(enumerate(p.tolist())))
    assert codewords(p) == tuple(words[k].to01() for k in range(len(p)))
  assert codewords([3]) == ('0',)


def test_more_symbols_than_codes_are_refused():
  with pytest.raises(ValueError, match='300 probabilities; .* at most 256'):
    coding.huffman(np.ones(300))


@pytest.mark.parametrize('code', [coding.dense(), coding.huffman(np.ones(255))])
def test_a_bucket_whose_bits_an_i32_cannot_count_is_refused(code):
  count = lambda size: jax.eval_shape(
    lambda codes: code.length(codes, base.Codes(8, 255, 127, size)),
    jax.ShapeDtypeStruct((size,), np.uint8),
  )
  assert count(2**27).shape == (1,)
  with pytest.raises(ValueError, match='bucket_size=268435456: .*before bit 2'):
    count(2**28)


def test_level_probabilities_are_integrals():
  levels = np.array([-1, -0.3, 0, 0.1, 1])
  r = np.random.default_rng(0).normal(0.05, 0.4, 400_000)
  r = r[np.abs(r) < 1]
  p = coding.level_probabilities(levels, coding.truncated_normal(0.05, 0.4))
  share = [np.interp(r, levels, row).mean() for row in np.eye(5)]
  np.testing.assert_allclose(p, share, atol=0.003)
  assert p.sum() == pytest.approx(1)
  outside = coding.level_probabilities((-1, 0, 1), coding.normal(0, 1e6))
  np.testing.assert_allclose(outside, [0.5, 0, 0.5], atol=1e-5)


def test_entropy_of_codes():
  even = jnp.arange(8, dtype=jnp.uint8)
  plain = coding.entropy(even, base.Codes(3, 8, None, 8))
  assert plain == pytest.approx(3, rel=1e-6)
  zeros = jnp.full(8, 3, jnp.uint8)
  assert coding.entropy(zeros, ABOUT) == 0
  # Levels 0, 1, 2 of probability 1/2, 1/4, 1/4, and a sign for each second.
  codes = jnp.uint8([3, 3, 3, 3, 4, 2, 5, 1])
  signed = jax.jit(lambda c: coding.entropy(c, ABOUT))(codes)
  assert signed == pytest.approx(2, rel=1e-6)


# Coded quantizers.


QUANTIZER = leveled(nuqsgd_levels(3), bucket_size=64)
encoded = jax.jit(lambda x: QUANTIZER.encode(x, jax.random.key(0)))


def gaussian(size):
  return np.random.default_rng(3).normal(size=size).astype(np.float32)


@pytest.mark.parametrize('name', CODES)
def test_restore_undoes_shorten(name):
  code, size = CODES[name], 200
  q = coding.coded(QUANTIZER, 2.25, code)
  room = 57 + 4 * 4 + 4 * 4  # stream, bits of every bucket, norms
  assert q.short.capacity(size) == room
  shorten = jax.jit(lambda payload: q.short.shorten(payload, size))
  restore = jax.jit(lambda short: q.short.restore(short, size))
  length = jax.jit(lambda payload: coding.coded_bits(q, payload, size, code))
  sparse = np.where(gaussian(size) > 1, gaussian(size), 0)
  infinite = np.where(sparse > 0, np.float32(np.inf), sparse)
  even = np.ones_like(sparse)
  fitting = 0
  for x in (gaussian(size), sparse, 0 * sparse, infinite, even):
    payload = encoded(x)
    short, fits = shorten(payload)
    assert short.dtype == jnp.uint8 and short.shape == (room,)
    assert bool(fits) == (length(payload) - 32 * 4 <= 8 * 57)
    if fits:
      np.testing.assert_array_equal(restore(short), payload)
      fitting += 1
  assert fitting >= 2


def test_what_does_not_fit_is_said():
  code, size = CODES['huffman'], 200
  payload = encoded(gaussian(size))
  total = float(coding.coded_bits(QUANTIZER, payload, size, code)) - 32 * 4
  for spare, expected in ((0, True), (-8, False), (-300, False)):
    capacity = (8 * -(-total // 8) + spare) / size
    q = coding.coded(QUANTIZER, capacity, code)
    fits = jax.jit(lambda payload, q=q: q.short.shorten(payload, size)[1])
    assert bool(fits(payload)) == expected
  # Code 7 of 7 codes, which no encoder sends, has no codeword.
  q = coding.coded(QUANTIZER, 2.9, code)
  fits = jax.jit(lambda payload: q.short.shorten(payload, size)[1])
  codes = wire.unpack(payload[:75], 3, size)
  wrong = wire.pack(codes.at[5].set(7), 3)
  assert fits(payload)
  assert not fits(jnp.append(wrong, payload[75:]))


def test_coded_under_vmap_and_shard_map():
  q, size = coding.coded(QUANTIZER, 2.9), 100
  x = np.stack([np.roll(gaussian(size), k) * (k > 0) for k in range(4)])
  payloads = jnp.stack([encoded(row) for row in x])

  def there_and_back(payload):
    short, fits = q.short.shorten(payload, size)
    return q.short.restore(short, size), fits

  def check(mapped):
    again, fits = jax.jit(mapped)(payloads)
    np.testing.assert_array_equal(again, payloads)
    assert fits.all()

  check(jax.vmap(there_and_back))
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((4,), ('worker',), axis_types=auto)
  spec = jax.sharding.PartitionSpec('worker')
  one = lambda p: jax.tree.map(lambda x: x[None], there_and_back(p[0]))
  check(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec))


def test_moving_levels_are_coded_too():
  tuned = base.scheduled(
    lambda number: leveled(jnp.array([-1.0, -0.3, 0.3, 1.0]) * number, 64),
    lambda step: 1.0,
  )
  size, x = 100, gaussian(100)
  wrapped = coding.coded(tuned, 1.9, coding.huffman([0.1, 0.4, 0.4, 0.1]))

  @jax.jit
  def there_and_back(key):
    q = wrapped.quantizer(wrapped.init(), jnp.int32(0))
    payload = q.encode(x, key)
    short, fits = q.short.shorten(payload, size)
    assert short.size == q.short.capacity(size)
    return payload, q.short.restore(short, size), fits

  payload, again, fits = there_and_back(jax.random.key(0))
  np.testing.assert_array_equal(again, payload)
  assert fits


def test_what_cannot_be_coded_is_refused():
  with pytest.raises(ValueError, match='cannot be coded'):
    coding.coded(mj.full_precision(), 2)
  with pytest.raises(ValueError, match='cannot be coded'):
    coding.coded_bits(mj.full_precision(), jnp.zeros(4), 1)
  for capacity in (0, 3, 5.5):
    with pytest.raises(ValueError, match='below the 3 bits'):
      coding.coded(QUANTIZER, capacity)
  with pytest.raises(ValueError, match='without a zero level'):
    coding.coded(leveled((0.5, 1)), 1.5)
  with pytest.raises(ValueError, match='at most 2097151'):
    coding.coded(leveled((0, 0.5, 1), bucket_size=2**22), 1.5)
  with pytest.raises(ValueError, match='3 probabilities for 7'):
    coding.coded(QUANTIZER, 2, coding.huffman([1, 2, 3]))
  with pytest.raises(ValueError, match='below 0'):
    coding.huffman([0.5, -0.5])
  with pytest.raises(ValueError, match='begins another'):
    prefix.prefix(['0', '01'])
  with pytest.raises(ValueError, match='before 2\\^31'):
    coding.coded(QUANTIZER, 2.9).short.capacity(10**9)
  modulo = moniqua(1.0, bits=4)._replace(codes=base.Codes(4, 16, None, 8192))
  assert coding.coded(modulo, 3.9, message.dense()).short


# ---------------------------------------------------------- a real gradient


@functools.cache
def gradient_of_the_digits():
  """f32[9472], the large leaves of the digits' net at its start."""
  built = experiment.from_config(digits.get_config('allreduce'))
  batch = data.batch(*built.data, seed=0, step=0, batch_size=16)
  batch = {name: value[0] for name, value in batch.items()}
  params, unravel = gossip.flatten(built.model.variables['params'])
  _, grads = step_lib.make_gradient(built)(params, {}, batch)
  return large_leaves.split(unravel(grads), large_leaves.small)[0]


@pytest.mark.parametrize(
  'kind,bucket_size,name',
  helpers.tiered(
    [
      (kind, size, name)
      for kind in ('nuqsgd', 'qsgd')
      for size in (512, 8192)
      for name in ('recursive', 'dense')
    ],
    [('nuqsgd', 512, 'recursive')],
  ),
)
def test_every_bucket_of_a_real_gradient(kind, bucket_size, name):
  x, q = gradient_of_the_digits(), getattr(mj, kind)(4, bucket_size)
  packed = wire.packed_size(x.size, 4)
  payload = jax.jit(q.encode)(x, jax.random.key(0))
  codes = wire.unpack(payload[:packed], 4, x.size)
  encode, decode = both_ways(name, q.codes, x.size)
  stream, lengths = encode(codes)
  np.testing.assert_array_equal(decode(stream, lengths), codes)
  length = jax.jit(CODES[name].length, static_argnums=1)
  np.testing.assert_array_equal(lengths, length(codes, q.codes))
  assert len(lengths) == -(-x.size // bucket_size)
