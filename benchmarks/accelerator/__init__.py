"""`python -m benchmarks.accelerator`: see `__main__`."""
