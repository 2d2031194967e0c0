"""Models by name, called as `module.apply(variables, inputs, train=)`.

Of images f32[B, H, W, C] by flax.linen, of text i32[B, T] by flax NNX.
"""

from moniqua_jax import extras

with extras.needed('train'):
  from moniqua_jax.models.resnet import (
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    resnet56,
    resnet110,
  )
  from moniqua_jax.models.small import cnn, mlp
  from moniqua_jax.models.transformer import transformer
  from moniqua_jax.models.vgg import vgg16

__all__ = [
  'cnn',
  'mlp',
  'resnet110',
  'resnet18',
  'resnet20',
  'resnet34',
  'resnet50',
  'resnet56',
  'transformer',
  'vgg16',
]
