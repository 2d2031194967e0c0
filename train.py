"""Trains a model whose workers send each other a few bits per parameter.

python train.py --config=configs/digits.py:moniqua4 --workdir=runs/moniqua4
"""

from moniqua_jax.training import __main__ as main

if __name__ == '__main__':
  main.run()
