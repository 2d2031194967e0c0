"""A decoder of symbols: each sees those before it, and foretells the next.

Vaswani et al., "Attention is all you need", 2017, in today's form: RMSNorm
before each part (Zhang and Sennrich 2019), rotary positions (Su et al. 2021),
SwiGLU (Shazeer 2020) or GELU (Hendrycks and Gimpel 2016), one matrix to embed
symbols and to foretell them (Press and Wolf 2017).

B windows of T symbols, width d, h heads.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from moniqua_jax.models.functional import Functional, nnx_model

_LONGEST = 10_000.0  # wavelength of the slowest rotation, over 2 pi


def rotated(x: jax.Array) -> jax.Array:
  """Turns pairs of features by angles that grow with the place: RoPE.

    (x_i, x_{i + D/2}) turned by t / 10000^(2i/D)

  so that inner products of [B, T, h, D] depend on distances alone.
  """
  half = x.shape[-1] // 2
  rates = _LONGEST ** (-jnp.arange(half, dtype=x.dtype) / half)
  angles = jnp.outer(jnp.arange(x.shape[1], dtype=x.dtype), rates)
  cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _linear(inputs, outputs, rngs, share=1.0):
  deviation = (share / inputs) ** 0.5
  init = nnx.initializers.normal(deviation)
  return nnx.Linear(
    inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs
  )


class Attention(nnx.Module):
  """Causal attention of h heads; `share` scales what it adds at first."""

  def __init__(self, width: int, heads: int, share: float, rngs: nnx.Rngs):
    self.heads = heads
    self.into = _linear(width, 3 * width, rngs)
    self.out = _linear(width, width, rngs, share)

  def __call__(self, x):
    """Computes f32[B, T, d] of f32[B, T, d]."""
    parts = self.into(x).reshape(*x.shape[:2], 3, self.heads, -1)
    q, k, v = (parts[:, :, i] for i in range(3))
    mixed = jax.nn.dot_product_attention(
      rotated(q), rotated(k), v, is_causal=True
    )
    return self.out(mixed.reshape(x.shape))


class SwiGLU(nnx.Module):
  """W_3 (silu(W_1 x) * W_2 x), of a hidden width."""

  def __init__(self, width: int, hidden: int, share: float, rngs: nnx.Rngs):
    self.into = _linear(width, 2 * hidden, rngs)
    self.out = _linear(hidden, width, rngs, share)

  def __call__(self, x):
    """Computes f32[B, T, d] of f32[B, T, d]."""
    gate, value = jnp.split(self.into(x), 2, axis=-1)
    return self.out(nnx.silu(gate) * value)


class GELU(nnx.Module):
  """W_2 gelu(W_1 x), of a hidden width."""

  def __init__(self, width: int, hidden: int, share: float, rngs: nnx.Rngs):
    self.into = _linear(width, hidden, rngs)
    self.out = _linear(hidden, width, rngs, share)

  def __call__(self, x):
    """Computes f32[B, T, d] of f32[B, T, d]."""
    return self.out(nnx.gelu(self.into(x)))


# Hidden layers, and their width for d: so all have about as many parameters.
MLPS = {
  'swiglu': (SwiGLU, lambda width: -(-width // 3) * 8),
  'gelu': (GELU, lambda width: 4 * width),
}


class Block(nnx.Module):
  """Attention and a hidden layer, each of what a norm gives, added to x."""

  def __init__(self, width, heads, mlp, hidden, share, rngs):
    self.before_attention = nnx.RMSNorm(width, rngs=rngs)
    self.attention = Attention(width, heads, share, rngs)
    self.before_hidden = nnx.RMSNorm(width, rngs=rngs)
    self.hidden = mlp(width, hidden, share, rngs)

  def __call__(self, x):
    """Computes f32[B, T, d] of f32[B, T, d]."""
    x = x + self.attention(self.before_attention(x))
    return x + self.hidden(self.before_hidden(x))


class Transformer(nnx.Module):
  """Blocks between a table of symbols and the same table."""

  def __init__(self, symbols, width, layers, heads, mlp, hidden, rngs):
    draw = nnx.initializers.normal(1.0)
    self.table = nnx.Param(draw(rngs.params(), (symbols, width)))
    self.names = tuple(f'block_{layer}' for layer in range(layers))
    share = 1 / (2 * layers)  # of what 2 L parts add together
    for name in self.names:
      setattr(self, name, Block(width, heads, mlp, hidden, share, rngs))
    self.norm = nnx.RMSNorm(width, rngs=rngs)

  def __call__(self, tokens):
    """Foretells the next symbol at each place, f32[B, T, symbols]."""
    table = self.table[...]
    x = table[tokens]
    for name in self.names:
      x = getattr(self, name)(x)
    return self.norm(x) @ table.T / table.shape[1] ** 0.5


def transformer(
  num_classes: int = 256,
  width: int = 64,
  layers: int = 2,
  heads: int = 4,
  hidden_width: int | None = None,
  mlp: str = 'swiglu',
) -> Functional:
  """A decoder, i32[B, T] -> f32[B, T, num_classes].

  `hidden_width` is by default 4 times the width for `mlp='gelu'`; for 'swiglu'
  8/3 of it, in steps of 8: as many parameters.
  """
  if mlp not in MLPS:
    raise ValueError(f'mlp={mlp!r}; choose from {sorted(MLPS)}.')
  for name, number in (('width', width), ('layers', layers), ('heads', heads)):
    if number < 1:
      raise ValueError(f'{name}={number!r}; a decoder needs 1 or more.')
  if width % heads or width // heads % 2:
    raise ValueError(
      f'width={width} is cut into heads={heads}, each of an even width; take a '
      f'width that 2 * {heads} divides.'
    )
  layer, of_width = MLPS[mlp]
  hidden_width = hidden_width or of_width(width)
  sizes = num_classes, width, layers, heads, layer, hidden_width
  return nnx_model(lambda rngs: Transformer(*sizes, rngs))
