"""One worker's part of a run: it is set up, resumed, trained, evaluated."""

from collections.abc import Callable
import pathlib
import time
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax

from moniqua_jax import command_line, data
from moniqua_jax.asynchronous import pair
from moniqua_jax.asynchronous import worker as worker_lib
from moniqua_jax.asynchronous.averaging import Averaging
from moniqua_jax.asynchronous.log import Log
from moniqua_jax.asynchronous.network import Network
from moniqua_jax.models import norms
from moniqua_jax.plan import choice
from moniqua_jax.theory import responses
from moniqua_jax.training import experiment as experiment_lib
from moniqua_jax.training import (
  metrics,
  monitor,
  optimizer,
  validation,
  workdir,
)
from moniqua_jax.training import step as step_lib


class Setup(NamedTuple):
  """What a worker computes with; built and compiled."""

  config: Any  # a ConfigDict
  experiment: experiment_lib.Experiment
  state: worker_lib.WorkerState  # with which every worker starts
  # (state, batch, clock) -> (update: f32[d], opt_state, model_state, report)
  descend: Callable
  ends: pair.Ends  # the arithmetic of an averaging
  eval_step: Callable  # (params, model_state, batch) -> sums over the batch
  neighbours: list[int]  # whom this worker may ask


def setup(config, rank: int, n: int) -> Setup:
  """Builds what a config names, for one worker, and compiles it.

  Of the topology it takes who is next to whom; the weight of an averaging is
  1/2, times gamma, the slack.
  """
  _check(config, n)
  experiment = experiment_lib.from_config(config)
  local = optax.chain(
    optimizer.local(config, 1.0, experiment.model.held),
    by_clock(experiment.pace.learning_rate),
  )
  chain = optimizer.only(local)._replace(momentum=optimizer.momentum(config))
  alone = experiment._replace(optimizer=chain)
  init, train_step, eval_step = step_lib.make_steps(alone)
  tuned = experiment.quantizer.tuned
  x, opt_state, model_state = init(rank)
  state = worker_lib.WorkerState(x, opt_state, model_state, tuned.init())

  @jax.jit
  def descend(state, batch, clock):
    before = step_lib.TrainState(state.x, state.opt_state, state.model_state)
    after, report = train_step(before, batch, clock)
    update = after.params - state.x
    report['finite'] = jnp.isfinite(report['loss'] + jnp.sum(update))
    return update, after.opt_state, after.model_state, report

  ends = pair.ends(
    tuned,
    key=jax.random.key(config.seed),
    rank=rank,
    weight=config.gamma / 2,
  )
  asked = neighbours(experiment.setup.schedule, rank)
  eval_step = jax.jit(eval_step)
  built = Setup(config, experiment, state, descend, ends, eval_step, asked)
  _compile(built, rank)
  return built


BESIDE = 'one averaging goes on beside each gradient'
# An entry, what it may be, and why.
TAKES = (
  ('gossip.name', ('adpsgd', 'dpsgd'), 'workers average in pairs'),
  ('rounds', (1,), BESIDE),
  ('rounds_from', ((),), BESIDE),
  ('fragments', (1,), 'all of a model is sent, in local_steps for fewer bytes'),
  ('order', ('adapt_with_combine',), 'a worker answers while it computes'),
  ('momentum_kind.name', ('local',), 'others ask while a worker computes'),
  ('reduce.name', ('none',), 'it waits for all workers'),
  ('smoothness.name', ('none',), 'its estimates wait for all workers'),
  *(
    (f'budget.{entry}', (None,), 'a budget is for steps that all take together')
    for entry in choice.ENTRIES
  ),
)


def _check(config, n):
  validation.validate(config)
  if 'laboratory' in config:
    raise ValueError('this config is of a laboratory: train.py runs it.')
  values = dict(command_line.leaves(config))
  if n < 2:
    raise ValueError(
      f'{n} process; workers average in pairs, so start 2 or more: '
      'mpiexec -n 8 python -m moniqua_jax.asynchronous ...'
    )
  if config.workers != n:
    raise ValueError(
      f'config.workers={config.workers}, but mpiexec started {n} processes; '
      f'give mpiexec -n {config.workers}, or --config.workers={n}.'
    )
  for entry, takes, why in TAKES:
    if values[entry] not in takes:
      raise ValueError(
        f'config.{entry}={values[entry]!r}: {why}; the asynchronous form takes '
        f'{" or ".join(map(repr, takes))}.'
      )
  if config.optimizer.name == 'dadam':
    raise ValueError(
      "config.optimizer.name='dadam': second moments are agreed on in the same "
      "step, and here each worker has a pace of its own; take 'adamw'."
    )


def _compile(built, rank):
  """All that runs while others wait, once, on a worker's first batch."""
  batches = _batches(built, rank, first=0, last=1)
  state, at = built.state, (built.state.tuned, 0)
  update, *_ = built.descend(state, next(batches), 0)
  payload, own = built.ends.speak(state.x, *at, rank, 0)
  seen, move = built.ends.listen(payload, state.x, own, *at)
  built.ends.observe(state.tuned, jax.device_get(seen), True, state.x)
  jax.block_until_ready((state.x + update, state.x + move))


def by_clock(
  learning_rate: Callable,
) -> optax.GradientTransformationExtraArgs:
  """Last in the local chain: times the learning rate at the run's own time.

  A worker's count of its own steps would leave a slow worker at the high rates
  of the beginning.
  """

  def update(updates, state, params=None, *, step, **extra_args):
    del params, extra_args
    rate = learning_rate(step)
    return jax.tree.map(lambda u: rate * u, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def neighbours(schedule, rank: int) -> list[int]:
  """Whom a worker may ask: its neighbours in any round, in either direction."""
  arcs = set().union(*map(responses.arcs, schedule))
  found = {i + j - rank for i, j in arcs if rank in (i, j)}
  if not found:
    raise ValueError(
      f'config.topology gives worker {rank} no neighbour; it needs one.'
    )
  return sorted(found)


def _batches(built, rank, first, last=2**40):
  experiment, config = built.experiment, built.config

  def at(step):
    return data.worker_batch(
      *experiment.data,
      worker=rank,
      seed=config.seed,
      step=step,
      batch_size=config.batch_size,
    )

  return data.prefetch(at, first, last, threads=1)


def resume(worker: worker_lib.Worker, network: Network, folder) -> dict:
  """Puts all workers at the mean of what those of a stopped run saved.

  A worker that was lost has saved nothing, or something old; the mean needs
  none in particular, and at the mean no two are further apart than theta.
  Momentum is each worker's own, and zero for one that lost it.
  """
  saved = worker_lib.load(folder, worker.state)
  state, known = saved or (worker.state, np.zeros(network.n, np.uint32))
  averaged, unravel = ravel_pytree((state.x, state.model_state))
  weight = np.float32(saved is not None)
  total = network.sum(np.append(weight * np.asarray(averaged), weight))
  if not total[-1]:
    raise ValueError(
      f'--resume: {folder.parent} holds no worker*/state.npz; the workers '
      'save theirs every config.checkpoint_every epochs and when a run stops.'
    )
  x, model_state = unravel(jnp.asarray(total[:-1] / total[-1]))
  worker.state = state._replace(x=x, model_state=model_state)
  worker.steps = network.steps = int(network.largest(known)[network.rank])
  workdir.rewind(folder, worker.steps)
  rows = _rows(folder)
  return rows[-1] if rows else {}


def check(worker: worker_lib.Worker, folder) -> None:
  """Reads what `resume` will: a `ValueError` names a file that is broken."""
  worker_lib.load(folder, worker.state)
  _rows(folder)


def _rows(folder) -> list[dict]:
  there = (folder / 'metrics.jsonl').exists()
  return metrics.read(folder) if there else []


class Process(NamedTuple):
  """All that a process trains with."""

  built: Setup
  worker: worker_lib.Worker
  averaging: Averaging
  network: Network
  log: Log
  folder: pathlib.Path  # of this worker, below that of the run


def train(process: Process, pace: worker_lib.Pace) -> None:
  """Steps until the workers together have taken n times the steps of the run.

    x <- x + u        u of a gradient at an x that was some averagings ago

  One averaging is asked for in each step and goes on beside the gradient; the
  next step waits for its end, so that no worker runs ahead of its messages.

  Source: arXiv:1710.06952, Algorithm 1.
  """
  built, worker, averaging, network, log, folder = process
  steps, config = built.experiment.pace.steps, built.config
  saving = config.checkpoint_every * built.experiment.pace.steps_per_epoch
  batches = _batches(built, network.rank, worker.steps)
  while (clock := network.clock()) < steps:
    began = network.step_began = time.monotonic()
    if built.experiment.turns.at(worker.steps):
      averaging.ask()
    update, opt_state, model_state, report = built.descend(
      worker.begin(), next(batches), clock
    )
    report = _checked(jax.device_get(report), network.rank, worker.steps)
    pace.sleep(began)
    late = worker.descend(update, opt_state, model_state)
    network.steps = worker.steps
    network.step_began = None
    averaging.wait()
    log.take(report, late)
    if worker.steps % config.log_every == 0:
      log.write()
    if worker.steps % max(1, round(saving)) == 0:
      worker.save(folder, network.known())


def _checked(report, rank, step):
  if not report['finite']:
    raise monitor.Stopped(
      f'step {step} of worker {rank}: the loss is {report["loss"]}, or the '
      'update is not finite; try a smaller learning rate.'
    )
  return report


def finish(process: Process) -> dict | None:
  """Waits for all workers, and evaluates each of them and their mean."""
  built, worker, averaging, network, log, folder = process
  network.barrier(lambda: not averaging.busy)
  state = worker.state
  worker.save(folder, network.known())
  mean = network.sum(np.asarray(state.x)) / np.float32(network.n)
  apart = np.abs(np.asarray(state.x) - mean)
  _, own = network.during(lambda: _evaluate(built, state.x, state.model_state))
  row = log.write(**{'test/accuracy': own}) | _largest(metrics.read(folder))
  row |= {'square': np.mean(apart**2), 'largest': apart.max()}
  sources = sorted({source for source, _ in OF_ALL.values()})
  statistics, unravel = ravel_pytree(state.model_state)
  mine = np.array([*(row[name] for name in sources), *statistics], np.float64)
  rows = network.gather(mine)
  result = None
  if network.rank == 0:
    columns = dict(zip(sources, rows.T, strict=False))
    result = {name: f(columns[source]) for name, (source, f) in OF_ALL.items()}
    pooled = jax.vmap(unravel)(jnp.float32(rows[:, len(sources) :]))
    loss, accuracy = network.during(
      lambda: _evaluate(built, jnp.asarray(mean), norms.combine(pooled))
    )
    result |= {'test/loss': loss, 'test/accuracy': accuracy}
    result |= built.experiment.task.measures(loss)
    writer = metrics.Writer(folder.parent, built.config.tensorboard)
    writer.write(result)
    writer.close()
  network.barrier()
  return result


# The row of the run: from which number of the workers, and how.
OF_ALL: dict[str, tuple[str, Callable]] = {
  'step': ('pace/clock', lambda column: int(column.max())),
  'epoch': ('epoch', np.mean),
  'seconds': ('seconds', np.max),
  'wire/bytes_sent': ('wire/bytes_sent', np.mean),
  'gossip/messages': ('pace/averagings', np.sum),
  'gossip/unreadable': ('pace/unreadable', np.sum),
  'gossip/distance_over_theta': ('gossip/distance_over_theta', np.max),
  'gossip/theta': ('gossip/theta', np.max),
  'gossip/consensus_rms': ('square', lambda column: np.sqrt(column.mean())),
  'gossip/consensus_max': ('largest', np.max),
  'test/worst_worker': ('test/accuracy', np.min),
  'test/mean_worker': ('test/accuracy', np.mean),
}


def _largest(rows: list[dict]) -> dict:
  """What the run stayed below; NaN for a quantizer without theta."""
  names = 'gossip/distance_over_theta', 'gossip/theta'
  found = [[row.get(name) or np.nan for name in names] for row in rows]
  return dict(zip(names, np.fmax.reduce(found), strict=True))


def _evaluate(built, x, model_state):
  """Loss and accuracy on the test images."""
  batches = data.test_batches(built.experiment.data.dataset, 64)
  each = [np.asarray(built.eval_step(x, model_state, b)) for b in batches]
  sums = np.sum(each, axis=0)
  return float(sums[0] / sums[2]), float(sums[1] / sums[2])
