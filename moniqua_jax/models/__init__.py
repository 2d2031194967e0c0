"""flax.linen models of images: module(x: f32[B, H, W, C], train) -> logits."""

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
  'vgg16',
]
