"""Every codec of benchmarks/codec.py, and the rounds of a worker by itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import codec
from benchmarks.accelerator.rows import (
  again,
  compiled,
  copy_said,
  medians,
  normal,
  table,
)
import moniqua_jax as mj
from moniqua_jax import quantized_mean
from moniqua_jax.workers import AXIS

SMALL = 2**20  # values; their launches take longer than their work
# Roundings that are ties on one machine and none on the other: of Moniqua's 8
# bits 2^-23 |x| / step, .002; one of EDEN's changes a block of 4096 values.
OTHERS = 0.02
EDEN = {f'eden {b}, mean': mj.eden(b) for b in (1, 4)}
ROUNDS = {
  'full_precision': mj.full_precision(),
  **{f'moniqua {b}': mj.moniqua(codec.THETA, b) for b in (1, 4, 8)},
  'rotated moniqua 4': mj.rotated(mj.moniqua(codec.THETA, 4)),
}


def codec_part(size: int) -> str:
  """Encode and decode, of a long vector and of a short one."""
  sizes = sorted({min(SMALL, size), size}, reverse=True)
  programs = compiled(_codecs(sizes, jax.devices()[0]))
  wrong = _others(programs, sizes[-1])
  text, errors = '', []
  for d in sizes:
    own = {name[:2]: fn for name, fn in programs.items() if name[2] == d}
    part, error = _codec_table(own, d, wrong)
    text, errors = text + part, [*errors, error]
  faults = [name for name, share in wrong.items() if share > OTHERS] + [
    name
    for name in errors[0]
    if not np.isclose(errors[0][name], errors[-1][name], rtol=0.05)
  ]
  if faults:
    text += f'**WRONG**, and not to be believed: {faults}\n\n'
  return text


def _codecs(sizes, device) -> dict:
  """(quantizer, what, values) -> what is to be compiled, and for whom."""
  programs, key = {}, _key(device)
  for d, (name, q) in itertools.product(sizes, codec.QUANTIZERS.items()):
    encode = jax.jit(lambda x, k, q=q: q.encode(x, jax.random.wrap_key_data(k)))
    x = jax.ShapeDtypeStruct((d,), jnp.float32, sharding=key.sharding)
    sent = jax.eval_shape(encode, x, key).update(sharding=key.sharding)
    programs[name, 'encode', d] = encode, (x, key)
    programs[name, 'decode', d] = jax.jit(q.decode), (sent, x)
  return programs


def _others(programs, d) -> dict:
  """The shares of values that a CPU's codec makes others of.

  Either reads what the CPU has written, and what the other one has.
  """
  cpu, device = jax.devices('cpu')[0], jax.devices()[0]
  reference, x = compiled(_codecs([d], cpu)), np.asarray(normal(d))

  def run(built, name, what, place, *args):
    return np.asarray(built[name, what, d](*jax.device_put(args, place)))

  shares = {}
  for name in codec.QUANTIZERS:
    sent = run(reference, name, 'encode', cpu, x, _key(cpu))
    ours = run(programs, name, 'encode', device, x, _key(device))
    expected = run(reference, name, 'decode', cpu, sent, x)
    near = 16 * 2.0**-23 * np.abs(expected).max()
    other = lambda x_hat, e=expected, n=near: np.mean(~(abs(x_hat - e) <= n))
    shares[name] = max(
      other(run(reference, name, 'decode', cpu, ours, x)),
      other(run(programs, name, 'decode', device, sent, x)),
    )
  return shares


def _codec_table(programs, d, wrong) -> tuple[str, dict]:
  x, key, rows, errors = normal(d), _key(), {}, {}
  rows['copy'] = again(jax.jit(lambda x: x + 1), x)
  square = jax.jit(lambda a, b: jnp.mean((a - b) ** 2) / jnp.mean(b**2))
  for (name, what), fn in programs.items():
    if wrong[name] <= OTHERS and what == 'encode':
      decode, sent = programs[name, 'decode'], fn(x, key)
      errors[name] = float(square(decode(sent, x), x))
      rows[name, 'encode'] = again(fn, x, key)
      rows[name, 'decode'] = again(decode, sent, x)
  ms = medians(rows)
  speeds = lambda t: (t, 4e-6 * d / t, ms['copy'] / t)
  known = lambda name, what: speeds(ms.get((name, what), np.nan))
  cells = (
    (name, *known(name, 'encode'), *known(name, 'decode'))
    + (errors.get(name, np.nan), wrong[name])
    for name in codec.QUANTIZERS
  )
  head = (
    'quantizer, encode ms, GB/s of f32, copy/encode, decode ms, GB/s of f32, '
    'copy/decode, square error, other values than a CPU'
  )
  text = f'### Codec, {d:,} values\n\n{copy_said(ms["copy"], d)}\n\n'
  return f'{text}{table(head, cells)}\n', errors


def _key(device=None):
  return jax.device_put(jax.random.key_data(jax.random.key(1)), device)


def round_part(size: int) -> str:
  """All that a worker computes in a round of gossip, or in a mean."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (AXIS,))
  x, key = normal(1, size), jax.random.key(0)
  # Two neighbours, nearer than theta.
  others = [x + codec.THETA / 5 * jnp.sin(k * x) for k in (1e4, 2e4)]

  def messages(quantizer):
    encode = jax.jit(lambda x: quantizer.encode(x[0], key)[None])
    return [encode(other) for other in others]

  def mean(quantizer):
    return lambda x: quantized_mean.all_gathered(quantizer, x, key, AXIS).mean

  given = {
    name: (codec.ring(q, key), (x, *messages(q))) for name, q in ROUNDS.items()
  }
  given |= {name: (mean(q), (x,)) for name, q in EDEN.items()}
  programs = compiled(
    {
      name: (mj.sharded(fn, (0,) * len(args), mesh), args)
      for name, (fn, args) in given.items()
    }
  )
  middle = (x + others[0] + others[1]) / 3
  off = jax.jit(lambda a: jnp.abs(a - middle).max())
  for name in ROUNDS:
    assert off(programs[name](*given[name][1])[0]) < 2 * codec.THETA, name
  rows = {name: again(fn, *given[name][1]) for name, fn in programs.items()}
  ms = medians({'copy': again(jax.jit(lambda x: x + 1), x), **rows})
  spare = lambda fn: fn.memory_analysis().temp_size_in_bytes / x.nbytes
  cells = (
    (name, ms[name], ms[name] / ms['full_precision'])
    + (ms[name] / ms['copy'], spare(fn))
    for name, fn in programs.items()
  )
  head = 'round, ms, / full precision, / copy, temporaries / f32'
  return (
    f'### Round, {size:,} values\n\n{copy_said(ms["copy"], size)}\n\n'
    f'{table(head, cells)}\n'
  )
