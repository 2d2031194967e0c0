"""Residual networks for images: ResNet-20/56/110 and ResNet-18/34/50.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016,
arXiv:1512.03385: Section 4.2 for 32x32 images, Table 1 for 224x224.

B images of H x W pixels and C channels are `f32[B, H, W, C]`.
"""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax.numpy as jnp

from moniqua_jax.models import norms

_conv = functools.partial(
  nn.Conv,
  use_bias=False,
  kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
)


def identity_shortcut(x, filters, stride, norm):
  """Option A of the paper: subsample, and pad the new channels with zeros."""
  del norm
  grow = filters - x.shape[-1]
  x = x[:, ::stride, ::stride]
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (grow // 2, grow - grow // 2)))


def projection_shortcut(x, filters, stride, norm):
  """Option B of the paper: a 1x1 convolution where the shape changes."""
  if x.shape[-1] == filters and stride == 1:
    return x
  x = _conv(filters, (1, 1), stride, name='shortcut_conv')(x)
  return norm(name='shortcut_norm')(x)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut."""

  filters: int
  stride: int
  norm: Callable
  shortcut: Callable
  expansion = 1

  @nn.compact
  def __call__(self, x):
    y = _conv(self.filters, (3, 3), self.stride, padding=1)(x)
    y = nn.relu(self.norm()(y))
    y = _conv(self.filters, (3, 3), padding=1)(y)
    y = self.norm()(y)
    return nn.relu(y + self.shortcut(x, self.filters, self.stride, self.norm))


class BottleneckBlock(nn.Module):
  """1x1, 3x3, 1x1 convolutions, four times as many channels at the end."""

  filters: int
  stride: int
  norm: Callable
  shortcut: Callable
  expansion = 4

  @nn.compact
  def __call__(self, x):
    wide = self.expansion * self.filters
    y = nn.relu(self.norm()(_conv(self.filters, (1, 1))(x)))
    # The stride sits on the 3x3 convolution, as in all later code bases.
    y = _conv(self.filters, (3, 3), self.stride, padding=1)(y)
    y = nn.relu(self.norm()(y))
    y = self.norm()(_conv(wide, (1, 1))(y))
    return nn.relu(y + self.shortcut(x, wide, self.stride, self.norm))


class ResNet(nn.Module):
  """Stages of residual blocks after a stem; then mean and a dense layer."""

  num_classes: int
  stages: tuple[int, ...]
  width: int
  block: type[nn.Module]
  stem: Callable
  shortcut: Callable
  norm: str = 'group'

  @nn.compact
  def __call__(self, x, train: bool = True):
    norm = norms.make(self.norm, train)
    x = self.stem(x, self.width, norm)
    for stage, blocks in enumerate(self.stages):
      for block in range(blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        filters = self.width * 2**stage
        x = self.block(filters, stride, norm, self.shortcut)(x)
    return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


def small_stem(x, width, norm):
  """One 3x3 convolution, for 32x32 images."""
  x = _conv(width, (3, 3), padding=1, name='stem_conv')(x)
  return nn.relu(norm(name='stem_norm')(x))


def large_stem(x, width, norm):
  """A 7x7 convolution and a max pool, both of stride 2, for 224x224 images."""
  x = _conv(width, (7, 7), 2, padding=3, name='stem_conv')(x)
  x = nn.relu(norm(name='stem_norm')(x))
  return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _resnet(classes, usual_norm, **fields):
  """A network of He et al. with its usual classes and norm."""

  def factory(num_classes: int = classes, norm: str = usual_norm) -> ResNet:
    """A residual network, f32[B, H, W, C] -> f32[B, num_classes]."""
    return ResNet(num_classes, norm=norm, **fields)

  return factory


def _small(blocks):
  """ResNet-(6 blocks + 2) for 32x32 images: Section 4.2."""
  return _resnet(
    10,
    'group',
    stages=(blocks,) * 3,
    width=16,
    block=BasicBlock,
    stem=small_stem,
    shortcut=identity_shortcut,
  )


def _large(stages, block):
  """A row of Table 1 for 224x224 images."""
  return _resnet(
    1000,
    'batch',
    stages=stages,
    width=64,
    block=block,
    stem=large_stem,
    shortcut=projection_shortcut,
  )


resnet20 = _small(3)
"""(num_classes=10, norm='group') -> ResNet-20, for 32x32 images."""
resnet56 = _small(9)
"""(num_classes=10, norm='group') -> ResNet-56, for 32x32 images."""
resnet110 = _small(18)
"""(num_classes=10, norm='group') -> ResNet-110, for 32x32 images."""
resnet18 = _large((2, 2, 2, 2), BasicBlock)
"""(num_classes=1000, norm='batch') -> ResNet-18, for 224x224 images."""
resnet34 = _large((3, 4, 6, 3), BasicBlock)
"""(num_classes=1000, norm='batch') -> ResNet-34, for 224x224 images."""
resnet50 = _large((3, 4, 6, 3), BottleneckBlock)
"""(num_classes=1000, norm='batch') -> ResNet-50, for 224x224 images."""
