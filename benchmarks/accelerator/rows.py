"""Rows of a table that take turns, so that they meet the same machine."""

from concurrent import futures
import time

import jax
import numpy as np

LEAST = 0.02  # seconds of a turn
TURNS = 7


def medians(rows: dict) -> dict:
  """Milliseconds of a call, by row; a row is calls -> arrays to wait for."""
  calls = {name: _calls(run) for name, run in rows.items()}
  times = {name: [] for name in rows}
  for _ in range(TURNS):
    for name, run in rows.items():
      times[name].append(_seconds(run, calls[name]) / calls[name])
  return {name: 1e3 * np.median(taken) for name, taken in times.items()}


def _calls(run) -> int:
  run(1)  # loads the program
  return next(k for k in (2**i for i in range(16)) if _seconds(run, k) >= LEAST)


def _seconds(run, calls) -> float:
  began = time.perf_counter()
  jax.block_until_ready(run(calls))
  return time.perf_counter() - began


def again(fn, *args):
  """A row of calls of which none waits for another."""

  def run(calls):
    for _ in range(calls):
      result = fn(*args)
    return result

  return run


def compiled(programs: dict) -> dict:
  """Compiles name -> (jitted fn, args) in threads, on all cores."""
  lowered = {name: fn.lower(*args) for name, (fn, args) in programs.items()}
  with futures.ThreadPoolExecutor() as pool:
    built = pool.map(lambda each: each.compile(), lowered.values())
    return dict(zip(lowered, built, strict=True))


def table(head: str, rows) -> str:
  """A table of Markdown; the first column is of words."""
  line = lambda cells: f'| {" | ".join(cells)} |\n'
  columns = head.split(', ')
  rule = ['---', *['---:'] * (len(columns) - 1)]
  shown = lambda v: v if isinstance(v, str) else f'{v:#.3g}'.rstrip('.')
  return ''.join(map(line, [columns, rule, *(map(shown, r) for r in rows)]))


def copy_said(ms, d) -> str:
  """What `x + 1` is on this machine, in words."""
  return (
    f'`x + 1` takes {ms:.3g} ms: {4e-6 * d / ms:.4g} GB/s of f32 read, and as '
    'much written.'
  )


def normal(*shape):
  return jax.jit(lambda k: jax.random.normal(k, shape))(jax.random.key(0))
