"""Two small models that train in seconds: an MLP and a convolution net."""

from flax import linen as nn
import jax.numpy as jnp

from moniqua_jax.models import norms


class MLP(nn.Module):
  """Dense layers with ReLU between them, on flattened images."""

  num_classes: int
  hidden: tuple[int, ...]

  @nn.compact
  def __call__(self, x, train: bool = True):
    del train
    x = x.reshape(x.shape[0], -1)
    for features in self.hidden:
      x = nn.relu(nn.Dense(features)(x))
    return nn.Dense(self.num_classes)(x)


class CNN(nn.Module):
  """3x3 convolutions, each of stride 2 after the first; then a mean."""

  num_classes: int
  features: tuple[int, ...]
  norm: str

  @nn.compact
  def __call__(self, x, train: bool = True):
    norm = norms.make(self.norm, train)
    for layer, features in enumerate(self.features):
      stride = 1 if layer == 0 else 2
      x = nn.Conv(features, (3, 3), stride, use_bias=False)(x)
      x = nn.relu(norm()(x))
    return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


def mlp(num_classes: int = 10, hidden: tuple[int, ...] = (128,)) -> MLP:
  """A multilayer perceptron, f32[B, H, W, C] -> f32[B, num_classes]."""
  return MLP(num_classes, tuple(hidden))


def cnn(
  num_classes: int = 10,
  features: tuple[int, ...] = (16, 32, 64),
  norm: str = 'group',
) -> CNN:
  """A small convolution net, f32[B, H, W, C] -> f32[B, num_classes]."""
  return CNN(num_classes, tuple(features), norm)
