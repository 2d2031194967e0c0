"""The codec in C++ gives the bits of the jnp form, in whichever program."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import coding, gossip, native
from moniqua_jax.native import __main__ as build
from moniqua_jax.workers import AXIS
from tests import helpers

built = pytest.mark.skipif(
  not native.ready(), reason='not built: python -m moniqua_jax.native'
)
THETA, KEY = 0.01, jax.random.key(3)
RUNS = {'simulated': mj.simulated, 'sharded': mj.sharded}
# Runner, bits, digest, d: no stripes, stripes and a rest, chunks for threads.
ROUNDS = [
  ('simulated', 4, True, 9_001),
  ('sharded', 1, False, 1_023),
  ('sharded', 2, True, 70_001),
  *(('simulated', b, b % 3 > 0, 8 * 8192 + 5) for b in range(1, 9)),
  *(('sharded', b, b % 3 < 2, d) for b in (1, 6, 8) for d in (1, 8192)),
  *(('sharded', b, True, 1_000_003) for b in (2, 4, 5)),
]
OTHERS = {
  **{f'eden {b}': mj.eden(b) for b in (1, 2, 3, 4)},
  'eden 3, least error': mj.eden(3, 'least_error'),
  'rotated': mj.rotated(mj.moniqua(THETA, 4)),
  **{f'qsgd {b}': mj.qsgd(b) for b in (2, 4, 8)},
  'qsgd 4, linf': mj.qsgd(4, 77, 'linf'),
  'terngrad': mj.terngrad(clip=np.inf),
  'uniform 5': mj.uniform(5),  # XLA's codes, packed in C++
  'sign': mj.sign(),
  'nuqsgd 4': mj.nuqsgd(4),
  'qsgd 4, long': mj.qsgd(4, 8192),
  **{f'nuqsgd {b}, linf': mj.nuqsgd(b, 600, 'linf') for b in (2, 3, 8)},
}
# Runner, name, d: blocks of 1, of 4, columns of few and of many tiles.
MESSAGES = [
  ('simulated', 'eden 3', 5_000),
  ('sharded', 'nuqsgd 4', 20_001),
  ('simulated', 'uniform 5', 9_001),
  *(('simulated', name, 90_001) for name in OTHERS),
  *(('sharded', name, d) for name in OTHERS for d in (1, 50, 1_013, 300_000)),
]

# Codes of a message: one that takes nothing, and buckets of one to many values.
ABOUT = mj.nuqsgd(4, 600).codes
WORDS = {
  'recursive': (coding.recursive(), ABOUT),
  'recursive, 8 bits': (coding.recursive(), mj.qsgd(8, 70_000).codes),
  'dense': (coding.dense(), mj.qsgd(8, 77).codes),
  'dense, no zero': (coding.dense(), mj.moniqua(THETA, 4).codes),
  'huffman': (coding.huffman(0.5 ** np.arange(15)), ABOUT),
  'one by one': (coding.recursive(), ABOUT._replace(bucket_size=1)),
}
STREAMS = [
  ('simulated', 'recursive', 9_001),
  ('sharded', 'huffman', 1_023),
  *(('simulated', name, 40_001) for name in WORDS),
  *(('sharded', name, d) for name in WORDS for d in (1, 600, 300_000)),
]


def vectors(d, bits):
  """name -> f32[n, d]: near each other, and what is hard about numbers."""
  rng = np.random.default_rng(d)
  x = rng.normal(size=d) + 0.4 * THETA * rng.uniform(-1, 1, (helpers.N, d))
  x = x.astype(np.float32)

  step = np.float32(THETA) * np.float32(2 / (1 - 2.0**-bits) / 2**bits)

  def with_one(value):
    spoiled = x.copy()
    spoiled[3, d // 2] = value
    return spoiled

  return {
    'near': x,
    'turned': with_one(x[3, d // 2] + 4 * THETA),
    'not a number': with_one(np.nan),
    'infinite': with_one(-np.inf),
    'huge': with_one(1e30),
    'denormal': x * np.float32(1e-38),
    'zero': x * np.float32(-0.0),
    # About the 2^21 and 2^22 steps from which on care is needed.
    'far': x * np.float32(2.0**20 * THETA),
    'at the limit': with_one(np.float32(2.0**22) * step),
    'too far': x * np.float32(2.0**31),
  }


@built
@pytest.mark.parametrize(
  ('run', 'bits', 'digest', 'd'), helpers.tiered(ROUNDS, ROUNDS[:2])
)
def test_a_round_has_the_bits_of_the_jnp_form(
  monkeypatch, run, bits, digest, d
):
  q = mj.moniqua(THETA, bits, digest=digest)
  options = dict(topology=mj.ring(helpers.N), quantizer=q, axis_name=AXIS)

  def worker(x):
    payload, (mixed, seen) = q.encode(x, KEY), gossip.mixed(x, KEY, **options)
    return payload, q.decode(payload, x[::-1]), mixed, seen

  def both(x):
    for form in '10':
      monkeypatch.setenv('MONIQUA_NATIVE', form)
      yield worker(x)

  compiled = RUNS[run](lambda x: tuple(both(x)), (0,))
  for name, x in vectors(d, bits).items():
    got, expected = jax.tree.map(np.asarray, compiled(x))
    same = lambda a, b, name=name: np.testing.assert_array_equal(a, b, name)
    jax.tree.map(same, got, expected)
    if name == 'near':
      assert got[-1].readable.all()
    if name in ('huge', 'not a number') or digest and name == 'turned':
      assert not got[-1].readable.all()


@built
@pytest.mark.parametrize(
  ('run', 'name', 'd'), helpers.tiered(MESSAGES, MESSAGES[:3])
)
def test_a_message_has_the_bits_of_the_jnp_form(monkeypatch, run, name, d):
  q = OTHERS[name]

  def both(x, key):
    for form in '10':
      monkeypatch.setenv('MONIQUA_NATIVE', form)
      payload = jax.lax.optimization_barrier(q.encode(x, key))
      yield payload, q.decode(payload, x)

  compiled = RUNS[run](lambda x, key: tuple(both(x, key)), (0, 0))
  keys = jax.random.split(KEY, helpers.N)
  for kind, x in vectors(d, 4).items():
    (got, x_hat), (expected, value) = jax.tree.map(
      np.asarray, compiled(x, keys)
    )
    np.testing.assert_array_equal(x_hat, value, kind)
    # One NaN may have other bits than another.
    read = np.isfinite(value).all(axis=1)
    np.testing.assert_array_equal(got[read], expected[read], kind)
    assert read.sum() >= helpers.N - 1 or name == 'rotated', kind


def messages(about, d):
  """name -> codes u8[n, d]: of all kinds, few and none that take anything."""
  rng = np.random.default_rng(d)
  every = rng.integers(0, about.count, (helpers.N, d)).astype(np.uint8)
  zero = np.uint8(about.zero or 0)
  return {
    'every': every,
    'few': np.where(rng.random(every.shape) < 0.01, every, zero),
    'none': np.full_like(every, zero),
    'unknown': every | 128,  # no sender has them
  }


@built
@pytest.mark.parametrize(
  ('run', 'name', 'd'), helpers.tiered(STREAMS, STREAMS[:2])
)
def test_a_stream_has_the_bits_of_the_jnp_form(monkeypatch, run, name, d):
  code, about = WORDS[name]

  def both(codes):
    for form in '10':
      monkeypatch.setenv('MONIQUA_NATIVE', form)
      cut, _ = code.encode(codes, about, d // 4)
      stream, lengths = code.encode(codes, about, 2 * d + 8)
      yield cut, stream, lengths, code.decode(stream, lengths, about, d)

  compiled = RUNS[run](lambda codes: tuple(both(codes)), (0,))
  for kind, codes in messages(about, d).items():
    got, expected = jax.tree.map(np.asarray, compiled(codes))
    same = lambda a, b, kind=kind: np.testing.assert_array_equal(a, b, kind)
    jax.tree.map(same, got, expected)
    if kind != 'unknown':
      same(got[-1], codes)


def targets(q, platform):
  """The native functions in an encoder that is lowered for a platform."""
  exported = jax.jit(q.encode).trace(jnp.ones(9), KEY)
  text = exported.lower(lowering_platforms=(platform,)).as_text()
  return [name for name in native.FUNCTIONS if f'@{name}(' in text]


@built
@built
@pytest.mark.parametrize('name', ['moniqua 4', *OTHERS])
def test_messages_vary_over_a_mesh_as_what_is_sent(name):
  """So that a shard_map that checks it takes them, as it takes the jnp form."""
  q = OTHERS.get(name) or mj.moniqua(THETA, 4)

  def worker(x):
    key = jax.random.fold_in(KEY, jax.lax.axis_index(AXIS))
    return q.decode(q.encode(x[0], key), x[0])[None]

  mesh = jax.make_mesh((helpers.N,), (AXIS,), axis_types=(AxisType.Auto,))
  spec = PartitionSpec(AXIS)
  sent = jax.shard_map(worker, mesh=mesh, in_specs=spec, out_specs=spec)
  x = jax.ShapeDtypeStruct((helpers.N, 9_001), jnp.float32)
  assert jax.eval_shape(sent, x).shape == x.shape


def test_it_is_for_cpus_and_may_be_turned_off(monkeypatch):
  q = lambda **options: mj.moniqua(THETA, 4, **options)
  assert targets(q(), 'cpu') == ['moniqua_encode']
  assert targets(q(), 'tpu') == targets(q(), 'cuda') == []
  for other, target in (
    (mj.eden(1), 'eden_encode'),
    (mj.nuqsgd(4), 'halving'),
    (mj.qsgd(4), 'uniform'),
  ):
    assert targets(other, 'cpu') == [f'moniqua_{target}']
    assert targets(other, 'tpu') == []
  assert targets(mj.rotated(q()), 'cpu') == [
    'moniqua_encode',
    'moniqua_hadamard',
  ]
  short = mj.coded(mj.nuqsgd(4), 3).short
  coded = lambda x, key: short.shorten(mj.nuqsgd(4).encode(x, key), x.size)
  assert targets(q()._replace(encode=coded), 'cpu') == [
    'moniqua_halving',
    'moniqua_words_encode',
  ]
  for rounding in ('nearest', 'stochastic'):
    assert targets(q(rounding=rounding), 'cpu') == []
  monkeypatch.setenv('MONIQUA_NATIVE', '0')
  assert targets(q(), 'cpu') == []


def test_what_was_built_of_another_source_is_not_loaded(monkeypatch, tmp_path):
  other, before = tmp_path / 'other.cc', native.built()
  other.write_text('// Not built yet.')
  monkeypatch.setattr(native, 'SOURCES', [*native.SOURCES, other])
  assert native.built() != before and not native._loaded.__wrapped__()


def test_without_a_compiler_it_says_so_in_one_line(monkeypatch):
  for name, why in {'no-such-compiler': 'no-such', '"c++': 'closing'}.items():
    monkeypatch.setenv('CXX', name)
    with pytest.raises(SystemExit, match=f'Not built; .*{why}'):
      build.main()


@pytest.mark.parametrize('flag, status', [('--help', 0), ('--nope', 2)])
def test_it_builds_nothing_where_it_is_asked_something(
  flag, status, monkeypatch
):
  monkeypatch.setattr(build.subprocess, 'run', lambda *args, **_: 1 / 0)
  with pytest.raises(SystemExit) as ended:
    build.main([flag])
  assert ended.value.code == status
