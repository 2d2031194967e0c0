"""Many processes: starting them, joining them, and who holds which rows.

`python -m moniqua_jax.launch --n N -- COMMAND` starts N processes here.
"""
