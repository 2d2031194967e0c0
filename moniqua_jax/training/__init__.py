"""The training program: from a config to a run and its files.

`registry`, `entries` and `dependences` say what a config may be, `validation`
compares it with them; `experiment` builds it; `loop` runs it; `__main__` reads
the flags.
"""
