"""VGG-16 for images of 32x32 pixels.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015, arXiv:1409.1556: Table 1, column D, with normalisation
after each convolution and one dense layer, as is usual for small images.
"""

from flax import linen as nn
import jax.numpy as jnp

from moniqua_jax.models import norms

# Channels of the convolutions between two poolings.
STAGES = (
  (64, 64),
  (128, 128),
  (256, 256, 256),
  (512, 512, 512),
  (512, 512, 512),
)


class VGG(nn.Module):
  """Stages of 3x3 convolutions, each followed by a 2x2 maximum."""

  num_classes: int
  stages: tuple[tuple[int, ...], ...]
  norm: str

  @nn.compact
  def __call__(self, x, train: bool = True):
    norm = norms.make(self.norm, train)
    for stage in self.stages:
      for features in stage:
        x = nn.Conv(
          features,
          (3, 3),
          use_bias=False,
          kernel_init=nn.initializers.he_normal(),
        )(x)
        x = nn.relu(norm()(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


def vgg16(num_classes: int = 10, norm: str = 'group') -> VGG:
  """VGG-16: 13 convolutions and a dense layer, 14.7 M parameters.

  f32[B, H, W, C] -> f32[B, num_classes]; H and W are multiples of 32.
  """
  return VGG(num_classes, STAGES, norm)
