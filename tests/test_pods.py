"""Pods of 8 devices: the bits of the run without, and what travels where."""

import functools
import json
import os
import shutil

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
import moniqua_jax as mj
from moniqua_jax import collectives, data, gossip, models, pods, wire, workers
from moniqua_jax.gossip import edge
from moniqua_jax.training import (
  checkpoint,
  experiment,
  loop,
  metrics,
  optimizer,
  summary,
)
from moniqua_jax.training import step as step_lib
from tests import helpers, hlo, programs

LAYOUTS = {
  'data': pods.Pod(4, data=2),
  'fsdp': pods.Pod(4, fsdp=2),
  'both': pods.Pod(2, data=2, fsdp=2),
}
IN_LAYOUTS = pytest.mark.parametrize('pod', LAYOUTS.values(), ids=LAYOUTS)


def mostly(*fast):
  """Cases of which the others, whose axes these cut too, are slow."""
  marks = lambda name: () if name in fast else pytest.mark.slow
  cases = [
    pytest.param(pod, id=name, marks=marks(name))
    for name, pod in LAYOUTS.items()
  ]
  return pytest.mark.parametrize('pod', cases)


THETA = 0.5
ALL = list(range(8))


def runner(pod):
  return functools.partial(workers.sharded, mesh=pods.mesh(pod))


def tree(seed, rows=None):
  """Leaves that no number of devices divides."""
  rng = np.random.default_rng(seed)
  shapes = {'a': (7, 5), 'b': (3,), 'c': (2, 3, 11), 'd': ()}
  shape = () if rows is None else (rows,)
  draw = lambda size: rng.normal(size=shape + size).astype(np.float32)
  return {name: draw(size) for name, size in shapes.items()}


def flat(trees):
  """f32[n, d]: a vector for each tree."""
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(trees)]
  return np.concatenate([v.reshape(len(v), -1) for v in leaves], axis=1)


def rows_of(trees, pod):
  """f32[8, m]: what the devices hold, a tree for each pod."""
  at = lambda i: jax.tree.map(lambda leaf: leaf[i], trees)
  each = [pods.cut(at(i), pod).rows(ALL) for i in range(pod.workers)]
  return np.stack([each[device // pod.size][device] for device in ALL])


def vectors_of(rows, params, pod):
  """f32[n, d]: the vector of each pod, from what its devices hold."""
  alone = pods.Pod(1, pod.data, pod.fsdp)
  each = np.asarray(rows).reshape(pod.workers, pod.size, -1)
  trees = [pods.joined(own, params, alone) for own in each]
  return flat(jax.tree.map(lambda *leaves: np.stack(leaves), *trees))


@IN_LAYOUTS
def test_what_is_cut_can_be_joined(pod):
  params = tree(0)
  held = pods.cut(params, pod)
  rows = held.rows(ALL)
  assert rows.shape == (8, pod.data * sum(x.size for x in held.part.values()))
  jax.tree.map(
    np.testing.assert_array_equal, pods.joined(rows, params, pod), params
  )
  np.testing.assert_array_equal(held.vector(held.pieces(rows[0])), rows[0])
  sizes = [x.size for x in jax.tree.leaves(params)]
  assert [x.size for x in jax.tree.leaves(held.part)] == [
    -(-size // pod.size) for size in sizes
  ]


# ------------------------------------------------------------- gathering late


def program(params, x, steps):
  """Kernels, a tied leaf, a leaf in a cast, in nested programs, and unused."""
  del steps
  y = jax.nn.relu(x @ params['w'] + params['b'][None])
  y = jax.jit(jnp.multiply)(
    y, params['w'][:1].astype(jnp.bfloat16).astype(x.dtype) * jnp.ones((3, 1))
  )
  y = lax.scan(lambda s, _: (jnp.tanh(s @ params['w']), None), y, None, 3)[0]
  return jnp.sum(y**2), {'y': y, 'b': params['b']}


def test_late_is_the_program_and_its_gradient():
  rng = np.random.default_rng(0)
  whole = {
    'w': rng.normal(size=(4, 4)),
    'b': rng.normal(size=4),
    'z': np.ones(1),
  }
  whole = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), whole)
  pieces = jax.tree.map(lambda leaf: leaf / 2, whole)
  x = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
  apply = pods.late(whole, lambda number, piece: 2 * piece)
  late = lambda p, x: apply(program, p, x, jnp.int32(1))
  direct = lambda p, x: program(jax.tree.map(lambda v: 2 * v, p), x, 1)
  grad = lambda fn: jax.jit(jax.value_and_grad(fn, (0, 1), has_aux=True))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    grad(late)(pieces, x),
    grad(direct)(pieces, x),
  )


def test_the_gradient_of_a_net_is_the_mean_of_its_pod():
  pod, model = LAYOUTS['both'], models.cnn(features=(8, 8))
  rng = np.random.default_rng(0)
  image = rng.normal(size=(2, 8, 8, 8, 1)).astype(np.float32)
  label = rng.integers(0, 10, (2, 8)).astype(np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image[0])['params']
  draw = lambda s: rng.normal(size=s.shape, scale=0.3).astype(np.float32)
  params = jax.tree.map(draw, shapes)
  held = pods.cut(params, pod)

  def loss(params, image, label):
    logits = model.apply({'params': params}, image)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return each.mean()

  def step(x, batch):
    apply = lambda p: held.apply(loss, p, batch['image'], batch['label'])
    grads = jax.grad(apply)(held.pieces(x))
    return collectives.mean(held.vector(grads), pods.DATA)

  batch = pods.split(pod, {'image': image, 'label': label}, ALL)
  found = runner(pod)(step, (0, 0))(held.rows(ALL), batch)
  grad = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))
  expected = flat(grad(params, image, label))
  np.testing.assert_allclose(
    vectors_of(found, params, pod), expected, atol=1e-6
  )


def deep(layers, width):
  """Specification of a net of many equal layers, and its loss."""
  params = {str(i): np.zeros((width, width), np.float32) for i in range(layers)}

  def loss(params, x):
    for i in range(layers):
      x = jax.nn.relu(x @ params[str(i)])
    return jnp.mean(x**2)

  return params, loss


def memory_of_a_step(layers, width, held, run):
  """Bytes that a step of SGD needs besides its arguments."""
  _, loss = deep(layers, width)

  def step(x, batch):
    grad = jax.grad(lambda pieces: held.apply(loss, pieces, batch))
    return x - 0.1 * held.vector(grad(held.pieces(x)))

  m = jax.eval_shape(held.vector, held.part).size
  args = np.zeros((8, m), 'f'), np.zeros((8, 4, width), 'f')
  compiled = run(step, (0, 0), donate_argnums=0).lower(*args).compile()
  gathers = [
    nbytes
    for kind, _, nbytes in hlo.collectives(compiled.as_text())
    if kind == 'all-gather'
  ]
  return compiled.memory_analysis().temp_size_in_bytes, gathers


@pytest.mark.optimized
def test_memory_grows_with_the_largest_layer_not_with_the_model():
  pod, width = pods.Pod(2, fsdp=4), 128
  leaf, temporary = 4 * width**2, {}
  for layers in (4, 12):
    held = pods.cut(deep(layers, width)[0], pod)
    temporary[layers], gathers = memory_of_a_step(
      layers, width, held, runner(pod)
    )
    # Forward and backward, but for the first layer; one leaf at a time.
    assert gathers == [leaf] * (2 * layers - 1)
  assert temporary[4] < 6 * leaf
  # By the gradient of its own shard, not by leaves: 1.2 shards a layer.
  assert temporary[12] - temporary[4] < 1.5 * 8 * leaf / pod.fsdp


# --------------------------------------------------------------- gossip in pods


def rounds(run, tx, x, u, steps=2):
  """Parameters after steps of u and gossip."""

  def worker(x, u):
    def step(carry, k):
      x, state = carry
      updates, state = tx.update(u, state, x, step=k)
      return (optax.apply_updates(x, updates), state), None

    return lax.scan(step, (x, tx.init(x)), jnp.arange(steps))[0][0]

  return np.asarray(run(worker, (0, 0))(x, u))


def in_pods(make, pod, x, u):
  tx = pods.on_own_part(make, jax.random.key(0), pod)
  return rounds(runner(pod), tx, rows_of(x, pod), rows_of(u, pod))


def close_trees(n):
  """Parameters closer to each other than theta, and updates."""
  apart, common, u = tree(1, n), tree(2), tree(3, n)
  x = jax.tree.map(lambda v, c: np.clip(v, -2, 2) / 20 + c[None], apart, common)
  return x, jax.tree.map(lambda v: v / 100, u)


ALGORITHMS = {
  'dpsgd full_precision': (mj.dpsgd, mj.full_precision()),
  'dpsgd nearest': (mj.dpsgd, mj.moniqua(THETA, 4, 'nearest')),
  'd2 nearest': (mj.d2, mj.moniqua(THETA, 8, 'nearest')),
}
# The layout and the algorithm do not know each other.
EXACT = [
  ('both', 'dpsgd full_precision'),
  ('both', 'dpsgd nearest'),
  ('both', 'd2 nearest'),
  ('data', 'd2 nearest'),
  ('fsdp', 'd2 nearest'),
]


def maker(name, n):
  algorithm, quantizer = ALGORITHMS[name]
  topology = mj.lazy(mj.ring(n), 0.5)
  return functools.partial(
    algorithm, topology, quantizer, axis_name=workers.AXIS
  )


@functools.cache
def without_pods(name, n):
  x, u = close_trees(n)
  tx = maker(name, n)(key=jax.random.key(0))
  return rounds(mj.simulated, tx, flat(x), flat(u))


@pytest.mark.optimized
@pytest.mark.parametrize('layout,name', helpers.tiered(EXACT, EXACT[1:3]))
def test_rounds_have_the_bits_of_the_run_without_pods(layout, name):
  pod = LAYOUTS[layout]
  make = lambda key: maker(name, pod.workers)(key=key)
  rows = in_pods(make, pod, *close_trees(pod.workers))
  np.testing.assert_array_equal(
    vectors_of(rows, tree(0), pod), without_pods(name, pod.workers)
  )
  replicas = rows.reshape(pod.workers, pod.data, pod.fsdp, -1)
  assert (replicas == replicas[:, :1]).all()


@pytest.mark.optimized
@mostly('both')
def test_fragments_of_parts_make_up_a_round(pod):
  """Each device cuts its own part; two steps of rest are one whole round."""
  n, name = pod.workers, 'dpsgd nearest'
  x, u = close_trees(n)
  u = jax.tree.map(np.zeros_like, u)
  whole = maker(name, n)
  parts = in_pods(lambda key: mj.streaming(whole(key=key), 2), pod, x, u)
  one = rounds(mj.simulated, whole(key=jax.random.key(0)), flat(x), flat(u), 1)
  np.testing.assert_array_equal(vectors_of(parts, tree(0), pod), one)


def error_of(quantizer):
  """A transformation that gives what others get wrong: x_hat - x."""

  def make(key):
    def update(updates, state, params, *, step):
      own = gossip.worker_key(key, step, workers.AXIS, quantizer.shared)
      payload = edge.sealed(quantizer.encode(params, own))
      return quantizer.decode(payload, params) - params, state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)

  return make


@IN_LAYOUTS
def test_each_part_has_a_dither_of_its_own_and_keeps_the_lemma(pod):
  bits, params = 3, {'w': np.zeros(8 * 50, np.float32)}
  make = error_of(mj.moniqua(THETA, bits))
  tx = pods.on_own_part(make, jax.random.key(0), pod)
  run = runner(pod)
  # All values are the same, so that errors differ by the dither alone.
  x = np.full((8, pods.cut(params, pod).rows([0]).shape[1]), 0.123, np.float32)
  update = lambda x: tx.update(x, tx.init(x), x, step=jnp.int32(5))[0]
  errors = np.asarray(run(update, (0,))(x))
  delta = 2.0 ** -(bits + 1)
  largest = np.abs(errors).max()
  assert 0.9 * delta * 2 * THETA / (1 - 2 * delta) < largest
  assert largest <= delta * 2 * THETA / (1 - 2 * delta) * (1 + 1e-5)
  errors = errors.reshape(pod.workers, pod.data, pod.fsdp, pod.data, -1)
  # All workers share the dither of a part, and all replicas know all parts.
  assert (errors == errors[:1, :1]).all()
  parts = errors[0, 0].reshape(pod.size, -1)
  for i in range(pod.size):
    for j in range(i):
      assert abs(np.corrcoef(parts[i], parts[j])[0, 1]) < 0.5
      assert not np.isclose(parts[i], parts[j]).mean() > 0.1


@mostly('both')
def test_a_gradient_is_clipped_by_the_norm_of_the_whole(pod):
  config = digits.get_config('dpsgd')
  config.update(clip=0.5, momentum=0.0, weight_decay=0.0)
  config.pod.update(data=pod.data, fsdp=pod.fsdp)
  tx = optimizer.local(config, 1.0, pods.cut(tree(0), pod))
  grads, _ = close_trees(pod.workers)
  update = lambda g: tx.update(g, tx.init(g), g)[0]
  rows = runner(pod)(update, (0,))(rows_of(grads, pod))
  whole = flat(grads)
  norms = np.linalg.norm(whole, axis=1, keepdims=True)
  assert (norms > 0.5).all()
  expected = -0.5 * whole / norms
  np.testing.assert_allclose(
    vectors_of(rows, tree(0), pod), expected, atol=1e-6
  )


@mostly('both')
def test_dithered_gossip_keeps_the_mean_of_each_shard(pod):
  make = lambda key: mj.dpsgd(
    mj.ring(pod.workers),
    mj.moniqua(THETA, 4),
    axis_name=workers.AXIS,
    key=key,
  )
  x, u = close_trees(pod.workers)
  nothing = jax.tree.map(np.zeros_like, u)
  before = rows_of(x, pod).reshape(pod.workers, pod.size, -1)
  after = in_pods(make, pod, x, nothing)
  after = after.reshape(before.shape)
  np.testing.assert_allclose(after.mean(0), before.mean(0), atol=1e-6)
  spread = lambda x: (x - x.mean(0)).std()
  assert 0 < spread(after) < 0.8 * spread(before)


# ------------------------------------------------------------ the step of a run


def config_of(layout, method='dpsgd', /, **entries):
  """The digits, over in a second."""
  config = digits.get_config(method).copy_and_resolve_references()
  config.epochs, config.eval_every, config.checkpoint_every = 0.5, 0.25, 0.25
  config.learning_rate.warmup_epochs = 0.2
  config.log_every = 1
  config.workers = layout.workers
  if layout.size > 1:
    config.runner = 'sharded'
    config.pod = dict(data=layout.data, fsdp=layout.fsdp)
  with config.unlocked():
    config.update(entries)
  return config


def compiled_step(config):
  built = experiment.from_config(config)
  init, train_step, _ = step_lib.make_steps(built)
  state = jax.eval_shape(built.run(init, (0,)), built.model.held.rows(ALL))
  batch = data.batch(*built.data, seed=0, step=0, batch_size=16)
  batch = pods.split(built.setup.pod, batch, ALL)
  step = built.run(train_step, (0, 0, None))
  return built, step.lower(state, batch, np.int32(0)).compile()


@pytest.mark.optimized
@mostly('both')
def test_only_packed_parts_leave_a_pod(pod):
  """Sizes of the digits' mlp: 64 x 128, 128, 128 x 10, 10."""
  config = config_of(pod, 'moniqua4')
  built, compiled = compiled_step(config)
  found = list(hlo.collectives(compiled.as_text()))
  part = sum(-(-size // pod.size) for size in (64 * 128, 128, 128 * 10, 10))
  payload = wire.packed_size(part, 4) + 12
  edges = min(2, pod.workers - 1)
  sent = [c for c in found if c[0] == 'collective-permute']
  assert sent == [('collective-permute', 'u8', payload)] * edges
  assert built.sent.by_worker.gossip == edges * pod.size * payload
  assert pod.size * (payload - 12) < 9610 / 2 + 40
  # Each leaf by itself; what replicas tell each other is of one part each.
  whole = [
    4 * pod.size * -(-size // pod.size) for size in (8192, 128, 1280, 10)
  ]
  told = [4 * pod.data * part] * (pod.data > 1)
  gathered = {size for kind, _, size in found if kind == 'all-gather'}
  assert gathered == {*told, *whole[: len(whole) * (pod.fsdp > 1)]}
  for line in compiled.as_text().splitlines():
    if 'replica_groups' in line and 'collective-permute' not in line:
      assert groups_of(line) == within(pod, line)


def groups_of(line):
  """The devices that a collective of compiled text brings together."""
  lists = line.split('replica_groups=')[1]
  if lists.startswith('{{'):
    text = lists[: lists.index('}}') + 2]
    return json.loads(text.replace('{', '[').replace('}', ']'))
  # Iota form: [groups,size]<=[dims]T(perm).
  shape, rest = lists[1:].split(']<=[', 1)
  dims, rest = rest.split(']', 1)
  ids = np.arange(8).reshape([int(v) for v in dims.split(',')])
  if rest.startswith('T('):
    perm = rest[2 : rest.index(')')]
    ids = ids.transpose([int(v) for v in perm.split(',')])
  return ids.reshape([int(v) for v in shape.split(',')]).tolist()


def within(pod, line):
  """Groups over one of the inner axes: only gossip leaves a pod."""
  ids = np.arange(8).reshape(pod)
  over = {
    'data': np.moveaxis(ids, 1, 2).reshape(-1, pod.data).tolist(),
    'fsdp': ids.reshape(-1, pod.fsdp).tolist(),
  }
  found = groups_of(line)
  assert found in over.values(), line
  return found


@pytest.mark.optimized
def test_gradients_within_a_pod_are_quantized_beside_gossip():
  pod = LAYOUTS['both']
  config = config_of(pod, 'moniqua4')
  config.reduce = dict(name='allreduce', strategy='all_gather')
  config.reduce_quantizer = dict(name='qsgd', bits=4, bucket_size=512)
  built, compiled = compiled_step(config)
  found = list(hlo.collectives(compiled.as_text()))
  # Of the large leaf's piece, 64 x 128 over two devices; the other is small.
  message = wire.packed_size(4096, 4) + 4 * 8
  assert ('all-to-all', 'u8', 2 * message) in found
  kept = 4 * (64 + 640 + 6)
  within = 4 * (3 * 4806 + 2403) + message + kept
  assert (
    built.sent.within_pod.exact + built.sent.within_pod.whole.sum() == within
  )
  sent = {c for c in found if c[0] == 'collective-permute'}
  assert {dtype for _, dtype, _ in sent} == {'u8'}


# ------------------------------------------------------------------ whole runs


def rows(workdir):
  return [{**row, 'seconds': 0} for row in metrics.read(workdir)]


@mostly('both')
def test_training_is_the_same_as_without_pods(tmp_path, pod):
  """22 steps of the digits' mlp, evaluated twice."""
  alone = config_of(pods.Pod(pod.workers))
  loop.train_and_evaluate(alone, tmp_path / 'alone')
  loop.train_and_evaluate(config_of(pod), tmp_path / 'pods')
  ours, theirs = (rows(tmp_path / name) for name in ('pods', 'alone'))
  assert len(ours) == len(theirs) >= 11
  same = set(theirs[-1]) - {'wire/bytes_sent', 'gossip/messages'}
  same -= {'gossip/consensus_rms'}  # it counts the zeros that fill up
  for one, other in zip(ours, theirs, strict=True):
    for name in same & set(other):
      assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
  sent = ours[-1]['wire/bytes_sent'] / theirs[-1]['wire/bytes_sent']
  assert 1 <= sent < 1.001
  # Of its mean model another run may start, without pods.
  built = experiment.from_config(alone)
  mean = checkpoint.mean_model(tmp_path / 'pods', built.model.variables)
  expected = checkpoint.mean_model(tmp_path / 'alone', built.model.variables)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5), mean, expected
  )


def test_a_run_resumes_bit_for_bit_with_everything(tmp_path):
  """Batch statistics of each device, a quantized mean with memory, D2."""
  pod = LAYOUTS['both']
  entries = dict(
    model=dict(name='cnn', features=(8, 32), norm='batch'),
    gossip=dict(name='d2'),
    gamma=0.5,
    reduce=dict(name='error_feedback', strategy='all_gather'),
    reduce_quantizer=dict(name='qsgd', bits=4, bucket_size=64),
    epochs=0.2,
    eval_every=0.1,
    checkpoint_every=0.1,
  )
  config = config_of(pod, 'moniqua4', **entries)
  loop.train_and_evaluate(config, tmp_path / 'whole')
  # As a run that died after its last but one checkpoint left it.
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
  *_, before, last = sorted(
    map(int, os.listdir(tmp_path / 'cut' / 'checkpoints'))
  )
  assert 0 < before < last
  shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / str(last))
  loop.train_and_evaluate(config, tmp_path / 'cut', resume=True)
  whole, cut = (rows(tmp_path / name) for name in ('whole', 'cut'))
  assert whole == cut and len(whole) == 9
  assert 'test/worst_worker' in whole[-1]


MISTAKES = {
  'a pod of no device': (dict(pod=dict(data=0)), 'config.pod.data=0; it must'),
  'another runner': (dict(runner='simulated'), 'take --config.runner=sharded'),
  'too many devices': (dict(workers=8), 'are 16 devices, but there are 8'),
  'no gossip': (
    dict(gossip=dict(name='none')),
    'pods, which talk by gossip',
  ),
  'a batch of odd size': (
    dict(batch_size=9),
    'cannot be shared equally by its',
  ),
  'smoothness': (
    dict(smoothness=dict(name='layer'), quantizer=dict(name='qsgd', bits=4)),
    "config.smoothness.name='layer' does not go with it",
  ),
  'a mean of one': (
    dict(reduce_quantizer=dict(name='qsgd', bits=4)),
    'means within a pod.*; config.pod.data=1 does not',
  ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_has_one_line(name):
  entries, message = MISTAKES[name]
  config = config_of(LAYOUTS['fsdp'], **entries)
  with pytest.raises(ValueError, match=message):
    experiment.from_config(config)


def test_the_description_tells_both_kinds_of_bytes():
  config = config_of(LAYOUTS['fsdp'], 'moniqua4')
  text = summary.describe(experiment.from_config(config))
  assert 'pod        1 (data) x 2 (fsdp) devices; each holds 0.02 MB' in text
  payload = (9610 // 2 + 1) // 2 + 12
  assert f'sends {2 * payload:,} bytes a step to other pods' in text
  assert f'{4 * payload:,} bytes per worker and step' in text


TRAIN = [
  'train.py',
  '--config=configs/digits.py:moniqua4',
  '--config.pod.fsdp=2',
  '--config.pod.data=2',
  '--config.epochs=0.5',
  '--config.learning_rate.warmup_epochs=0.2',
  '--config.log_every=5',
]


@pytest.mark.slow  # a run of two processes without pods: test_processes
@pytest.mark.parametrize('n,processes', [(3, 2), (2, 4)])
def test_pods_of_processes_train_the_same(tmp_path, n, processes):
  """Of three pods one stands in both processes; of two, each in two of four."""
  one, many = tmp_path / 'one', tmp_path / 'many'
  train = [*TRAIN, f'--config.workers={n}']
  alone = programs.run(
    *(*train, '--runner=sharded', f'--workdir={one}'), folder=tmp_path / '1'
  )
  assert alone.status == 0, alone.err
  several = (*train, f'--workdir={many}')
  started = programs.launched(processes, *several, folder=tmp_path)
  programs.finished(started, tmp_path)
  for alone, together in zip(rows(one), rows(many), strict=True):
    assert alone.keys() == together.keys()
    for name, value in alone.items():
      assert together[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
