"""NUQSGD's experiments on ImageNet: ResNet-18, -34 and -50, eight workers.

  python train.py --config=configs/nuqsgd_imagenet.py:MODEL:METHOD \\
    --config.data.data_dir=DATA --workdir=runs/nuqsgd_imagenet/METHOD

MODEL is resnet18, resnet34 or resnet50, METHOD one of METHODS of
configs/nuqsgd_resnet110.py, DATA a TFDS directory with imagenet2012. Batch 128
per worker (32 in METHOD_small), learning rate .1, momentum .9, weight decay
1e-4, 4 bits, buckets of 8192: the settings of arXiv:1908.06077. How long it
trains is not in what we could read: 90 epochs with a tenth of the rate every 30
are the custom of the field.

MODEL:METHOD:cpu is the small variant of configs/nuqsgd_resnet110.py on images
made up, for a try-out without ImageNet.
"""

import itertools

import ml_collections

from moniqua_jax.configs import digits, nuqsgd_resnet110

MODELS = ('resnet18', 'resnet34', 'resnet50')
METHODS = nuqsgd_resnet110.METHODS
ARGUMENTS = tuple(f'{m}:{n}' for m, n in itertools.product(MODELS, METHODS))


def get_config(names: str = 'resnet18:nuqsgd4') -> ml_collections.ConfigDict:
  """The config of `MODEL:METHOD` or `MODEL:METHOD:cpu`."""
  model, _, method = names.partition(':')
  method, _, variant = (method or 'nuqsgd4').partition(':')
  if model not in MODELS or variant not in ('', 'cpu'):
    raise ValueError(
      f'configs/nuqsgd_imagenet.py:{names}; it takes MODEL:METHOD or '
      f'MODEL:METHOD:cpu, with MODEL one of {list(MODELS)}.'
    )
  config = nuqsgd_resnet110.default(model)
  config.data.update(name='imagenet2012')
  config.batch_size = 32 if method.endswith('_small') else 128
  config.epochs = 90.0
  config.learning_rate.update(name='step', peak=0.1, milestones=(30, 60))
  config.eval_every = config.checkpoint_every = 1.0
  if variant == 'cpu':
    nuqsgd_resnet110.shrink(config)
    config.data.update(name='synthetic', num_train=2_048, num_test=512)
    config.data.update(shape=(32, 32, 3), num_classes=10, seed=0)
  return digits.choose(config, METHODS, method, 'configs/nuqsgd_imagenet.py')
