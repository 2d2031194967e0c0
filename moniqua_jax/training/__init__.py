"""The training program: from a config to a run and its files.

`registry` and `validation` say what a config may name; `experiment` builds it;
`loop` runs it; `__main__` reads the flags.
"""
