"""Text: windows that foretell each symbol once, and nothing held out."""

import math
import shutil
import sys
import zlib

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import text as texts
from moniqua_jax import data
from moniqua_jax.models.functional import nnx_model
from moniqua_jax.models.transformer import rotated, transformer
from moniqua_jax.training import (
  experiment,
  loop,
  metrics,
  resolve,
  same_run,
  summary,
  tasks,
)
from tests import trained

T = 16
DOCUMENTS = {
  'b/one.txt': 'the cat sat on the mat, ' * 20,
  'a.txt': 'ÄÖÜ was it a rat I saw? ' * 12,
  'c.txt': 'x' * 95,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('texts')
  for name, text in DOCUMENTS.items():
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text, 'utf-8-sig')  # with a mark, as of Windows
  (root / '.hidden').write_bytes(b'\xff')
  return root


def halves(folder):
  """What is learned of and what is held out, in the order of the names."""
  texts = [DOCUMENTS[name] for name in sorted(DOCUMENTS)]
  cut = [(t[: int(0.9 * len(t))], t[int(0.9 * len(t)) :]) for t in texts]
  return tuple(''.join(parts) for parts in zip(*cut, strict=True))


@pytest.mark.parametrize('symbols', ['bytes', 'characters'])
def test_a_pass_foretells_each_symbol_once(folder, symbols):
  dataset = data.text(folder, window=T, symbols=symbols)
  for source, want in zip(
    (dataset.train, dataset.test), halves(folder), strict=True
  ):
    rows, _ = source.read(np.arange(len(source.labels)))
    windows = dataset.preprocess(rows)
    assert windows.shape[1] == T + 1 and windows.dtype == np.int32
    np.testing.assert_array_equal(windows[1:, 0], windows[:-1, -1])
    row = [windows[0, 0], *windows[:, 1:].ravel()]
    text = want.encode() if symbols == 'bytes' else want
    assert 0 <= len(text) - len(row) < T
    shown = dataset.text.shown(row)
    assert want.startswith(shown.rstrip('\ufffd'))
  assert dataset.num_classes == (
    256 if symbols == 'bytes' else len({*''.join(DOCUMENTS.values())})
  )
  held_out = halves(folder)[1]
  many = len(held_out.encode() if symbols == 'bytes' else held_out)
  assert dataset.text.per_character == many / len(held_out)


def test_windows_move_in_training_and_see_nothing_that_is_held_out(folder):
  dataset = data.text(folder, window=T, symbols='characters')
  learned, _ = halves(folder)
  rows, _ = dataset.train.read(np.arange(len(dataset.train.labels)))
  seen = set()
  for seed in range(20):
    for window in dataset.augment(np.random.default_rng(seed), rows):
      text = dataset.text.shown(window)
      assert text in learned
      seen.add(text)
  assert len(seen) > len(rows)


def test_a_window_has_the_label_of_its_document(folder):
  dataset = data.text(folder, window=T, symbols='characters')
  starts = dataset.train.read(np.arange(len(dataset.train.labels)))[0][:, 0]
  ends = np.cumsum([int(0.9 * len(DOCUMENTS[n])) for n in sorted(DOCUMENTS)])
  expected = [int((start >= ends).sum()) for start in starts]
  assert dataset.train.labels.tolist() == expected == sorted(expected)
  shards = data.sorted_by_label(dataset.train.labels, 3)
  assert all(np.diff(shard).max() == 1 for shard in shards)


def test_the_text_that_comes_with_python():
  dataset = data.text()
  assert dataset.text.origin == 'pydoc_data.topics'
  assert len(dataset.text.sha256) == 64
  packed = zlib.compress(dataset.text.held_out.encode(), 9)
  bits = 8 * len(packed) / len(dataset.text.held_out)
  assert 2 < bits < 3 and dataset.text.packed()['zlib'] == bits
  assert data.text(window=64).text.sha256 == dataset.text.sha256


def test_compressors_get_no_more_of_a_long_text_than_takes_seconds(
  folder, monkeypatch
):
  about = data.text(folder, window=T).text
  short = about._replace(held_out=about.held_out[:50]).packed()
  monkeypatch.setattr(sys.modules[data.text.__module__], 'PACKED', 50)
  assert about.packed() == short


@pytest.mark.parametrize(
  ('entries', 'said'),
  [
    (dict(window=0), 'window=0; it must be 1 or more'),
    (dict(symbols='words'), "symbols='words'; choose from .*bytes.*characters"),
    (dict(path='/nowhere'), "path='/nowhere' is no file, and no folder"),
    (dict(path=''), "path='' is no file, .* comes with Python"),
    (dict(window=10**7), 'pydoc_data.topics has .* take a longer text'),
  ],
)
def test_what_is_refused(entries, said):
  with pytest.raises(ValueError, match=said):
    data.text(**entries)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
  (tmp_path / 'latin.txt').write_bytes('Ä'.encode('latin-1') * 100)
  with pytest.raises(ValueError, match='latin.txt is not UTF-8'):
    data.text(tmp_path)


def test_a_link_to_a_folder_is_a_folder(folder, tmp_path):
  (tmp_path / 'there').symlink_to(folder)
  (tmp_path / 'round').symlink_to(tmp_path)
  of = [data.text(path, window=T).text.sha256 for path in (folder, tmp_path)]
  assert of[0] == of[1]


# ---------------------------------------------------------------- the decoder

SIZES = dict(num_classes=11, width=8, layers=2, heads=2)


def in_numpy(params, tokens, mlp='swiglu'):
  """The decoder in float64, as its papers have it, one window at a time."""
  norm = lambda x, p: (
    x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p['scale']
  )
  turn = lambda t, half: np.exp(1j * t / 10_000 ** (np.arange(half) / half))

  def attend(x, p):
    q, k, v = np.split(x @ p['into']['kernel'], 3, axis=-1)
    heads = [np.split(a, SIZES['heads'], axis=-1) for a in (q, k, v)]
    out = [of_head(*each) for each in zip(*heads, strict=True)]
    return np.concatenate(out, -1) @ p['out']['kernel']

  def of_head(q, k, v):
    half = q.shape[1] // 2
    turns = np.stack([turn(t, half) for t in range(len(q))])
    q, k = ((a[:, :half] + 1j * a[:, half:]) * turns for a in (q, k))
    scores = (q @ k.conj().T).real / np.sqrt(2 * half)
    scores[np.triu_indices(len(q), 1)] = -np.inf
    share = np.exp(scores - scores.max(-1, keepdims=True))
    return share / share.sum(-1, keepdims=True) @ v

  def swiglu(x, p):
    gate, value = np.split(x @ p['into']['kernel'], 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * value @ p['out']['kernel']

  def gelu(x, p):
    x = x @ p['into']['kernel']
    cube = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return x / 2 * (1 + np.tanh(cube)) @ p['out']['kernel']

  hidden = {'swiglu': swiglu, 'gelu': gelu}[mlp]
  table = params['table']
  x = table[tokens]
  for block in (params['block_0'], params['block_1']):
    x = x + attend(norm(x, block['before_attention']), block['attention'])
    x = x + hidden(norm(x, block['before_hidden']), block['hidden'])
  return norm(x, params['norm']) @ table.T / np.sqrt(table.shape[1])


@pytest.fixture(scope='module')
def model():
  made = transformer(**SIZES)
  variables = made.init(jax.random.key(0), None)
  tokens = np.random.default_rng(0).integers(0, 11, (3, 9)).astype(np.int32)
  return made, variables, tokens, jax.jit(made.apply)


def test_the_decoder_is_that_of_its_papers(model):
  _, variables, tokens, apply = model
  as_f64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
  expected = [in_numpy(as_f64['params'], row) for row in tokens]
  np.testing.assert_allclose(apply(variables, tokens), expected, atol=2e-5)


@pytest.mark.slow
def test_with_gelu_it_has_as_many_parameters(model):
  tokens = model[2]
  made = transformer(**SIZES | dict(width=12), mlp='gelu')
  variables = made.init(jax.random.key(0), None)
  as_f64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
  expected = [in_numpy(as_f64['params'], row, 'gelu') for row in tokens]
  np.testing.assert_allclose(
    jax.jit(made.apply)(variables, tokens), expected, atol=2e-5
  )
  sizes = [
    sum(leaf.size for leaf in jax.tree.leaves(each))
    for each in (
      variables,
      transformer(**SIZES | dict(width=12)).init(jax.random.key(0), None),
    )
  ]
  assert sizes[0] == sizes[1]


def test_a_later_symbol_never_changes_an_earlier_logit(model):
  _, variables, tokens, apply = model
  before = np.asarray(apply(variables, tokens))
  for place in range(1, tokens.shape[1]):
    other = tokens.copy()
    other[:, place] = (other[:, place] + 1) % 11
    after = np.asarray(apply(variables, other))
    np.testing.assert_array_equal(after[:, :place], before[:, :place])
    assert (after[:, place] != before[:, place]).any(axis=-1).all()


def test_rotated_products_depend_on_distances_alone():
  q, k = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
  row = lambda v: jnp.broadcast_to(v, (1, 12, 1, 6))
  products = np.einsum('ti,si->ts', *(rotated(row(v))[0, :, 0] for v in (q, k)))
  for distance in range(-11, 12):
    np.testing.assert_allclose(
      np.diag(products, distance), products.diagonal(distance)[0], atol=1e-5
    )


def test_gradients_are_those_of_finite_differences(model):
  made, variables, tokens, _ = model
  row, params = tokens[0], variables['params']
  loss = lambda p: jnp.sum(jnp.sin(made.apply({'params': p}, row[None])))
  leaves, tree = jax.tree.flatten(jax.jit(jax.grad(loss))(params))
  rng = np.random.default_rng(1)
  as_f64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  for _ in range(5):
    way = tree.unflatten([rng.normal(size=leaf.shape) for leaf in leaves])
    moved = lambda h, way=way: np.sin(
      in_numpy(jax.tree.map(lambda p, w: p + h * w, as_f64, way), row)
    ).sum()
    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    products = jax.tree.map(
      lambda g, w: np.sum(g * w), tree.unflatten(leaves), way
    )
    np.testing.assert_allclose(
      sum(jax.tree.leaves(products)), slope, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
  ('entries', 'said'),
  [
    (dict(width=10, heads=4), r'width=10 is cut into heads=4'),
    (dict(width=6, heads=2), r'a width that 2 \* 2 divides'),
    (dict(heads=0), 'heads=0; a decoder needs 1 or more'),
    (dict(layers=0), 'layers=0; a decoder needs 1 or more'),
    (dict(mlp='relu'), r"mlp='relu'; choose from \['gelu', 'swiglu'\]"),
  ],
)
def test_sizes_that_do_not_fit(entries, said):
  with pytest.raises(ValueError, match=said):
    transformer(**entries)


def test_statistics_are_refused():
  from flax import nnx

  model = nnx_model(lambda rngs: nnx.BatchNorm(3, rngs=rngs))
  with pytest.raises(ValueError, match='keeps .* beside its parameters'):
    model.init(jax.random.key(0), None)


# -------------------------------------------------------------------- the task


def test_a_loss_is_in_float32_whatever_a_model_computes_in(folder):
  losses = tasks.of(data.text(folder, window=T)).losses
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(2, T, 256)), jnp.bfloat16)
  batch = dict(text=rng.integers(0, 256, (2, T + 1)))
  found, expected = losses(logits, batch), losses(jnp.float32(logits), batch)
  assert found[0].dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_of_tokens_nobody_knows_the_characters(folder):
  dataset = data.text(folder, window=T)
  assert 'test/bits_per_character' in tasks.of(dataset).measures(1.0)
  of_tokens = tasks.of(dataset._replace(text=None)).measures(1.0)
  assert of_tokens == {'test/perplexity': math.e}


def test_a_mean_model_is_of_its_symbols(tmp_path):
  """Of as many others it would foretell something else."""
  marks = []
  for name in ('abc ', 'xyz '):
    (tmp_path / name).write_text(name * 50)
    dataset = data.text(tmp_path / name, window=T, symbols='characters')
    marks.append(experiment.Data(dataset, (np.arange(3),)).marks())
  one, other = marks
  with pytest.raises(ValueError, match='start_from=a: .* knows other symbols'):
    same_run.check_start(one, other, 'a')
  same_run.check_start(one, other | {'symbols': one['symbols']}, 'a')
  with pytest.raises(ValueError, match='config.model gives other parameters'):
    same_run.check_data(one | {'parameters': 'a'}, one | {'parameters': 'b'})


# ------------------------------------------------------------------ the program


@pytest.mark.parametrize('method', texts.METHODS)
def test_the_methods_of_the_config_fit(method):
  setup = resolve.resolve(texts.get_config(method))
  assert setup.config.data.name == 'text'


def small(folder):
  return trained.small(
    model=dict(name='transformer', width=8, layers=1, heads=2),
    data=dict(name='text', path=str(folder), window=T),
    batch_size=2,
    workers=4,
    clip=1.0,
  )


def test_a_run_on_text_is_measured_and_goes_on_by_itself(folder, tmp_path):
  texts = shutil.copytree(folder, tmp_path / 'texts')
  row = loop.train_and_evaluate(small(texts), tmp_path)
  dataset = data.text(folder, window=T)
  bits = row['test/loss'] / math.log(2) * dataset.text.per_character
  np.testing.assert_allclose(row['test/bits_per_character'], bits)
  np.testing.assert_allclose(
    row['test/perplexity'], np.exp(row['test/loss']), rtol=1e-6
  )
  leaves = dict(np.load(tmp_path / 'mean_model/variables.npz'))
  made = transformer(width=8, layers=1, heads=2)
  logits = made.apply(unflatten_dict(leaves, sep='/'), np.zeros((1, T), int))
  assert logits.shape == (1, T, 256)
  came = summary.came(tmp_path)
  assert f'{bits:.3f} bits a character held out, zlib needs ' in came
  assert '[...]' in came and (tmp_path / 'sample.txt').read_text() in came
  # One that ends between two tests, by fewer epochs than it began with.
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 99}\n')
  assert summary.came(tmp_path) == came
  # As many parameters, in other leaves.
  other = small(texts)
  other.model.update(mlp='gelu', hidden_width=36)
  with pytest.raises(ValueError, match='--start_from.* leaves of other shapes'):
    loop.train_and_evaluate(other, tmp_path / 'other', start_from=tmp_path)
  # Of the same length, so that windows and shards are the same.
  (texts / 'c.txt').write_text('y' * 95)
  with pytest.raises(
    ValueError, match='config.data gives other text than when'
  ):
    loop.train_and_evaluate(small(texts), tmp_path, resume=True)


@pytest.mark.slow
def test_a_run_on_text_is_the_same_with_a_device_for_each(folder, tmp_path):
  for runner in ('simulated', 'sharded'):
    config = small(folder)
    config.runner, config.workers = runner, 8
    loop.train_and_evaluate(config, tmp_path / runner)
  for one, other in zip(
    metrics.read(tmp_path / 'simulated'),
    metrics.read(tmp_path / 'sharded'),
    strict=True,
  ):
    assert one['train/loss'] == pytest.approx(other['train/loss'], rel=1e-3)
    assert one['wire/bytes_sent'] == other['wire/bytes_sent']


@pytest.mark.slow
def test_a_run_on_text_resumes(folder, tmp_path):
  config, whole, cut = small(folder), tmp_path / 'whole', tmp_path / 'cut'
  loop.train_and_evaluate(config, whole)
  trained.stop_after(config, metrics.read(whole)[-1]['step'] // 2, cut)
  loop.train_and_evaluate(config, cut, resume=True)
  trained.assert_same_run(whole, cut)
