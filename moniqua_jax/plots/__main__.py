"""`python -m moniqua_jax.plots`: see runs.py."""

import sys

from moniqua_jax.plots import runs

sys.exit(runs.main())
