"""`python -m moniqua_jax.plots`: see runs.py."""

from moniqua_jax import command_line

command_line.plots()
