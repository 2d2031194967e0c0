"""A set of methods on one problem: what `train.py` runs for such a config.

Everything is written below the work directory: the config, where it came from,
metrics.jsonl, checkpoints while it runs, a table and a figure. A run that was
stopped goes on with --resume, bit for bit.
"""

from collections.abc import Callable
import contextlib
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from moniqua_jax.laboratory import (
  libsvm,
  methods,
  problems,
  report,
  runs,
  splits,
  stopping,
)
from moniqua_jax.training import (
  checkpoint,
  digests,
  registry,
  signals,
  validation,
)
from moniqua_jax.training import workdir as workdir_lib

CHUNK = 250  # iterations in one call of the compiled function
MINUTES = 3  # between two checkpoints
LARGEST = 2**32 // 12  # values of a `Record` of 4 GiB

DATA: dict[str, Callable] = {
  'libsvm': libsvm.read,
  'breast_cancer': libsvm.breast_cancer,
  'digits': libsvm.digits,
}
PROBLEMS = {
  'logistic_regression': problems.logistic_regression,
  'ridge_regression': problems.ridge_regression,
}
# Of what a problem takes: one predicts numbers, which need be no classes.
DATA_FOR = {'ridge_regression': DATA | {'libsvm': libsvm.read_targets}}
PARTITIONS = {'by_norm': splits.by_norm, 'iid': splits.iid}


class Record(NamedTuple):
  """What was measured so far of S seeds, M methods, at most T iterations."""

  distance: np.ndarray  # f64[S, M, T]
  coded: np.ndarray  # f32[S, M, T], bits of a worker in each iteration, coded
  done: np.ndarray  # i64[M], iterations
  seconds: np.ndarray  # f64[], of all methods together


def problem_of(config) -> problems.Problem:
  """The problem that a config names."""
  validation.validate(config)
  sets = DATA_FOR.get(config.problem.name, DATA)
  features, labels = registry.build(sets, 'data', config.data)
  if config.workers > len(features):
    raise ValueError(
      f'config.workers={config.workers}; {len(features)} rows make 1 to '
      f'{len(features)} workers.'
    )
  if config.row_scaled:
    features = splits.row_scaled(features)
  parts = registry.build(
    PARTITIONS,
    'partition',
    config.partition,
    features=features,
    labels=labels,
    n=config.workers,
    seed=config.seed,
  )
  features, targets = parts
  name = pathlib.Path(config.data.get('path') or config.data.name).name
  return registry.build(
    PROBLEMS,
    'problem',
    config.problem,
    features=features,
    targets=targets,
    name=name,
  )


def methods_of(config, problem) -> dict[str, methods.Method]:
  """The methods that a config names."""
  unknown = set(config.methods) - set(methods.METHODS)
  if unknown:
    raise ValueError(
      f'config.methods: {sorted(unknown)} unknown; choose from '
      f'{list(methods.METHODS)}.'
    )
  values = config.seeds * len(config.methods) * config.iterations
  if values > LARGEST:
    raise ValueError(
      f'config.iterations={config.iterations}: {config.seeds} seeds of '
      f'{len(config.methods)} methods are {12 * values / 2**30:.0f} GiB of '
      f'records, above 4; take {LARGEST * config.iterations // values} at most.'
    )
  return {name: _method_of(config, problem, name) for name in config.methods}


def _method_of(config, problem, name) -> methods.Method:
  try:
    return methods.METHODS[name](problem, config.norm)
  except ValueError as error:
    raise ValueError(
      f'config.methods: {name!r}: {error} Leave it out, or take other data.'
    ) from error


def describe(config) -> str:
  """What a run would do, in words: for --dry_run and at the start."""
  problem = problem_of(config)
  rows = {
    'problem': f'{config.problem.name} on {problem.name}, {problem.n} workers '
    f'with {problem.m} rows of {problem.d} each, {config.partition.name}',
    'constants': f'L {problem.L:.4g}, L_max {problem.L_max:.4g}, mu '
    f'{problem.mu:.4g}, L / mu {problem.L / problem.mu:.4g}',
    'run': f'{config.iterations} iterations at most, {config.seeds} seeds, '
    f'norm {config.norm}',
  }
  text = [f'{name:10s} {row}' for name, row in rows.items()]
  for name, method in methods_of(config, problem).items():
    text.append(report.one_line(name, method, problem))
  return '\n'.join(text)


def run(config, workdir: str, resume: bool = False) -> str:
  """Runs all methods of a config until each is done, and writes the report."""
  problem = problem_of(config)
  named = methods_of(config, problem)
  keys = jax.random.split(jax.random.key(config.seed), config.seeds)
  folder = pathlib.Path(workdir)
  marks = digests.of({'rows': problem.features, 'targets': problem.targets})
  with workdir_lib.opened(folder, config, resume, marks) as workdir:
    record = _iterate(config, problem, list(named.values()), keys, workdir)
    clock = None
    if config.clock:
      clock = _clock(problem, list(named.values()), keys)
    workdir_lib.note(workdir, seconds=float(record.seconds))
    return report.write(workdir, config, problem, named, record, clock)


def _iterate(config, problem, all_methods, keys, workdir) -> Record:
  carry, record = runs.start(problem, all_methods, keys), _empty(config)
  with contextlib.ExitStack() as stack:
    came = stack.enter_context(signals.heard())
    checkpoints = checkpoint.manager(workdir, keep=1)
    stack.enter_context(contextlib.closing(checkpoints))
    start, (carry, record) = checkpoint.restore(checkpoints, (carry, record))
    workdir_lib.require_saved(workdir, start)
    record = jax.tree.map(np.array, record)
    carry, active, compiled = list(carry), [], None
    began, saved = time.perf_counter() - record.seconds, time.perf_counter()
    progress = tqdm(total=config.iterations, unit='it', mininterval=5)
    progress.update(int(record.done.max()))
    while wanted := _wanted(record, all_methods, config.iterations):
      # To compile again takes longer than to carry one method along.
      if compiled is None or len(wanted) <= 0.8 * len(active):
        active = wanted
        chosen = [all_methods[i] for i in active]
        compiled = runs.advance(problem, chosen, CHUNK)
      first = int(record.done[active[0]])
      moved, trace = compiled([carry[i] for i in active], keys, np.int64(first))
      for place, i in enumerate(active):
        carry[i] = moved[place]
      _note(record, active, first, trace)
      record.seconds[...] = time.perf_counter() - began
      progress.update(CHUNK)
      progress.set_postfix_str(f'{len(wanted)} methods')
      number = came()
      if number or time.perf_counter() - saved > 60 * MINUTES:
        step = int(record.done.max())
        checkpoint.save(checkpoints, step, (carry, record))
        checkpoints.wait_until_finished()
        workdir_lib.note(workdir, saved=step)
        saved = time.perf_counter()
      if number:
        said = f'{workdir} has all of iteration {record.done.max()}'
        raise signals.Interrupted(number, said)
    progress.close()
  return record


def _empty(config) -> Record:
  rounded = -(-config.iterations // CHUNK) * CHUNK
  shape = config.seeds, len(config.methods), rounded
  return Record(
    np.ones(shape),
    np.zeros(shape, np.float32),
    np.zeros(len(config.methods), np.int64),
    np.zeros(()),
  )


def _wanted(record, all_methods, last) -> list[int]:
  """The methods that go on. All that go on have done as many iterations."""
  seen = lambda i: record.distance[:, i, : record.done[i]]
  front = record.done.max()
  return [
    i
    for i, method in enumerate(all_methods)
    if record.done[i] == front
    and (front == 0 or stopping.reason(seen(i), method.most, last) is None)
  ]


def _note(record, active, first, trace):
  stop = first + CHUNK
  for rows, new in (
    (record.distance, trace.distance),
    (record.coded, trace.coded),
  ):
    rows[:, active, first:stop] = np.asarray(new)
  record.done[active] = stop


def _clock(problem, all_methods, keys, rounds=3, length=50) -> list[float]:
  """Seconds of one iteration of each method alone, one seed: the median.

  Of this machine, all workers on it and nothing sent over a network.
  """
  one, timed = keys[:1], []
  for method in all_methods:
    carry = runs.start(problem, [method], one)
    compiled = runs.advance(problem, [method], length)
    carry, _ = jax.block_until_ready(compiled(carry, one, np.int64(0)))
    timed.append((compiled, carry, []))
  for _ in range(rounds):  # interleaved: the machine may have other work
    for place, (compiled, carry, seconds) in enumerate(timed):
      began = time.perf_counter()
      carry, _ = jax.block_until_ready(compiled(carry, one, np.int64(0)))
      seconds.append((time.perf_counter() - began) / length)
      timed[place] = compiled, carry, seconds
  return [float(np.median(seconds)) for _, _, seconds in timed]
