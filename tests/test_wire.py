"""The wire against NumPy: planes, sizes, and the bytes of numbers."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moniqua_jax import arguments, wire
from tests.helpers import tiered

BITS = range(1, 9)
SIZES = (0, 1, 2, 7, 8, 9, 1000, 4097, 8192, 9001)


def packed_by_hand(codes, bits):
  """Whole tiles, 1024 codes of each stripe at a time, and then the rest."""
  narrowest = next(w for w in (1, 2, 4, 8) if bits & w)
  tiles = 1024 * 8 // narrowest
  whole = len(codes) // tiles * tiles
  packed = [
    packed_planes(part, bits) for part in (codes[:whole], codes[whole:])
  ]
  return np.concatenate(packed)


def packed_planes(codes, bits):
  """One code at a time: bit j*w of byte i holds code j*m + i of a plane."""
  planes, low = [], 0
  for w in (8, 4, 2, 1):
    if not bits & w:
      continue
    m = -(-len(codes) * w // 8)
    plane = [0] * m
    for index, code in enumerate(codes):
      stripe, byte = divmod(index, m)
      plane[byte] |= (int(code) >> low) % 2**w << stripe * w
    planes += plane
    low += w
  return np.array(planes, np.uint8)


@functools.cache
def there_and_back(bits, size):
  """Codes -> packed, and unpacked again."""
  packed = lambda codes: jax.lax.optimization_barrier(wire.pack(codes, bits))
  unpacked = (wire.unpack, wire.unpack_in_place)
  back = lambda packed: (packed, *(u(packed, bits, size) for u in unpacked))
  return jax.jit(lambda codes: back(packed(codes)))


def check_codes(codes, bits):
  packed, again, in_place = there_and_back(bits, codes.size)(codes)
  np.testing.assert_array_equal(packed, packed_by_hand(codes, bits))
  assert packed.dtype == jnp.uint8
  assert packed.shape == (wire.packed_size(codes.size, bits),)
  np.testing.assert_array_equal(again, codes)
  np.testing.assert_array_equal(in_place, codes)
  assert again.dtype == in_place.dtype == jnp.uint8


@pytest.mark.parametrize('size', tiered(SIZES, (0, 1, 9, 1000, 4097, 9001)))
@pytest.mark.parametrize('bits', BITS)
def test_pack_is_the_plane_layout_and_unpack_its_inverse(bits, size):
  rng = np.random.default_rng(size)
  check_codes(rng.integers(0, 2**bits, size, dtype=np.uint8), bits)
  check_codes(np.full(size, 2**bits - 1, np.uint8), bits)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(st.data(), st.sampled_from(BITS))
def test_unpack_inverts_pack_for_any_codes(data, bits):
  code = st.integers(0, 2**bits - 1)
  codes = data.draw(st.lists(code, max_size=20))
  check_codes(np.array(codes, np.uint8), bits)


def test_split_reads_what_join_wrote_and_refuses_another_length():
  codes, norms = np.arange(9, dtype=np.uint8) % 8, np.float32([1.5, -2.0])
  payload = wire.join(codes, 3, norms, np.uint8([7]))
  for behind in (None, 9):
    found, rest = wire.split(payload, 3, 9, behind)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(rest, [*norms.tobytes(), 7])
  with pytest.raises(ValueError, match=r'14 bytes.* 9 values'):
    wire.split(payload, 3, 9, 8)


@pytest.mark.parametrize('bits', BITS)
def test_parts_are_stripes_of_whole_tiles_and_one_rest(bits):
  narrowest = next(w for w in (1, 2, 4, 8) if bits & w)
  for size in (*SIZES, 8191, 16_384, 100_000):
    cuts = wire.parts(size, bits)
    lengths = [stop - start for start, stop in cuts]
    assert all(lengths) and sum(lengths) == size
    assert [start for start, _ in cuts] == [*np.cumsum([0, *lengths])][:-1]
    stripes = lengths[: 8 // narrowest] if size >= 1024 * 8 // narrowest else []
    assert len({*stripes}) <= 1 and not any(n % 1024 for n in stripes)
    assert sum(lengths[len(stripes) :]) < 1024 * 8 // narrowest


@pytest.mark.parametrize('bits', [3, 6, 7])
def test_long_vectors_are_packed_in_chunks_as_in_one(bits, monkeypatch):
  size = 150_001
  codes = np.random.default_rng(bits).integers(0, 2**bits, size, np.uint8)
  packed, again, _ = there_and_back(bits, size)(codes)
  np.testing.assert_array_equal(again, codes)
  monkeypatch.setenv('MONIQUA_NATIVE', '0')
  pack = jax.jit(lambda codes: wire.pack(codes, bits))
  np.testing.assert_array_equal(packed, pack(codes))


@pytest.mark.parametrize('bits', BITS)
def test_cuts_are_the_ends_of_whole_stripes(bits):
  for size in (1000, 8192, 100_000):
    codes = np.zeros(size, np.uint8)
    first, *_ = wire.parts(size, bits)
    *stripes, behind = np.split(wire.pack(codes, bits), wire.cuts(size, bits))
    assert {piece.size for piece in stripes} <= {first[1] - first[0]}
    assert behind.size < wire.TILE * bits  # no whole stripe is left


@pytest.mark.parametrize('value', [0, 1.5, float('nan')])
def test_a_share_is_above_0_and_at_most_1(value):
  assert arguments.share(1, '{}') == 1.0
  with pytest.raises(ValueError, match=f'gamma={value!r}'):
    arguments.share(value, 'gamma={}')


@pytest.mark.parametrize('size', [9, 9001])
def test_too_few_bytes_are_refused(size):
  packed = jnp.zeros(wire.packed_size(size, 3) - 1, jnp.uint8)
  with pytest.raises(ValueError, match=f'a message of {size} values has'):
    wire.unpack(packed, 3, size)


@pytest.mark.parametrize('bits', BITS)
def test_packed_size_is_the_least_or_two_bytes_more(bits):
  for size in (*range(100), *SIZES, 11_689_512):
    least = -(-size * bits // 8)
    extra = wire.packed_size(size, bits) - least
    assert 0 <= extra <= (0 if bits in (1, 2, 4, 8) else 2)


@pytest.mark.parametrize('bits', [0, 9, -1, 2.5, True, '4', None])
def test_bits_outside_1_to_8_are_refused_by_value(bits):
  codes = jnp.zeros(8, jnp.uint8)
  for call in (
    lambda: wire.planes(bits),
    lambda: wire.packed_size(8, bits),
    lambda: wire.pack(codes, bits),
    lambda: wire.unpack(codes, bits, 8),
  ):
    with pytest.raises(ValueError, match=f'bits={bits!r};'):
      call()


def test_an_index_takes_as_few_bytes_as_the_last_one_needs():
  for count, expected in ((1, 1), (256, 1), (257, 2), (65536, 2), (65537, 3)):
    assert wire.index_bytes(count) == expected


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_planes_of_numbers_are_their_bytes_and_come_back(count):
  ends = [0, 1, 255, 256, 65_535, 65_536, 0x89ABCDEF, 2**32 - 1]
  numbers = np.uint32([number % 256**count for number in ends])
  expected = numbers.astype('<u4').view(np.uint8).reshape(-1, 4).T[:count]
  there = lambda x: jax.lax.optimization_barrier(wire.to_planes(x, count))
  both = lambda x: (there(x), wire.from_planes(there(x), count))
  sent, received = jax.jit(both)(numbers)
  np.testing.assert_array_equal(sent, expected.ravel())
  np.testing.assert_array_equal(received, numbers)


@pytest.mark.parametrize('bits', [3, 8, 10, 17, 31])
def test_numbers_of_any_bits_come_back(bits):
  numbers = np.random.default_rng(bits).integers(2**bits, size=1001)
  numbers = np.append(numbers, 2**bits - 1).astype(np.uint32)
  sent = wire.to_bits(jnp.asarray(numbers), bits)
  assert sent.size == wire.bits_size(numbers.size, bits)
  assert 0 <= sent.size - -(-numbers.size * bits // 8) <= 2
  np.testing.assert_array_equal(
    wire.from_bits(sent, bits, numbers.size), numbers
  )


def test_what_exceeds_the_rest_of_codes_is_left_out():
  codes = np.random.default_rng(0).integers(16, size=9001, dtype=np.uint8)
  parts = [codes[start:stop] for start, stop in wire.parts(9001, 4)]
  parts[-1] = np.append(parts[-1], np.full(7, 15, np.uint8))
  packed = wire.pack_parts([jnp.asarray(part) for part in parts], 4, 9001)
  np.testing.assert_array_equal(
    np.concatenate(packed), packed_by_hand(codes, 4)
  )


# Zeros of both signs, infinities, subnormals, and NaNs quiet and signalling
# that carry a payload.
WORDS = np.array(
  [
    *(0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x00000001, 0x807FFFFF),
    *(0x7FC00000, 0x7F800001, 0xFFC12345, 0x7FFFFFFF, 0x3F800000, 0xDEADBEEF),
  ],
  np.uint32,
)


@pytest.mark.parametrize('shape', [(), (1,), (12,), (2, 3, 2)])
@pytest.mark.parametrize('dtype', ['float32', 'uint32', 'int32'])
def test_bytes_of_numbers_are_little_endian_and_come_back(dtype, shape):
  for start in range(WORDS.size):
    words = np.roll(WORDS, start)[: np.prod(shape, dtype=int)].reshape(shape)
    sent = wire.to_bytes(jnp.asarray(words.view(dtype)))
    expected = np.frombuffer(words.astype('<u4').tobytes(), np.uint8)
    np.testing.assert_array_equal(sent, expected)
    assert sent.dtype == jnp.uint8
    received = wire.from_bytes(sent, dtype, shape)
    assert received.dtype == dtype and received.shape == shape
    np.testing.assert_array_equal(np.asarray(received).view(np.uint32), words)


def test_nbytes_counts_arrays_and_shapes():
  u8 = jnp.zeros(7, jnp.uint8)
  f32 = jax.ShapeDtypeStruct((3, 5), jnp.float32)
  assert wire.nbytes(u8) == 7
  assert wire.nbytes(f32) == 60
  assert wire.nbytes({'a': (u8, f32), 'b': [jnp.zeros((), jnp.int32)]}) == 71
  assert wire.nbytes(()) == 0
