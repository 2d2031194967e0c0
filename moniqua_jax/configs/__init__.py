"""The configs by name: `from moniqua_jax.configs import digits`.

Their files are in configs/ at the top of a clone. A wheel has them here, in the
place of this file (see pyproject.toml).
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).parents[2] / 'configs')]
